// Layers that multiply a feature map by a map they compute: SE, ECA, CBAM, BAM, coordinate attention, attention gate.
#include "libtorch/vision/gates.h"

#include <heed/attention.h>
#include <torch/nn/modules/activation.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#include "libtorch/sizes.h"

namespace heed::nn {
namespace {

using torch::Tensor;
using torch::nn::BatchNorm2d;
using torch::nn::BatchNormOptions;
using torch::nn::Conv2d;
using torch::nn::Conv2dOptions;
using torch::nn::Linear;
using torch::nn::LinearOptions;
using torch::nn::Sequential;

Tensor channel_means(const Tensor& x) { return x.mean({2, 3}); }                         // [B, C]
Tensor channel_maxima(const Tensor& x) { return x.amax({2, 3}); }                        // [B, C]
Tensor spread(const Tensor& map) { return map.view({map.size(0), map.size(1), 1, 1}); }  // [B, C] over all positions

void check_odd(int64_t kernel, const char* layer) {
  if (kernel < 1 || kernel % 2 == 0) {
    throw Error(std::string(layer) + " got kernel " + std::to_string(kernel) + "; it must be odd and at least 1");
  }
}

int64_t positions(const Tensor& x) { return x.size(0) * x.size(2) * x.size(3); }  // of all pictures

}  // namespace

// ---- Squeeze and excitation ----

SqueezeExcitationImpl::SqueezeExcitationImpl(SqueezeExcitationOptions options) : options(options) { reset(); }

void SqueezeExcitationImpl::reset() {
  const int64_t hidden = reduced(options.channels, options.reduction, "SqueezeExcitation");
  fc1 = register_module("fc1", Linear(LinearOptions(options.channels, hidden).bias(options.bias)));
  fc2 = register_module("fc2", Linear(LinearOptions(hidden, options.channels).bias(options.bias)));
}

Gated SqueezeExcitationImpl::gate(const Tensor& x) {
  check_feature_map(x, options.channels, "SqueezeExcitation");
  const Tensor map = torch::sigmoid(fc2->forward(torch::relu(fc1->forward(channel_means(x)))));
  return {x * spread(map), map};
}

Tensor SqueezeExcitationImpl::forward(const Tensor& x) { return gate(x).out; }

// ---- Efficient channel attention ----

EfficientChannelAttentionImpl::EfficientChannelAttentionImpl(EfficientChannelAttentionOptions given)
    : options([&given] {
        check_size(given.channels, "EfficientChannelAttention", "channels");
        if (given.kernel == 0) {
          const auto t = static_cast<int64_t>(std::abs(std::log2(static_cast<double>(given.channels)) / 2 + 0.5));
          given.kernel = t % 2 == 1 ? t : t + 1;
        }
        return given;
      }()) {
  check_odd(options.kernel, "EfficientChannelAttention");
  reset();
}

void EfficientChannelAttentionImpl::reset() {
  conv = register_module(
      "conv",
      torch::nn::Conv1d(torch::nn::Conv1dOptions(1, 1, options.kernel).padding(options.kernel / 2).bias(false)));
}

Gated EfficientChannelAttentionImpl::gate(const Tensor& x) {
  check_feature_map(x, options.channels, "EfficientChannelAttention");
  const Tensor map = torch::sigmoid(conv->forward(channel_means(x).unsqueeze(1)).squeeze(1));
  return {x * spread(map), map};
}

Tensor EfficientChannelAttentionImpl::forward(const Tensor& x) { return gate(x).out; }

// ---- CBAM ----

ChannelGateImpl::ChannelGateImpl(ChannelGateOptions options) : options(options) { reset(); }

void ChannelGateImpl::reset() {
  const int64_t hidden = reduced(options.channels, options.reduction, "ChannelGate");
  fc1 = register_module("fc1", Linear(options.channels, hidden));
  fc2 = register_module("fc2", Linear(hidden, options.channels));
}

Gated ChannelGateImpl::gate(const Tensor& x) {
  check_feature_map(x, options.channels, "ChannelGate");
  const auto mlp = [this](const Tensor& pooled) { return fc2->forward(torch::relu(fc1->forward(pooled))); };
  const Tensor map = torch::sigmoid(mlp(channel_means(x)) + mlp(channel_maxima(x)));
  return {x * spread(map), map};
}

Tensor ChannelGateImpl::forward(const Tensor& x) { return gate(x).out; }

SpatialGateImpl::SpatialGateImpl(SpatialGateOptions options) : options(options) {
  check_odd(options.kernel, "SpatialGate");
  reset();
}

void SpatialGateImpl::reset() {
  conv = register_module("conv", Conv2d(Conv2dOptions(2, 1, options.kernel).padding(options.kernel / 2).bias(false)));
  if (options.batch_norm) bn = register_module("bn", BatchNorm2d(BatchNormOptions(1).momentum(0.01)));
}

Gated SpatialGateImpl::gate(const Tensor& x) {
  check_feature_map(x, 0, "SpatialGate");
  const Tensor mean = x.mean(1, /*keepdim=*/true), max = x.amax(1, /*keepdim=*/true);
  Tensor map = conv->forward(options.max_first ? torch::cat({max, mean}, 1) : torch::cat({mean, max}, 1));
  if (bn) {
    check_batch_norm(positions(x), is_training(), "SpatialGate");
    map = bn->forward(map);
  }
  map = torch::sigmoid(map);
  return {x * map, map};
}

Tensor SpatialGateImpl::forward(const Tensor& x) { return gate(x).out; }

CbamImpl::CbamImpl(CbamOptions options) : options(options) { reset(); }

void CbamImpl::reset() {
  channel = register_module(
      "channel", ChannelGate(ChannelGateOptions{.channels = options.channels, .reduction = options.reduction}));
  spatial = register_module("spatial", SpatialGate(options.spatial));
}

CbamGated CbamImpl::gate(const Tensor& x) {
  Gated by_channel = channel->gate(x);
  Gated by_position = spatial->gate(by_channel.out);
  return {std::move(by_position.out), std::move(by_channel.map), std::move(by_position.map)};
}

Tensor CbamImpl::forward(const Tensor& x) { return gate(x).out; }

// ---- BAM ----

BamImpl::BamImpl(BamOptions options) : options(options) {
  check_size(options.dilation, "Bam", "dilation");
  reset();
}

void BamImpl::reset() {
  const int64_t channels = options.channels, hidden = reduced(channels, options.reduction, "Bam");
  fc1 = register_module("fc1", Linear(channels, hidden));
  bn = register_module("bn", torch::nn::BatchNorm1d(hidden));
  fc2 = register_module("fc2", Linear(hidden, channels));
  const auto dilated = Conv2dOptions(hidden, hidden, 3).padding(options.dilation).dilation(options.dilation);
  spatial = register_module(
      "spatial", Sequential(Conv2d(Conv2dOptions(channels, hidden, 1)), BatchNorm2d(hidden), torch::nn::ReLU(),  //
                            Conv2d(dilated), BatchNorm2d(hidden), torch::nn::ReLU(),                             //
                            Conv2d(dilated), BatchNorm2d(hidden), torch::nn::ReLU(),                             //
                            Conv2d(Conv2dOptions(hidden, 1, 1))));
}

Gated BamImpl::gate(const Tensor& x) {
  check_feature_map(x, options.channels, "Bam");
  check_batch_norm(x.size(0), is_training(), "Bam");
  const Tensor by_channel =
      spread(fc2->forward(torch::relu(bn->forward(fc1->forward(channel_means(x))))));  // [B, C, 1, 1]
  const Tensor by_position = spatial->forward(x);                                      // [B, 1, H, W]
  const Tensor map = 1 + torch::sigmoid(options.add ? by_channel + by_position : by_channel * by_position);
  return {x * map, map};
}

Tensor BamImpl::forward(const Tensor& x) { return gate(x).out; }

// ---- Coordinate attention ----

CoordinateAttentionImpl::CoordinateAttentionImpl(CoordinateAttentionOptions options) : options(options) {
  check_size(options.channels, "CoordinateAttention", "channels");
  check_size(options.reduction, "CoordinateAttention", "reduction");
  reset();
}

void CoordinateAttentionImpl::reset() {
  const int64_t channels = options.channels, hidden = std::max<int64_t>(8, channels / options.reduction);
  conv1 = register_module("conv1", Conv2d(Conv2dOptions(channels, hidden, 1)));
  bn1 = register_module("bn1", BatchNorm2d(hidden));
  conv_h = register_module("conv_h", Conv2d(Conv2dOptions(hidden, channels, 1)));
  conv_w = register_module("conv_w", Conv2d(Conv2dOptions(hidden, channels, 1)));
}

CoordinateGated CoordinateAttentionImpl::gate(const Tensor& x) {
  check_feature_map(x, options.channels, "CoordinateAttention");
  const int64_t height = x.size(2), width = x.size(3);
  const Tensor along_rows = x.mean(3, /*keepdim=*/true);                     // [B, C, H, 1]
  const Tensor along_columns = x.mean(2, /*keepdim=*/true).transpose(2, 3);  // [B, C, W, 1]
  const Tensor joined =
      torch::hardswish(bn1->forward(conv1->forward(torch::cat({along_rows, along_columns}, 2))));  // [B, ., H + W, 1]
  CoordinateGated result;
  result.rows = torch::sigmoid(conv_h->forward(joined.narrow(2, 0, height)));
  result.columns = torch::sigmoid(conv_w->forward(joined.narrow(2, height, width).transpose(2, 3)));
  result.out = x * result.rows * result.columns;
  return result;
}

Tensor CoordinateAttentionImpl::forward(const Tensor& x) { return gate(x).out; }

// ---- The attention gate ----

AttentionGateImpl::AttentionGateImpl(AttentionGateOptions given)
    : options([&given] {
        if (given.inner == 0) given.inner = std::max<int64_t>(given.channels / 2, 1);
        return given;
      }()) {
  check_size(options.channels, "AttentionGate", "channels");
  check_size(options.gate_channels, "AttentionGate", "gate_channels");
  check_size(options.inner, "AttentionGate", "inner");
  check_size(options.stride, "AttentionGate", "stride");
  reset();
}

void AttentionGateImpl::reset() {
  const auto& o = options;
  phi = register_module("phi", Conv2d(Conv2dOptions(o.gate_channels, o.inner, 1)));
  psi = register_module("psi", Conv2d(Conv2dOptions(o.inner, 1, 1)));
  if (o.same_resolution) {
    theta = register_module("theta", Conv2d(Conv2dOptions(o.channels, o.inner, 1)));
    theta_bn = register_module("theta_bn", BatchNorm2d(o.inner));
    phi_bn = register_module("phi_bn", BatchNorm2d(o.inner));
    psi_bn = register_module("psi_bn", BatchNorm2d(1));
  } else {
    theta = register_module("theta", Conv2d(Conv2dOptions(o.channels, o.inner, o.stride).stride(o.stride).bias(false)));
    W = register_module("W", Sequential(Conv2d(Conv2dOptions(o.channels, o.channels, 1)), BatchNorm2d(o.channels)));
  }
}

Gated AttentionGateImpl::gate(const Tensor& x, const Tensor& g) {
  check_feature_map(x, options.channels, "AttentionGate's x");
  check_feature_map(g, options.gate_channels, "AttentionGate's g");
  check_batch_norm(positions(x), is_training(), "AttentionGate");
  if (x.size(0) != g.size(0)) {
    throw Error("AttentionGate got a batch of " + std::to_string(x.size(0)) + " in x and of " +
                std::to_string(g.size(0)) + " in g; they must be equal");
  }
  const auto size = [](const Tensor& t) { return std::to_string(t.size(2)) + " x " + std::to_string(t.size(3)); };
  if (options.same_resolution) {
    if (x.size(2) != g.size(2) || x.size(3) != g.size(3)) {
      throw Error("AttentionGate with same_resolution got x of " + size(x) + " and g of " + size(g) +
                  "; they must be equal: upsample g, or switch same_resolution off");
    }
    const Tensor met = torch::relu(theta_bn->forward(theta->forward(x)) + phi_bn->forward(phi->forward(g)));
    const Tensor map = torch::sigmoid(psi_bn->forward(psi->forward(met)));
    return {x * map, map};
  }
  if (x.size(2) < options.stride || x.size(3) < options.stride) {
    throw Error("AttentionGate got x of " + size(x) + "; its stride of " + std::to_string(options.stride) +
                " needs at least that many rows and columns");
  }
  const auto up = [](const Tensor& t, const Tensor& like) {
    return torch::upsample_bilinear2d(t, {like.size(2), like.size(3)}, /*align_corners=*/false);
  };
  const Tensor coarse = theta->forward(x);
  const Tensor met = torch::relu(coarse + up(phi->forward(g), coarse));
  const Tensor map = up(torch::sigmoid(psi->forward(met)), x);
  return {W->forward(x * map), map};
}

Tensor AttentionGateImpl::forward(const Tensor& x, const Tensor& g) { return gate(x, g).out; }

}  // namespace heed::nn
