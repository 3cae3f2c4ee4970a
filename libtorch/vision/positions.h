// Attention between the positions, or the channels, of a feature map: Non-local, DANet's two modules, GCNet's context.
//
// Shapes: B batch, C channels, H height, W width, N = H * W positions, row by row; x and out are [B, C, H, W]. forward
// gives out alone, so that a layer can stand in a torch::nn::Sequential; attend takes a mask and a bias, too, and gives
// the weights if asked for, without gradient. Neither makes an N x N tensor unless weights are asked for. Where a paper
// and its authors' repository differ, the default is the repository's and an option says what the other is. All throw
// heed::Error for sizes that do not fit.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>

#include "libtorch/layers.h"

namespace heed::nn {

// ---- Non-local networks: Wang, Girshick, Gupta, He 2018 ----

enum class NonLocalScore {
  embedded_gaussian,  // softmax over the positions of theta(x_i) . phi(x_j)
  dot_product,        // theta(x_i) . phi(x_j) / their number, without softmax
};

struct NonLocalOptions {
  int64_t channels = 0;                                    // C
  int64_t inner = 0;                                       // I, channels of theta, phi and g; 0: C / 2, at least 1
  NonLocalScore score = NonLocalScore::embedded_gaussian;  //
  bool scaled = true;      // embedded Gaussian: scores times I^-1/2, as in the repository; the paper has no scale
  bool sub_sample = true;  // phi and g read x through 2x2 max pooling: a fourth of the keys, a last odd row or column
                           // left out, as in the repository
};

// x + bn(out(y)), y_i = sum over j of weight_ij g(x_j). bn's weight starts at 0 and with it the layer as the identity.
// Parameters: theta, phi, g [I, C, 1, 1], out [C, I, 1, 1], all with biases, and bn.
class NonLocalImpl : public torch::nn::Cloneable<NonLocalImpl> {
 public:
  explicit NonLocalImpl(NonLocalOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);

  // weights [B, N, M] over the M = N, or (H / 2) * (W / 2), keys; those of dot_product are its scores. It has neither
  // mask nor bias: it sums over the keys first, in O(N), and the keys then are no longer apart.
  Attended attend(const torch::Tensor& x, const AttendOptions& options = {});

  NonLocalOptions options;  // with the zero filled in
  torch::nn::Conv2d theta = nullptr;
  torch::nn::Conv2d phi = nullptr;
  torch::nn::Conv2d g = nullptr;
  torch::nn::Conv2d out = nullptr;
  torch::nn::BatchNorm2d bn = nullptr;
};
TORCH_MODULE(NonLocal);

// ---- Dual attention network: Fu et al. 2019. Position attention is SAGAN's, too: Zhang et al. 2019 ----

struct PositionAttentionOptions {
  int64_t channels = 0;  // C
  int64_t inner = 0;     // of queries and keys; 0: C / 8, at least 1
};

// x + gamma * sum over j of softmax_j(query_i . key_j) value_j, unscaled. gamma starts at 0 and with it the layer as
// the identity. Parameters as in DANet's repository: query_conv, key_conv, value_conv (1x1, biases) and gamma [1].
class PositionAttentionImpl : public torch::nn::Cloneable<PositionAttentionImpl> {
 public:
  explicit PositionAttentionImpl(PositionAttentionOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  Attended attend(const torch::Tensor& x, const AttendOptions& options = {});  // weights [B, N, N]

  PositionAttentionOptions options;  // with the zero filled in
  torch::nn::Conv2d query_conv = nullptr;
  torch::nn::Conv2d key_conv = nullptr;
  torch::nn::Conv2d value_conv = nullptr;
  torch::Tensor gamma;
};
TORCH_MODULE(PositionAttention);

struct ChannelAttentionOptions {
  // The sign of the energy E = X X^T of the channels: the repository's softmax(rowmax(E) - E), which is softmax(-E), or
  // the paper's softmax(E).
  bool minus_energy = true;
};

// x + gamma * softmax(-E) X with X = x as [C, N], for any number of channels: a channel attends to channels, most to
// those that are least like it (with the paper's sign: to itself). Parameter: gamma [1], 0 at the start.
class ChannelAttentionImpl : public torch::nn::Cloneable<ChannelAttentionImpl> {
 public:
  explicit ChannelAttentionImpl(ChannelAttentionOptions options = {});
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  Attended attend(const torch::Tensor& x, const AttendOptions& options = {});  // weights [B, C, C]

  ChannelAttentionOptions options;
  torch::Tensor gamma;
};
TORCH_MODULE(ChannelAttention);

// ---- Global context: Cao et al. 2019 (GCNet) ----

struct GlobalContextOptions {
  int64_t channels = 0;    // C
  int64_t reduction = 16;  // r; the bottleneck has C / r channels, rounded down
  bool add = true;         // out = x + channel_add_conv(context)
  bool multiply = false;   // x * sigmoid(channel_mul_conv(context)); with both, the sum is taken of this product
};

// One map for all queries: context = sum over j of softmax_j(w . x_j) x_j. Each branch is 1x1, LayerNorm over [C/r, 1,
// 1], ReLU, 1x1, and its last layer starts at 0: the sum starts as the identity, the product as x / 2. Parameters as in
// the repository: conv_mask.weight [1, C, 1, 1], channel_add_conv.{0,1,3}, channel_mul_conv.{0,1,3}; but conv_mask has
// no bias, which no softmax would see.
class GlobalContextImpl : public torch::nn::Cloneable<GlobalContextImpl> {
 public:
  explicit GlobalContextImpl(GlobalContextOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);

  // weights [B, H, W]. A mask or a bias is that of one query and N keys.
  Attended attend(const torch::Tensor& x, const AttendOptions& options = {});

  GlobalContextOptions options;
  torch::nn::Conv2d conv_mask = nullptr;
  torch::nn::Sequential channel_add_conv = nullptr;  // add only
  torch::nn::Sequential channel_mul_conv = nullptr;  // multiply only
};
TORCH_MODULE(GlobalContext);

}  // namespace heed::nn
