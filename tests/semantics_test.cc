// What other libraries' attention means, in Heed's words: every row of the table below is a call of PyTorch's or
// Keras's, the results which it gave (data/goldens.txt, made by data/goldens.py), and the lines that make Heed give the
// same. The page docs/semantics.md is this table: --page=FILE writes it, and the last test holds it against the file.
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <heed/norm.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "written_page.h"

namespace heed {
namespace {

// f32 against numbers of size 1 that float64 gave. A score is a sum of 8 products of numbers below 2, rounded at each
// step, which is up to 8 * 2^-24 of scores of about 2: 1e-6 at worst, and a weight is off by that share of itself; the
// golden's last digit adds 5e-8.
constexpr double kForward = 2e-6;
// A gradient sums ten times as many products of such numbers.
constexpr double kBackward = 2e-5;

// ---- The goldens ----

struct Golden {
  std::string call;
  std::map<std::string, std::vector<double>> results;
};

const std::map<std::string, Golden>& goldens() {
  static const std::map<std::string, Golden> all = [] {
    std::map<std::string, Golden> read;
    std::ifstream file(HEED_TEST_DATA "/goldens.txt");
    Golden* now = nullptr;
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::string what, word;
      words >> what;
      if (what == "#") continue;
      if (what == "case") {
        words >> word;
        now = &read[word];
      } else if (what == "call") {
        now->call = line.substr(5);
      } else {
        while (words >> word) now->results[what].push_back(std::strtod(word.c_str(), nullptr));
      }
    }
    return read;
  }();
  return all;
}

// goldens.py's numbers(), in [-2, 2).
std::vector<float> numbers(uint32_t seed, int64_t n) {
  std::vector<float> values(n);
  for (int64_t i = 0; i < n; ++i) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + seed * 40503u + 12345u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    values[i] = (static_cast<float>(h >> 20) - 2048) / 1024;
  }
  return values;
}

int64_t count(const Shape& s) { return s[0] * s[1] * s[2] * s[3]; }

// ---- One case: the inputs every call begins with, and what rows of the table are made of ----

struct Sizes {
  int64_t B, Hq, Hkv, L, S, D = 8, Dv = 2;
};

class Case {
 public:
  explicit Case(const Sizes& n)
      : n(n),
        q(numbers(1, n.B * n.Hq * n.L * n.D)),
        k(numbers(2, n.B * n.Hkv * n.S * n.D)),
        v(numbers(3, n.B * n.Hkv * n.S * n.Dv)) {
    look();
  }

  // numbers(seed, n) that live as long as the case.
  const float* table(uint32_t seed, int64_t size) { return keep(numbers(seed, size)); }
  const float* keep(std::vector<float> values) { return kept_.emplace_back(std::move(values)).data(); }
  ConstTensor tensor_of(uint32_t seed, const Shape& shape) { return tensor(table(seed, count(shape)), shape); }
  ConstTensor tensor_of(const Shape& shape, std::vector<float> values) {
    return tensor(keep(std::move(values)), shape);
  }

  // goldens.py's visible(seed, shape) or, which is the same mask, hidden() where True hides; pairs of keys behind its
  // own are visible.
  Mask visible(uint32_t seed, Shape shape, int64_t more_keys = 0) const {
    const std::vector<float> x = numbers(seed, count(shape));
    const int64_t S = shape[3], rows = count(shape) / S;
    shape[3] += more_keys;
    const auto bytes = std::make_unique<bool[]>(count(shape));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < shape[3]; ++j) bytes[r * shape[3] + j] = j >= S || x[r * S + j] > -1;
    return boolean(bytes.get(), shape);
  }

  // A float mask of numbers(), with -inf where another hides.
  ConstTensor hidden_by_infinity(uint32_t seed, uint32_t hidden_seed, const Shape& shape) {
    std::vector<float> x = numbers(seed, count(shape));
    const std::vector<float> hides = numbers(hidden_seed, count(shape));
    for (size_t i = 0; i < x.size(); ++i)
      if (!(hides[i] > -1)) x[i] = -INFINITY;
    return tensor_of(shape, std::move(x));
  }

  // by_distance[h, j - i + L - 1] of a function of h and j - i.
  template <class F>
  ConstTensor by_distance(int64_t heads, F&& f) {
    std::vector<float> x;
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t d = 1 - n.L; d < n.S; ++d) x.push_back(f(h, d));
    return relative_bias(keep(std::move(x)), heads, n.L, n.S);
  }

  // A bias of every pair of each head.
  template <class F>
  ConstTensor by_pair(int64_t heads, F&& f) {
    std::vector<float> x;
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < n.L; ++i)
        for (int64_t j = 0; j < n.S; ++j) x.push_back(f(h, i, j));
    return tensor_of({1, heads, n.L, n.S}, std::move(x));
  }

  // One number of each head, in all its channels.
  ConstTensor by_head(uint32_t seed, const Shape& shape) {
    std::vector<float> x;
    for (const float value : numbers(seed, shape[1])) x.insert(x.end(), shape[3], value);
    return tensor_of(shape, std::move(x));
  }

  template <class F>
  const ScoreMod* mod(F f) {
    mod_ = std::make_unique<ScoreModOf<F, std::nullptr_t>>(std::move(f), nullptr);
    return mod_.get();
  }

  // k and v as pools of pages of 16 keys.
  void pool(std::vector<int32_t> entries, std::vector<int64_t> keys) {
    pages_ = std::move(entries);
    a.k = tensor(static_cast<const float*>(k.data()), {n.S / 16, n.Hkv, 16, n.D});
    a.v = tensor(static_cast<const float*>(v.data()), {n.S / 16, n.Hkv, 16, n.Dv});
    const int64_t columns = static_cast<int64_t>(pages_.size()) / n.B;
    a.pages = {pages_.data(), columns, columns, std::move(keys)};
  }

  // Another channel's q and k behind every q and k: seeds of [B, Hq, L, more] and [B, Hkv, S, more].
  void widen(uint32_t q_seed, uint32_t k_seed, int64_t more) {
    const auto joined = [&](const std::vector<float>& x, uint32_t seed) {
      const int64_t rows = static_cast<int64_t>(x.size()) / n.D;
      const std::vector<float> y = numbers(seed, rows * more);
      std::vector<float> all;
      for (int64_t r = 0; r < rows; ++r) {
        all.insert(all.end(), &x[r * n.D], &x[r * n.D] + n.D);
        all.insert(all.end(), &y[r * more], &y[r * more] + more);
      }
      return all;
    };
    q = joined(q, q_seed);
    k = joined(k, k_seed);
    n.D += more;
    look();
  }

  // One more key and value for each head, the same in every batch: of [Hkv, D] and [Hkv, Dv], or zeros.
  void append(const std::vector<float>& key = {}, const std::vector<float>& value = {}) {
    const auto longer = [&](const std::vector<float>& x, const std::vector<float>& row, int64_t width) {
      std::vector<float> all;
      for (int64_t x0 = 0; x0 < n.B * n.Hkv; ++x0) {
        all.insert(all.end(), x.begin() + x0 * n.S * width, x.begin() + (x0 + 1) * n.S * width);
        for (int64_t d = 0; d < width; ++d) all.push_back(row.empty() ? 0 : row[x0 % n.Hkv * width + d]);
      }
      return all;
    };
    k = longer(k, key, n.D);
    v = longer(v, value, n.Dv);
    ++n.S;
    look();
  }

  // Views of the vectors, after they changed.
  void look() {
    a.q = tensor(static_cast<const float*>(q.data()), {n.B, n.Hq, n.L, n.D});
    a.k = tensor(static_cast<const float*>(k.data()), {n.B, n.Hkv, n.S, n.D});
    a.v = tensor(static_cast<const float*>(v.data()), {n.B, n.Hkv, n.S, n.Dv});
  }

  Sizes n;
  std::vector<float> q, k, v;
  Attention a;
  Mask queries;  // Keras's query mask: of out, not of the weights that are shown

 private:
  std::deque<std::vector<float>> kept_;
  std::vector<int32_t> pages_;
  std::unique_ptr<ScoreMod> mod_;
};

// ---- torch.nn.MultiheadAttention's projections, in plain loops ----

struct Projections {
  std::vector<float> bias_k, bias_v, out_weight, out_bias;
};

// rows x inputs times weight^T [outputs, inputs] plus bias.
std::vector<double> linear(const std::vector<float>& x, const float* weight, const float* bias, int64_t inputs,
                           int64_t outputs) {
  std::vector<double> y;
  for (size_t r = 0; r < x.size() / inputs; ++r)
    for (int64_t o = 0; o < outputs; ++o) {
      double sum = bias[o];
      for (int64_t i = 0; i < inputs; ++i) sum += static_cast<double>(x[r * inputs + i]) * weight[o * inputs + i];
      y.push_back(sum);
    }
  return y;
}

// [B, length, E] to [B, H, length, E / H].
std::vector<float> heads_of(const std::vector<double>& x, int64_t B, int64_t H, int64_t length, int64_t E) {
  std::vector<float> y;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < length; ++i)
        for (int64_t d = 0; d < E / H; ++d) y.push_back(static_cast<float>(x[(b * length + i) * E + h * (E / H) + d]));
  return y;
}

constexpr int64_t kEmbedding = 8;

// goldens.py's parameters: seeds from 20 on in the order of their names; and the case's q, k, v made by them.
Projections project(Case& c, bool bias_kv, int64_t kdim, int64_t vdim) {
  const bool apart = kdim != kEmbedding || vdim != kEmbedding;
  std::set<std::string> names{"in_proj_bias", "out_proj.bias", "out_proj.weight"};
  if (bias_kv) names.insert({"bias_k", "bias_v"});
  if (apart)
    names.insert({"q_proj_weight", "k_proj_weight", "v_proj_weight"});
  else
    names.insert("in_proj_weight");
  const auto parameter = [&](const std::string& name, int64_t size) {
    std::vector<float> p = numbers(20 + static_cast<uint32_t>(std::distance(names.begin(), names.find(name))), size);
    for (float& x : p) x /= 4;
    return p;
  };
  constexpr int64_t E = kEmbedding;
  const std::vector<float> bias = parameter("in_proj_bias", 3 * E);
  const std::vector<float> packed = apart ? std::vector<float>() : parameter("in_proj_weight", 3 * E * E);
  const auto projected = [&](uint32_t seed, int64_t length, int64_t inputs, const char* name, int64_t place) {
    const std::vector<float> alone = apart ? parameter(name, E * inputs) : std::vector<float>();
    const float* weight = apart ? alone.data() : &packed[place * E * E];
    return heads_of(linear(numbers(seed, c.n.B * length * inputs), weight, &bias[place * E], inputs, E), c.n.B, c.n.Hq,
                    length, E);
  };
  c.q = projected(1, c.n.L, E, "q_proj_weight", 0);
  c.k = projected(2, c.n.S, kdim, "k_proj_weight", 1);
  c.v = projected(3, c.n.S, vdim, "v_proj_weight", 2);
  c.look();
  Projections p;
  p.out_weight = parameter("out_proj.weight", E * E);
  p.out_bias = parameter("out_proj.bias", E);
  if (bias_kv) p.bias_k = parameter("bias_k", E), p.bias_v = parameter("bias_v", E);
  return p;
}

// ---- The table ----

struct Row {
  std::string name, code;
  std::function<void(Case&, Attention&, const Projections&)> write;
  Sizes sizes;
  bool on_page = true;
  int64_t kdim = kEmbedding, vdim = kEmbedding;
};
struct Group {
  std::string title, note;
  std::vector<Row> rows;
};

// The lines of a row, as text for the page and as what is run.
#define IN_HEED(...)                                                          \
#__VA_ARGS__, []([[maybe_unused]] Case & c, [[maybe_unused]] Attention & a, \
                   [[maybe_unused]] const Projections& p) { __VA_ARGS__; }

// Where q's tile of sliding tiles sees k's: 3 x 4 tiles, a kernel of 3 x 2.
BlockTable sliding_tiles() {
  BlockTable t{4, 4, {0}, {}};
  for (int64_t y = 0; y < 3; ++y)
    for (int64_t x = 0; x < 4; ++x) {
      const int64_t right = std::max<int64_t>(x, 1);
      for (int64_t ky = 0; ky < 3; ++ky)
        for (int64_t kx = right - 1; kx <= right; ++kx) t.key_blocks.push_back(ky * 4 + kx);
      t.starts.push_back(static_cast<int64_t>(t.key_blocks.size()));
    }
  return t;
}

// The place of an index on a 4 x 4 picture whose 2 x 2 tiles follow each other, or along a Morton curve, which is the
// same at this size in y and x alike: bits 1 and 3 are y, 0 and 2 x.
bool near_on_picture(int64_t q, int64_t k) {
  const auto y = [](int64_t i) { return (i >> 1 & 1) | (i >> 2 & 2); };
  const auto x = [](int64_t i) { return (i & 1) | (i >> 1 & 2); };
  const auto near = [](int64_t a, int64_t b) { return std::abs(std::clamp<int64_t>(a, 1, 2) - b) <= 1; };
  return near(y(q), y(k)) && near(x(q), x(k));
}

std::vector<Group> groups() {
  std::vector<Group> all;
  const auto nothing = [](Case&, Attention&, const Projections&) {};

  const Sizes wide{2, 2, 2, 5, 7}, tall{2, 2, 2, 7, 5};
  Group sdpa{"torch.nn.functional.scaled_dot_product_attention",
             "`is_causal` is upper left, `causal(0)`; a bool mask says who is seen. A row that sees nothing gives 0 on "
             "both sides, and zero gradients.",
             {{"sdpa_plain", "", nothing, wide}}};
  for (int bits = 0; bits < 16; ++bits) {
    const Shape full{2, 2, 5, 7};
    Shape shape;
    std::string tag;
    for (int axis = 0; axis < 4; ++axis) {
      shape[axis] = bits >> axis & 1 ? full[axis] : 1;
      tag += (axis ? "x" : "") + std::to_string(shape[axis]);
    }
    const bool shown = bits == 15;
    sdpa.rows.push_back({"sdpa_bool_" + tag, "a.mask = c.visible(5, {2, 2, 5, 7})",
                         [shape](Case& c, Attention& a, const Projections&) { a.mask = c.visible(5, shape); }, wide,
                         shown});
    sdpa.rows.push_back({"sdpa_float_" + tag, "a.bias = c.tensor_of(5, {2, 2, 5, 7})",
                         [shape](Case& c, Attention& a, const Projections&) { a.bias = c.tensor_of(5, shape); }, wide,
                         shown});
  }
  sdpa.rows.insert(
      sdpa.rows.end(),
      {{"sdpa_bool_2d", IN_HEED(a.mask = c.visible(6, {1, 1, 5, 7})), wide},
       {"sdpa_float_2d", IN_HEED(a.bias = c.tensor_of(6, {1, 1, 5, 7})), wide},
       {"sdpa_float_inf", IN_HEED(a.bias = c.hidden_by_infinity(6, 7, {1, 1, 5, 7})), wide},
       {"sdpa_causal_wide", IN_HEED(a.mask = causal(0)), wide},
       {"sdpa_causal_tall", IN_HEED(a.mask = causal(0)), tall},
       {"sdpa_lower_right_wide", IN_HEED(a.mask = causal()), wide},
       {"sdpa_lower_right_tall", IN_HEED(a.mask = causal()), tall},
       {"sdpa_scale", IN_HEED(a.scale = 0.25), wide},
       {"sdpa_negative_scale", IN_HEED(a.scale = -0.75; a.mask = causal(0)), wide},
       {"sdpa_gqa", "", nothing, {2, 6, 2, 5, 7}},
       {"sdpa_no_key",
        IN_HEED(a.mask = where([](auto, auto, auto i, auto) { return i % 4 != 0; }) & c.visible(6, {1, 1, 5, 7})),
        wide},
       {"sdpa_mask_gradient", IN_HEED(a.bias = c.tensor_of(5, {2, 2, 5, 7})), wide},
       {"sdpa_mask_gradient_heads", IN_HEED(a.bias = c.tensor_of(5, {1, 2, 5, 7})), wide},
       {"sdpa_mask_gradient_keys", IN_HEED(a.bias = c.tensor_of(5, {2, 1, 1, 7})), wide},
       {"sdpa_mask_gradient_2d", IN_HEED(a.bias = c.tensor_of(5, {1, 1, 5, 7})), wide}});
  all.push_back(std::move(sdpa));

  const Sizes one{1, 2, 1, 16, 16}, two{2, 2, 1, 16, 16}, picture{1, 2, 1, 18, 18};
  all.push_back(
      {"FlexAttention, mask_mod",
       "q and k count from 0; the score comes before the mask, and h is the query's head, on both sides.",
       {{"causal", IN_HEED(a.mask = causal(0)), one},
        {"inverse_causal", IN_HEED(a.mask = window(0, -1, 0)), one},
        {"sliding_attn_gym", IN_HEED(a.mask = window(3, 0, 0)), one},
        {"sliding_keras", IN_HEED(a.mask = window(2, 0, 0)), one},
        {"sliding_keras_both", IN_HEED(a.mask = window(2, 2, 0)), one},
        {"window_onnx", IN_HEED(a.mask = window(4, 1)), {1, 2, 1, 10, 16}},
        {"dilated", IN_HEED(a.mask = dilated(6, 3, 0)), one},
        {"prefix_lm", IN_HEED(a.mask = prefix_lm({5}, 0)), one},
        {"prefix_per_batch", IN_HEED(a.mask = prefix_lm({4 + 1, 9 + 1}, 0)), two},
        {"padding", IN_HEED(a.mask = lengths({11, 0})), two},
        {"document", IN_HEED(a.mask = documents({{3, 7, 6}})), one},
        {"document_causal", IN_HEED(a.mask = documents({{3, 7, 6}}) & causal()), one},
        {"document_window", IN_HEED(a.mask = documents({{3, 7, 6}}) & window(2, 2)), one},
        {"batchify", IN_HEED(a.mask = documents({{4, 4, 4, 4}}) & causal()), one},
        {"longformer", IN_HEED(a.mask = window(2, 2) | global_tokens({0, 7})), one},
        {"longformer_dilated", IN_HEED(a.mask = dilated(6, 2) | global_tokens({0})), one},
        {"bigbird",
         IN_HEED(a.mask = window(1, 1) | global_tokens({0}) | block_sparse({4, 4, {0, 1, 2, 3, 4}, {2, 3, 0, 1}})),
         one},
        {"strided", IN_HEED(a.mask = strided(4, 4) & causal()), one},
        {"fixed", IN_HEED(a.mask = fixed(4, 1) & causal()), one},
        {"natten_2d", IN_HEED(a.mask = neighbourhood({4, 4}, {3, 3})), one},
        {"natten_2d_3x6", IN_HEED(a.mask = neighbourhood({3, 6}, {3, 5})), picture},
        {"natten_2d_attn_gym_6x3",
         IN_HEED(a.mask = where([](auto, auto, auto, auto k) { return std::abs(1 - k / 3) <= 1; })), picture},
        {"natten_3d", IN_HEED(a.mask = neighbourhood({3, 3, 2}, {3, 3, 1})), picture},
        {"natten_tiled", IN_HEED(a.mask = where([](auto, auto, auto q, auto k) { return near_on_picture(q, k); })),
         one},
        {"natten_morton", IN_HEED(a.mask = where([](auto, auto, auto q, auto k) { return near_on_picture(q, k); })),
         one},
        {"sliding_tile", IN_HEED(a.mask = block_sparse(sliding_tiles())), {1, 2, 1, 48, 48}},
        {"sliding_tile_text",
         IN_HEED(BlockTable t = sliding_tiles(); t.starts.push_back(t.starts.back());
                 a.mask = block_sparse(t) | global_tokens({48, 49})),
         {1, 2, 1, 50, 50}},
        {"videogen_spatial", IN_HEED(a.mask = window(7, 7) | global_tokens({0, 1})), one},
        {"videogen_spatial_sink", IN_HEED(a.mask = window(3, 3) | lengths({2 + 4}) | global_tokens({0, 1})), one},
        {"videogen_temporal",
         IN_HEED(a.mask = where([](auto, auto, auto q, auto k) {
                            return std::abs((q + 5) % 7 - (k + 5) % 7) < 0.5 * 7 / 2;
                          }) |
                          global_tokens({0, 1})),
         one},
        {"flamingo", IN_HEED(a.mask = ragged({0, 2, 6, 9, 10}, {0, 0, 4, 8, 12})), {1, 2, 1, 10, 12}},
        {"streaming_llm", IN_HEED(a.mask = (lengths({2}) | window(3, 0)) & causal()), one},
        {"causal_offset", IN_HEED(a.mask = causal(12)), {1, 2, 1, 4, 16}},
        {"paged", IN_HEED(c.pool({3, 1, 0, 2}, {20, 32}); a.mask = causal()), {2, 2, 1, 4, 64}}}});

  all.push_back(
      {"FlexAttention, score_mod",
       "`s` is scaled already. `a.score_mod = c.mod(f)` keeps a `heed::score_mod(f)` for the call.",
       {{"identity", "", nothing, one},
        {"twice", IN_HEED(a.scale = 2 / std::sqrt(8.0)), one},
        {"square",
         IN_HEED(a.score_mod = c.mod([](auto s, auto, auto, auto, auto) { return s * s; }); a.mask = causal()), one},
        {"alibi",
         IN_HEED(a.alibi = c.tensor_of({1, 4, 1, 1}, {1 / 4.f, 1 / 16.f, 1 / 64.f, 1 / 256.f})),
         {1, 4, 1, 16, 16}},
        {"softcap", IN_HEED(a.softcap = 1.5), one},
        {"relative_offset", IN_HEED(a.alibi = c.tensor_of({1, 1, 1, 1}, {-1})), one},
        {"relative_table", IN_HEED(a.bias = c.by_distance(1, [T = c.table(5, 33)](auto, auto d) { return T[16 - d]; })),
         one},
        {"relative_table_heads",
         IN_HEED(a.bias = c.by_distance(2, [T = c.table(5, 2 * 33)](auto h, auto d) { return T[h * 33 + 16 - d]; })),
         {1, 2, 1, 10, 16}},
        {"t5_bias",
         IN_HEED(a.bias = c.by_distance(
                     2, [T = c.table(5, 8 * 2)](auto h, auto d) { return T[t5_bucket(d, true, 8, 12) * 2 + h]; })),
         one},
        {"t5_bias_decoder",
         IN_HEED(a.bias = c.by_distance(
                     2, [T = c.table(5, 8 * 2)](auto h, auto d) { return T[t5_bucket(d, false, 8, 12) * 2 + h]; });
                 a.mask = causal()),
         one},
        {"swin",
         IN_HEED(a.bias = c.by_pair(
                     2, [T = c.table(5, 2 * 49)](auto h, auto i, auto j) { return T[h * 49 + swin_row(i, j, 4, 4)]; })),
         one},
        {"bias_qk", IN_HEED(a.bias = c.tensor_of(5, {1, 1, 16, 16})), one},
        {"bias_hqk", IN_HEED(a.bias = c.tensor_of(5, {1, 2, 16, 16})), one},
        {"bias_bhqk", IN_HEED(a.bias = c.tensor_of(5, {2, 2, 16, 16})), two},
        {"bias_key", IN_HEED(a.bias = c.tensor_of(5, {1, 1, 1, 16})), one},
        {"bias_query", IN_HEED(a.bias = c.tensor_of(5, {1, 1, 16, 1})), one},
        {"bias_head", IN_HEED(a.bias = c.tensor_of(5, {1, 2, 1, 1})), one},
        {"bias_batch", IN_HEED(a.bias = c.tensor_of(5, {2, 1, 1, 1})), two},
        {"head_gate",
         IN_HEED(a.score_mod = c.mod([G = c.table(5, 2)](auto s, auto, auto h, auto, auto) { return s * G[h]; })), one},
        {"key_weight",
         IN_HEED(a.score_mod = c.mod([w = c.table(5, 16)](auto s, auto, auto, auto, auto k) { return s * w[k]; })),
         one},
        {"silu", IN_HEED(a.score_mod = c.mod([](auto s, auto, auto, auto, auto) { return s / (1 + std::exp(-s)); })),
         one},
        {"cosine",
         IN_HEED(const Normalization unit{.norm = Norm::length, .epsilon = 1e-24};
                 const Normalization tau{.norm = Norm::length, .epsilon = 1e-24, .gain = c.by_head(5, {1, 2, 1, 8})};
                 normalize(a.q, tensor(c.q.data(), a.q.shape), tau);
                 normalize(a.k, tensor(c.k.data(), a.k.shape), unit); a.scale = 1),
         one},
        {"mla_rope", IN_HEED(c.widen(5, 6, 4); a.scale = 0.3; a.mask = causal()), two},
        {"softcap_then_alibi",
         IN_HEED(a.softcap = 2; a.alibi = c.tensor_of({1, 2, 1, 1}, {1 / 16.f, 1 / 256.f}); a.mask = causal()), one},
        {"paged_alibi",
         IN_HEED(c.pool({3, 1, 0, 2}, {20, 32}); a.alibi = c.tensor_of({1, 1, 1, 1}, {0.25f}); a.mask = causal()),
         {2, 2, 1, 4, 64}}}});

  const Sizes keras{2, 1, 1, 5, 7};
  all.push_back(
      {"keras.layers.Attention and AdditiveAttention",
       "Called with [query, value, key]. There is no 1/√D. A value mask adds -1e9, so that a row that sees nothing "
       "weighs "
       "all keys alike; in Heed it gives 0, unless the bias does the same. A query mask is one of rows of the output, "
       "not of the weights that are shown (`c.queries` is and-ed to the mask of `forward` and not to `score`'s).",
       {{"keras_dot", IN_HEED(a.scale = 1), keras},
        {"keras_dot_scale", IN_HEED(a.scale = 0.75), keras},
        {"keras_concat",
         IN_HEED(a.score = Score::additive; a.w = c.tensor_of({1, 1, 1, 8}, std::vector<float>(8, 0.5f))), keras},
        {"keras_concat_scale",
         IN_HEED(a.score = Score::additive; for (float& x
                                                 : c.q) x *= 0.75f;
                 for (float& x
                      : c.k) x *= 0.75f;
                 a.w = c.tensor_of({1, 1, 1, 8}, std::vector<float>(8, 0.5f))),
         keras},
        {"keras_dropout_0", IN_HEED(a.scale = 1; a.dropout = 0), keras},
        {"keras_value_mask", IN_HEED(a.scale = 1; a.mask = c.visible(6, {2, 1, 1, 7})), keras},
        {"keras_value_mask_3d", IN_HEED(a.scale = 1; a.mask = c.visible(6, {2, 1, 5, 7})), keras},
        {"keras_query_mask",
         IN_HEED(a.scale = 1; a.mask = c.visible(6, {2, 1, 1, 7}); c.queries = c.visible(7, {2, 1, 5, 1})), keras},
        {"keras_causal", IN_HEED(a.scale = 1; a.mask = causal(0)), keras},
        {"keras_causal_value_mask", IN_HEED(a.scale = 1; a.mask = causal(0) & lengths({3, 6})), keras},
        {"keras_nothing_visible", IN_HEED(a.scale = 1; a.bias = c.tensor_of({1, 1, 1, 1}, {-1e9f})), keras},
        {"keras_additive", IN_HEED(a.score = Score::additive; a.w = c.tensor_of(5, {1, 1, 1, 8})), keras},
        {"keras_additive_no_scale",
         IN_HEED(a.score = Score::additive; a.w = c.tensor_of({1, 1, 1, 8}, std::vector<float>(8, 1))), keras},
        {"keras_additive_masks",
         IN_HEED(a.score = Score::additive; a.w = c.tensor_of(5, {1, 1, 1, 8});
                 a.mask = c.visible(6, {2, 1, 1, 7}) & causal(0); c.queries = c.visible(7, {2, 1, 5, 1})),
         keras}}});

  const Sizes mha{2, 2, 2, 5, 7, 4, 4};
  all.push_back(
      {"torch.nn.MultiheadAttention",
       "True hides: `c.visible(n, …)` is what `hidden(n, …)` leaves. Projections are the caller's; weights are "
       "`heed::score` and `heed::weigh`, averaged over heads unless average_attn_weights is False. A row that sees "
       "nothing gives 0 as with need_weights=False; with need_weights=True theirs is NaN.",
       {{"mha_plain", "", nothing, mha},
        {"mha_batch_first", "", nothing, mha},
        {"mha_each_head", "", nothing, mha},
        {"mha_no_weights", "", nothing, mha},
        {"mha_key_padding", IN_HEED(a.mask = c.visible(6, {2, 1, 1, 7})), mha},
        {"mha_bool_2d", IN_HEED(a.mask = c.visible(6, {1, 1, 5, 7})), mha},
        {"mha_float_2d", IN_HEED(a.bias = c.tensor_of(6, {1, 1, 5, 7})), mha},
        {"mha_bool_3d", IN_HEED(a.mask = c.visible(6, {2, 2, 5, 7})), mha},
        {"mha_float_3d", IN_HEED(a.bias = c.tensor_of(6, {2, 2, 5, 7})), mha},
        {"mha_both", IN_HEED(a.mask = c.visible(6, {2, 1, 1, 7}) & c.visible(7, {1, 1, 5, 7})), mha},
        {"mha_causal", IN_HEED(a.mask = causal(0)), mha},
        {"mha_all_padding", IN_HEED(a.mask = lengths({0, 7})), mha},
        {"mha_zero_attn", IN_HEED(c.append(); a.mask = c.visible(6, {2, 1, 1, 7}, 1)), mha},
        {"mha_bias_kv", IN_HEED(c.append(p.bias_k, p.bias_v); a.mask = c.visible(6, {1, 1, 5, 7}, 1)), mha},
        {"mha_bias_kv_zero", IN_HEED(c.append(p.bias_k, p.bias_v); c.append()), mha},
        {"mha_kdim_vdim", "", nothing, mha, true, 6, 4}}});
  return all;
}

// ---- What is compared ----

void expect_near(const std::string& what, const std::vector<float>& got, const std::vector<double>& want,
                 double bound) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t x = 0; x < got.size(); ++x) {
    if (std::isinf(want[x]) && got[x] == want[x]) continue;
    ASSERT_NEAR(got[x], want[x], bound * std::max(1.0, std::fabs(want[x]))) << what << " " << x;
  }
}

std::vector<float> room(const Shape& shape) { return std::vector<float>(count(shape), NAN); }

void compare(const Row& row, const Golden& golden) {
  const bool projected = row.name.rfind("mha_", 0) == 0;
  Case c(row.sizes);
  Projections p;
  if (projected) p = project(c, golden.call.find("add_bias_kv") != std::string::npos, row.kdim, row.vdim);
  Attention& a = c.a;
  row.write(c, a, p);
  const std::map<std::string, std::vector<double>>& want = golden.results;

  const Shape shape{c.n.B, c.n.Hq, c.n.L, c.n.Dv}, rows{c.n.B, c.n.Hq, c.n.L, 1};
  std::vector<float> out = room(shape), lse = room(rows);
  const Mask keys = a.mask;
  a.mask = keys & c.queries;
  forward(a, {tensor(out.data(), shape), tensor(lse.data(), rows)});
  if (projected) {
    std::vector<float> joined;  // [B, L, H * Dv]
    for (int64_t b = 0; b < c.n.B; ++b)
      for (int64_t i = 0; i < c.n.L; ++i)
        for (int64_t h = 0; h < c.n.Hq; ++h)
          for (int64_t d = 0; d < c.n.Dv; ++d) joined.push_back(out[((b * c.n.Hq + h) * c.n.L + i) * c.n.Dv + d]);
    const std::vector<double> final = linear(joined, p.out_weight.data(), p.out_bias.data(), kEmbedding, kEmbedding);
    expect_near("out", {final.begin(), final.end()}, want.at("out"), kForward);
  } else {
    expect_near("out", out, want.at("out"), kForward);
  }
  if (want.count("lse")) expect_near("lse", lse, want.at("lse"), kForward);

  if (want.count("weights")) {
    const Shape pairs{c.n.B, c.n.Hq, c.n.L, c.n.S};
    std::vector<float> weights = room(pairs);
    const Tensor view = tensor(weights.data(), pairs);
    a.mask = keys;
    score(a, view);
    weigh(view, view);
    if (const int64_t each = c.n.L * c.n.S; want.at("weights").size() < weights.size()) {  // the mean of the heads
      std::vector<float> mean;
      for (int64_t b = 0; b < c.n.B; ++b)
        for (int64_t x = 0; x < each; ++x) {
          double sum = 0;
          for (int64_t h = 0; h < c.n.Hq; ++h) sum += weights[(b * c.n.Hq + h) * each + x];
          mean.push_back(static_cast<float>(sum / static_cast<double>(c.n.Hq)));
        }
      weights = mean;
    }
    expect_near("weights", weights, want.at("weights"), kForward);
  }

  if (want.count("d_q")) {
    std::vector<float> d_q = room(a.q.shape), d_k = room(a.k.shape), d_v = room(a.v.shape), d_bias;
    const std::vector<float> d_out = numbers(4, count(shape));
    Gradients g{.d_q = tensor(d_q.data(), a.q.shape),
                .d_k = tensor(d_k.data(), a.k.shape),
                .d_v = tensor(d_v.data(), a.v.shape)};
    if (want.count("d_bias")) d_bias = room(a.bias.shape), g.d_bias = tensor(d_bias.data(), a.bias.shape);
    backward(a,
             {.out = tensor(out.data(), shape), .lse = tensor(lse.data(), rows), .d_out = tensor(d_out.data(), shape)},
             g);
    expect_near("d_q", d_q, want.at("d_q"), kBackward);
    expect_near("d_k", d_k, want.at("d_k"), kBackward);
    expect_near("d_v", d_v, want.at("d_v"), kBackward);
    if (want.count("d_bias")) expect_near("d_bias", d_bias, want.at("d_bias"), kBackward);
  }
}

TEST(Semantics, HeedGivesWhatTheyGive) {
  for (const std::string& target : targets()) {
    set_target(target);
    for (const Group& group : groups())
      for (const Row& row : group.rows) {
        SCOPED_TRACE(target + ", " + row.name + ": " + row.code);
        const auto found = goldens().find(row.name);
        ASSERT_NE(found, goldens().end());
        compare(row, found->second);
      }
  }
  set_target(targets()[0]);
}

TEST(Semantics, EveryGoldenHasARow) {
  std::set<std::string> rows;
  for (const Group& group : groups())
    for (const Row& row : group.rows) EXPECT_TRUE(rows.insert(row.name).second) << row.name;
  for (const auto& [name, golden] : goldens()) EXPECT_TRUE(rows.count(name)) << name;
}

// ---- The page ----

// A | would end the cell; and where a line of code was broken, its text has a space.
std::string cell(const std::string& text) {
  std::string all = "`";
  for (const char c : text)
    if (c == '|')
      all += "\\|";
    else if (c != ' ' || all.back() != '(')
      all += c;
  return all + "`";
}

std::string page() {
  std::ostringstream text;
  text << "# Other libraries' attention, in Heed\n\n"
          "Generated: `build/tests/semantics_test --page=docs/semantics.md`. Each row is run: the call on the left by "
          "the "
          "library (`tests/data/goldens.py`, float64), the lines on the right\nby `tests/semantics_test.cc`, on every "
          "SIMD target, and the results agree to 2e-6. `a` is the `heed::Attention` that holds q, k and v; "
          "`c.tensor_of(seed, shape)` holds `numbers(seed, …)`,\n`c.visible(seed, shape)` is a `heed::boolean` mask of "
          "`visible(seed, …)`. Where the right is empty, Heed's defaults do it.\n";
  for (const Group& group : groups()) {
    text << "\n## " << group.title << "\n\n" << group.note << "\n\n| row | their call | in Heed |\n|---|---|---|\n";
    for (const Row& row : group.rows)
      if (row.on_page)
        text << "| " << row.name << " | " << cell(goldens().at(row.name).call) << " | "
             << (row.code.empty() ? "" : cell(row.code)) << " |\n";
  }
  return text.str();
}

TEST(Semantics, ThePageIsTheTable) { heed::testing::expect_page(page(), "semantics_test", "semantics.md"); }

}  // namespace
}  // namespace heed

int main(int argc, char** argv) { return heed::testing::run_tests(argc, argv); }
