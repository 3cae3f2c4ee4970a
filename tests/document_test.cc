// libtorch/document.cc: values, weights and gradients against the papers' formulas, one sequence at a time.
#include "libtorch/document.h"

#include <gtest/gtest.h>
#include <heed/mask.h>
#include <torch/torch.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tests/layer_check.h"
#include "tests/plain_attention.h"

namespace heed::nn {
namespace {

using plain::check;
using plain::expect_message;
using plain::names;
using plain::random;
using plain::stir;
using torch::Tensor;

// A [hops, L] of the first `length` rows of x [L, D]; zeros behind them.
Tensor plain_weights(SelfAttentivePoolImpl& layer, const Tensor& x, int64_t length) {
  const Tensor behind = torch::zeros({layer.options.hops, x.size(0) - length}, x.options());
  if (length == 0) return behind;
  Tensor u = x.slice(0, 0, length).matmul(layer.key_layer->weight.t());
  if (layer.options.bias) u = u + layer.key_layer->bias;
  return torch::cat({torch::softmax(layer.queries.matmul(torch::tanh(u).t()), -1), behind}, 1);
}

// ---- Self-attentive pooling ----

TEST(SelfAttentivePool, IsTheFormula) {
  for (const bool bias : {false, true}) {
    for (const auto& lengths_of : std::vector<std::vector<int64_t>>{{6, 3}, {0, 6}, {5}}) {
      torch::manual_seed(1);
      SelfAttentivePool layer(SelfAttentivePoolOptions{.dim = 5, .units = 4, .hops = 3, .bias = bias});
      stir(*layer);
      const auto batch = static_cast<int64_t>(lengths_of.size());
      // First the gradient of the pooled vectors, then that of the penalty.
      for (const bool penalty : {false, true}) {
        const auto ordered = [&](const Tensor& out, const Tensor& weights, const Tensor& loss) {
          return penalty ? std::vector<Tensor>{loss, out, weights} : std::vector<Tensor>{out, weights, loss};
        };
        check(
            *layer, {random({batch, 6, 5})},
            [&](const std::vector<Tensor>& in) {
              const Attended r = layer->forward(in[0], {.mask = lengths(lengths_of), .want_weights = true});
              return ordered(r.out, r.weights, redundancy_penalty(r.weights));
            },
            [&](const std::vector<Tensor>& in) {
              std::vector<Tensor> outs, weights, losses;
              for (int64_t b = 0; b < batch; ++b) {
                const Tensor a = plain_weights(*layer, in[0][b], lengths_of[b]);
                outs.push_back(a.matmul(in[0][b]));
                weights.push_back(a);
                Tensor loss = torch::zeros({}, in[0].options());
                for (int64_t r = 0; r < 3; ++r) {
                  for (int64_t s = 0; s < 3; ++s) loss = loss + ((a[r] * a[s]).sum() - (r == s ? 1.0 : 0.0)).pow(2);
                }
                losses.push_back(loss);
              }
              return ordered(torch::stack(outs), torch::stack(weights), torch::stack(losses));
            },
            std::string(bias ? "bias" : "no bias") + (penalty ? ", penalty" : ""));
      }
    }
  }
  SelfAttentivePool layer(SelfAttentivePoolOptions{.dim = 5, .units = 4, .hops = 3});
  EXPECT_EQ(names(*layer), (std::vector<std::string>{"queries", "key_layer.weight"}));
  EXPECT_FALSE(layer->forward(torch::randn({2, 3, 5})).weights.defined());
}

TEST(SelfAttentivePool, PenaltyIsZeroForHopsThatLookAtOnePlaceEach) {
  const Tensor apart = torch::eye(4).narrow(0, 0, 3).unsqueeze(0);
  EXPECT_EQ(redundancy_penalty(apart).item<float>(), 0);
  // Three hops on the same place: A A^T is all ones, I the rest.
  EXPECT_EQ(redundancy_penalty(torch::eye(4).narrow(0, 0, 1).expand({3, 4}).unsqueeze(0)).item<float>(), 6);
}

// ---- Hierarchical attention ----

// One direction of a GRU over x [n, D], gates written out; the states in x's order, [n, H].
Tensor plain_gru(torch::nn::GRUImpl& gru, const Tensor& x, bool backward) {
  const std::string end = backward ? "_l0_reverse" : "_l0";
  const auto parameters = gru.named_parameters();
  const Tensor w_ih = parameters["weight_ih" + end], w_hh = parameters["weight_hh" + end];
  const Tensor b_ih = parameters["bias_ih" + end], b_hh = parameters["bias_hh" + end];
  Tensor h = torch::zeros({w_hh.size(1)}, x.options());
  std::vector<Tensor> states(x.size(0));
  for (int64_t step = 0; step < x.size(0); ++step) {
    const int64_t t = backward ? x.size(0) - 1 - step : step;
    const auto i = (w_ih.mv(x[t]) + b_ih).chunk(3), r = (w_hh.mv(h) + b_hh).chunk(3);
    const Tensor z = torch::sigmoid(i[1] + r[1]);
    h = (1 - z) * torch::tanh(i[2] + torch::sigmoid(i[0] + r[0]) * r[2]) + z * h;
    states[t] = h;
  }
  return torch::stack(states);
}

struct PlainPooled {
  Tensor out, weights;
};
// The first `length` rows of x [L, D] through the GRU and the attention.
PlainPooled plain_pooled(torch::nn::GRU& gru, SelfAttentivePool& pool, const Tensor& x, int64_t length) {
  if (length == 0) return {torch::zeros({pool->options.dim}, x.options()), torch::zeros({x.size(0)}, x.options())};
  const Tensor real = x.slice(0, 0, length);
  const Tensor h = torch::cat({plain_gru(*gru, real, false), plain_gru(*gru, real, true)}, 1);
  const Tensor a = plain_weights(*pool, h, length)[0];
  return {a.matmul(h), torch::cat({a, torch::zeros({x.size(0) - length}, x.options())})};
}

TEST(HierarchicalAttention, IsTheFormula) {
  const std::vector<std::vector<std::vector<int64_t>>> documents{
      {{4, 2, 1}, {3}},  // fewer sentences, shorter sentences
      {},                // all full
      {{4, 0, 2}, {}},   // a sentence without words, a document without sentences
      {{0}, {1, 4}}};
  for (const auto& lengths_of : documents) {
    torch::manual_seed(2);
    HierarchicalAttention layer(HierarchicalAttentionOptions{
        .word_dim = 3, .word_hidden = 2, .word_units = 5, .sentence_hidden = 3, .sentence_units = 4});
    stir(*layer);
    check(
        *layer, {random({2, 3, 4, 3})},
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          const HierarchicallyAttended r = layer->forward(in[0], lengths_of, /*want_weights=*/true);
          return {r.out, r.word_weights, r.sentence_weights, layer->forward(in[0], lengths_of).out};
        },
        [&](const std::vector<Tensor>& in) -> std::vector<Tensor> {
          std::vector<Tensor> outs, word_weights, sentence_weights;
          for (int64_t b = 0; b < 2; ++b) {
            const std::vector<int64_t> words = lengths_of.empty() ? std::vector<int64_t>{4, 4, 4} : lengths_of[b];
            std::vector<Tensor> vectors;
            for (int64_t s = 0; s < 3; ++s) {
              const bool there = s < static_cast<int64_t>(words.size());
              const PlainPooled r =
                  plain_pooled(layer->word_gru, layer->word_attention, in[0][b][s], there ? words[s] : 0);
              vectors.push_back(r.out);
              word_weights.push_back(r.weights);
            }
            const PlainPooled r = plain_pooled(layer->sentence_gru, layer->sentence_attention, torch::stack(vectors),
                                               static_cast<int64_t>(words.size()));
            outs.push_back(r.out);
            sentence_weights.push_back(r.weights);
          }
          return {torch::stack(outs), torch::stack(word_weights).view({2, 3, 4}), torch::stack(sentence_weights),
                  torch::stack(outs)};
        },
        "documents " + std::to_string(lengths_of.size() + (lengths_of.empty() ? 0 : lengths_of[0].size())));
  }
}

TEST(HierarchicalAttention, HasThePapersParameters) {
  HierarchicalAttention layer(HierarchicalAttentionOptions{.word_dim = 3});
  std::vector<std::string> expected;
  for (const std::string level : {"word_", "sentence_"}) {
    for (const std::string end : {"_l0", "_l0_reverse"}) {
      for (const std::string name : {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}) {
        expected.push_back(level + "gru." + name + end);
      }
    }
    for (const std::string name : {"queries", "key_layer.weight", "key_layer.bias"}) {
      expected.push_back(level + "attention." + name);
    }
  }
  EXPECT_EQ(names(*layer), expected);
  EXPECT_EQ(layer->sentence_attention->queries.sizes(), (std::vector<int64_t>{1, 100}));
}

TEST(HierarchicalAttention, WhatLiesBehindIsNotRead) {
  torch::manual_seed(3);
  HierarchicalAttention layer(HierarchicalAttentionOptions{.word_dim = 3});
  Tensor words = torch::randn({1, 2, 4, 3});
  const Tensor before = layer->forward(words, {{2}}).out;
  words[0][0].slice(0, 2).fill_(std::numeric_limits<float>::quiet_NaN());
  words[0][1].fill_(std::numeric_limits<float>::quiet_NaN());
  EXPECT_TRUE(torch::equal(layer->forward(words, {{2}}).out, before));
  EXPECT_TRUE(layer->forward(words, {{}}).out.eq(0).all().item<bool>());
  EXPECT_EQ(before.sizes(), (std::vector<int64_t>{1, 100}));
  const auto copy = std::dynamic_pointer_cast<HierarchicalAttentionImpl>(layer->clone());
  EXPECT_TRUE(torch::equal(copy->forward(words, {{2}}).out, before));
}

TEST(Documents, ErrorsNameTheNumbers) {
  expect_message([] { SelfAttentivePool(SelfAttentivePoolOptions{.dim = 4}); }, "SelfAttentivePool got units = 0");
  expect_message([] { HierarchicalAttention(HierarchicalAttentionOptions{}); }, "word_dim = 0");
  SelfAttentivePool pool(SelfAttentivePoolOptions{.dim = 4, .units = 3});
  expect_message(
      [&] {
        pool->forward(torch::randn({2, 3, 5}));
      },
      "SelfAttentivePool got a tensor of shape [2, 3, 5]; it needs [batch, length, 4]");
  expect_message([&] { pool->forward({}); }, "an undefined tensor");
  expect_message([] { redundancy_penalty(torch::zeros({2, 3})); }, "2 axes");
  expect_message([] { redundancy_penalty({}); }, "no axes");
  HierarchicalAttention layer(HierarchicalAttentionOptions{.word_dim = 3});
  const Tensor words = torch::randn({2, 3, 4, 3});
  expect_message([&] { layer->forward(words[0]); }, "it needs [batch, sentences, words, 3]");
  expect_message([&] { layer->forward(words, {{4}}); }, "lengths of 1 documents for a batch of 2");
  expect_message(
      [&] {
        layer->forward(words, {{4}, {1, 2, 3, 4}});
      },
      "a document of 4 sentences; the tensor has room for 3");
  expect_message([&] { layer->forward(words, {{4}, {1, 5}}); }, "a sentence of 5 words; the tensor has room for 4");
  expect_message([&] { layer->forward(words, {{4}, {-1}}); }, "a sentence of -1 words");
}

}  // namespace
}  // namespace heed::nn
