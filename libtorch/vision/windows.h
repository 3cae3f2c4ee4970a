// Self attention of a picture's positions to those near them: Swin's windows, and neighbourhoods.
//
// Shapes: B batch, H height, W width, C channels last; x and out are [B, H, W, C]. forward gives out alone; attend also
// the weights if asked for, without gradient and dense, [B, heads, H*W, H*W] with zeros where nothing is seen: for
// small maps. Both layers throw heed::Error for sizes that do not fit.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>

#include "libtorch/layers.h"

namespace heed::nn {

// ---- Windows with relative positions: Liu et al. 2021 (Swin Transformer) ----

struct WindowAttentionOptions {
  int64_t dim = 0;     // C
  int64_t heads = 1;   // a divisor of dim
  int64_t window = 7;  // w; a window is w x w positions
  int64_t shift = 0;   // in [0, w): the first row and column of a whole window; in Swin w / 2 in every other layer
  bool bias = true;    // of qkv
  bool attend_padding = false;  // a map that w does not divide is padded with zeros below and at the right, whose keys
                                // and values are qkv's bias and are attended to, as in Swin. false: windows at the
                                // border are smaller, and nothing outside of the map is attended to
};

// out = proj(softmax(q . k / sqrt(C / heads) + table) v) within each window. Swin rolls a shifted picture, so that the
// windows at its two borders share one, and adds -100 to the scores between their parts: an unlikely pair, if its score
// is more than 100 higher, still counts. Here each part is a window of its own, smaller than the others: exactly
// nothing is seen across, nothing is rolled and nothing is computed to be thrown away.
// Parameters have Swin's names: qkv.{weight,bias}, proj.{weight,bias}, relative_position_bias_table [(2w - 1)^2, heads]
// with the rows of heed::swin_row.
class WindowAttentionImpl : public torch::nn::Cloneable<WindowAttentionImpl> {
 public:
  explicit WindowAttentionImpl(WindowAttentionOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);

  // With attend_padding the weights of what lies outside of the map are left out: such a row adds up to less than 1.
  Attended attend(const torch::Tensor& x, bool want_weights = false);

  WindowAttentionOptions options;
  torch::nn::Linear qkv = nullptr;
  torch::nn::Linear proj = nullptr;
  torch::Tensor relative_position_bias_table;
};
TORCH_MODULE(WindowAttention);

// ---- Neighbourhoods: Hassani et al. 2023 (NATTEN) ----

struct NeighborhoodAttentionOptions {
  int64_t dim = 0;     // C
  int64_t heads = 1;   // a divisor of dim
  int64_t kernel = 7;  // k, odd, at most H and W
  bool bias = true;    // of qkv
};

// Each position attends to the k x k around it. Near a border the square is moved inside, as in NATTEN, so that all see
// equally many (heed::neighbourhood). No relative positions. Parameters: qkv, proj.
class NeighborhoodAttentionImpl : public torch::nn::Cloneable<NeighborhoodAttentionImpl> {
 public:
  explicit NeighborhoodAttentionImpl(NeighborhoodAttentionOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  Attended attend(const torch::Tensor& x, bool want_weights = false);

  NeighborhoodAttentionOptions options;
  torch::nn::Linear qkv = nullptr;
  torch::nn::Linear proj = nullptr;
};
TORCH_MODULE(NeighborhoodAttention);

}  // namespace heed::nn
