// From a picture to a sequence: patches, each of them projected to a token.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>

namespace heed::nn {

struct PatchEmbedOptions {
  int64_t channels = 3;  // C
  int64_t hidden = 0;    // width of a token
  int64_t patch = 0;     // pixels, both ways
  int64_t stride = 0;    // from one patch to the next; 0: patch, so that they do not overlap
  int64_t padding = 0;   // pixels of 0 around the picture
};

// Tokens, row by row of the grid they were cut from.
struct Patches {
  torch::Tensor tokens;  // [B, rows * columns, hidden]
  int64_t rows = 0, columns = 0;
};

// A convolution over patches. Parameters: projection.weight [hidden, C, patch, patch], projection.bias [hidden].
class PatchEmbedImpl : public torch::nn::Cloneable<PatchEmbedImpl> {
 public:
  explicit PatchEmbedImpl(PatchEmbedOptions options);
  void reset() override;

  // pictures [B, C, H, W] -> rows = (H + 2 padding - patch) / stride + 1, rounded down, columns likewise. Throws
  // heed::Error for another number of channels or axes, whole numbers, and pictures smaller than a patch.
  Patches forward(const torch::Tensor& pictures);

  PatchEmbedOptions options;  // with the zero filled in
  torch::nn::Conv2d projection = nullptr;
};
TORCH_MODULE(PatchEmbed);

// The tokens of a grid as a map: [B, rows * columns, C] -> [B, C, rows, columns].
torch::Tensor map_of(const Patches& patches);

}  // namespace heed::nn
