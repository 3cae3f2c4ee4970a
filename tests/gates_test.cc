// libtorch/vision/gates.cc: every gate's map, result and gradients against its paper's formula, written out.
#include "libtorch/vision/gates.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/layer_check.h"
#include "tests/plain_attention.h"

namespace heed::nn {
namespace {

using plain::Call;
using plain::check;
using plain::expect_message;
using plain::names;
using plain::random;
using plain::stir;
using torch::Tensor;

// ---- What the formulas are made of ----

Tensor linear(const Tensor& x, const torch::nn::Linear& layer) {
  const Tensor out = x.matmul(layer->weight.t());
  return layer->bias.defined() ? out + layer->bias : out;
}

Tensor conv(const Tensor& x, const torch::nn::Conv2d& layer, int64_t stride = 1, int64_t padding = 0,
            int64_t dilation = 1) {
  return torch::conv2d(x, layer->weight, layer->bias, stride, padding, dilation);
}

// Batch norm of [B, C] or [B, C, H, W] by its definition.
template <class Norm>
Tensor normalised(const Tensor& x, const Norm& norm) {
  std::vector<int64_t> others{0}, shape{1, x.size(1)};
  for (int64_t axis = 2; axis < x.dim(); ++axis) others.push_back(axis), shape.push_back(1);
  const bool training = norm->is_training();
  const Tensor mean = training ? x.mean(others) : norm->running_mean;
  const Tensor var = training ? (x - mean.view(shape)).pow(2).mean(others) : norm->running_var;
  return (x - mean.view(shape)) / torch::sqrt(var.view(shape) + 1e-5) * norm->weight.view(shape) +
         norm->bias.view(shape);
}

Tensor means(const Tensor& x) { return x.flatten(2).sum(2) / static_cast<double>(x.size(2) * x.size(3)); }
Tensor maxima(const Tensor& x) { return std::get<0>(x.flatten(2).max(2)); }
Tensor wide(const Tensor& map) { return map.unsqueeze(2).unsqueeze(3); }

// [out, in]: linear interpolation of samples that stand in the middle of their cells (corners not aligned).
Tensor interpolation(int64_t in, int64_t out, const Tensor& like) {
  Tensor m = torch::zeros({out, in}, torch::kFloat64);
  for (int64_t o = 0; o < out; ++o) {
    const double at = std::max(0.0, (o + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5);
    const auto i = static_cast<int64_t>(at);
    m[o][i] += 1 - (at - i);
    m[o][std::min(i + 1, in - 1)] += at - i;
  }
  return m.to(like.scalar_type());
}
Tensor upsampled(const Tensor& x, int64_t height, int64_t width) {
  return torch::einsum("oi,bcij,pj->bcop",
                       {interpolation(x.size(2), height, x), x, interpolation(x.size(3), width, x)});
}

// The module at a place of a Sequential.
template <class Impl>
std::shared_ptr<Impl> at(const torch::nn::Sequential& modules, size_t place) {
  return std::dynamic_pointer_cast<Impl>(modules->ptr(place));
}

// In training and in evaluation, on a batch of two and of one.
void check_modes(torch::nn::Module& module, const std::vector<std::vector<int64_t>>& shapes, const Call& layer,
                 const Call& formula, const std::string& what, bool one_in_training = true) {
  stir(module);
  for (const bool training : {true, false}) {
    for (const int64_t batch : {2, 1}) {
      if (training && batch == 1 && !one_in_training) continue;
      module.train(training);
      std::vector<Tensor> inputs;
      for (std::vector<int64_t> shape : shapes) {
        shape.insert(shape.begin(), batch);
        inputs.push_back(random(shape));
      }
      check(module, inputs, layer, formula,
            what + (training ? ", training" : ", evaluation") + ", batch " + std::to_string(batch));
    }
  }
}

// ---- Channels ----

TEST(SqueezeExcitation, IsTheFormula) {
  for (const bool bias : {true, false}) {
    torch::manual_seed(1);
    SqueezeExcitation layer(SqueezeExcitationOptions{.channels = 7, .reduction = 3, .bias = bias});
    check_modes(
        *layer, {{7, 3, 5}},
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Gated r = layer->gate(in[0]);
          return {r.out, r.map, layer->forward(in[0])};
        },
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Tensor map = torch::sigmoid(linear(torch::relu(linear(means(in[0]), layer->fc1)), layer->fc2));
          return {in[0] * wide(map), map, in[0] * wide(map)};
        },
        bias ? "biases" : "no biases");
    EXPECT_EQ(layer->fc1->weight.sizes(), (std::vector<int64_t>{2, 7}));
    EXPECT_EQ(names(*layer), bias ? (std::vector<std::string>{"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"})
                                  : (std::vector<std::string>{"fc1.weight", "fc2.weight"}));
  }
  EXPECT_EQ(SqueezeExcitationOptions{}.reduction, 16);
}

TEST(EfficientChannelAttention, IsTheFormula) {
  for (const int64_t kernel : {1, 3, 5}) {
    torch::manual_seed(2);
    EfficientChannelAttention layer(EfficientChannelAttentionOptions{.channels = 6, .kernel = kernel});
    check_modes(
        *layer, {{6, 2, 5}},
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Gated r = layer->gate(in[0]);
          return {r.out, r.map};
        },
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Tensor padded = torch::constant_pad_nd(means(in[0]), {kernel / 2, kernel / 2});
          Tensor sum = torch::zeros_like(means(in[0]));
          for (int64_t n = 0; n < kernel; ++n) sum = sum + layer->conv->weight[0][0][n] * padded.narrow(1, n, 6);
          return {in[0] * wide(torch::sigmoid(sum)), torch::sigmoid(sum)};
        },
        "kernel " + std::to_string(kernel));
    EXPECT_EQ(names(*layer), (std::vector<std::string>{"conv.weight"}));
  }
}

TEST(EfficientChannelAttention, ChoosesThePapersKernel) {
  const auto kernel = [](int64_t channels) {
    return EfficientChannelAttention(EfficientChannelAttentionOptions{.channels = channels})->options.kernel;
  };
  std::vector<int64_t> kernels;
  for (const int64_t channels : {1, 2, 16, 64, 128, 256, 512, 1024, 2048}) kernels.push_back(kernel(channels));
  EXPECT_EQ(kernels, (std::vector<int64_t>{1, 1, 3, 3, 5, 5, 5, 5, 7}));
}

// ---- CBAM ----

Tensor plain_channel_map(ChannelGateImpl& layer, const Tensor& x) {
  const auto mlp = [&](const Tensor& v) { return linear(torch::relu(linear(v, layer.fc1)), layer.fc2); };
  return torch::sigmoid(mlp(means(x)) + mlp(maxima(x)));
}

Tensor plain_spatial_map(SpatialGateImpl& layer, const Tensor& x) {
  const Tensor mean = x.sum(1, true) / static_cast<double>(x.size(1)), max = std::get<0>(x.max(1, true));
  const Tensor joined = layer.options.max_first ? torch::cat({max, mean}, 1) : torch::cat({mean, max}, 1);
  const Tensor map = conv(joined, layer.conv, 1, layer.options.kernel / 2);
  return torch::sigmoid(layer.options.batch_norm ? normalised(map, layer.bn) : map);
}

TEST(Cbam, IsTheFormula) {
  const std::vector<SpatialGateOptions> forms{{},
                                              {.max_first = false},
                                              {.kernel = 3, .batch_norm = false},
                                              {.kernel = 3, .max_first = false, .batch_norm = false}};
  for (const SpatialGateOptions& form : forms) {
    torch::manual_seed(3);
    Cbam layer(CbamOptions{.channels = 6, .reduction = 2, .spatial = form});
    check_modes(
        *layer, {{6, 4, 5}},
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const CbamGated r = layer->gate(in[0]);
          return {r.out, r.channel_map, r.spatial_map};
        },
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Tensor by_channel = plain_channel_map(*layer->channel, in[0]), y = in[0] * wide(by_channel);
          const Tensor by_position = plain_spatial_map(*layer->spatial, y);
          return {y * by_position, by_channel, by_position};
        },
        std::string(form.max_first ? "max first" : "mean first") + (form.batch_norm ? ", norm" : ""));
  }
  Cbam layer(CbamOptions{.channels = 16});
  EXPECT_EQ(names(*layer), (std::vector<std::string>{"channel.fc1.weight", "channel.fc1.bias", "channel.fc2.weight",
                                                     "channel.fc2.bias", "spatial.conv.weight", "spatial.bn.weight",
                                                     "spatial.bn.bias"}));
  EXPECT_EQ(layer->spatial->conv->weight.sizes(), (std::vector<int64_t>{1, 2, 7, 7}));
  EXPECT_EQ(layer->spatial->bn->options.momentum(), 0.01);
}

TEST(Cbam, ItsGatesStandAlone) {
  torch::manual_seed(4);
  ChannelGate channel(ChannelGateOptions{.channels = 6, .reduction = 2});
  check_modes(
      *channel, {{6, 4, 5}},
      [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const Gated r = channel->gate(in[0]);
        return {r.out, r.map, channel->forward(in[0])};
      },
      [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const Tensor map = plain_channel_map(*channel, in[0]);
        return {in[0] * wide(map), map, in[0] * wide(map)};
      },
      "channel gate");
  SpatialGate spatial;
  const Tensor x = torch::randn({2, 3, 5, 4});
  const Gated r = spatial->gate(x);
  EXPECT_EQ(r.map.sizes(), (std::vector<int64_t>{2, 1, 5, 4}));
  EXPECT_TRUE(torch::equal(r.out, x * r.map));
}

// ---- BAM ----

TEST(Bam, IsTheFormula) {
  for (const bool add : {false, true}) {
    torch::manual_seed(5);
    Bam layer(BamOptions{.channels = 6, .reduction = 2, .dilation = 2, .add = add});
    check_modes(
        *layer, {{6, 5, 4}},
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Gated r = layer->gate(in[0]);
          return {r.out, r.map};
        },
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Tensor by_channel =
              wide(linear(torch::relu(normalised(linear(means(in[0]), layer->fc1), layer->bn)), layer->fc2));
          Tensor y = in[0];
          for (const size_t place : {0, 3, 6}) {
            const torch::nn::Conv2d here(at<torch::nn::Conv2dImpl>(layer->spatial, place));
            y = place == 0 ? conv(y, here) : conv(y, here, 1, 2, 2);
            y = torch::relu(normalised(y, at<torch::nn::BatchNorm2dImpl>(layer->spatial, place + 1)));
          }
          y = conv(y, torch::nn::Conv2d(at<torch::nn::Conv2dImpl>(layer->spatial, 9)));
          const Tensor map = 1 + torch::sigmoid(add ? by_channel + y : by_channel * y);
          return {in[0] * map, map};
        },
        add ? "added" : "multiplied", /*one_in_training=*/false);
  }
  EXPECT_EQ(BamOptions{}.dilation, 4);
  Bam layer(BamOptions{.channels = 6, .reduction = 2});
  expect_message([&] { layer->forward(torch::randn({1, 6, 5, 4})); }, "Bam got 1 value of each channel");
  layer->eval();
  EXPECT_EQ(layer->forward(torch::randn({1, 6, 5, 4})).size(3), 4);
}

// ---- Coordinates ----

TEST(CoordinateAttention, IsTheFormula) {
  torch::manual_seed(6);
  CoordinateAttention layer(CoordinateAttentionOptions{.channels = 5});
  check_modes(
      *layer, {{5, 3, 4}},
      [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const CoordinateGated r = layer->gate(in[0]);
        return {r.out, r.rows, r.columns};
      },
      [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const Tensor rows = in[0].sum(3, true) / 4, columns = (in[0].sum(2, true) / 3).permute({0, 1, 3, 2});
        const Tensor y = normalised(conv(torch::cat({rows, columns}, 2), layer->conv1), layer->bn1);
        const Tensor joined = y * (y + 3).clamp(0, 6) / 6;
        const Tensor a = torch::sigmoid(conv(joined.slice(2, 0, 3), layer->conv_h));
        const Tensor b = torch::sigmoid(conv(joined.slice(2, 3, 7).permute({0, 1, 3, 2}), layer->conv_w));
        return {in[0] * a * b, a, b};
      },
      "coordinates");
  EXPECT_EQ(layer->conv1->weight.size(0), 8);
  EXPECT_EQ(CoordinateAttention(CoordinateAttentionOptions{.channels = 320})->conv1->weight.size(0), 10);
}

// ---- The attention gate ----

TEST(AttentionGate, IsTheFormula) {
  struct Case {
    std::vector<int64_t> x, g;
    int64_t stride;
  };
  // g as coarse as theta(x); coarser; finer; a map that the stride does not divide.
  for (const Case& c : std::vector<Case>{{{4, 6, 8}, {3, 3, 4}, 2},
                                         {{4, 8, 4}, {3, 2, 1}, 2},
                                         {{4, 4, 4}, {3, 5, 3}, 2},
                                         {{4, 7, 5}, {3, 3, 2}, 2},
                                         {{4, 3, 5}, {3, 3, 5}, 1}}) {
    torch::manual_seed(7);
    AttentionGate layer(AttentionGateOptions{.channels = 4, .gate_channels = 3, .inner = 5, .stride = c.stride});
    check_modes(
        *layer, {c.x, c.g},
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Gated r = layer->gate(in[0], in[1]);
          return {r.out, r.map};
        },
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Tensor theta = torch::conv2d(in[0], layer->theta->weight, {}, c.stride);
          const Tensor f = torch::relu(theta + upsampled(conv(in[1], layer->phi), theta.size(2), theta.size(3)));
          const Tensor map = upsampled(torch::sigmoid(conv(f, layer->psi)), in[0].size(2), in[0].size(3));
          const torch::nn::Conv2d w(at<torch::nn::Conv2dImpl>(layer->W, 0));
          return {normalised(conv(in[0] * map, w), at<torch::nn::BatchNorm2dImpl>(layer->W, 1)), map};
        },
        "x of " + std::to_string(c.x[1]) + " x " + std::to_string(c.x[2]));
    EXPECT_FALSE(layer->theta->bias.defined());
  }
  EXPECT_EQ(AttentionGate(AttentionGateOptions{.channels = 9, .gate_channels = 3})->options.inner, 4);
}

TEST(AttentionGate, SameResolutionIsTheCopiesFormula) {
  torch::manual_seed(8);
  AttentionGate layer(AttentionGateOptions{.channels = 4, .gate_channels = 3, .same_resolution = true});
  check_modes(
      *layer, {{4, 3, 5}, {3, 3, 5}},
      [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const Gated r = layer->gate(in[0], in[1]);
        return {r.out, r.map, layer->forward(in[0], in[1])};
      },
      [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const Tensor f = torch::relu(normalised(conv(in[0], layer->theta), layer->theta_bn) +
                                     normalised(conv(in[1], layer->phi), layer->phi_bn));
        const Tensor map = torch::sigmoid(normalised(conv(f, layer->psi), layer->psi_bn));
        return {in[0] * map, map, in[0] * map};
      },
      "same resolution");
}

// ---- All of them ----

TEST(Gates, StandInASequentialAndCopyThemselves) {
  torch::manual_seed(9);
  torch::nn::Sequential net(torch::nn::Conv2d(3, 16, 1), SqueezeExcitation(SqueezeExcitationOptions{.channels = 16}),
                            EfficientChannelAttention(EfficientChannelAttentionOptions{.channels = 16}),
                            Cbam(CbamOptions{.channels = 16}), Bam(BamOptions{.channels = 16}),
                            CoordinateAttention(CoordinateAttentionOptions{.channels = 16}));
  const Tensor x = torch::randn({2, 3, 5, 4});
  net->eval();
  const Tensor y = net->forward(x);
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{2, 16, 5, 4}));
  const auto copy = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(net->clone());
  EXPECT_TRUE(torch::equal(copy->forward(x), y));
  // Pictures with channels last give the same.
  EXPECT_TRUE(torch::allclose(net->forward(x.contiguous(at::MemoryFormat::ChannelsLast)), y, 1e-5, 1e-6));
}

TEST(Gates, ErrorsNameTheNumbers) {
  expect_message([] { SqueezeExcitation(SqueezeExcitationOptions{}); }, "SqueezeExcitation got channels = 0");
  expect_message([] { SqueezeExcitation(SqueezeExcitationOptions{.channels = 8}); }, "8 channels and reduction 16");
  expect_message([] { Cbam(CbamOptions{.channels = 8}); }, "ChannelGate got 8 channels and reduction 16");
  expect_message([] { Cbam(CbamOptions{.channels = 16, .spatial = {.kernel = 4}}); }, "SpatialGate got kernel 4");
  expect_message([] { EfficientChannelAttention(EfficientChannelAttentionOptions{.channels = 8, .kernel = 2}); },
                 "EfficientChannelAttention got kernel 2");
  expect_message([] { Bam(BamOptions{.channels = 16, .dilation = 0}); }, "dilation = 0");
  expect_message([] { CoordinateAttention(CoordinateAttentionOptions{.channels = 8, .reduction = 0}); },
                 "reduction = 0");
  expect_message([] { AttentionGate(AttentionGateOptions{.channels = 8}); }, "gate_channels = 0");

  SqueezeExcitation se(SqueezeExcitationOptions{.channels = 16});
  expect_message(
      [&] {
        se->forward(torch::randn({2, 8, 3, 3}));
      },
      "SqueezeExcitation got a tensor of shape [2, 8, 3, 3]; it needs a feature map [batch, 16, height, width]");
  expect_message([&] { se->forward(torch::randn({16, 3, 3})); }, "[16, 3, 3]");
  expect_message([&] { se->forward(torch::randn({2, 16, 0, 3})); }, "[2, 16, 0, 3]");
  expect_message([&] { se->forward({}); }, "an undefined tensor");
  SpatialGate spatial;
  expect_message([&] { spatial->forward(torch::randn({1, 3, 1, 1})); }, "SpatialGate got 1 value of each channel");

  AttentionGate gate(AttentionGateOptions{.channels = 4, .gate_channels = 3});
  const Tensor x = torch::randn({2, 4, 6, 6});
  expect_message([&] { gate->forward(x, torch::randn({1, 3, 3, 3})); }, "a batch of 2 in x and of 1 in g");
  expect_message([&] { gate->forward(x, torch::randn({2, 4, 3, 3})); }, "AttentionGate's g got a tensor of shape");
  expect_message(
      [&] {
        gate->forward(torch::randn({2, 4, 6, 1}), torch::randn({2, 3, 3, 3}));
      },
      "6 x 1; its stride of 2");
  AttentionGate same(AttentionGateOptions{.channels = 4, .gate_channels = 3, .same_resolution = true});
  expect_message([&] { same->forward(x, torch::randn({2, 3, 3, 3})); }, "x of 6 x 6 and g of 3 x 3");
}

}  // namespace
}  // namespace heed::nn
