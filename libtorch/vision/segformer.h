// SegFormer (Xie et al. 2021): the Mix Transformer, an encoder in stages whose attention sees fewer keys than it has
// queries, and a head of linear layers that gives each pixel its class.
//
// Shapes: B pictures of C channels, H x W pixels; stage s makes a map of C_s channels, h_s x w_s; with the strides of
// the paper h_s is H / 4, 8, 16, 32, rounded up.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/cloneable.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "libtorch/layers.h"
#include "libtorch/transformer.h"
#include "libtorch/vision/patches.h"

namespace heed::nn {

struct SegformerStageOptions {
  int64_t hidden = 0;     // C_s
  int64_t depth = 2;      // blocks
  int64_t heads = 1;      // a divisor of hidden
  int64_t reduction = 1;  // R: keys and values are read from a map R times smaller, both ways
  int64_t patch = 3;      // of the embedding that begins the stage, which overlap: its padding is patch / 2
  int64_t stride = 2;     //
  int64_t mlp_ratio = 4;  // width inside the Mix-FFN, in hidden
};

// Those of MiT-B0 with the head for ADE20K, but for dropout, which is the paper's recipe.
struct SegformerOptions {
  int64_t channels = 3;  //
  std::vector<SegformerStageOptions> stages = {{.hidden = 32, .heads = 1, .reduction = 8, .patch = 7, .stride = 4},
                                               {.hidden = 64, .heads = 2, .reduction = 4},
                                               {.hidden = 160, .heads = 5, .reduction = 2},
                                               {.hidden = 256, .heads = 8, .reduction = 1}};
  int64_t decoder_hidden = 256;              // width of the head
  int64_t classes = 150;                     //
  Activation activation = Activation::gelu;  //
  double dropout = 0;                        // of each sublayer's output and inside the Mix-FFN; training only
  double attention_dropout = 0;              // of the weights; training only
  double classifier_dropout = 0.1;           // before the classifier; training only
  double drop_path = 0.1;                    // share of pictures that skip a sublayer of the last block, rising from 0
                                             // at the first (stochastic depth, Huang et al. 2016); training only
  double layer_norm_eps = 1e-5;              // of every LayerNorm: what checkpoints were trained with, although
                                             // their config.json says 1e-6
};

// The paper's sizes, `size` from 0 (B0) to 5 (B5), with 256 channels in the head for B0 and B1 and 768 for the others.
// Throws heed::Error for another.
SegformerOptions segformer_options(int size);

// x + attention(LN x), then x + Mix-FFN(LN x). Queries are all tokens; keys and values come of LN(conv(x)) with kernel
// and stride R if R > 1. Mix-FFN: fc2(activation(depthwise 3 x 3 conv(fc1 x))), which is where the model learns
// positions from. Modules: layernorm_before, sequence_reduction, reduction_norm (both R > 1 only), attention,
// layernorm_after, fc1, dwconv, fc2.
class SegformerBlockImpl : public torch::nn::Cloneable<SegformerBlockImpl> {
 public:
  SegformerBlockImpl(SegformerStageOptions stage, SegformerOptions options, double drop_path);
  void reset() override;

  // tokens [B, N, C_s] of a grid -> out [B, N, C_s]; look if asked for. Throws heed::Error for a grid smaller than R.
  Attended forward(const Patches& patches, bool want_look = false);

  SegformerStageOptions stage;
  SegformerOptions options;
  double drop_path;
  torch::nn::LayerNorm layernorm_before = nullptr;
  torch::nn::Conv2d sequence_reduction = nullptr;
  torch::nn::LayerNorm reduction_norm = nullptr;
  MultiHeadAttention attention = nullptr;
  torch::nn::LayerNorm layernorm_after = nullptr;
  torch::nn::Linear fc1 = nullptr;
  torch::nn::Conv2d dwconv = nullptr;
  torch::nn::Linear fc2 = nullptr;
};
TORCH_MODULE(SegformerBlock);

// What one stage makes.
struct SegformerStageOutput {
  Patches patches;  // tokens [B, h_s * w_s, C_s], after the stage's LayerNorm; map_of makes [B, C_s, h_s, w_s] of it
  // If asked for: [depth, B, heads, h_s / R, w_s / R], how much weight each place of the reduced map received in each
  // block, as the mean over the queries: a map adds up to 1. Each place stands for R x R of the stage's. No gradient.
  torch::Tensor received;
};

// The Mix Transformer. Modules: stages.S.{patch_embeddings, patch_norm, blocks.N, layer_norm}.
class MixTransformerImpl : public torch::nn::Module {
 public:
  explicit MixTransformerImpl(SegformerOptions options);

  // pictures [B, C, H, W] -> one output for each stage.
  std::vector<SegformerStageOutput> forward(const torch::Tensor& pictures, bool want_attention = false);

  struct Stage {
    PatchEmbed patch_embeddings = nullptr;
    torch::nn::LayerNorm patch_norm = nullptr;
    std::vector<SegformerBlock> blocks;
    torch::nn::LayerNorm layer_norm = nullptr;
  };

  SegformerOptions options;
  std::vector<Stage> stages;
};
TORCH_MODULE(MixTransformer);

// The all-MLP head: each stage through a linear layer of its own, resized (bilinear, corners not aligned) to the first
// stage's map and joined, the last stage first; a 1 x 1 convolution, BatchNorm, ReLU, dropout, 1 x 1 convolution.
// Modules: projections.S, linear_fuse (no bias), batch_norm, classifier.
class SegformerHeadImpl : public torch::nn::Module {
 public:
  explicit SegformerHeadImpl(SegformerOptions options);

  // -> logits [B, classes, h_0, w_0].
  torch::Tensor forward(const std::vector<SegformerStageOutput>& stages);

  SegformerOptions options;
  std::vector<torch::nn::Linear> projections;
  torch::nn::Conv2d linear_fuse = nullptr;
  torch::nn::BatchNorm2d batch_norm = nullptr;
  torch::nn::Conv2d classifier = nullptr;
};
TORCH_MODULE(SegformerHead);

struct SegformerOutput {
  torch::Tensor logits;                 // [B, classes, h_0, w_0], a quarter of the picture each way: see resized
  std::vector<torch::Tensor> received;  // of each stage, if asked for: see SegformerStageOutput
};

// Modules: encoder, decode_head.
class SegformerImpl : public torch::nn::Module {
 public:
  explicit SegformerImpl(SegformerOptions options);

  // pictures [B, C, H, W], normalised. Any size from one pixel for each of the strides and reductions on.
  SegformerOutput forward(const torch::Tensor& pictures, bool want_attention = false);

  // How many numbers a model of these options has, from the options alone.
  static double parameters_of(const SegformerOptions& options);

  SegformerOptions options;
  MixTransformer encoder = nullptr;
  SegformerHead decode_head = nullptr;
};
TORCH_MODULE(Segformer);

// Maps [B, C, h, w] -> [B, C, height, width], bilinear with corners not aligned: what the head does to its stages, and
// what logits need before the largest is taken for each pixel or a loss is.
torch::Tensor resized(const torch::Tensor& maps, int64_t height, int64_t width);

}  // namespace heed::nn
