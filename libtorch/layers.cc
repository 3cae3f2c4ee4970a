// Attention layers as LibTorch modules: additive, dot, multi-head, pooling, wrapper.
#include "libtorch/layers.h"

#include <torch/nn/init.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>

#include "libtorch/attention.h"
#include "libtorch/sizes.h"

namespace heed::nn {
namespace {

using torch::Tensor;
using torch::nn::Linear;
using torch::nn::LinearOptions;

// A linear layer as these papers' code bases start it: Glorot's uniform distribution times gain, biases 0.
Linear linear(int64_t in, int64_t out, bool bias, double gain = 1) {
  Linear layer(LinearOptions(in, out).bias(bias));
  torch::nn::init::xavier_uniform_(layer->weight, gain);
  if (bias) torch::nn::init::zeros_(layer->bias);
  return layer;
}

// A score vector [units], by Glorot's rule with units going in and out, as TF-Addons starts it.
Tensor score_vector(int64_t units) {
  const double limit = std::sqrt(3.0 / static_cast<double>(units));
  return torch::empty({units}).uniform_(-limit, limit);
}

}  // namespace

Attended attend_one_head(const Tensor& query, const Tensor& keys, const Tensor& values, bool want_weights,
                         const AttentionOptions& options) {
  Attended result;
  result.out = packed_attention(query, keys, values, 1, 1, options).out;
  if (want_weights) {
    const Tensor weights = packed_attention_weights(query, keys, 1, 1, options);  // [B, 1, L, S]
    result.weights = query.dim() == 2 ? weights.flatten(0, 2) : weights.squeeze(1);
  }
  return result;
}

// ---- Additive attention ----

AdditiveAttentionImpl::AdditiveAttentionImpl(AdditiveAttentionOptions options) : options(options) {
  check_size(options.query_dim, "AdditiveAttention", "query_dim");
  check_size(options.memory_dim, "AdditiveAttention", "memory_dim");
  check_size(options.units, "AdditiveAttention", "units");
  reset();
}

void AdditiveAttentionImpl::reset() {
  query_layer = register_module("query_layer", linear(options.query_dim, options.units, /*bias=*/false));
  memory_layer = register_module("memory_layer", linear(options.memory_dim, options.units, /*bias=*/false));
  v = register_parameter("v", score_vector(options.units));
  if (options.normalize) {
    g = register_parameter("g", torch::full({}, std::sqrt(1.0 / static_cast<double>(options.units))));
    b = register_parameter("b", torch::zeros({options.units}));
  }
}

Tensor AdditiveAttentionImpl::project(const Tensor& memory) { return memory_layer->forward(memory); }

Attended AdditiveAttentionImpl::forward(const Tensor& query, const Tensor& keys, const Tensor& values,
                                        const AttendOptions& attend) {
  // tanh(keys + query + b): b is added where it costs least, to the query, as the bias of its projection.
  const Tensor projected =
      options.normalize ? torch::linear(query, query_layer->weight, b) : query_layer->forward(query);
  const Tensor w = options.normalize ? v * (g / v.norm()) : v;
  return attend_one_head(projected, keys, values, attend.want_weights,
                         {.score = Score::additive, .w = w, .bias = attend.bias, .mask = attend.mask});
}

// ---- Multiplicative attention ----

DotAttentionImpl::DotAttentionImpl(DotAttentionOptions given)
    : options([&given] {
        if (given.units == 0) given.units = given.query_dim;
        return given;
      }()) {
  check_size(options.query_dim, "DotAttention", "query_dim");
  check_size(options.memory_dim, "DotAttention", "memory_dim");
  check_size(options.units, "DotAttention", "units");
  if (options.score == LuongScore::dot && options.query_dim != options.memory_dim) {
    throw Error("DotAttention's dot score got query_dim " + std::to_string(options.query_dim) + " and memory_dim " +
                std::to_string(options.memory_dim) + "; they must be equal, or use LuongScore::general");
  }
  reset();
}

void DotAttentionImpl::reset() {
  if (options.score == LuongScore::general) {
    memory_layer = register_module("memory_layer", linear(options.memory_dim, options.query_dim, /*bias=*/false));
  } else if (options.score == LuongScore::concat) {
    query_layer = register_module("query_layer", linear(options.query_dim, options.units, /*bias=*/false));
    memory_layer = register_module("memory_layer", linear(options.memory_dim, options.units, /*bias=*/false));
    v = register_parameter("v", score_vector(options.units));
  }
}

Tensor DotAttentionImpl::project(const Tensor& memory) {
  return options.score == LuongScore::dot ? memory : memory_layer->forward(memory);
}

Attended DotAttentionImpl::forward(const Tensor& query, const Tensor& keys, const Tensor& values,
                                   const AttendOptions& attend) {
  if (options.score == LuongScore::concat) {
    // Write the paper's W as two blocks of columns, [Wq Wm]. Then W [q; m] = Wq q + Wm m, and v . tanh(W [q; m]) is the
    // additive score of q and m projected on their own: nothing of size L x S x units is made.
    return attend_one_head(query_layer->forward(query), keys, values, attend.want_weights,
                           {.score = Score::additive, .w = v, .bias = attend.bias, .mask = attend.mask});
  }
  return attend_one_head(query, keys, values, attend.want_weights,
                         {.scale = 1.0, .bias = attend.bias, .mask = attend.mask});
}

// ---- Multi-head attention ----

MultiHeadAttentionImpl::MultiHeadAttentionImpl(MultiHeadAttentionOptions given)
    : options([&given] {
        check_size(given.embed_dim, "MultiHeadAttention", "embed_dim");
        check_size(given.heads, "MultiHeadAttention", "heads");
        if (given.kv_heads == 0) given.kv_heads = given.heads;
        if (given.head_dim == 0) {
          if (given.embed_dim % given.heads != 0) {
            throw Error("MultiHeadAttention got embed_dim " + std::to_string(given.embed_dim) + " and " +
                        std::to_string(given.heads) + " heads; give a divisor of embed_dim, or set head_dim");
          }
          given.head_dim = given.embed_dim / given.heads;
        }
        if (given.value_dim == 0) given.value_dim = given.head_dim;
        if (given.memory_dim == 0) given.memory_dim = given.embed_dim;
        if (given.out_dim == 0) given.out_dim = given.embed_dim;
        return given;
      }()) {
  check_size(options.kv_heads, "MultiHeadAttention", "kv_heads");
  check_size(options.head_dim, "MultiHeadAttention", "head_dim");
  check_size(options.value_dim, "MultiHeadAttention", "value_dim");
  check_size(options.memory_dim, "MultiHeadAttention", "memory_dim");
  check_size(options.out_dim, "MultiHeadAttention", "out_dim");
  if (!(options.dropout >= 0 && options.dropout < 1)) {
    throw Error("MultiHeadAttention got dropout " + std::to_string(options.dropout) +
                "; it must be at least 0 and below 1");
  }
  if (options.heads % options.kv_heads != 0) {
    throw Error("MultiHeadAttention got " + std::to_string(options.kv_heads) + " kv_heads; " +
                std::to_string(options.heads) + " heads need a divisor of " + std::to_string(options.heads));
  }
  reset();
}

void MultiHeadAttentionImpl::reset() {
  const auto& o = options;
  // As torch.nn.MultiheadAttention starts them, whose three are one matrix of three times the rows to Glorot's rule. A
  // small Transformer finds its source sooner: validation loss 3.20 after 1,000 steps of tokenised Multi30k, 3.65 with
  // all of it (one seed, the recipe of bench/quality).
  const double gain = std::sqrt(0.5);
  q_proj = register_module("q_proj", linear(o.embed_dim, o.heads * o.head_dim, o.bias, gain));
  k_proj = register_module("k_proj", linear(o.memory_dim, o.kv_heads * o.head_dim, o.bias, gain));
  v_proj = register_module("v_proj", linear(o.memory_dim, o.kv_heads * o.value_dim, o.bias, gain));
  out_proj = register_module("out_proj", linear(o.heads * o.value_dim, o.out_dim, o.out_bias.value_or(o.bias)));
}

Attended MultiHeadAttentionImpl::forward(const Tensor& query, const Tensor& memory, const AttendOptions& attend) {
  return this->attend(query, project_kv(memory), attend);
}

KeyValue MultiHeadAttentionImpl::project_kv(const Tensor& memory) {
  return {k_proj->forward(memory), v_proj->forward(memory)};
}

Attended MultiHeadAttentionImpl::attend(const Tensor& query, const KeyValue& memory, const AttendOptions& attend) {
  Attended result = attend_heads(q_proj->forward(query), memory, attend);
  result.out = out_proj->forward(result.out);
  return result;
}

Attended MultiHeadAttentionImpl::attend_heads(const Tensor& q, const KeyValue& memory, const AttendOptions& attend) {
  const AttentionOptions how{.scale = options.scale,
                             .bias = attend.bias,
                             .mask = attend.mask,
                             .dropout = is_training() ? options.dropout : 0.0};
  const AttentionResult attended = packed_attention(q, memory.k, memory.v, options.heads, options.kv_heads, how);
  Attended result;
  result.out = attended.out;
  if (attend.want_weights) {
    result.weights = packed_attention_weights(q, memory.k, options.heads, options.kv_heads, how);
  }
  if (attend.want_look) {
    result.look = {.q = q.detach(),
                   .k = memory.k.detach(),
                   .lse = attended.lse.detach(),
                   .heads = options.heads,
                   .kv_heads = options.kv_heads,
                   .scale = options.scale,
                   .bias = attend.bias.defined() ? attend.bias.detach() : Tensor(),
                   .mask = attend.mask};
  }
  return result;
}

Attended MultiHeadAttentionImpl::extend(const Tensor& x, KeyValueCache& cache, const AttendOptions& attend) {
  cache.append(project_kv(x));
  return this->attend(x, cache.all(), attend);
}

// ---- Attention pooling ----

AttentionPoolImpl::AttentionPoolImpl(int64_t dim) : dim(dim) {
  check_size(dim, "AttentionPool", "dim");
  reset();
}

// At 0 every element weighs the same: training starts from the mean.
void AttentionPoolImpl::reset() { query = register_parameter("query", torch::zeros({dim})); }

Attended AttentionPoolImpl::forward(const Tensor& x, const AttendOptions& attend) {
  return attend_one_head(query.expand({x.size(0), dim}), x, x, attend.want_weights,
                         {.scale = 1.0, .bias = attend.bias, .mask = attend.mask});
}

// ---- A recurrent cell that attends at every step ----

AttentionWrapperImpl::AttentionWrapperImpl(AttentionWrapperOptions options) : options(options) {
  check_size(options.input_dim, "AttentionWrapper", "input_dim");
  check_size(options.hidden, "AttentionWrapper", "hidden");
  check_size(options.memory_dim, "AttentionWrapper", "memory_dim");
  check_size(options.units, "AttentionWrapper", "units");
  if (options.attention_dim != 0) check_size(options.attention_dim, "AttentionWrapper", "attention_dim");
  reset();
}

void AttentionWrapperImpl::reset() {
  const auto& o = options;
  const int64_t attended = o.attention_dim == 0 ? o.memory_dim : o.attention_dim;
  if (o.cell == Cell::lstm) {
    lstm = register_module("cell", torch::nn::LSTMCell(o.input_dim + attended, o.hidden));
  } else {
    gru = register_module("cell", torch::nn::GRUCell(o.input_dim + attended, o.hidden));
  }
  attention = register_module(
      "attention", AdditiveAttention(AdditiveAttentionOptions{
                       .query_dim = o.hidden, .memory_dim = o.memory_dim, .units = o.units, .normalize = o.normalize}));
  if (o.attention_dim != 0) {
    attention_layer =
        register_module("attention_layer", linear(o.hidden + o.memory_dim, o.attention_dim, /*bias=*/false));
  }
}

Attended AttentionWrapperImpl::step(const Tensor& x, const Tensor& keys, const Tensor& memory, WrapperState& state,
                                    const AttendOptions& attend) {
  const auto& o = options;
  const int64_t batch = x.size(0);
  if (!state.h.defined()) state.h = torch::zeros({batch, o.hidden}, x.options());
  if (!state.attention.defined()) {
    state.attention = torch::zeros({batch, o.attention_dim == 0 ? o.memory_dim : o.attention_dim}, x.options());
  }
  const Tensor input = torch::cat({x, state.attention}, 1);
  if (o.cell == Cell::lstm) {
    if (!state.c.defined()) state.c = torch::zeros({batch, o.hidden}, x.options());
    std::tie(state.h, state.c) = lstm->forward(input, std::make_tuple(state.h, state.c));
  } else {
    state.h = gru->forward(input, state.h);
  }
  Attended attended = attention->forward(state.h, keys, memory, attend);
  state.attention =
      attention_layer ? attention_layer->forward(torch::cat({state.h, attended.out}, 1)) : std::move(attended.out);
  return {o.output_attention ? state.attention : state.h, std::move(attended.weights)};
}

namespace {

void check_lengths(const std::vector<int64_t>& lengths, const Tensor& sequence, const char* name) {
  if (lengths.empty()) return;
  if (static_cast<int64_t>(lengths.size()) != sequence.size(0)) {
    throw Error("AttentionWrapper got " + std::to_string(lengths.size()) + " " + name + " for a batch of " +
                std::to_string(sequence.size(0)));
  }
  for (const int64_t length : lengths) {
    if (length < 0 || length > sequence.size(1)) {
      throw Error("AttentionWrapper got " + std::to_string(length) + " among its " + name +
                  "; the tensor has room for " + std::to_string(sequence.size(1)) + " steps");
    }
  }
}

// [B, T] positions: the first lengths[b] of each row back to front, the rest where they are. Its own inverse.
Tensor reversal(const std::vector<int64_t>& lengths, int64_t steps) {
  Tensor index = torch::empty({static_cast<int64_t>(lengths.size()), steps}, torch::kInt64);
  int64_t* at = index.data_ptr<int64_t>();
  for (const int64_t length : lengths) {
    for (int64_t t = 0; t < steps; ++t) *at++ = t < length ? length - 1 - t : t;
  }
  return index;
}

Tensor reorder(const Tensor& sequence, const Tensor& index) {  // [B, T, D] by [B, T]
  return sequence.gather(1, index.unsqueeze(-1).expand_as(sequence));
}

}  // namespace

WrapperOutput AttentionWrapperImpl::forward(const Tensor& x, const Tensor& memory,
                                            const std::vector<int64_t>& x_lengths,
                                            const std::vector<int64_t>& memory_lengths, bool want_weights,
                                            WrapperState state) {
  check_lengths(x_lengths, x, "x_lengths");
  check_lengths(memory_lengths, memory, "memory_lengths");
  const int64_t batch = x.size(0), steps = x.size(1);
  std::vector<int64_t> ends = x_lengths.empty() ? std::vector<int64_t>(batch, steps) : x_lengths;
  const int64_t first_end = ends.empty() ? 0 : *std::min_element(ends.begin(), ends.end());
  const int64_t last_end = ends.empty() ? 0 : *std::max_element(ends.begin(), ends.end());
  const AttendOptions attend{.mask = memory_lengths.empty() ? Mask() : lengths(memory_lengths),
                             .want_weights = want_weights};
  const Tensor order = options.reverse ? reversal(ends, steps) : Tensor();
  // [B, T, 1]: whether a step is part of its sequence.
  const Tensor valid =
      (torch::arange(steps).unsqueeze(0) < torch::tensor(ends, torch::kInt64).unsqueeze(1)).unsqueeze(-1);

  const Tensor keys = attention->project(memory);
  const std::vector<Tensor> inputs = (options.reverse ? reorder(x, order) : x).unbind(1);
  std::vector<Tensor> outs, weights;
  for (int64_t t = 0; t < last_end; ++t) {
    const WrapperState before = state;
    Attended now = step(inputs[t], keys, memory, state, attend);
    if (t >= first_end) {  // some sequences are over: they keep the state they ended with
      const Tensor goes_on = valid.select(1, t);
      const auto keep = [&goes_on](Tensor& after, const Tensor& earlier) {
        if (after.defined())
          after = torch::where(goes_on, after, earlier.defined() ? earlier : torch::zeros_like(after));
      };
      keep(state.h, before.h);
      keep(state.c, before.c);
      keep(state.attention, before.attention);
    }
    outs.push_back(std::move(now.out));
    if (want_weights) weights.push_back(std::move(now.weights));
  }

  // [B, T, width] of the steps made, 0 where a sequence is over, back in x's order.
  const auto gathered = [&](const std::vector<Tensor>& made, int64_t width) {
    if (made.empty()) return torch::zeros({batch, steps, width}, x.options());
    Tensor all = torch::stack(made, 1);
    if (last_end < steps) all = torch::cat({all, all.new_zeros({batch, steps - last_end, width})}, 1);
    if (first_end < last_end) all = all.masked_fill(valid.logical_not(), 0);
    return options.reverse ? reorder(all, order) : all;
  };
  const int64_t attended = options.attention_dim == 0 ? options.memory_dim : options.attention_dim;
  WrapperOutput result;
  result.out = gathered(outs, options.output_attention ? attended : options.hidden);
  if (want_weights) result.weights = gathered(weights, memory.size(1));
  result.state = std::move(state);
  return result;
}

}  // namespace heed::nn
