// The layers of "Attention Is All You Need" (Vaswani et al. 2017) with Marian's names and definitions, so that its
// checkpoints load by name: self_attn, self_attn_layer_norm, encoder_attn, encoder_attn_layer_norm, fc1, fc2,
// final_layer_norm.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "libtorch/layers.h"
#include "libtorch/packed_linear.h"

namespace heed::nn {

enum class Activation { relu, swish, gelu };  // swish is x * sigmoid(x), also called SiLU; gelu is the exact erf form

// From Hugging Face's "activation_function": "relu", "swish", "silu" or "gelu". Throws heed::Error for another name.
Activation activation_from_name(const std::string& name);
std::string name_of(Activation activation);  // the same, "silu" of the two

torch::Tensor activate(Activation activation, const torch::Tensor& x);

struct TransformerLayerOptions {
  int64_t dim = 0;                           // model width
  int64_t heads = 1;                         // of every attention in the layer; a divisor of dim
  int64_t kv_heads = 0;                      // 0: heads
  bool qkv_bias = true;                      // of the three projections that go into an attention
  int64_t ffn = 0;                           // width between fc1 and fc2; 0: 4 * dim
  Activation activation = Activation::relu;  //
  bool pre_norm = false;                     // false: LN(x + f(x)), the paper's and Marian's. true: x + f(LN(x)),
                                             // and the stack needs a LayerNorm of the caller's after its last layer
  double dropout = 0;                        // on each sublayer's output, before the residual sum; training only
  double activation_dropout = 0;             // between fc1 and fc2; training only
  double attention_dropout = 0;              // of the weights of every attention; training only
  double layer_norm_eps = 1e-5;              //
};

// x = norm(x + self_attn(x)); x = norm(x + fc2(activation(fc1(x)))).
class TransformerEncoderLayerImpl : public torch::nn::Cloneable<TransformerEncoderLayerImpl> {
 public:
  explicit TransformerEncoderLayerImpl(TransformerLayerOptions options);
  void reset() override;

  // x [B, L, dim] -> out [B, L, dim]; weights [B, heads, L, L] and look of the attention. Rows behind a sequence's
  // length are computed and mean nothing; options.mask = heed::lengths(...) keeps the others from seeing them.
  Attended forward(const torch::Tensor& x, const AttendOptions& options = {});

  TransformerLayerOptions options;
  MultiHeadAttention self_attn = nullptr;
  torch::nn::LayerNorm self_attn_layer_norm = nullptr;
  torch::nn::Linear fc1 = nullptr;
  torch::nn::Linear fc2 = nullptr;
  torch::nn::LayerNorm final_layer_norm = nullptr;
};
TORCH_MODULE(TransformerEncoderLayer);

// The weights of a decoder layer as its steps use them.
struct PackedDecoderLayer {
  PackedLinear self_qkv, self_out, cross_q, cross_out, fc1, fc2;  // self_qkv: q_proj, k_proj and v_proj side by side
};

// What one decoder layer remembers between steps: its own keys and values by hypothesis, and the memory's, projected
// once, by sentence: hypotheses that read the same row of the memory and lie side by side share its keys and values.
struct LayerCache {
  KeyValueCache self;
  KeyValue cross;             // of the rows `rows` of the memory, in this order
  std::vector<int64_t> rows;  // hypothesis i reads rows[i / group]
  int64_t group = 1;
  std::shared_ptr<const PackedDecoderLayer> packed;  // nullptr: of a cache that was started with gradients recorded

  // Keeps hypotheses number kept[0], kept[1], ... in that order; kept [M] int64 may repeat or drop some. The memory's
  // keys and values are copied only when there are other sentences than before, not when beams grow or are reordered.
  // If the hypotheses of the sentences are not equally many and side by side, each gets a copy.
  void select(const torch::Tensor& kept);
};

struct DecoderOutput {
  torch::Tensor out;            // [B, L, dim]
  torch::Tensor self_weights;   // [B, heads, L, all positions so far], if asked for
  torch::Tensor cross_weights;  // [B, heads, L, S], if asked for
};

// x = norm(x + self_attn(x)); x = norm(x + encoder_attn(x, memory)); x = norm(x + fc2(activation(fc1(x)))).
class TransformerDecoderLayerImpl : public torch::nn::Cloneable<TransformerDecoderLayerImpl> {
 public:
  explicit TransformerDecoderLayerImpl(TransformerLayerOptions options);
  void reset() override;

  // Training: all positions at once, each seeing itself and those before it. x [B, L, dim], memory [B, S, dim];
  // memory_options.mask (heed::lengths of the source) and .want_weights are for the attention to the memory, and
  // want_weights also for the self attention. Padding behind a target needs no mask: nothing before it sees it. Without
  // padding, all sequences one after another in a batch of 1, both masks are heed::ragged.
  DecoderOutput forward(const torch::Tensor& x, const torch::Tensor& memory, const AttendOptions& memory_options = {},
                        const Mask& self_mask = causal());

  // A cache for this memory [B, S, dim], with nothing decoded yet. Where no gradients are recorded the cache holds the
  // weights of this moment, packed: steps do not see later changes and record no gradients.
  LayerCache start(const torch::Tensor& memory);

  // Decoding: the next position or positions x [B, L, dim] after what the cache holds. Appends to the cache.
  // Equals the rows of the full forward. memory_options.mask goes by cache.rows; its weights by hypothesis, as x does.
  DecoderOutput step(const torch::Tensor& x, LayerCache& cache, const AttendOptions& memory_options = {});

  TransformerLayerOptions options;
  MultiHeadAttention self_attn = nullptr;
  torch::nn::LayerNorm self_attn_layer_norm = nullptr;
  MultiHeadAttention encoder_attn = nullptr;
  torch::nn::LayerNorm encoder_attn_layer_norm = nullptr;
  torch::nn::Linear fc1 = nullptr;
  torch::nn::Linear fc2 = nullptr;
  torch::nn::LayerNorm final_layer_norm = nullptr;

 private:
  SharedWhileUsed<PackedDecoderLayer> packed_;

  DecoderOutput run(const torch::Tensor& x, LayerCache* cache, const KeyValue& cross,
                    const AttendOptions& memory_options, const Mask& self_mask);
};
TORCH_MODULE(TransformerDecoderLayer);

// Marian's position vectors, [n, dim] float32: with angle(p, i) = p / 10000^(2i/dim), the first half holds sin, the
// second half cos; an odd dim has one more sin. Row p is position p, from 0.
torch::Tensor sinusoid_positions(int64_t n, int64_t dim);

}  // namespace heed::nn
