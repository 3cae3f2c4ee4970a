// The Vision Transformer (Dosovitskiy et al. 2021), with the distillation token of DeiT (Touvron et al. 2021) if
// wanted.
//
// Shapes: B pictures of C channels, H x W pixels; the grid of patches has H/patch rows and W/patch columns, rounded
// down. T tokens: CLS, then the distillation token if there is one, then the patches row by row.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/module.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "libtorch/transformer.h"
#include "libtorch/vision/patches.h"

namespace heed::nn {

// The numbers of ViT-Base/16, but for dropout those of Hugging Face's ViTConfig.
struct ViTOptions {
  int64_t hidden = 768;                      // width of a token
  int64_t layers = 12;                       //
  int64_t heads = 12;                        // a divisor of hidden
  int64_t ffn = 0;                           // width inside a block's MLP; 0: 4 * hidden
  int64_t patch = 16;                        // pixels, both ways
  int64_t image = 224;                       // pixels, both ways: what the positions were learned for
  int64_t channels = 3;                      //
  bool distillation_token = false;           // DeiT's
  bool qkv_bias = true;                      //
  Activation activation = Activation::gelu;  //
  double dropout = 0;                        // of the embedded tokens and of each sublayer's output; training only
  double attention_dropout = 0;              // of the weights; training only
  double layer_norm_eps = 1e-12;             // Google's and Hugging Face's; timm's is 1e-6
};

// Where the encoder looked; no gradient.
struct ViTAttention {
  torch::Tensor cls;      // [layers, B, heads, T]: the row of the CLS token in each layer; each adds up to 1
  torch::Tensor rollout;  // [B, T]: how much of each token is in CLS after the last layer (rollout_row in probe.h)
};

struct ViTOutput {
  torch::Tensor tokens;           // [B, T, hidden], after the last LayerNorm
  int64_t rows = 0, columns = 0;  // of the grid of patches, which are the last rows * columns of the T tokens
  ViTAttention attention;
};

// Patches and CLS with learned positions, which begin as sinusoids of row and column (Beyer et al. 2022), pre-norm
// layers, LayerNorm. Pictures of another size than `image` get the positions of the patches resized (bicubic, as
// Hugging Face's interpolate_pos_encoding). Parameters: cls_token [1, 1, hidden], distillation_token,
// position_embeddings [1, T of `image`, hidden]; modules: patch_embeddings, layers.N, layernorm.
class ViTImpl : public torch::nn::Module {
 public:
  explicit ViTImpl(ViTOptions options);

  // pictures [B, C, H, W]. The attention is looked at only when asked for, by probes: no T x T tensor is made.
  ViTOutput forward(const torch::Tensor& pictures, bool want_attention = false);

  // Tokens before the patches: 1 or 2.
  int64_t special_tokens() const { return options.distillation_token ? 2 : 1; }

  // The positions of a grid, [1, T, hidden].
  torch::Tensor positions(int64_t rows, int64_t columns);

  // How many numbers an encoder of these options has, from the options alone.
  static double parameters_of(const ViTOptions& options);

  ViTOptions options;  // with the zero filled in
  PatchEmbed patch_embeddings = nullptr;
  torch::Tensor cls_token;
  torch::Tensor distillation_token;  // defined only if it is wanted
  torch::Tensor position_embeddings;
  std::vector<TransformerEncoderLayer> layers;
  torch::nn::LayerNorm layernorm = nullptr;
};
TORCH_MODULE(ViT);

}  // namespace heed::nn
