// Attention between the positions, or the channels, of a feature map: Non-local, DANet's two modules, GCNet's context.
#include "libtorch/vision/positions.h"

#include <heed/attention.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/normalization.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "libtorch/attention.h"
#include "libtorch/sizes.h"

namespace heed::nn {
namespace {

using torch::Tensor;
using torch::nn::Conv2d;
using torch::nn::Conv2dOptions;
using torch::nn::Sequential;

Conv2d conv1x1(int64_t in, int64_t out) { return Conv2d(Conv2dOptions(in, out, 1)); }

// A feature map [B, C, H, W] as a sequence of its positions [B, N, C], and back; both are views.
Tensor sequence(const Tensor& map) { return map.flatten(2).transpose(1, 2); }
Tensor feature_map(const Tensor& sequence, int64_t height, int64_t width) {
  return sequence.transpose(1, 2).unflatten(2, std::vector<int64_t>{height, width});
}

}  // namespace

// ---- Non-local ----

NonLocalImpl::NonLocalImpl(NonLocalOptions given)
    : options([&given] {
        if (given.inner == 0) given.inner = std::max<int64_t>(given.channels / 2, 1);
        return given;
      }()) {
  check_size(options.channels, "NonLocal", "channels");
  check_size(options.inner, "NonLocal", "inner");
  reset();
}

void NonLocalImpl::reset() {
  theta = register_module("theta", conv1x1(options.channels, options.inner));
  phi = register_module("phi", conv1x1(options.channels, options.inner));
  g = register_module("g", conv1x1(options.channels, options.inner));
  out = register_module("out", conv1x1(options.inner, options.channels));
  bn = register_module("bn", torch::nn::BatchNorm2d(options.channels));
  torch::nn::init::zeros_(bn->weight);
}

Attended NonLocalImpl::attend(const Tensor& x, const AttendOptions& attend) {
  check_feature_map(x, options.channels, "NonLocal");
  const int64_t height = x.size(2), width = x.size(3);
  check_batch_norm(x.size(0) * height * width, is_training(), "NonLocal");
  if (options.sub_sample && (height < 2 || width < 2)) {
    throw Error("NonLocal got a feature map of " + std::to_string(height) + " x " + std::to_string(width) +
                ", too small for 2 x 2 pooling; use a larger one, or switch sub_sample off");
  }
  const Tensor seen = options.sub_sample ? torch::max_pool2d(x, 2) : x;
  const Tensor query = sequence(theta->forward(x));                                     // [B, N, I]
  const Tensor key = sequence(phi->forward(seen)), value = sequence(g->forward(seen));  // [B, M, I]
  Attended result;
  if (options.score == NonLocalScore::dot_product) {
    if (!attend.mask.sees_all() || attend.bias.defined()) {
      throw Error("NonLocal's dot_product takes no mask and no bias; use NonLocalScore::embedded_gaussian");
    }
    // (query key^T) value = query (key^T value): I x I numbers instead of N x M.
    const double share = 1.0 / static_cast<double>(key.size(1));
    result.out = query.matmul(key.transpose(1, 2).matmul(value) * share);
    if (attend.want_weights) result.weights = query.matmul(key.transpose(1, 2)).mul(share).detach();
  } else {
    const double scale = options.scaled ? 1 / std::sqrt(static_cast<double>(options.inner)) : 1.0;
    result = attend_one_head(query, key, value, attend.want_weights,
                             {.scale = scale, .bias = attend.bias, .mask = attend.mask});
  }
  result.out = x + bn->forward(out->forward(feature_map(result.out, height, width)));
  return result;
}

Tensor NonLocalImpl::forward(const Tensor& x) { return attend(x).out; }

// ---- DANet: position attention ----

PositionAttentionImpl::PositionAttentionImpl(PositionAttentionOptions given)
    : options([&given] {
        if (given.inner == 0) given.inner = std::max<int64_t>(given.channels / 8, 1);
        return given;
      }()) {
  check_size(options.channels, "PositionAttention", "channels");
  check_size(options.inner, "PositionAttention", "inner");
  reset();
}

void PositionAttentionImpl::reset() {
  query_conv = register_module("query_conv", conv1x1(options.channels, options.inner));
  key_conv = register_module("key_conv", conv1x1(options.channels, options.inner));
  value_conv = register_module("value_conv", conv1x1(options.channels, options.channels));
  gamma = register_parameter("gamma", torch::zeros({1}));
}

Attended PositionAttentionImpl::attend(const Tensor& x, const AttendOptions& attend) {
  check_feature_map(x, options.channels, "PositionAttention");
  Attended result = attend_one_head(sequence(query_conv->forward(x)), sequence(key_conv->forward(x)),
                                    sequence(value_conv->forward(x)), attend.want_weights,
                                    {.scale = 1.0, .bias = attend.bias, .mask = attend.mask});
  result.out = x + gamma * feature_map(result.out, x.size(2), x.size(3));
  return result;
}

Tensor PositionAttentionImpl::forward(const Tensor& x) { return attend(x).out; }

// ---- DANet: channel attention ----

ChannelAttentionImpl::ChannelAttentionImpl(ChannelAttentionOptions options) : options(options) { reset(); }

void ChannelAttentionImpl::reset() { gamma = register_parameter("gamma", torch::zeros({1})); }

Attended ChannelAttentionImpl::attend(const Tensor& x, const AttendOptions& attend) {
  check_feature_map(x, 0, "ChannelAttention");
  const Tensor channels = x.flatten(2);  // [B, C, N]: a channel is a query, a key and a value of N numbers
  Attended result =
      attend_one_head(channels, channels, channels, attend.want_weights,
                      {.scale = options.minus_energy ? -1.0 : 1.0, .bias = attend.bias, .mask = attend.mask});
  result.out = x + gamma * result.out.view(x.sizes());
  return result;
}

Tensor ChannelAttentionImpl::forward(const Tensor& x) { return attend(x).out; }

// ---- GCNet ----

GlobalContextImpl::GlobalContextImpl(GlobalContextOptions options) : options(options) {
  if (!options.add && !options.multiply) {
    throw Error("GlobalContext got neither add nor multiply; switch on one or both");
  }
  reset();
}

void GlobalContextImpl::reset() {
  const int64_t channels = options.channels, hidden = reduced(channels, options.reduction, "GlobalContext");
  const auto branch = [&] {
    const Conv2d last = conv1x1(hidden, channels);
    torch::nn::init::zeros_(last->weight);
    torch::nn::init::zeros_(last->bias);
    return Sequential(conv1x1(channels, hidden), torch::nn::LayerNorm(torch::nn::LayerNormOptions({hidden, 1, 1})),
                      torch::nn::ReLU(), last);
  };
  conv_mask = register_module("conv_mask", Conv2d(Conv2dOptions(channels, 1, 1).bias(false)));
  if (options.add) channel_add_conv = register_module("channel_add_conv", branch());
  if (options.multiply) channel_mul_conv = register_module("channel_mul_conv", branch());
}

Attended GlobalContextImpl::attend(const Tensor& x, const AttendOptions& attend) {
  check_feature_map(x, options.channels, "GlobalContext");
  const Tensor positions = sequence(x);
  const Tensor query = conv_mask->weight.view({1, options.channels}).expand({x.size(0), options.channels});
  Attended result = attend_one_head(query, positions, positions, attend.want_weights,
                                    {.scale = 1.0, .bias = attend.bias, .mask = attend.mask});
  const Tensor context = result.out.view({x.size(0), options.channels, 1, 1});
  result.out = x;
  if (options.multiply) result.out = result.out * torch::sigmoid(channel_mul_conv->forward(context));
  if (options.add) result.out = result.out + channel_add_conv->forward(context);
  if (attend.want_weights) result.weights = result.weights.view({x.size(0), x.size(2), x.size(3)});
  return result;
}

Tensor GlobalContextImpl::forward(const Tensor& x) { return attend(x).out; }

}  // namespace heed::nn
