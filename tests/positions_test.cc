// libtorch/vision/positions.cc and windows.cc: values, weights and gradients against the formulas, which make the N x N
// tensors that the layers avoid.
#include "libtorch/vision/positions.h"

#include <gtest/gtest.h>
#include <heed/mask.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "libtorch/vision/windows.h"
#include "tests/layer_check.h"
#include "tests/plain_attention.h"

namespace heed::nn {
namespace {

using plain::check;
using plain::expect_message;
using plain::expect_near;
using plain::names;
using plain::random;
using plain::stir;
using torch::Tensor;

constexpr double kInf = std::numeric_limits<double>::infinity();

Tensor conv1x1(const Tensor& x, const torch::nn::Conv2d& layer) { return torch::conv2d(x, layer->weight, layer->bias); }

Tensor linear(const Tensor& x, const torch::nn::Linear& layer) {
  const Tensor out = x.matmul(layer->weight.t());
  return layer->bias.defined() ? out + layer->bias : out;
}

// ---- Non-local ----

TEST(NonLocal, IsTheFormula) {
  struct Case {
    std::string name;
    NonLocalOptions options;
  };
  const std::vector<Case> cases{
      {"repository's", {.channels = 6}},
      {"unscaled", {.channels = 6, .scaled = false}},
      {"all keys", {.channels = 6, .inner = 5, .sub_sample = false}},
      {"dot", {.channels = 6, .score = NonLocalScore::dot_product}},
      {"dot, all keys", {.channels = 6, .inner = 4, .score = NonLocalScore::dot_product, .sub_sample = false}}};
  for (const Case& c : cases) {
    torch::manual_seed(1);
    NonLocal layer(c.options);
    stir(*layer);
    {  // The batch norm divides by the spread of out's values, and rounding errors with it: let it be about 1.
      torch::NoGradGuard no_grad;
      layer->out->weight.mul_(8);
      layer->theta->weight.mul_(2);
    }
    for (const bool training : {true, false}) {
      layer->train(training);
      for (const int64_t batch : {2, 1}) {
        check(
            *layer, {random({batch, 6, 5, 4})},
            [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
              const Attended r = layer->attend(in[0], {.want_weights = true});
              EXPECT_FALSE(r.weights.requires_grad());
              return {r.out, r.weights};
            },
            [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
              const Tensor& x = in[0];
              Tensor seen = x;
              if (c.options.sub_sample) {  // the largest of each 2 x 2; row 4 has no partner and is left out
                const Tensor even = x.slice(2, 0, 4);
                seen =
                    torch::stack({even.slice(2, 0, 4, 2).slice(3, 0, 4, 2), even.slice(2, 0, 4, 2).slice(3, 1, 4, 2),
                                  even.slice(2, 1, 4, 2).slice(3, 0, 4, 2), even.slice(2, 1, 4, 2).slice(3, 1, 4, 2)})
                        .amax(0);
              }
              const Tensor scores = torch::einsum("bin,bim->bnm", {conv1x1(x, layer->theta).flatten(2),  //
                                                                   conv1x1(seen, layer->phi).flatten(2)});
              const double inner = static_cast<double>(layer->options.inner);
              const Tensor weights = c.options.score == NonLocalScore::dot_product
                                         ? scores / static_cast<double>(scores.size(2))
                                         : torch::softmax(c.options.scaled ? scores / std::sqrt(inner) : scores, -1);
              const Tensor y = torch::einsum("bnm,bim->bin", {weights, conv1x1(seen, layer->g).flatten(2)})
                                   .reshape({batch, -1, 5, 4});
              return {x + torch::batch_norm(conv1x1(y, layer->out), layer->bn->weight, layer->bn->bias,
                                            training ? Tensor() : layer->bn->running_mean,
                                            training ? Tensor() : layer->bn->running_var, training, 0.1, 1e-5, false),
                      weights};
            },
            c.name + (training ? ", training" : ", evaluation") + ", batch " + std::to_string(batch));
      }
    }
  }
  NonLocal layer(NonLocalOptions{.channels = 6});
  EXPECT_EQ(layer->options.inner, 3);
  EXPECT_EQ(names(*layer), (std::vector<std::string>{"theta.weight", "theta.bias", "phi.weight", "phi.bias", "g.weight",
                                                     "g.bias", "out.weight", "out.bias", "bn.weight", "bn.bias"}));
}

TEST(NonLocal, StartsAsTheIdentity) {
  const Tensor x = torch::randn({2, 6, 4, 5});
  for (const NonLocalScore score : {NonLocalScore::embedded_gaussian, NonLocalScore::dot_product}) {
    NonLocal layer(NonLocalOptions{.channels = 6, .score = score});
    EXPECT_TRUE(torch::equal(layer->forward(x), x));
  }
}

// ---- DANet ----

TEST(PositionAttention, IsTheFormula) {
  for (const int64_t batch : {2, 1}) {
    torch::manual_seed(2);
    PositionAttention layer(PositionAttentionOptions{.channels = 6, .inner = 3});
    EXPECT_TRUE(torch::equal(layer->forward(torch::ones({batch, 6, 3, 2})), torch::ones({batch, 6, 3, 2})));
    stir(*layer);
    for (const bool masked : {false, true}) {
      const Mask mask = masked ? window(3, 4) : Mask();
      const Tensor bias = masked ? random({1, 1, 20, 20}) : Tensor();
      check(
          *layer, {random({batch, 6, 5, 4})},
          [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
            const Attended r = layer->attend(
                in[0], {.mask = mask, .bias = masked ? bias.to(in[0].scalar_type()) : bias, .want_weights = true});
            return {r.out, r.weights};
          },
          [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
            const Tensor& x = in[0];
            Tensor scores = torch::einsum(
                "bin,bim->bnm", {conv1x1(x, layer->query_conv).flatten(2), conv1x1(x, layer->key_conv).flatten(2)});
            if (masked) scores = scores + bias[0];
            scores = scores.masked_fill(plain::visible(mask, batch, 1, 20, 20).squeeze(1).logical_not(), -kInf);
            const Tensor weights = torch::softmax(scores, -1);
            const Tensor y = torch::einsum("bnm,bcm->bcn", {weights, conv1x1(x, layer->value_conv).flatten(2)});
            return {x + layer->gamma * y.reshape(x.sizes()), weights};
          },
          masked ? "masked" : "all");
    }
  }
  PositionAttention layer(PositionAttentionOptions{.channels = 24});
  EXPECT_EQ(layer->query_conv->weight.sizes(), (std::vector<int64_t>{3, 24, 1, 1}));
  EXPECT_EQ(names(*layer), (std::vector<std::string>{"gamma", "query_conv.weight", "query_conv.bias", "key_conv.weight",
                                                     "key_conv.bias", "value_conv.weight", "value_conv.bias"}));
}

TEST(ChannelAttention, IsTheFormula) {
  for (const bool minus : {true, false}) {
    for (const int64_t batch : {2, 1}) {
      torch::manual_seed(3);
      ChannelAttention layer(ChannelAttentionOptions{.minus_energy = minus});
      EXPECT_TRUE(torch::equal(layer->forward(torch::ones({batch, 6, 3, 2})), torch::ones({batch, 6, 3, 2})));
      stir(*layer);
      check(
          *layer, {0.5 * random({batch, 6, 5, 4})},
          [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
            const Attended r = layer->attend(in[0], {.want_weights = true});
            return {r.out, r.weights, layer->forward(in[0])};
          },
          [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
            const Tensor x = in[0].flatten(2), energy = x.matmul(x.transpose(1, 2));
            const Tensor weights = torch::softmax(minus ? energy.amax(-1, true) - energy : energy, -1);
            const Tensor out = in[0] + layer->gamma * weights.matmul(x).reshape(in[0].sizes());
            return {out, weights, out};
          },
          minus ? "minus" : "plus");
    }
  }
}

TEST(ChannelAttention, TakesLargeMaps) {  // a channel is a key of H * W numbers
  torch::manual_seed(4);
  ChannelAttention layer;
  torch::nn::init::ones_(layer->gamma);
  const Tensor map = 0.1 * random({1, 5, 40, 53}), x = map.flatten(2);
  const Tensor exact = x + torch::softmax(-x.matmul(x.transpose(1, 2)), -1).matmul(x);
  expect_near(layer->forward(map.to(torch::kFloat32)).flatten(2), exact, 4 * 2120 * std::pow(2.0, -24), "float32");
  expect_near(layer->forward(map.to(torch::kFloat32).contiguous(at::MemoryFormat::ChannelsLast)).flatten(2), exact,
              4 * 2120 * std::pow(2.0, -24), "channels last");
}

// ---- GCNet ----

TEST(GlobalContext, IsTheFormula) {
  struct Case {
    bool add, multiply;
  };
  for (const Case& c : std::vector<Case>{{true, false}, {false, true}, {true, true}}) {
    torch::manual_seed(5);
    GlobalContext layer(GlobalContextOptions{.channels = 8, .reduction = 2, .add = c.add, .multiply = c.multiply});
    const Tensor ones = torch::ones({2, 8, 3, 2});
    EXPECT_TRUE(torch::equal(layer->forward(ones), c.multiply ? ones / 2 : ones));
    stir(*layer);
    for (const int64_t batch : {2, 1}) {
      check(
          *layer, {random({batch, 8, 5, 3})},
          [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
            const Attended r = layer->attend(in[0], {.want_weights = true});
            return {r.out, r.weights};
          },
          [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
            const Tensor& x = in[0];
            const Tensor weights =
                torch::softmax((x * layer->conv_mask->weight.view({1, 8, 1, 1})).sum(1).flatten(1), -1)
                    .view({batch, 5, 3});
            const Tensor context = (x * weights.unsqueeze(1)).sum({2, 3});  // [B, 8]
            const auto branch = [&](torch::nn::Sequential& s) {
              const auto first = s->ptr<torch::nn::Conv2dImpl>(0), last = s->ptr<torch::nn::Conv2dImpl>(3);
              const auto norm = s->ptr<torch::nn::LayerNormImpl>(1);
              const Tensor hidden = context.matmul(first->weight.flatten(1).t()) + first->bias;
              const Tensor centred = hidden - hidden.mean(1, true);
              const Tensor normed =
                  centred / torch::sqrt(centred.pow(2).mean(1, true) + 1e-5) * norm->weight.flatten() +
                  norm->bias.flatten();
              return (torch::relu(normed).matmul(last->weight.flatten(1).t()) + last->bias).view({batch, 8, 1, 1});
            };
            Tensor out = x;
            if (c.multiply) out = out * torch::sigmoid(branch(layer->channel_mul_conv));
            if (c.add) out = out + branch(layer->channel_add_conv);
            return {out, weights};
          },
          std::string(c.add ? "add " : "") + (c.multiply ? "multiply" : ""));
    }
  }
  GlobalContext layer(GlobalContextOptions{.channels = 16});
  EXPECT_EQ(names(*layer),
            (std::vector<std::string>{"conv_mask.weight", "channel_add_conv.0.weight", "channel_add_conv.0.bias",
                                      "channel_add_conv.1.weight", "channel_add_conv.1.bias",
                                      "channel_add_conv.3.weight", "channel_add_conv.3.bias"}));
}

// ---- Windows: as Swin computes them, with a padded and rolled picture, and -inf where it has -100 ----

struct Pairs {
  Tensor visible;  // [N, N], N positions of the padded map
  Tensor rows;     // [N, N]: of the table; 0 where not visible
};

Pairs swin_pairs(int64_t height, int64_t width, const WindowAttentionOptions& o, int64_t real_height,
                 int64_t real_width) {
  const int64_t n = height * width, w = o.window;
  // An axis as Swin sees it: where a position is after the roll, and which of the three regions that is in.
  const auto rolled = [&](int64_t at, int64_t size) { return (at - o.shift + size) % size; };
  const auto region = [&](int64_t at, int64_t size) {
    return o.shift == 0 || at < size - w ? 0 : at < size - o.shift ? 1 : 2;
  };
  Pairs pairs{torch::zeros({n, n}, torch::kBool), torch::zeros({n, n}, torch::kInt64)};
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const int64_t yi = rolled(i / width, height), xi = rolled(i % width, width);
      const int64_t yj = rolled(j / width, height), xj = rolled(j % width, width);
      const bool padding = j / width >= real_height || j % width >= real_width;
      if (yi / w != yj / w || xi / w != xj / w || region(yi, height) != region(yj, height) ||
          region(xi, width) != region(xj, width) || (padding && !o.attend_padding)) {
        continue;
      }
      pairs.visible[i][j] = true;
      pairs.rows[i][j] = (yi - yj + w - 1) * (2 * w - 1) + xi - xj + w - 1;
    }
  }
  return pairs;
}

std::vector<Tensor> plain_windows(WindowAttentionImpl& layer, const Tensor& x) {
  const auto& o = layer.options;
  const int64_t height = (x.size(1) + o.window - 1) / o.window * o.window;
  const int64_t width = (x.size(2) + o.window - 1) / o.window * o.window;
  const Tensor map = torch::constant_pad_nd(x, {0, 0, 0, width - x.size(2), 0, height - x.size(1)});
  const Pairs pairs = swin_pairs(height, width, o, x.size(1), x.size(2));
  const std::vector<Tensor> packed = linear(map.flatten(1, 2), layer.qkv).chunk(3, -1);
  const Tensor q = plain::split(packed[0], o.heads), k = plain::split(packed[1], o.heads);
  Tensor scores = q.matmul(k.transpose(2, 3)) / std::sqrt(static_cast<double>(o.dim / o.heads));
  scores = scores + layer.relative_position_bias_table.index({pairs.rows}).permute({2, 0, 1});
  scores = scores.masked_fill(pairs.visible.logical_not(), -kInf);
  // Rows of padding may see nothing; they are cut off, and must not put NaNs into gradients until then.
  const Tensor blind = pairs.visible.any(-1, true).logical_not();
  const Tensor weights = torch::softmax(scores.masked_fill(blind, 0), -1);
  const Tensor out = linear(plain::join(weights.matmul(plain::split(packed[2], o.heads))), layer.proj);
  const auto real = [&](const Tensor& t, int64_t axis) {  // [.., N, ..] -> [.., H, W, ..] -> [.., real positions, ..]
    return t.unflatten(axis, std::vector<int64_t>{height, width})
        .narrow(axis, 0, x.size(1))
        .narrow(axis + 1, 0, x.size(2))
        .flatten(axis, axis + 1);
  };
  return {real(out, 1).view(x.sizes()), real(real(weights, 2), 3)};
}

TEST(WindowAttention, IsSwins) {
  struct Case {
    int64_t height, width;
    WindowAttentionOptions options;
  };
  const std::vector<Case> cases{{4, 6, {.dim = 4, .heads = 2, .window = 2}},
                                {6, 9, {.dim = 6, .heads = 2, .window = 3, .shift = 1}},
                                {6, 4, {.dim = 4, .heads = 1, .window = 2, .shift = 1, .bias = false}},
                                {7, 5, {.dim = 4, .heads = 2, .window = 3}},
                                {7, 5, {.dim = 4, .heads = 2, .window = 3, .shift = 1}},
                                {7, 6, {.dim = 4, .heads = 2, .window = 3, .shift = 2}},
                                {7, 5, {.dim = 4, .heads = 2, .window = 3, .attend_padding = true}},
                                {7, 5, {.dim = 4, .heads = 2, .window = 3, .shift = 1, .attend_padding = true}},
                                {6, 4, {.dim = 4, .heads = 2, .window = 3, .shift = 1, .attend_padding = true}},
                                {2, 7, {.dim = 4, .heads = 2, .window = 4, .shift = 2}},
                                {1, 1, {.dim = 4, .heads = 2, .window = 4, .shift = 2}},
                                {3, 2, {.dim = 4, .heads = 4, .window = 7}},
                                {3, 2, {.dim = 4, .heads = 4, .window = 5, .attend_padding = true}}};
  for (const Case& c : cases) {
    for (const int64_t batch : {2, 1}) {
      torch::manual_seed(6);
      WindowAttention layer(c.options);
      stir(*layer);
      check(
          *layer, {random({batch, c.height, c.width, c.options.dim})},
          [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
            const Attended r = layer->attend(in[0], /*want_weights=*/true);
            EXPECT_FALSE(r.weights.requires_grad());
            EXPECT_TRUE(torch::equal(layer->forward(in[0]), r.out));
            return {r.out, r.weights};
          },
          [&](const std::vector<Tensor>& in) { return plain_windows(*layer, in[0]); },
          std::to_string(c.height) + " x " + std::to_string(c.width) + ", window " + std::to_string(c.options.window) +
              ", shift " + std::to_string(c.options.shift) + (c.options.attend_padding ? ", padding" : ""));
    }
  }
  WindowAttention layer(WindowAttentionOptions{.dim = 6, .heads = 2, .window = 3});
  EXPECT_EQ(names(*layer), (std::vector<std::string>{"relative_position_bias_table", "qkv.weight", "qkv.bias",
                                                     "proj.weight", "proj.bias"}));
  EXPECT_EQ(layer->relative_position_bias_table.sizes(), (std::vector<int64_t>{25, 2}));
}

TEST(WindowAttention, NothingCrossesABorder) {
  torch::manual_seed(7);
  for (const bool pad : {false, true}) {
    WindowAttention layer(WindowAttentionOptions{.dim = 4, .window = 3, .shift = 1, .attend_padding = pad});
    Tensor x = torch::randn({1, 7, 7, 4});
    const Tensor before = layer->forward(x);
    x[0][0][0].fill_(
        std::numeric_limits<float>::quiet_NaN());  // alone in its window; Swin's roll puts it beside others
    const Tensor after = layer->forward(x);
    EXPECT_EQ(after.isnan().sum().item<int64_t>(), 4);
    EXPECT_TRUE(torch::equal(after.slice(1, 1), before.slice(1, 1)));
    EXPECT_TRUE(torch::equal(after.slice(2, 1), before.slice(2, 1)));
  }
}

// ---- Neighbourhoods ----

TEST(NeighborhoodAttention, IsNattens) {
  struct Case {
    int64_t height, width, kernel;
    bool bias;
  };
  for (const Case& c : std::vector<Case>{{5, 7, 3, true}, {5, 6, 5, false}, {1, 4, 1, true}}) {
    Tensor seen = torch::zeros({c.height * c.width, c.height * c.width}, torch::kBool);
    const auto first = [&](int64_t at, int64_t size) {  // of the k positions seen on an axis
      return std::min(std::max<int64_t>(at - c.kernel / 2, 0), size - c.kernel);
    };
    for (int64_t y = 0; y < c.height; ++y) {
      for (int64_t x = 0; x < c.width; ++x) {
        seen[y * c.width + x]
            .view({c.height, c.width})
            .narrow(0, first(y, c.height), c.kernel)
            .narrow(1, first(x, c.width), c.kernel)
            .fill_(true);
      }
    }
    for (const int64_t batch : {2, 1}) {
      torch::manual_seed(8);
      NeighborhoodAttention layer(
          NeighborhoodAttentionOptions{.dim = 6, .heads = 2, .kernel = c.kernel, .bias = c.bias});
      check(
          *layer, {random({batch, c.height, c.width, 6})},
          [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
            const Attended r = layer->attend(in[0], /*want_weights=*/true);
            EXPECT_TRUE(torch::equal(layer->forward(in[0]), r.out));
            return {r.out, r.weights};
          },
          [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
            const std::vector<Tensor> packed = linear(in[0].flatten(1, 2), layer->qkv).chunk(3, -1);
            const Tensor q = plain::split(packed[0], 2), k = plain::split(packed[1], 2);
            const Tensor scores = q.matmul(k.transpose(2, 3)) / std::sqrt(3.0);
            const Tensor weights = torch::softmax(scores.masked_fill(seen.logical_not(), -kInf), -1);
            const Tensor out = linear(plain::join(weights.matmul(plain::split(packed[2], 2))), layer->proj);
            return {out.view(in[0].sizes()), weights};
          },
          "kernel " + std::to_string(c.kernel) + ", batch " + std::to_string(batch));
    }
  }
}

// ---- All of them ----

TEST(Positions, StandInASequentialAndCopyThemselves) {
  torch::manual_seed(9);
  torch::nn::Sequential net(NonLocal(NonLocalOptions{.channels = 16}),
                            PositionAttention(PositionAttentionOptions{.channels = 16}), ChannelAttention(),
                            GlobalContext(GlobalContextOptions{.channels = 16}));
  stir(*net);
  net->eval();
  const Tensor x = torch::randn({2, 16, 5, 4});
  const Tensor y = net->forward(x);
  EXPECT_TRUE(y.is_contiguous());
  EXPECT_EQ(y.sizes(), x.sizes());
  EXPECT_TRUE(torch::equal(std::dynamic_pointer_cast<torch::nn::SequentialImpl>(net->clone())->forward(x), y));
  torch::nn::Sequential last(WindowAttention(WindowAttentionOptions{.dim = 16, .heads = 2, .window = 3, .shift = 1}),
                             NeighborhoodAttention(NeighborhoodAttentionOptions{.dim = 16, .heads = 2, .kernel = 3}));
  const Tensor z = last->forward(x.permute({0, 2, 3, 1}));  // a view with channels last
  EXPECT_EQ(z.sizes(), (std::vector<int64_t>{2, 5, 4, 16}));
  EXPECT_TRUE(torch::equal(last->forward(x.permute({0, 2, 3, 1}).contiguous()), z));
  EXPECT_TRUE(torch::equal(
      std::dynamic_pointer_cast<torch::nn::SequentialImpl>(last->clone())->forward(x.permute({0, 2, 3, 1})), z));
}

TEST(Positions, MasksAndBiasesReachTheWeights) {
  torch::manual_seed(10);
  const Tensor x = torch::randn({2, 8, 3, 4});
  NonLocal non_local(NonLocalOptions{.channels = 8, .sub_sample = false});
  PositionAttention position(PositionAttentionOptions{.channels = 8});
  ChannelAttention channel;
  GlobalContext context(GlobalContextOptions{.channels = 8, .reduction = 2});
  const auto check_weights = [&](const std::function<Attended(const AttendOptions&)>& attend, int64_t keys) {
    const auto weights = [&](const AttendOptions& options) {
      return attend(options).weights.reshape({2, -1, keys});  // [B, queries, keys]
    };
    const Tensor all = weights({.want_weights = true});
    const Tensor masked = weights({.mask = lengths({5, keys}), .want_weights = true});
    EXPECT_TRUE(torch::allclose(masked[0].slice(1, 0, 5), all[0].slice(1, 0, 5) / all[0].slice(1, 0, 5).sum(1, true)));
    EXPECT_TRUE(masked[0].slice(1, 5).eq(0).all().item<bool>());
    EXPECT_TRUE(torch::equal(masked[1], all[1]));
    const Tensor bias = torch::randn({keys});
    const Tensor biased = all * bias.exp();
    EXPECT_TRUE(torch::allclose(weights({.bias = bias, .want_weights = true}), biased / biased.sum(2, true)));
  };
  check_weights([&](const AttendOptions& o) { return non_local->attend(x, o); }, 12);
  check_weights([&](const AttendOptions& o) { return position->attend(x, o); }, 12);
  check_weights([&](const AttendOptions& o) { return channel->attend(x, o); }, 8);
  check_weights([&](const AttendOptions& o) { return context->attend(x, o); }, 12);
  EXPECT_FALSE(position->attend(x).weights.defined());
}

TEST(Positions, ErrorsNameTheNumbers) {
  expect_message([] { NonLocal(NonLocalOptions{}); }, "NonLocal got channels = 0");
  expect_message([] { PositionAttention(PositionAttentionOptions{.channels = 4, .inner = -1}); }, "inner = -1");
  expect_message([] { GlobalContext(GlobalContextOptions{.channels = 8}); }, "8 channels and reduction 16");
  expect_message([] { GlobalContext(GlobalContextOptions{.channels = 16, .add = false}); }, "neither add nor multiply");
  NonLocal layer(NonLocalOptions{.channels = 4, .score = NonLocalScore::dot_product});
  expect_message(
      [&] {
        layer->forward(torch::randn({2, 3, 4, 4}));
      },
      "NonLocal got a tensor of shape [2, 3, 4, 4]; it needs a feature map [batch, 4, height, width]");
  expect_message([&] { layer->forward(torch::randn({2, 4, 1, 4})); }, "a feature map of 1 x 4, too small");
  expect_message([&] { layer->attend(torch::randn({2, 4, 4, 4}), {.mask = causal()}); }, "takes no mask and no bias");
  expect_message([&] { layer->attend(torch::randn({2, 4, 4, 4}), {.bias = torch::zeros({1})}); }, "takes no mask");
  NonLocal one(NonLocalOptions{.channels = 4, .sub_sample = false});
  expect_message([&] { one->forward(torch::randn({1, 4, 1, 1})); }, "NonLocal got 1 value of each channel");
  expect_message(
      [] {
        ChannelAttention()->forward(torch::randn({4, 4}));
      },
      "ChannelAttention got a tensor of shape [4, 4]; it needs a feature map [batch, channels, height, width]");

  expect_message([] { WindowAttention(WindowAttentionOptions{.dim = 10, .heads = 3}); }, "dim 10 and 3 heads");
  expect_message([] { WindowAttention(WindowAttentionOptions{.dim = 10, .window = 0}); }, "window = 0");
  expect_message([] { WindowAttention(WindowAttentionOptions{.dim = 10, .window = 4, .shift = 4}); },
                 "shift 4; it must be at least 0 and below the window of 4");
  WindowAttention windows(WindowAttentionOptions{.dim = 4, .window = 2});
  expect_message(
      [&] {
        windows->forward(torch::randn({2, 4, 3, 3}));
      },
      "WindowAttention got a tensor of shape [2, 4, 3, 3]; it needs [batch, height, width, 4]");
  expect_message([] { NeighborhoodAttention(NeighborhoodAttentionOptions{.dim = 4, .kernel = 4}); }, "kernel 4");
  NeighborhoodAttention near(NeighborhoodAttentionOptions{.dim = 4, .kernel = 5});
  expect_message([&] { near->forward(torch::randn({2, 7, 4, 4})); }, "a map of 7 x 4 and kernel 5");
}

}  // namespace
}  // namespace heed::nn
