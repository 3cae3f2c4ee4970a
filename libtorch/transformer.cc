// Transformer encoder and decoder layers with Marian's names; the decoder's cache; sinusoid positions.
#include "libtorch/transformer.h"

#include <torch/nn/init.h>

#include <cmath>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>

#include "libtorch/beams.h"
#include "libtorch/dropout.h"

namespace heed::nn {
namespace {

using torch::Tensor;
using torch::nn::LayerNorm;
using torch::nn::Linear;

Linear linear(int64_t in, int64_t out) {
  Linear layer(in, out);
  torch::nn::init::xavier_uniform_(layer->weight);
  torch::nn::init::zeros_(layer->bias);
  return layer;
}

LayerNorm layer_norm(const TransformerLayerOptions& options) {
  return LayerNorm(torch::nn::LayerNormOptions({options.dim}).eps(options.layer_norm_eps));
}

MultiHeadAttention multi_head(const TransformerLayerOptions& options) {
  return MultiHeadAttention(MultiHeadAttentionOptions{.embed_dim = options.dim,
                                                      .heads = options.heads,
                                                      .kv_heads = options.kv_heads,
                                                      .bias = options.qkv_bias,
                                                      .out_bias = true,
                                                      .dropout = options.attention_dropout});
}

TransformerLayerOptions completed(TransformerLayerOptions options) {
  if (options.ffn == 0) options.ffn = 4 * options.dim;
  if (options.dim < 1 || options.ffn < 1) {
    throw Error("a Transformer layer got dim " + std::to_string(options.dim) + " and ffn " +
                std::to_string(options.ffn) + "; both must be at least 1");
  }
  for (const double p : {options.dropout, options.activation_dropout, options.attention_dropout}) {
    if (!(p >= 0 && p < 1)) {
      throw Error("a Transformer layer got dropout " + std::to_string(p) + "; it must be at least 0 and below 1");
    }
  }
  return options;
}

// What goes into a sublayer, and what comes of x and the sublayer's output: norm before, or norm after.
Tensor into(const Tensor& x, LayerNorm& norm, const TransformerLayerOptions& options) {
  return options.pre_norm ? norm->forward(x) : x;
}
Tensor joined(const Tensor& x, const Tensor& y, LayerNorm& norm, const TransformerLayerOptions& options,
              bool training) {
  // What a sublayer made is nobody else's, and without gradients nobody wants it again.
  const bool in_place = !training && !torch::GradMode::is_enabled() && y.scalar_type() == x.scalar_type();
  const Tensor sum = in_place ? y.add_(x) : x + nn::dropout(y, options.dropout, training);
  return options.pre_norm ? sum : norm->forward(sum);
}

Tensor feed_forward(const Tensor& x, Linear& fc1, Linear& fc2, const TransformerLayerOptions& options, bool training) {
  return fc2->forward(nn::dropout(activate(options.activation, fc1->forward(x)), options.activation_dropout, training));
}

}  // namespace

Activation activation_from_name(const std::string& name) {
  if (name == "relu") return Activation::relu;
  if (name == "swish" || name == "silu") return Activation::swish;
  if (name == "gelu") return Activation::gelu;
  throw Error("the activation function \"" + name + "\" is not known; relu, swish, silu and gelu are");
}

std::string name_of(Activation activation) {
  return activation == Activation::relu ? "relu" : activation == Activation::swish ? "silu" : "gelu";
}

Tensor activate(Activation activation, const Tensor& x) {
  switch (activation) {
    case Activation::relu:
      return torch::relu(x);
    case Activation::swish:
      return torch::silu(x);
    case Activation::gelu:
      return torch::gelu(x);
  }
  throw Error("activation " + std::to_string(static_cast<int>(activation)) + " is none of relu, swish, gelu");
}

// ---- Encoder ----

TransformerEncoderLayerImpl::TransformerEncoderLayerImpl(TransformerLayerOptions given) : options(completed(given)) {
  reset();
}

void TransformerEncoderLayerImpl::reset() {
  self_attn = register_module("self_attn", multi_head(options));
  self_attn_layer_norm = register_module("self_attn_layer_norm", layer_norm(options));
  fc1 = register_module("fc1", linear(options.dim, options.ffn));
  fc2 = register_module("fc2", linear(options.ffn, options.dim));
  final_layer_norm = register_module("final_layer_norm", layer_norm(options));
}

Attended TransformerEncoderLayerImpl::forward(const Tensor& x, const AttendOptions& attend) {
  const bool training = is_training();
  const Tensor in = into(x, self_attn_layer_norm, options);
  Attended attended = self_attn->forward(in, in, attend);
  const Tensor middle = joined(x, attended.out, self_attn_layer_norm, options, training);
  const Tensor fed = feed_forward(into(middle, final_layer_norm, options), fc1, fc2, options, training);
  return {joined(middle, fed, final_layer_norm, options, training), std::move(attended.weights),
          std::move(attended.look)};
}

// ---- Decoder ----

void LayerCache::select(const Tensor& kept) {
  if (kept.dim() != 1 || kept.scalar_type() != torch::kInt64) {
    throw Error("LayerCache::select got rows with " + std::to_string(kept.dim()) +
                " dimensions; it needs one dimension of int64");
  }
  const auto at = kept.accessor<int64_t, 1>();
  const int64_t hypotheses = static_cast<int64_t>(rows.size()) * group;
  std::vector<int64_t> places(static_cast<size_t>(kept.size(0)));  // in `rows`
  for (size_t i = 0; i < places.size(); ++i) {
    const int64_t row = at[static_cast<int64_t>(i)];
    if (row < 0 || row >= hypotheses) {
      throw Error("LayerCache::select got row " + std::to_string(row) + " of " + std::to_string(hypotheses) +
                  " hypotheses");
    }
    places[i] = row / group;
  }
  const Layout layout = layout_of(places);
  cross = cross.select(torch::tensor(layout.sources, torch::kInt64));  // does nothing for 0, 1, 2, ...
  std::vector<int64_t> next;
  for (const int64_t place : layout.sources) next.push_back(rows[static_cast<size_t>(place)]);
  rows = std::move(next);
  group = layout.group;
  self.select(kept);
}

TransformerDecoderLayerImpl::TransformerDecoderLayerImpl(TransformerLayerOptions given) : options(completed(given)) {
  reset();
}

void TransformerDecoderLayerImpl::reset() {
  self_attn = register_module("self_attn", multi_head(options));
  self_attn_layer_norm = register_module("self_attn_layer_norm", layer_norm(options));
  encoder_attn = register_module("encoder_attn", multi_head(options));
  encoder_attn_layer_norm = register_module("encoder_attn_layer_norm", layer_norm(options));
  fc1 = register_module("fc1", linear(options.dim, options.ffn));
  fc2 = register_module("fc2", linear(options.ffn, options.dim));
  final_layer_norm = register_module("final_layer_norm", layer_norm(options));
}

DecoderOutput TransformerDecoderLayerImpl::forward(const Tensor& x, const Tensor& memory,
                                                   const AttendOptions& memory_options, const Mask& self_mask) {
  return run(x, nullptr, encoder_attn->project_kv(memory), memory_options, self_mask);
}

LayerCache TransformerDecoderLayerImpl::start(const Tensor& memory) {
  LayerCache cache;
  cache.cross = encoder_attn->project_kv(memory);
  cache.rows.resize(static_cast<size_t>(memory.size(0)));
  std::iota(cache.rows.begin(), cache.rows.end(), int64_t{0});
  if (torch::GradMode::is_enabled() || is_training()) return cache;
  cache.packed = packed_.get(stamp_of(parameters()), [this] {
    const auto packed = [](const Linear& layer) { return PackedLinear(layer->weight, layer->bias); };
    const auto& [q, k, v] = std::tie(self_attn->q_proj, self_attn->k_proj, self_attn->v_proj);
    const Tensor bias = q->bias.defined() ? torch::cat({q->bias, k->bias, v->bias}) : Tensor();
    return PackedDecoderLayer{.self_qkv = PackedLinear(torch::cat({q->weight, k->weight, v->weight}), bias),
                              .self_out = packed(self_attn->out_proj),
                              .cross_q = packed(encoder_attn->q_proj),
                              .cross_out = packed(encoder_attn->out_proj),
                              .fc1 = packed(fc1),
                              .fc2 = packed(fc2)};
  });
  return cache;
}

DecoderOutput TransformerDecoderLayerImpl::step(const Tensor& x, LayerCache& cache,
                                                const AttendOptions& memory_options) {
  return run(x, &cache, cache.cross, memory_options, causal());
}

DecoderOutput TransformerDecoderLayerImpl::run(const Tensor& x, LayerCache* cache, const KeyValue& cross,
                                               const AttendOptions& memory_options, const Mask& self_mask) {
  const bool training = is_training();
  const AttendOptions before{.mask = self_mask, .want_weights = memory_options.want_weights};
  const PackedDecoderLayer* packed = cache != nullptr ? cache->packed.get() : nullptr;

  Tensor in = into(x, self_attn_layer_norm, options);
  Attended self;
  if (packed != nullptr) {
    const Tensor qkv = packed->self_qkv.forward(in);
    const int64_t queries = self_attn->q_proj->weight.size(0), keys = self_attn->k_proj->weight.size(0);
    cache->self.append({qkv.narrow(2, queries, keys), qkv.narrow(2, queries + keys, qkv.size(2) - queries - keys)});
    self = self_attn->attend_heads(qkv.narrow(2, 0, queries), cache->self.all(), before);
    self.out = packed->self_out.forward(self.out);
  } else {
    self = cache != nullptr ? self_attn->extend(in, cache->self, before) : self_attn->forward(in, in, before);
  }
  const Tensor second = joined(x, self.out, self_attn_layer_norm, options, training);

  in = into(second, encoder_attn_layer_norm, options);
  // The hypotheses of a sentence are queries to the same keys, which are then read once for all of them.
  const int64_t group = cache != nullptr ? cache->group : 1;
  const Tensor asking = group > 1 ? in.reshape({in.size(0) / group, group * in.size(1), in.size(2)}) : in;
  Attended attended;
  if (packed != nullptr) {
    attended = encoder_attn->attend_heads(packed->cross_q.forward(asking), cross, memory_options);
    attended.out = packed->cross_out.forward(attended.out);
  } else {
    attended = encoder_attn->attend(asking, cross, memory_options);
  }
  if (group > 1) attended.out = attended.out.view(in.sizes());
  if (group > 1 && attended.weights.defined()) {  // [sentences, H, group * L, S] -> [hypotheses, H, L, S]
    const Tensor& w = attended.weights;
    attended.weights = w.view({asking.size(0), w.size(1), group, in.size(1), w.size(3)})
                           .transpose(1, 2)
                           .reshape({in.size(0), w.size(1), in.size(1), w.size(3)});
  }
  const Tensor third = joined(second, attended.out, encoder_attn_layer_norm, options, training);

  in = into(third, final_layer_norm, options);
  const Tensor fed = packed != nullptr ? packed->fc2.forward(activate(options.activation, packed->fc1.forward(in)))
                                       : feed_forward(in, fc1, fc2, options, training);
  return {joined(third, fed, final_layer_norm, options, training), std::move(self.weights),
          std::move(attended.weights)};
}

// ---- Positions ----

Tensor sinusoid_positions(int64_t n, int64_t dim) {
  if (n < 0 || dim < 1) {
    throw Error("sinusoid_positions got n = " + std::to_string(n) + " and dim = " + std::to_string(dim) +
                "; they must be at least 0 and 1");
  }
  Tensor positions = torch::empty({n, dim});
  const int64_t sines = (dim + 1) / 2;
  auto at = positions.accessor<float, 2>();
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t pair = i < sines ? i : i - sines;
    const double divisor = std::pow(10000.0, 2.0 * static_cast<double>(pair) / static_cast<double>(dim));
    for (int64_t p = 0; p < n; ++p) {
      const double angle = static_cast<double>(p) / divisor;
      at[p][i] = static_cast<float>(i < sines ? std::sin(angle) : std::cos(angle));
    }
  }
  return positions;
}

}  // namespace heed::nn
