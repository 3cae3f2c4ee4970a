// Layers that multiply a feature map by a map they compute: SE, ECA, CBAM, BAM, coordinate attention, attention gate.
//
// Shapes: B batch, C channels, H height, W width; x is [B, C, H, W]. forward gives the gated feature map alone, so that
// a layer can stand in a torch::nn::Sequential; gate gives the map, too, as a part of the graph: detach() what you keep
// to look at. Where a paper and its authors' repository differ, the default is the repository's and an option says what
// the other is. All throw heed::Error for sizes that do not fit.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>

namespace heed::nn {

struct Gated {
  torch::Tensor out;  // [B, C, H, W]
  torch::Tensor map;  // what x was multiplied by, in the shape the layer names
};

// ---- Squeeze and excitation: Hu, Shen, Sun 2018 ----

struct SqueezeExcitationOptions {
  int64_t channels = 0;    // C
  int64_t reduction = 16;  // r; the bottleneck has C / r units, rounded down
  bool bias = true;        // of both layers; releases and ports differ
};

// x * sigmoid(fc2(relu(fc1(mean of each channel)))). Parameters: fc1 C -> C/r, fc2 C/r -> C.
class SqueezeExcitationImpl : public torch::nn::Cloneable<SqueezeExcitationImpl> {
 public:
  explicit SqueezeExcitationImpl(SqueezeExcitationOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  Gated gate(const torch::Tensor& x);  // map [B, C]

  SqueezeExcitationOptions options;
  torch::nn::Linear fc1 = nullptr;
  torch::nn::Linear fc2 = nullptr;
};
TORCH_MODULE(SqueezeExcitation);

// ---- Efficient channel attention: Wang et al. 2020 ----

struct EfficientChannelAttentionOptions {
  int64_t channels = 0;  // C
  int64_t kernel = 0;  // neighbouring channels seen, odd; 0: the paper's, t = int(|log2(C) / 2 + 1/2|) made odd by + 1
};

// x * sigmoid(conv along the channels of the mean of each): one kernel for all, no bias, zeros beyond the first and
// last channel. Parameter: conv.weight [1, 1, kernel].
class EfficientChannelAttentionImpl : public torch::nn::Cloneable<EfficientChannelAttentionImpl> {
 public:
  explicit EfficientChannelAttentionImpl(EfficientChannelAttentionOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  Gated gate(const torch::Tensor& x);  // map [B, C]

  EfficientChannelAttentionOptions options;  // with the zero filled in
  torch::nn::Conv1d conv = nullptr;
};
TORCH_MODULE(EfficientChannelAttention);

// ---- CBAM, convolutional block attention module: Woo et al. 2018 ----

struct ChannelGateOptions {
  int64_t channels = 0;    // C
  int64_t reduction = 16;  // r
};

// x * sigmoid(mlp(mean of each channel) + mlp(maximum of each channel)) with mlp = fc2(relu(fc1)), biases included.
class ChannelGateImpl : public torch::nn::Cloneable<ChannelGateImpl> {
 public:
  explicit ChannelGateImpl(ChannelGateOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  Gated gate(const torch::Tensor& x);  // map [B, C]

  ChannelGateOptions options;
  torch::nn::Linear fc1 = nullptr;
  torch::nn::Linear fc2 = nullptr;
};
TORCH_MODULE(ChannelGate);

struct SpatialGateOptions {
  int64_t kernel = 7;      // odd
  bool max_first = true;   // the convolution reads [maximum; mean] over the channels, as in the repository; false:
                           // [mean; maximum], as the paper writes it
  bool batch_norm = true;  // behind the convolution, as in the repository; the paper has none
};

// x * sigmoid(bn(conv([max; mean]))), for any number of channels. conv has no bias; bn's momentum is the repository's,
// 0.01.
class SpatialGateImpl : public torch::nn::Cloneable<SpatialGateImpl> {
 public:
  explicit SpatialGateImpl(SpatialGateOptions options = {});
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  Gated gate(const torch::Tensor& x);  // map [B, 1, H, W]

  SpatialGateOptions options;
  torch::nn::Conv2d conv = nullptr;
  torch::nn::BatchNorm2d bn = nullptr;  // batch_norm only
};
TORCH_MODULE(SpatialGate);

struct CbamOptions {
  int64_t channels = 0;             // C
  int64_t reduction = 16;           // of the channel gate
  SpatialGateOptions spatial = {};  //
};

struct CbamGated {
  torch::Tensor out;          // [B, C, H, W]
  torch::Tensor channel_map;  // [B, C]
  torch::Tensor spatial_map;  // [B, 1, H, W]
};

// The channel gate, then the spatial gate of what comes out of it. Modules: channel, spatial.
class CbamImpl : public torch::nn::Cloneable<CbamImpl> {
 public:
  explicit CbamImpl(CbamOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  CbamGated gate(const torch::Tensor& x);

  CbamOptions options;
  ChannelGate channel = nullptr;
  SpatialGate spatial = nullptr;
};
TORCH_MODULE(Cbam);

// ---- BAM, bottleneck attention module: Park et al. 2018 ----

struct BamOptions {
  int64_t channels = 0;    // C
  int64_t reduction = 16;  // r, of both branches
  int64_t dilation = 4;    // of the spatial branch's 3x3 convolutions
  bool add = false;        // the branches are added, as in the paper; false: multiplied, as in the repository
};

// x * (1 + sigmoid(channel branch * spatial branch)). Channel branch: fc2(relu(bn(fc1(mean of each channel)))).
// Spatial branch: 1x1 to C/r, two dilated 3x3, 1x1 to one map, batch norm and ReLU behind all but the last. The means
// are over the whole map, of any shape (the repository's pooling takes squares only). The channel branch's batch norm
// has one value of a channel for each picture: training takes a batch of 2 or more.
class BamImpl : public torch::nn::Cloneable<BamImpl> {
 public:
  explicit BamImpl(BamOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  Gated gate(const torch::Tensor& x);  // map [B, C, H, W], in (1, 2)

  BamOptions options;
  torch::nn::Linear fc1 = nullptr;
  torch::nn::BatchNorm1d bn = nullptr;
  torch::nn::Linear fc2 = nullptr;
  torch::nn::Sequential spatial = nullptr;
};
TORCH_MODULE(Bam);

// ---- Coordinate attention: Hou, Zhou, Feng 2021 ----

struct CoordinateAttentionOptions {
  int64_t channels = 0;    // C
  int64_t reduction = 32;  // the bottleneck has C / reduction channels, but at least 8
};

struct CoordinateGated {
  torch::Tensor out;      // [B, C, H, W]
  torch::Tensor rows;     // [B, C, H, 1]: the factor of each row
  torch::Tensor columns;  // [B, C, 1, W]: the factor of each column
};

// x * sigmoid(conv_h(rows)) * sigmoid(conv_w(columns)), where the means along each row and along each column pass
// through hardswish(bn1(conv1)) joined along one axis of H + W. Modules have the repository's names.
class CoordinateAttentionImpl : public torch::nn::Cloneable<CoordinateAttentionImpl> {
 public:
  explicit CoordinateAttentionImpl(CoordinateAttentionOptions options);
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x);
  CoordinateGated gate(const torch::Tensor& x);

  CoordinateAttentionOptions options;
  torch::nn::Conv2d conv1 = nullptr;
  torch::nn::BatchNorm2d bn1 = nullptr;
  torch::nn::Conv2d conv_h = nullptr;
  torch::nn::Conv2d conv_w = nullptr;
};
TORCH_MODULE(CoordinateAttention);

// ---- The attention gate of Attention U-Net: Oktay et al. 2018 ----

struct AttentionGateOptions {
  int64_t channels = 0;          // C of x, the feature map of the encoder
  int64_t gate_channels = 0;     // Cg of g, the coarser one of the decoder
  int64_t inner = 0;             // channels in which they meet; 0: C / 2, at least 1
  int64_t stride = 2;            // theta looks at squares of stride x stride, side by side
  bool same_resolution = false;  // the form of many two-dimensional copies: g has x's height and width, theta is 1x1
                                 // with a bias, each of theta, phi and psi has a batch norm, and W is left out
};

// W(map * x) with map = up(sigmoid(psi(relu(theta(x) + up(phi(g)))))): theta has kernel and stride `stride` and no
// bias, phi is 1x1, W is 1x1 and a batch norm; up is bilinear, corners not aligned. With same_resolution: map * x with
// map = sigmoid(bn(psi(relu(bn(theta(x)) + bn(phi(g)))))).
class AttentionGateImpl : public torch::nn::Cloneable<AttentionGateImpl> {
 public:
  explicit AttentionGateImpl(AttentionGateOptions options);
  void reset() override;

  // x [B, C, H, W]; g [B, Cg, any height, any width], or with same_resolution [B, Cg, H, W].
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& g);
  Gated gate(const torch::Tensor& x, const torch::Tensor& g);  // map [B, 1, H, W]

  AttentionGateOptions options;  // with the zero filled in
  torch::nn::Conv2d theta = nullptr;
  torch::nn::Conv2d phi = nullptr;
  torch::nn::Conv2d psi = nullptr;
  torch::nn::Sequential W = nullptr;          // not with same_resolution
  torch::nn::BatchNorm2d theta_bn = nullptr;  // these three with same_resolution only
  torch::nn::BatchNorm2d phi_bn = nullptr;
  torch::nn::BatchNorm2d psi_bn = nullptr;
};
TORCH_MODULE(AttentionGate);

}  // namespace heed::nn
