// Runs ONNX's own test cases through Heed: `onnx_conformance DIR`, where DIR has a manifest.json that lists the cases
// and a folder for each (model.onnx, test_data_set_0/*.pb). Prints one line a case and 'N passed, M failed'; the exit
// status is 1 if any failed. It implements the operators' definitions, whatever the cases ask: Attention (23, 24, 25),
// RotaryEmbedding (23), LinearAttention (27), FlexAttention (preview 1) by the engine; RMSNormalization (23) and
// TensorScatter (24), which are not attention, in plain loops.
//
// A result passes if it has the expected type and shape and differs by at most, of the expected value x:
//   f32   2e-6, or 2e-6 |x| beyond 1
//   f16   one rounding unit, 2^-10 |x| + 2^-20
//   bf16  two units, 2^-6 |x| + 2^-12: the expected values come from steps that were each rounded to bf16
//   f64   1e-12, or 1e-12 |x| beyond 1
// integers and booleans must be equal. Where the softmax is asked for in a narrower type than the result's, that type's
// bar holds.
#include <heed/attention.h>
#include <heed/linear.h>
#include <heed/rotary.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "onnx_graph.h"

namespace heed::onnx {
namespace {

using Json = nlohmann::json;

struct Failed : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string text(const std::vector<int64_t>& dims) {
  std::string all = "[";
  for (const int64_t d : dims) all += (all.size() > 1 ? ", " : "") + std::to_string(d);
  return all + "]";
}

// ---- A case ----

struct Case {
  std::string name, op, folder, model;  // model: the file
  Json attributes;
  std::vector<std::string> slots, results;  // names of the node's inputs and outputs, "" where one is left out
  Values inputs, expected;

  bool has(size_t slot) const { return slot < slots.size() && !slots[slot].empty(); }
  const Array& input(size_t slot) const {
    if (!has(slot)) throw Failed(op + " lacks input " + std::to_string(slot));
    const auto found = inputs.find(slots[slot]);
    if (found == inputs.end()) throw Failed("input '" + slots[slot] + "' has no file");
    return found->second;
  }
  bool wants(size_t output) const { return output < results.size() && !results[output].empty(); }
  template <class T>
  T attribute(const std::string& name, T otherwise) const {
    const auto found = attributes.find(name);
    return found == attributes.end() || found->is_null() ? otherwise : found->get<T>();
  }
  bool given(const std::string& name) const { return attributes.contains(name); }
};

// The results of a case: one for each output wanted, and how exact they can be.
struct Results {
  Values values;
  int exactness = 0;  // the narrowest type that came in between, if it is not the result's
};

// ---- Arrays and the engine's tensors ----

DType dtype_of(int type) {
  switch (type) {
    case kFloat:
      return DType::f32;
    case kDouble:
      return DType::f64;
    case kHalf:
      return DType::f16;
    case kBfloat:
      return DType::bf16;
    default:
      throw Failed("element type " + std::to_string(type) + " where a real one is needed");
  }
}

// Memory in an engine's dtype behind a view of four axes.
struct Memory {
  int type;
  std::vector<uint8_t> bytes;
  Shape shape{}, stride{};

  Memory(int type, Shape shape, Shape stride, size_t elements)
      : type(type), bytes(std::max<size_t>(1, elements) * size_of(type)), shape(shape), stride(stride) {}
  Memory(int type, Shape shape)
      : Memory(type, shape, dense(shape), static_cast<size_t>(shape[0] * shape[1] * shape[2] * shape[3])) {}
  // The array's elements in their order, seen through the view.
  Memory(const Array& a, int type, Shape shape, Shape stride) : Memory(type, shape, stride, a.values.size()) {
    for (size_t k = 0; k < a.values.size(); ++k) put(k, a.values[k]);
  }

  void put(size_t k, double x) {
    const auto write = [&](auto value) { std::memcpy(bytes.data() + k * sizeof value, &value, sizeof value); };
    if (type == kFloat) write(static_cast<float>(x));
    if (type == kDouble) write(x);
    if (type == kHalf) write(half_of_float(static_cast<float>(x)));
    if (type == kBfloat) write(bfloat_of_float(static_cast<float>(x)));
  }
  double get(size_t k) const {
    uint64_t bits = 0;
    std::memcpy(&bits, bytes.data() + k * size_of(type), size_of(type));
    return element(type, bits);
  }
  // All elements in the memory's order.
  Array array(int as, const std::vector<int64_t>& dims) const {
    Array a(as, dims);
    for (size_t k = 0; k < a.values.size(); ++k) a.values[k] = rounded(as, get(k));
    return a;
  }
  // Batches [b, b + n), or all.
  Tensor view(int64_t b = 0, int64_t n = -1) {
    Shape s = shape;
    if (n >= 0 && shape[0] != 1) s[0] = n;
    const int64_t first = shape[0] == 1 ? 0 : b * stride[0] * static_cast<int64_t>(size_of(type));
    return tensor(static_cast<void*>(bytes.data() + first), dtype_of(type), s, stride);
  }
};

// [B, H, L, D], or [B, L, H * D] with so many heads.
struct Layout {
  Shape shape{}, stride{};
  Layout(const std::vector<int64_t>& dims, int64_t heads) {
    if (dims.size() == 4) {
      shape = {dims[0], dims[1], dims[2], dims[3]};
      stride = dense(shape);
    } else if (dims.size() == 3) {
      if (heads < 1 || dims[2] % heads != 0)
        throw Failed(std::to_string(heads) + " heads do not divide " + std::to_string(dims[2]) + " channels");
      const int64_t D = dims[2] / heads;
      shape = {dims[0], heads, dims[1], D};
      stride = {dims[1] * dims[2], D, dims[2], 1};
    } else {
      throw Failed("a tensor has shape " + text(dims) + "; 3 or 4 axes are needed");
    }
  }
};

Array four_axes(const Array& a, const Layout& layout) {
  Array out(a.type, {layout.shape.begin(), layout.shape.end()});
  size_t k = 0;
  const auto& [n, s] = std::pair{layout.shape, layout.stride};
  for (int64_t b = 0; b < n[0]; ++b)
    for (int64_t h = 0; h < n[1]; ++h)
      for (int64_t i = 0; i < n[2]; ++i)
        for (int64_t d = 0; d < n[3]; ++d, ++k)
          out.values[k] = a.values[static_cast<size_t>(b * s[0] + h * s[1] + i * s[2] + d)];
  return out;
}

// [B, H, P, D] and [B, H, S, D] to [B, H, P + S, D].
Array concatenated(const Array& past, const Array& now) {
  if (past.dims.size() != 4 || past.dim(0) != now.dim(0) || past.dim(1) != now.dim(1) || past.dim(3) != now.dim(3))
    throw Failed("past has shape " + text(past.dims) + " but what follows it has " + text(now.dims));
  const int64_t P = past.dim(2), S = now.dim(2), D = now.dim(3);
  Array out(now.type, {now.dim(0), now.dim(1), P + S, D});
  for (int64_t head = 0; head < now.dim(0) * now.dim(1); ++head) {
    const auto to = out.values.begin() + head * (P + S) * D;
    std::copy_n(past.values.begin() + head * P * D, P * D, to);
    std::copy_n(now.values.begin() + head * S * D, S * D, to + P * D);
  }
  return out;
}

// ---- Attention ----

constexpr double kHidden = -std::numeric_limits<double>::infinity();

// attn_mask as the engine takes it: with four axes, of which all but the last may be 1, and S keys. A last axis that is
// too short hides the keys behind it. A boolean mask becomes a mask, so that what it hides is not read; one of numbers
// becomes a bias.
class GivenMask {
 public:
  GivenMask(const Array& mask, int64_t S, int type) : boolean_(mask.type == kBool), numbers_(type, {0, 0, 0, 0}) {
    if (mask.dims.empty() || mask.dims.size() > 4) throw Failed("attn_mask has shape " + text(mask.dims));
    std::copy(mask.dims.begin(), mask.dims.end(), shape_.end() - static_cast<int64_t>(mask.dims.size()));
    const int64_t own = shape_[3], rows = shape_[0] * shape_[1] * shape_[2];
    shape_[3] = std::max(own, S);
    if (boolean_)
      visible_ = std::make_unique<bool[]>(static_cast<size_t>(rows * shape_[3]));
    else
      numbers_ = Memory(type, shape_);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < shape_[3]; ++j) {
        const double x = j < own ? mask.values[static_cast<size_t>(r * own + j)] : boolean_ ? 0 : kHidden;
        const auto at = static_cast<size_t>(r * shape_[3] + j);
        if (boolean_)
          visible_[at] = x != 0;
        else
          numbers_.put(at, x);
      }
  }

  // Of batches [b, b + n).
  void add_to(Attention& a, int64_t b, int64_t n) {
    if (!boolean_) {
      a.bias = numbers_.view(b, n);
      return;
    }
    Shape some = shape_;
    if (some[0] != 1) some[0] = n;
    const int64_t first = shape_[0] == 1 ? 0 : b * dense(shape_)[0];
    a.mask = a.mask & boolean(visible_.get() + first, some);
  }

 private:
  bool boolean_;
  Shape shape_{1, 1, 1, 1};
  std::unique_ptr<bool[]> visible_;
  Memory numbers_;
};

// Softmax of each row with every step rounded to `type`, for a softmax_precision that the engine does not go down to.
Array weights_in(int type, const Array& scores, int64_t S) {
  Array p = scores;
  for (size_t row = 0; row < p.values.size(); row += static_cast<size_t>(S)) {
    double* const x = p.values.data() + row;
    double largest = kHidden, sum = 0;
    for (int64_t j = 0; j < S; ++j) largest = std::fmax(largest, x[j] = rounded(type, x[j]));
    for (int64_t j = 0; j < S; ++j) {
      x[j] = largest == kHidden && !std::isnan(x[j]) ? 0 : rounded(type, std::exp(rounded(type, x[j] - largest)));
      sum += x[j];
    }
    for (int64_t j = 0; j < S && sum != 0; ++j) x[j] = rounded(type, x[j] / rounded(type, sum));
  }
  return p;
}

bool narrower(int a, int b) { return size_of(a) < size_of(b); }

Results attention(const Case& c) {
  const Array &Q = c.input(0), &K = c.input(1), &V = c.input(2);
  const bool packed = Q.dims.size() == 3, past = c.has(4) || c.has(5), external = c.has(6);
  if (K.dims.size() != Q.dims.size() || V.dims.size() != Q.dims.size()) throw Failed("Q, K and V differ in rank");
  if (packed && (!c.given("q_num_heads") || !c.given("kv_num_heads")))
    throw Failed("3D inputs need q_num_heads and kv_num_heads");
  if (c.has(4) != c.has(5)) throw Failed("past_key and past_value come together");
  if (past && external) throw Failed("past_key and nonpad_kv_seqlen exclude each other");

  const Layout q_layout(Q.dims, c.attribute<int64_t>("q_num_heads", 0));
  const int64_t kv_heads = c.attribute<int64_t>("kv_num_heads", 0);
  Layout k_layout(K.dims, kv_heads), v_layout(V.dims, kv_heads);
  Array keys = K, values = V;
  const int64_t P = past ? c.input(4).dim(2) : 0;
  if (past) {
    keys = concatenated(c.input(4), four_axes(K, k_layout));
    values = concatenated(c.input(5), four_axes(V, v_layout));
    k_layout = Layout(keys.dims, 0);
    v_layout = Layout(values.dims, 0);
  }
  const int64_t B = q_layout.shape[0], Hq = q_layout.shape[1], L = q_layout.shape[2], S = k_layout.shape[2];
  const Shape full{B, Hq, L, S};

  // The engine has one dtype for all; where the case mixes types, f32 or f64 holds the values of both.
  const bool all_same = K.type == Q.type && V.type == Q.type;
  const bool wide = Q.type == kDouble || K.type == kDouble || V.type == kDouble;
  const int exact = wide ? kDouble : kFloat;
  const int type = all_same ? Q.type : exact;
  const int precision = c.attribute<int>("softmax_precision", 0);
  const bool rounds = precision != 0 && narrower(precision, exact) && narrower(precision, Q.type);

  const std::vector<int64_t> nonpad =
      external ? std::vector<int64_t>(c.input(6).values.begin(), c.input(6).values.end()) : std::vector<int64_t>();
  if (external && static_cast<int64_t>(nonpad.size()) != B)
    throw Failed("nonpad_kv_seqlen has " + std::to_string(nonpad.size()) + " values but the batch is " +
                 std::to_string(B));
  const int64_t left = c.attribute<int64_t>("left_window_size", -1),
                right = c.attribute<int64_t>("right_window_size", -1);

  Results results;
  if (rounds) results.exactness = precision;

  // Calls f(attention, first batch, batches), its tensors of type t: once, or for each batch if masks are placed by
  // what the batch's cache holds.
  const auto problems = [&](int t, auto&& f) {
    Memory q(Q, t, q_layout.shape, q_layout.stride), k(keys, t, k_layout.shape, k_layout.stride);
    Memory v(values, t, v_layout.shape, v_layout.stride);
    std::optional<GivenMask> mask;
    if (c.has(3)) mask.emplace(c.input(3), S, t == kDouble ? kDouble : kFloat);
    for (int64_t b = 0, n; b < B; b += n) {
      n = external ? 1 : B;
      const int64_t offset = external ? nonpad[b] - L : P;
      Attention a{.q = q.view(b, n), .k = k.view(b, n), .v = v.view(b, n)};
      if (c.given("scale")) a.scale = c.attribute<double>("scale", 1);
      a.softcap = c.attribute<double>("softcap", 0);
      if (mask) mask->add_to(a, b, n);
      if (c.attribute<int>("is_causal", 0)) a.mask = a.mask & causal(offset);
      if (left != -1 || right != -1) a.mask = a.mask & window(left, right, offset);
      if (external) a.mask = a.mask & lengths({nonpad[b]});
      f(a, b, n);
    }
  };

  // The scores after 0: the product, 1: softcap, 2: the masks; 3: the weights. In the type of the arithmetic.
  const auto dense_scores = [&](int stage) {
    Memory scores(exact, full);
    problems(exact, [&](Attention a, int64_t b, int64_t n) {
      if (stage == 0) a.softcap = 0;
      if (stage < 2) {
        a.bias = {};
        a.mask = {};
      }
      score(a, scores.view(b, n));
      if (stage == 3 && !rounds) weigh(scores.view(b, n), scores.view(b, n));
    });
    const Array out = scores.array(exact, {B, Hq, L, S});
    return stage == 3 && rounds ? weights_in(precision, out, S) : out;
  };

  if (c.wants(0)) {
    const int64_t Dv = v_layout.shape[3];
    Shape shape{B, Hq, L, Dv}, stride = dense(shape);
    if (packed) stride = {L * Hq * Dv, Dv, Hq * Dv, 1};
    Memory out(rounds ? exact : type, shape, stride, static_cast<size_t>(B * Hq * L * Dv));
    if (rounds) {
      Memory weights(dense_scores(3), exact, full, dense(full));
      problems(exact,
               [&](const Attention& a, int64_t b, int64_t n) { gather(weights.view(b, n), a.v, out.view(b, n)); });
    } else {
      problems(type, [&](const Attention& a, int64_t b, int64_t n) { forward(a, {out.view(b, n)}); });
    }
    results.values[c.results[0]] =
        out.array(Q.type, packed ? std::vector<int64_t>{B, L, Hq * Dv} : std::vector<int64_t>{B, Hq, L, Dv});
  }
  if (c.wants(1)) results.values[c.results[1]] = past ? keys : four_axes(keys, k_layout);
  if (c.wants(2)) results.values[c.results[2]] = past ? values : four_axes(values, v_layout);
  if (c.wants(3)) {
    Array scores = dense_scores(c.attribute<int>("qk_matmul_output_mode", 0));
    scores.type = Q.type;
    for (double& x : scores.values) x = rounded(Q.type, x);
    results.values[c.results[3]] = scores;
  }
  return results;
}

// ---- FlexAttention ----

const Graph* graph_of(const Graph& model, const std::string& op, const std::string& attribute) {
  for (const Node& node : model.nodes) {
    if (node.op != op) continue;
    const auto found = node.attributes.find(attribute);
    return found == node.attributes.end() ? nullptr : found->second.graph.get();
  }
  return nullptr;
}

Results flex_attention(const Case& c) {
  const Array &Q = c.input(0), &K = c.input(1), &V = c.input(2);
  if (Q.dims.size() != 4 || K.dims.size() != 4 || V.dims.size() != 4) throw Failed("FlexAttention needs 4D inputs");
  const int precision = c.attribute<int>("softmax_precision", Q.type == kDouble ? kDouble : kFloat);
  const bool wide = Q.type == kDouble || K.type == kDouble || V.type == kDouble || precision == kDouble;
  const int exact = wide ? kDouble : kFloat;
  const Layout q(Q.dims, 0), k(K.dims, 0), v(V.dims, 0);
  const int64_t B = Q.dim(0), H = Q.dim(1), L = Q.dim(2), S = K.dim(2);
  const Shape out_shape{B, H, L, V.dim(3)}, full{B, H, L, S};
  const std::vector<int64_t> out_dims(out_shape.begin(), out_shape.end());

  const auto model_bytes = read_file(c.model);
  const Graph model = parse_model(model_bytes);
  const Graph* const score_mod = graph_of(model, c.op, "score_mod");
  const Graph* const prob_mod = graph_of(model, c.op, "prob_mod");
  for (const char* name : {"score_mod", "prob_mod"})
    if (c.given(name) && !graph_of(model, c.op, name)) throw Failed(std::string("model.onnx has no graph ") + name);

  const bool plain = !score_mod && !prob_mod;
  const int type = plain && K.type == Q.type && V.type == Q.type ? Q.type : exact;
  Memory mq(Q, type, q.shape, q.stride), mk(K, type, k.shape, k.stride), mv(V, type, v.shape, v.stride);
  Attention a{.q = mq.view(), .k = mk.view(), .v = mv.view()};
  if (c.given("scale")) a.scale = c.attribute<double>("scale", 1);
  Memory out(type, out_shape);
  Results results;
  if (plain) {
    forward(a, {out.view()});
  } else {
    Values outside = c.inputs;
    for (const auto& [name, array] : model.initializers) outside[name] = array;
    Interpreter interpreter(outside);
    Memory scores(type, full);
    score(a, scores.view());
    Array all = scores.array(precision, {B, H, L, S});
    if (score_mod) all = interpreter.run(*score_mod, all);
    if (all.dims != std::vector<int64_t>{B, H, L, S}) throw Failed("score_mod gives shape " + text(all.dims));
    Memory weights(all, type, full, dense(full));
    weigh(weights.view(), weights.view());
    Array p = weights.array(precision, {B, H, L, S});
    // There is no guard for rows that see nothing: the definition gives NaN, the engine zeros.
    for (size_t row = 0; S > 0 && row < p.values.size(); row += static_cast<size_t>(S)) {
      const auto from = all.values.begin() + static_cast<int64_t>(row);
      if (std::all_of(from, from + S, [](double x) { return x == kHidden; }))
        std::fill_n(p.values.begin() + static_cast<int64_t>(row), S, std::numeric_limits<double>::quiet_NaN());
    }
    if (prob_mod) p = interpreter.run(*prob_mod, p);
    if (p.dims != std::vector<int64_t>{B, H, L, S}) throw Failed("prob_mod gives shape " + text(p.dims));
    Memory modified(p, type, full, dense(full));
    gather(modified.view(), a.v, out.view());
    if (narrower(precision, Q.type)) results.exactness = precision;
  }
  results.values[c.results.at(0)] = out.array(Q.type, out_dims);
  return results;
}

// ---- RotaryEmbedding ----

Results rotary_embedding(const Case& c) {
  const Array &X = c.input(0), &cos = c.input(1), &sin = c.input(2);
  const Layout x(X.dims, c.attribute<int64_t>("num_heads", 0));
  const int64_t channels = c.attribute<int64_t>("rotary_embedding_dim", 0);
  std::vector<int64_t> positions;
  if (c.has(3)) {
    if (c.input(3).dims != std::vector<int64_t>{x.shape[0], x.shape[2]})
      throw Failed("position_ids has shape " + text(c.input(3).dims));
    positions.assign(c.input(3).values.begin(), c.input(3).values.end());
  }
  const auto table = [&](const Array& t) {
    if (t.dims.size() != (c.has(3) ? 2 : 3)) throw Failed("a cache has shape " + text(t.dims));
    const Shape shape = c.has(3) ? Shape{1, 1, t.dim(0), t.dim(1)} : Shape{t.dim(0), 1, t.dim(1), t.dim(2)};
    return Memory(t, t.type, shape, dense(shape));
  };
  Memory in(X, X.type, x.shape, x.stride), out = in, cos_table = table(cos), sin_table = table(sin);
  rotate(in.view(), out.view(),
         {.pairs = c.attribute<int>("interleaved", 0) ? Pairs::interleaved : Pairs::halves,
          .channels = channels,
          .positions = positions.empty() ? nullptr : positions.data(),
          .position_batches = x.shape[0],
          .cos = cos_table.view(),
          .sin = sin_table.view()});
  Results results;
  results.values[c.results.at(0)] = out.array(X.type, X.dims);
  return results;
}

// ---- LinearAttention ----

Results linear_attention(const Case& c) {
  const Array &Q = c.input(0), &K = c.input(1), &V = c.input(2);
  const auto heads = [&](const char* name) {
    if (!c.given(name)) throw Failed(std::string("LinearAttention needs ") + name);
    return c.attribute<int64_t>(name, 0);
  };
  const int64_t Hq = heads("q_num_heads"), Hkv = heads("kv_num_heads");
  const Layout q(Q.dims, Hq), k(K.dims, Hkv), v(V.dims, Hkv);
  const int64_t B = q.shape[0], T = q.shape[2], dk = q.shape[3], dv = v.shape[3];
  const std::string rule = c.attribute<std::string>("update_rule", "gated_delta");
  static const std::map<std::string, Update> rules = {{"linear", Update::linear},
                                                      {"gated", Update::gated},
                                                      {"delta", Update::delta},
                                                      {"gated_delta", Update::gated_delta}};
  if (!rules.count(rule)) throw Failed("update_rule is '" + rule + "'");
  const int state_type = Q.type == kDouble ? kDouble : kFloat;
  Memory mq(Q, Q.type, q.shape, q.stride), mk(K, Q.type, k.shape, k.stride), mv(V, Q.type, v.shape, v.stride);
  LinearAttention a{.q = mq.view(), .k = mk.view(), .v = mv.view(), .update = rules.at(rule)};
  const bool gated = rule == "gated" || rule == "gated_delta", delta = rule == "delta" || rule == "gated_delta";
  Memory state(state_type, {B, Hkv, dk, dv}), decay = state, beta = state;
  if (c.has(3)) {
    if (c.input(3).dims != std::vector<int64_t>{B, Hkv, dk, dv})
      throw Failed("past_state has shape " + text(c.input(3).dims));
    state = Memory(c.input(3), state_type, state.shape, state.stride);
    a.state = state.view();
  }
  if (gated) {
    const Array& g = c.input(4);
    const Layout layout(g.dims, Hkv);
    decay = Memory(g, state_type, layout.shape, layout.stride);
    a.decay = decay.view();
  }
  if (delta) {
    const Array& x = c.input(5);
    const Layout layout(x.dims, x.dims.size() == 3 && x.dims[2] == 1 ? 1 : Hkv);
    beta = Memory(x, state_type, layout.shape, layout.stride);
    a.beta = beta.view();
  }
  if (const double scale = c.attribute<double>("scale", 0); scale != 0) a.scale = scale;
  Memory out(Q.type, {B, Hq, T, dv}, {T * Hq * dv, dv, Hq * dv, 1}, static_cast<size_t>(B * Hq * T * dv));
  forward(a, LinearOutput{out.view(), state.view()});
  Results results;
  if (c.wants(0)) results.values[c.results[0]] = out.array(Q.type, {B, T, Hq * dv});
  if (c.wants(1)) {
    const auto expected = c.expected.find(c.results[1]);
    results.values[c.results[1]] =
        state.array(expected == c.expected.end() ? state_type : expected->second.type, {B, Hkv, dk, dv});
  }
  return results;
}

// ---- What is not attention ----

Results rms_normalization(const Case& c) {
  const Array &X = c.input(0), &scale = c.input(1);
  const auto rank = static_cast<int64_t>(X.dims.size());
  int64_t axis = c.attribute<int64_t>("axis", -1);
  if (axis < 0) axis += rank;
  if (axis < 0 || axis >= rank) throw Failed("axis is outside the " + std::to_string(rank) + " axes of X");
  const double epsilon = static_cast<float>(c.attribute<double>("epsilon", 1e-5));
  const auto n =
      static_cast<size_t>(std::accumulate(X.dims.begin() + axis, X.dims.end(), int64_t{1}, std::multiplies<>()));
  Array y = X;
  for (size_t row = 0; row < y.values.size(); row += n) {
    double sum = 0;
    for (size_t x = 0; x < n; ++x) sum += X.values[row + x] * X.values[row + x];
    const double by = 1 / std::sqrt(sum / static_cast<double>(n) + epsilon);
    for (size_t x = 0; x < n; ++x) y.values[row + x] = rounded(X.type, X.values[row + x] * by);
  }
  const Array by = expanded(scale, X.dims);
  y.type = scale.type;
  for (size_t x = 0; x < y.values.size(); ++x) y.values[x] = rounded(y.type, y.values[x] * by.values[x]);
  Results results;
  results.values[c.results.at(0)] = y;
  return results;
}

Results tensor_scatter(const Case& c) {
  const Array &past = c.input(0), &update = c.input(1);
  const auto rank = static_cast<int64_t>(past.dims.size());
  int64_t axis = c.attribute<int64_t>("axis", -2);
  if (axis < 0) axis += rank;
  if (axis < 1 || axis >= rank) throw Failed("axis is outside the axes behind the batch");
  const std::string mode = c.attribute<std::string>("mode", "linear");
  if (mode != "linear" && mode != "circular") throw Failed("mode is '" + mode + "'");
  std::vector<int64_t> same = update.dims;
  if (static_cast<int64_t>(same.size()) == rank) same[axis] = past.dims[axis];
  if (same != past.dims) throw Failed("update has shape " + text(update.dims) + ", past_cache " + text(past.dims));
  const int64_t B = past.dims[0], S = past.dims[axis], n = update.dims[axis];
  const int64_t outer =
      std::accumulate(past.dims.begin() + 1, past.dims.begin() + axis, int64_t{1}, std::multiplies<>());
  const int64_t inner = std::accumulate(past.dims.begin() + axis + 1, past.dims.end(), int64_t{1}, std::multiplies<>());
  Array out = past;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t first = c.has(2) ? static_cast<int64_t>(c.input(2).values.at(b)) : 0;
    for (int64_t o = 0; o < outer; ++o)
      for (int64_t t = 0; t < n; ++t) {
        const int64_t at = mode == "circular" ? ((first + t) % S + S) % S : first + t;
        if (at < 0 || at >= S)
          throw Failed("an update at " + std::to_string(at) + " does not fit a cache of " + std::to_string(S));
        std::copy_n(update.values.begin() + ((b * outer + o) * n + t) * inner, inner,
                    out.values.begin() + ((b * outer + o) * S + at) * inner);
      }
  }
  Results results;
  results.values[c.results.at(0)] = out;
  return results;
}

// ---- Reading, running and comparing ----

double bar(int type, double want) {
  switch (type) {
    case kFloat:
      return 2e-6 * std::max(1.0, std::fabs(want));
    case kHalf:
      return 0x1p-10 * std::fabs(want) + 0x1p-20;
    case kBfloat:
      return 0x1p-6 * std::fabs(want) + 0x1p-12;
    case kDouble:
      return 1e-12 * std::max(1.0, std::fabs(want));
    default:
      return 0;
  }
}

// Largest difference; throws if it is too large.
double compared(const std::string& name, const Array& got, const Array& want, int exactness) {
  if (got.type != want.type)
    throw Failed(name + " has type " + std::to_string(got.type) + ", expected " + std::to_string(want.type));
  if (got.dims != want.dims) throw Failed(name + " has shape " + text(got.dims) + ", expected " + text(want.dims));
  double largest = 0;
  for (size_t k = 0; k < want.values.size(); ++k) {
    const double x = got.values[k], y = want.values[k], difference = std::fabs(x - y);
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    if (!(difference <= bar(exactness ? exactness : want.type, y)))
      throw Failed(name + "[" + std::to_string(k) + "] is " + std::to_string(x) + ", expected " + std::to_string(y));
    largest = std::max(largest, difference);
  }
  return largest;
}

Case read_case(const Json& all, const Json& entry, const std::string& directory) {
  Case c;
  c.name = entry.at("name").get<std::string>();
  c.folder = directory + "/" + c.name;
  c.model = c.folder + "/model.onnx";
  // An expanded case is the one it is named after, written out in other nodes: only its data counts here.
  const Json* of = &entry;
  if (const size_t at = c.name.find("_expanded"); at != std::string::npos)
    for (const Json& other : all)
      if (other.at("name") == c.name.substr(0, at)) {
        of = &other;
        c.model = directory + "/" + c.name.substr(0, at) + "/model.onnx";
      }
  c.op = of->at("op").get<std::string>();
  c.attributes = of->at("attrs");
  c.slots = of->at("node_inputs").get<std::vector<std::string>>();
  c.results = of->at("node_outputs").get<std::vector<std::string>>();
  const auto read = [&](const char* what, Values& to) {
    for (const Json& file : entry.at(what)) {
      const std::string path = file.at("file").get<std::string>();
      try {
        to[file.at("name").get<std::string>()] = parse_tensor(read_file(c.folder + "/test_data_set_0/" + path));
      } catch (const Malformed& e) {
        throw Failed(path + ": " + e.what());
      }
    }
  };
  read("inputs", c.inputs);
  read("outputs", c.expected);
  return c;
}

double run(const Case& c) {
  static const std::map<std::string, Results (*)(const Case&)> operators = {
      {"Attention", attention},
      {"FlexAttention", flex_attention},
      {"RotaryEmbedding", rotary_embedding},
      {"LinearAttention", linear_attention},
      {"RMSNormalization", rms_normalization},
      {"TensorScatter", tensor_scatter},
  };
  const auto found = operators.find(c.op);
  if (found == operators.end()) throw Failed("operator '" + c.op + "' is not one that is run here");
  if (c.expected.empty()) throw Failed("there is no expected output");
  const Results results = found->second(c);
  double largest = 0;
  for (const auto& [name, want] : c.expected) {
    const auto got = results.values.find(name);
    if (got == results.values.end()) throw Failed("there is no output '" + name + "'");
    largest = std::max(largest, compared(name, got->second, want, results.exactness));
  }
  return largest;
}

int run_all(const std::string& directory) {
  std::ifstream file(directory + "/manifest.json");
  const Json manifest = file ? Json::parse(file, nullptr, false) : Json();
  if (!manifest.is_array()) {
    std::fprintf(stderr, "%s/manifest.json is not there or not a list of cases; give a folder that has one\n",
                 directory.c_str());
    return 1;
  }
  int passed = 0, failed = 0;
  for (const Json& entry : manifest) {
    std::string name = "a case without a name";
    try {
      name = entry.at("name").get<std::string>();
      const double largest = run(read_case(manifest, entry, directory));
      std::printf("pass %s (largest difference %.2g)\n", name.c_str(), largest);
      ++passed;
    } catch (const std::exception& e) {
      std::printf("FAIL %s: %s\n", name.c_str(), e.what());
      ++failed;
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace heed::onnx

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: onnx_conformance DIR, a folder with manifest.json and a folder for each case\n");
    return 1;
  }
  return heed::onnx::run_all(arguments[1]);
}
