// libtorch/layers.cc and cache.cc: every layer's values and gradients against its paper's formula, written out.
#include "libtorch/layers.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/layer_check.h"
#include "tests/plain_attention.h"

namespace heed::nn {
namespace {

using plain::Call;
using plain::check;
using plain::expect_message;
using plain::expect_near;
using plain::kDTypes;
using plain::mixed;
using plain::names;
using plain::random;
using torch::Tensor;

const AttendOptions kPadded{.mask = lengths({6, 3}), .want_weights = true};

// ---- Additive and dot: one head, [B, L, D] ----

std::vector<Tensor> plain_single(const Tensor& q, const Tensor& k, const Tensor& v, plain::Options options) {
  const plain::Result r = plain::attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), options);
  return {r.out.squeeze(1), r.weights.squeeze(1)};
}

TEST(AdditiveAttention, IsBahdanausFormula) {
  for (const bool normalize : {false, true}) {
    torch::manual_seed(1);
    AdditiveAttention layer(
        AdditiveAttentionOptions{.query_dim = 5, .memory_dim = 4, .units = 7, .normalize = normalize});
    torch::nn::init::normal_(layer->v);
    if (normalize) torch::nn::init::normal_(layer->b);
    const Call heed = [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
      const Attended r = layer->forward(in[0], layer->project(in[1]), in[1], kPadded);
      EXPECT_FALSE(r.weights.requires_grad());
      return {r.out, r.weights};
    };
    const Call formula = [&](const std::vector<Tensor>& in) {
      const Tensor q = in[0].matmul(layer->query_layer->weight.t()), k = in[1].matmul(layer->memory_layer->weight.t());
      const Tensor w = normalize ? layer->g * layer->v / layer->v.pow(2).sum().sqrt() : layer->v;
      return plain_single(normalize ? q + layer->b : q, k, in[1],
                          {.score = Score::additive, .w = w, .mask = kPadded.mask});
    };
    check(*layer, {random({2, 3, 5}), random({2, 6, 4})}, heed, formula, normalize ? "normalized" : "plain");
    EXPECT_EQ(names(*layer),
              normalize ? (std::vector<std::string>{"v", "g", "b", "query_layer.weight", "memory_layer.weight"})
                        : (std::vector<std::string>{"v", "query_layer.weight", "memory_layer.weight"}));
  }
}

TEST(AdditiveAttention, OneStepHasNoAxisOfQueries) {
  torch::manual_seed(2);
  AdditiveAttention layer(AdditiveAttentionOptions{.query_dim = 5, .memory_dim = 4, .units = 7});
  const Tensor memory = torch::randn({2, 6, 4}), query = torch::randn({2, 5});
  const Tensor keys = layer->project(memory);
  const Attended step = layer->forward(query, keys, memory, kPadded);
  const Attended rows = layer->forward(query.unsqueeze(1), keys, memory, kPadded);
  EXPECT_EQ(step.out.sizes(), (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(step.weights.sizes(), (std::vector<int64_t>{2, 6}));
  EXPECT_TRUE(torch::allclose(step.out, rows.out.squeeze(1), 1e-6, 1e-6));
  EXPECT_TRUE(torch::allclose(step.weights.sum(1), torch::ones({2})));
  EXPECT_TRUE(step.weights[1].slice(0, 3).eq(0).all().item<bool>());
  EXPECT_FALSE(layer->forward(query, keys, memory).weights.defined());
}

TEST(DotAttention, IsLuongsFormulas) {
  for (const LuongScore score : {LuongScore::dot, LuongScore::general, LuongScore::concat}) {
    torch::manual_seed(3);
    const int64_t memory_dim = score == LuongScore::dot ? 5 : 4;
    DotAttention layer(DotAttentionOptions{.query_dim = 5, .memory_dim = memory_dim, .score = score, .units = 6});
    const Call heed = [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
      const Attended r = layer->forward(in[0], layer->project(in[1]), in[1], kPadded);
      return {r.out, r.weights};
    };
    const Call formula = [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
      const Tensor &q = in[0], &m = in[1];
      Tensor scores;
      if (score == LuongScore::dot) {
        scores = torch::einsum("bld,bsd->bls", {q, m});
      } else if (score == LuongScore::general) {
        scores = torch::einsum("bld,de,bse->bls", {q, layer->memory_layer->weight, m});
      } else {  // as printed: v . tanh(W [q; m]), with the joined vector and one W
        const Tensor w = torch::cat({layer->query_layer->weight, layer->memory_layer->weight}, 1);
        const Tensor joined = torch::cat({q.unsqueeze(2).expand({-1, -1, m.size(1), -1}),  //
                                          m.unsqueeze(1).expand({-1, q.size(1), -1, -1})},
                                         -1);
        scores = torch::tanh(joined.matmul(w.t())).matmul(layer->v);
      }
      const Tensor seen = plain::visible(kPadded.mask, 2, 1, q.size(1), m.size(1)).squeeze(1);
      const Tensor weights = torch::softmax(scores.masked_fill(seen.logical_not(), -INFINITY), -1);
      return {weights.matmul(m), weights};
    };
    check(*layer, {random({2, 3, 5}), random({2, 6, memory_dim})}, heed, formula,
          "score " + std::to_string(static_cast<int>(score)));
  }
  expect_message([] { DotAttention(DotAttentionOptions{.query_dim = 5, .memory_dim = 4, .score = LuongScore::dot}); },
                 "query_dim 5 and memory_dim 4");
}

// ---- Multi-head ----

std::vector<Tensor> plain_multi_head(MultiHeadAttentionImpl& layer, const Tensor& x, const Tensor& memory,
                                     plain::Options options) {
  const auto apply = [](const Tensor& in, const torch::nn::Linear& linear) {
    const Tensor out = in.matmul(linear->weight.t());
    return linear->bias.defined() ? out + linear->bias : out;
  };
  const plain::Result r = plain::attention(plain::split(apply(x, layer.q_proj), layer.options.heads),
                                           plain::split(apply(memory, layer.k_proj), layer.options.kv_heads),
                                           plain::split(apply(memory, layer.v_proj), layer.options.kv_heads), options);
  return {apply(plain::join(r.out), layer.out_proj), r.weights};
}

TEST(MultiHeadAttention, IsTheFormula) {
  struct Case {
    std::string name;
    MultiHeadAttentionOptions options;
    Mask mask = {};
    bool self = false;
    std::vector<int64_t> bias = {};
  };
  const std::vector<Case> cases{
      {"self, causal", {.embed_dim = 12, .heads = 3}, causal(), true},
      {"self, padded", {.embed_dim = 12, .heads = 3}, lengths({6, 2}), true},
      {"self, padded and causal, biased", {.embed_dim = 12, .heads = 3}, lengths({6, 2}) & causal(), true, {3, 6, 6}},
      {"cross, another width", {.embed_dim = 12, .heads = 2, .memory_dim = 10}, lengths({6, 3})},
      {"grouped", {.embed_dim = 12, .heads = 4, .kv_heads = 2}, lengths({6, 3})},
      {"one key head, other sizes",
       {.embed_dim = 8, .heads = 4, .kv_heads = 1, .head_dim = 5, .value_dim = 3, .memory_dim = 7, .out_dim = 9},
       lengths({6, 3})},
      {"no bias, scaled, a blind sentence",
       {.embed_dim = 8, .heads = 2, .bias = false, .scale = 1.0},
       lengths({0, 3}),
       false,
       {2, 1, 1, 6}}};
  for (const Case& c : cases) {
    torch::manual_seed(4);
    MultiHeadAttention layer(c.options);
    for (Tensor& parameter : layer->parameters()) torch::nn::init::normal_(parameter, 0, 0.4);
    const Tensor bias = c.bias.empty() ? Tensor() : random(c.bias);
    const auto bias_like = [&](const Tensor& x) { return bias.defined() ? bias.to(x.scalar_type()) : bias; };
    std::vector<Tensor> inputs{random({2, c.self ? 6 : 3, c.options.embed_dim})};
    if (!c.self) inputs.push_back(random({2, 6, layer->options.memory_dim}));
    check(
        *layer, inputs,
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const Attended r = layer->forward(
              in[0], in.back(), {.mask = c.mask, .bias = bias_like(in[0]), .want_weights = true, .want_look = true});
          EXPECT_FALSE(r.weights.requires_grad() || r.look.q.requires_grad() || r.look.lse.requires_grad());
          const double near = plain::tolerance(in[0].scalar_type());
          expect_near(query_weights(r.look, 2), r.weights.select(2, 2), near, c.name + ", a query's weights");
          expect_near(received_weights(r.look), r.weights.mean(2), near, c.name + ", received");
          return {r.out, r.weights};
        },
        [&](const std::vector<Tensor>& in) {
          return plain_multi_head(*layer, in[0], in.back(),
                                  {.scale = c.options.scale, .bias = bias_like(in[0]), .mask = c.mask});
        },
        c.name);
  }
}

TEST(MultiHeadAttention, HasHuggingFacesNames) {
  MultiHeadAttention layer(MultiHeadAttentionOptions{.embed_dim = 8, .heads = 2});
  EXPECT_EQ(names(*layer),
            (std::vector<std::string>{"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight",
                                      "v_proj.bias", "out_proj.weight", "out_proj.bias"}));
  const auto copy = std::dynamic_pointer_cast<MultiHeadAttentionImpl>(layer->clone());
  ASSERT_TRUE(copy);
  const Tensor x = torch::randn({1, 3, 8});
  EXPECT_TRUE(torch::equal(copy->forward(x, x).out, layer->forward(x, x).out));
  torch::NoGradGuard no_grad;
  copy->q_proj->weight.zero_();
  EXPECT_FALSE(torch::equal(copy->forward(x, x).out, layer->forward(x, x).out));
}

// torch.nn.MultiheadAttention keeps q, k and v in one matrix [3E, E], which Glorot's rule gives sqrt(6 / 4E).
TEST(MultiHeadAttention, StartsAsPyTorchsDoes) {
  constexpr int64_t kWidth = 64;
  torch::manual_seed(1);
  MultiHeadAttention layer(MultiHeadAttentionOptions{.embed_dim = kWidth, .heads = 4});
  const auto range = [](const torch::nn::Linear& linear) { return linear->weight.abs().max().item<double>(); };
  const double three = std::sqrt(6.0 / (4 * kWidth)), alone = std::sqrt(6.0 / (2 * kWidth));
  for (const auto& linear : {layer->q_proj, layer->k_proj, layer->v_proj}) {
    EXPECT_LE(range(linear), three);
    EXPECT_GT(range(linear), 0.99 * three);
    EXPECT_EQ(linear->bias.abs().max().item<double>(), 0);
  }
  EXPECT_LE(range(layer->out_proj), alone);
  EXPECT_GT(range(layer->out_proj), 0.99 * alone);
}

TEST(MultiHeadAttention, ErrorsNameTheNumbers) {
  expect_message([] { MultiHeadAttention(MultiHeadAttentionOptions{.embed_dim = 10, .heads = 3}); }, "embed_dim 10");
  expect_message([] { MultiHeadAttention(MultiHeadAttentionOptions{.embed_dim = 12, .heads = 4, .kv_heads = 3}); },
                 "3 kv_heads");
  expect_message([] { MultiHeadAttention(MultiHeadAttentionOptions{.embed_dim = 12, .dropout = 1}); }, "dropout 1.0");
  expect_message([] { MultiHeadAttention(MultiHeadAttentionOptions{.heads = 4}); }, "embed_dim = 0");
  expect_message([] { AttentionPool(0); }, "dim = 0");
  MultiHeadAttention layer(MultiHeadAttentionOptions{.embed_dim = 8, .heads = 2});
  const Tensor x = torch::randn({1, 3, 8});
  EXPECT_FALSE(layer->forward(x, x).look.q.defined()) << "nobody asked";
  const Look look = layer->forward(x, x, {.want_look = true}).look;
  expect_message([&] { query_weights(look, 3); }, "query 3");
  expect_message([&] { rollout_row({look}, 3); }, "the query is 3");
  expect_message([&] { rollout_row({}, 0); }, "0 layers");
}

TEST(MultiHeadAttention, StepsEqualTheWhole) {
  torch::manual_seed(5);
  for (const bool graph : {false, true}) {
    torch::AutoGradMode mode(graph);
    MultiHeadAttention layer(MultiHeadAttentionOptions{.embed_dim = 12, .heads = 4, .kv_heads = 2});
    const Tensor x = torch::randn({3, 60, 12});
    const Attended whole = layer->forward(x, x, {.mask = causal(), .want_weights = true});
    KeyValueCache cache;
    EXPECT_FALSE(cache.all().k.defined());
    std::vector<Tensor> outs;
    for (int64_t begin = 0, length; begin < 60; begin += length) {
      length = std::min<int64_t>(60 - begin, begin == 20 ? 7 : 1);  // steps of one, and one of several
      const Attended part = layer->extend(x.narrow(1, begin, length), cache, {.mask = causal(), .want_weights = true});
      EXPECT_EQ(cache.length(), begin + length);
      expect_near(part.weights, whole.weights.narrow(2, begin, length).narrow(3, 0, begin + length),
                  plain::tolerance(torch::kFloat32), "weights");
      outs.push_back(part.out);
    }
    const Tensor steps = torch::cat(outs, 1);
    expect_near(steps, whole.out, plain::tolerance(torch::kFloat32), "out");
    if (graph) {  // training through a cache: gradients reach every projection
      const auto a = plain::gradients(mixed(steps), layer->parameters());
      const auto b = plain::gradients(mixed(whole.out), layer->parameters());
      // Gradients are sums over 60 steps and 3 sentences of terms summed in another order: 180 roundings more.
      for (size_t i = 0; i < a.size(); ++i) expect_near(a[i], b[i], 2 * plain::tolerance(torch::kFloat32), "gradient");
    }
  }
}

TEST(KeyValueCache, GrowsReordersAndShrinks) {
  const auto rows = [](std::vector<int64_t> r) { return torch::tensor(r, torch::kInt64); };
  KeyValueCache cache;
  Tensor k, v;  // what it should hold
  torch::manual_seed(6);
  const auto append = [&](int64_t batch, int64_t length) {
    const KeyValue next{torch::randn({batch, length, 4}), torch::randn({batch, length, 6})};
    k = k.defined() ? torch::cat({k, next.k}, 1) : next.k.clone();
    v = v.defined() ? torch::cat({v, next.v}, 1) : next.v.clone();
    cache.append(next);
  };
  const auto select = [&](const Tensor& r) {
    k = k.index_select(0, r), v = v.index_select(0, r);
    cache.select(r);
  };
  const auto same = [&] { return torch::equal(cache.all().k, k) && torch::equal(cache.all().v, v); };
  append(2, 3);
  EXPECT_TRUE(same());
  for (int i = 0; i < 100; ++i) append(2, 1);
  EXPECT_TRUE(same());
  const void* before = cache.all().k.data_ptr();
  select(rows({0, 1}));  // as it is: nothing moves
  EXPECT_EQ(cache.all().k.data_ptr(), before);
  select(rows({1, 0, 0}));
  append(3, 2);
  EXPECT_TRUE(same());
  select(rows({2}));
  append(1, 1);
  EXPECT_TRUE(same());
  expect_message([&] { cache.append({torch::randn({2, 1, 4}), torch::randn({2, 1, 6})}); }, "a batch of 1");
  expect_message([&] { cache.select(torch::zeros({1, 1}, torch::kInt64)); }, "one dimension of int64");
  EXPECT_TRUE(same());
  cache.clear();
  EXPECT_EQ(cache.length(), 0);
}

TEST(KeyValueCache, TheFirstTensorsAreNotWrittenTo) {
  const Tensor k = torch::ones({1, 2, 3}), v = torch::ones({1, 2, 3});
  KeyValueCache cache;
  cache.append({k, v});
  cache.append({torch::zeros({1, 1, 3}), torch::zeros({1, 1, 3})});
  EXPECT_TRUE(k.eq(1).all().item<bool>());
  EXPECT_EQ(cache.length(), 3);
}

// ---- Pooling ----

TEST(AttentionPool, IsASoftmaxOfOneVector) {
  torch::manual_seed(7);
  AttentionPool layer(5);
  EXPECT_TRUE(torch::allclose(layer->forward(torch::arange(10, torch::kFloat32).reshape({1, 2, 5})).out,
                              torch::tensor({{2.5, 3.5, 4.5, 5.5, 6.5}}, torch::kFloat32)));  // starts as the mean
  torch::nn::init::normal_(layer->query);
  check(
      *layer, {random({2, 6, 5})},
      [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const Attended r = layer->forward(in[0], kPadded);
        return {r.out, r.weights};
      },
      [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
        const Tensor scores = in[0].matmul(layer->query);
        const Tensor seen = plain::visible(kPadded.mask, 2, 1, 1, 6).reshape({2, 6});
        const Tensor alpha = torch::softmax(scores.masked_fill(seen.logical_not(), -INFINITY), -1);
        return {(alpha.unsqueeze(-1) * in[0]).sum(1), alpha};
      },
      "pool");
}

// ---- The wrapper ----

// TF-Addons' AttentionWrapper, one sentence and one step at a time, with the cells written out.
std::vector<Tensor> plain_wrapper(AttentionWrapperImpl& layer, const Tensor& x, const Tensor& memory,
                                  const std::vector<int64_t>& x_lengths, const std::vector<int64_t>& memory_lengths) {
  const auto& o = layer.options;
  const bool lstm = o.cell == Cell::lstm;
  auto& additive = *layer.attention;
  const Tensor w_ih = lstm ? layer.lstm->weight_ih : layer.gru->weight_ih;
  const Tensor w_hh = lstm ? layer.lstm->weight_hh : layer.gru->weight_hh;
  const Tensor b_ih = lstm ? layer.lstm->bias_ih : layer.gru->bias_ih;
  const Tensor b_hh = lstm ? layer.lstm->bias_hh : layer.gru->bias_hh;
  const int64_t attended = o.attention_dim == 0 ? o.memory_dim : o.attention_dim;
  std::vector<Tensor> outs, weights, last_h, last_c, last_attention;
  for (int64_t b = 0; b < x.size(0); ++b) {
    Tensor h = torch::zeros({o.hidden}, x.options()), c = h, attention = torch::zeros({attended}, x.options());
    const Tensor values = memory[b].slice(0, 0, memory_lengths[b]);
    const Tensor keys = values.matmul(additive.memory_layer->weight.t());
    std::vector<Tensor> out(x.size(1), torch::zeros({o.output_attention ? attended : o.hidden}, x.options()));
    std::vector<Tensor> weight(x.size(1), torch::zeros({memory.size(1)}, x.options()));
    for (int64_t step = 0; step < x_lengths[b]; ++step) {
      const int64_t t = o.reverse ? x_lengths[b] - 1 - step : step;
      const Tensor in = w_ih.mv(torch::cat({x[b][t], attention})) + b_ih, rec = w_hh.mv(h) + b_hh;
      if (lstm) {
        const auto gates = (in + rec).chunk(4);
        c = torch::sigmoid(gates[1]) * c + torch::sigmoid(gates[0]) * torch::tanh(gates[2]);
        h = torch::sigmoid(gates[3]) * torch::tanh(c);
      } else {
        const auto i = in.chunk(3), r = rec.chunk(3);
        const Tensor z = torch::sigmoid(i[1] + r[1]);
        h = (1 - z) * torch::tanh(i[2] + torch::sigmoid(i[0] + r[0]) * r[2]) + z * h;
      }
      const Tensor alpha = torch::softmax(torch::tanh(keys + additive.query_layer->weight.mv(h)).mv(additive.v), 0);
      const Tensor context = alpha.unsqueeze(0).matmul(values).squeeze(0);
      attention = layer.attention_layer ? layer.attention_layer->weight.mv(torch::cat({h, context})) : context;
      out[t] = o.output_attention ? attention : h;
      weight[t] = torch::cat({alpha, torch::zeros({memory.size(1) - memory_lengths[b]}, x.options())});
    }
    outs.push_back(torch::stack(out));
    weights.push_back(torch::stack(weight));
    last_h.push_back(h);
    last_c.push_back(c);
    last_attention.push_back(attention);
  }
  return {torch::stack(outs), torch::stack(weights), torch::stack(last_h), torch::stack(last_c),
          torch::stack(last_attention)};
}

TEST(AttentionWrapper, IsTheLoopWrittenOut) {
  struct Case {
    Cell cell;
    int64_t attention_dim;
    bool reverse, output_attention;
    std::vector<int64_t> lengths;
  };
  const std::vector<Case> cases{{Cell::lstm, 4, false, false, {5, 5, 5}}, {Cell::gru, 0, false, false, {4, 2, 3}},
                                {Cell::lstm, 0, true, false, {5, 1, 3}},  {Cell::gru, 3, true, true, {0, 5, 2}},
                                {Cell::lstm, 4, false, true, {0, 1, 4}},  {Cell::gru, 2, true, false, {0, 0, 0}}};
  const std::vector<int64_t> memory_lengths{6, 1, 4};
  for (const Case& c : cases) {
    torch::manual_seed(8);
    AttentionWrapper layer(AttentionWrapperOptions{.input_dim = 3,
                                                   .hidden = 5,
                                                   .memory_dim = 4,
                                                   .units = 7,
                                                   .attention_dim = c.attention_dim,
                                                   .cell = c.cell,
                                                   .reverse = c.reverse,
                                                   .output_attention = c.output_attention});
    check(
        *layer, {random({3, 5, 3}), random({3, 6, 4})},
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const WrapperOutput r = layer->forward(in[0], in[1], c.lengths, memory_lengths, /*want_weights=*/true);
          const auto or_zeros = [&](const Tensor& t, int64_t width) {
            return t.defined() ? t : torch::zeros({3, width}, in[0].options());
          };
          // With a length of 0 everywhere nothing depends on the inputs.
          return {r.out.requires_grad() ? r.out : r.out + 0 * in[0].sum(), r.weights, or_zeros(r.state.h, 5),
                  or_zeros(r.state.c, 5), or_zeros(r.state.attention, c.attention_dim == 0 ? 4 : c.attention_dim)};
        },
        [&](const std::vector<Tensor>& in) {
          std::vector<Tensor> r = plain_wrapper(*layer, in[0], in[1], c.lengths, memory_lengths);
          if (!r[0].requires_grad()) r[0] = r[0] + 0 * in[0].sum();
          return r;
        },
        "case with lengths " + std::to_string(c.lengths[0]) + ", cell " + std::to_string(static_cast<int>(c.cell)));
  }
}

TEST(AttentionWrapper, AStateCarriesOn) {
  torch::manual_seed(9);
  AttentionWrapper layer(AttentionWrapperOptions{.input_dim = 3, .hidden = 5, .memory_dim = 4, .units = 7});
  const Tensor x = torch::randn({2, 8, 3}), memory = torch::randn({2, 6, 4});
  const WrapperOutput whole = layer->forward(x, memory);
  EXPECT_FALSE(whole.weights.defined());
  const WrapperOutput first = layer->forward(x.narrow(1, 0, 3), memory);
  const WrapperOutput second = layer->forward(x.narrow(1, 3, 5), memory, {}, {}, false, first.state);
  expect_near(torch::cat({first.out, second.out}, 1), whole.out, plain::tolerance(torch::kFloat32), "out");
  expect_near(second.state.c, whole.state.c, plain::tolerance(torch::kFloat32), "c");
  expect_near(second.state.attention, whole.state.attention, plain::tolerance(torch::kFloat32), "attention");
  expect_message([&] { layer->forward(x, memory, {8, 9}); }, "9 among its x_lengths");
  expect_message([&] { layer->forward(x, memory, {}, {1, 2, 3}); }, "3 memory_lengths for a batch of 2");
}

// ---- TensorFlow's own numbers ----

std::filesystem::path shared_dir() {
  const char* given = std::getenv("HEED_SHARED");
  return given != nullptr ? given : HEED_SHARED_DIR;
}

Tensor tensor_of(const nlohmann::json& json) {
  std::vector<int64_t> shape;
  for (const nlohmann::json* level = &json; level->is_array(); level = &level->at(0)) {
    shape.push_back(static_cast<int64_t>(level->size()));
  }
  std::vector<double> ordered;
  const std::function<void(const nlohmann::json&)> walk = [&](const nlohmann::json& at) {
    if (at.is_array()) {
      for (const auto& item : at) walk(item);
    } else {
      ordered.push_back(at.get<double>());
    }
  };
  walk(json);
  return torch::tensor(ordered, torch::kFloat64).reshape(shape);
}

TEST(AttentionWrapper, EqualsTensorFlow) {
  const std::filesystem::path path = shared_dir() / "conformance/golden/attn_lstm_bahdanau.json";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const nlohmann::json golden = nlohmann::json::parse(std::ifstream(path));
  const nlohmann::json& given = golden.at("weights");
  int cases = 0;
  for (const auto& [name, c] : golden.at("cases").items()) {
    ++cases;
    const bool reverse = c.contains("direction");
    AttentionWrapper layer(AttentionWrapperOptions{
        .input_dim = 3, .hidden = 3, .memory_dim = 3, .units = 2, .attention_dim = 2, .reverse = reverse});
    layer->to(torch::kFloat64);
    {
      torch::NoGradGuard no_grad;
      // TensorFlow's columns are the gates i, j (candidate), f, o; LibTorch's rows are i, f, g (candidate), o.
      const auto gates = [](const Tensor& columns) {
        const auto part = columns.chunk(4, -1);
        return torch::cat({part[0], part[2], part[1], part[3]}, -1);
      };
      Tensor wr = tensor_of(given.at("WR")), attention_layer = tensor_of(given.at("attention_layer"));
      if (name == "zero_attention") {
        wr.slice(0, 3, 5).zero_();
        attention_layer.zero_();
      }
      layer->lstm->weight_ih.copy_(gates(wr.slice(0, 0, 5)).t());
      layer->lstm->weight_hh.copy_(gates(wr.slice(0, 5, 8)).t());
      layer->lstm->bias_ih.copy_(gates(tensor_of(given.at("b"))));
      layer->lstm->bias_hh.zero_();
      layer->attention->memory_layer->weight.copy_(tensor_of(given.at("memory_layer")).t());
      layer->attention->query_layer->weight.copy_(tensor_of(given.at("query_layer")).t());
      layer->attention->v.copy_(tensor_of(given.at("attention_v")));
      layer->attention_layer->weight.copy_(attention_layer.t());
    }
    const auto x_lengths = c.value("x_len", std::vector<int64_t>{});
    const auto memory_lengths = c.at("memory_len").get<std::vector<int64_t>>();
    for (const auto dtype : kDTypes) {
      layer->to(dtype);
      const WrapperOutput result = layer->forward(tensor_of(c.at("X")).to(dtype), tensor_of(c.at("memory")).to(dtype),
                                                  x_lengths, memory_lengths, /*want_weights=*/true);
      // The file's numbers are float32 results printed with nine digits.
      expect_near(result.out, tensor_of(c.at("Y")), 1e-6, name);
      if (c.contains("alignments_computed_here")) {
        expect_near(result.weights, tensor_of(c.at("alignments_computed_here")), 1e-6, name + " alignments");
      }
    }
  }
  EXPECT_EQ(cases, 6);
}

}  // namespace
}  // namespace heed::nn
