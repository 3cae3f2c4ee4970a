// Attention over the words of a sentence and the sentences of a document: self-attentive pooling, HAN.
//
// Shapes: B batch, S sentences, W words, D widths; batch first, padding at the end.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "libtorch/layers.h"

namespace heed::nn {

// ---- Self-attentive pooling: Lin et al. 2017 ----

struct SelfAttentivePoolOptions {
  int64_t dim = 0;    // D, of the sequence: 2u in the paper, where it comes from an LSTM in two directions
  int64_t units = 0;  // da in the paper
  int64_t hops = 1;   // r, rows of A
  bool bias = false;  // of key_layer; Lin et al. have none, Yang et al. (HAN) have one
};

// A = softmax(queries tanh(key_layer(x))^T), out = A x. Parameters: key_layer.weight [units, D], the paper's W1, and
// queries [hops, units], its W2.
class SelfAttentivePoolImpl : public torch::nn::Cloneable<SelfAttentivePoolImpl> {
 public:
  explicit SelfAttentivePoolImpl(SelfAttentivePoolOptions options);
  void reset() override;

  // x [B, L, D] -> out [B, hops, D]; weights A [B, hops, L], unlike other layers' with gradient, for redundancy_penalty
  // (which takes L x L memory). A sequence of length 0 gives zeros.
  Attended forward(const torch::Tensor& x, const AttendOptions& options = {});

  SelfAttentivePoolOptions options;
  torch::nn::Linear key_layer = nullptr;
  torch::Tensor queries;
};
TORCH_MODULE(SelfAttentivePool);

// Lin et al.'s |A A^T - I|_F^2 of each sequence, [B, hops, L] -> [B]: a loss that is small where the hops look at
// different places, and each at few. Throws heed::Error for another number of axes.
torch::Tensor redundancy_penalty(const torch::Tensor& weights);

// ---- Hierarchical attention network: Yang et al. 2016 ----

struct HierarchicalAttentionOptions {
  int64_t word_dim = 0;          // D of the word vectors
  int64_t word_hidden = 50;      // units of the words' GRU, in each direction
  int64_t word_units = 100;      // width of u and u_w
  int64_t sentence_hidden = 50;  // the same of the sentences
  int64_t sentence_units = 100;
};

struct HierarchicallyAttended {
  torch::Tensor out;               // [B, 2 * sentence_hidden]: a vector for each document
  torch::Tensor word_weights;      // [B, S, W] if asked for: each sentence's add up to 1
  torch::Tensor sentence_weights;  // [B, S] if asked for
};

// The words of a sentence through a GRU in both directions, u = tanh(W h + b), weights softmax(u . u_w), their sum of h
// is the sentence's vector; the same of a document's sentences. Modules: word_gru, word_attention, sentence_gru,
// sentence_attention; the attentions are SelfAttentivePools of one hop with a bias.
class HierarchicalAttentionImpl : public torch::nn::Cloneable<HierarchicalAttentionImpl> {
 public:
  explicit HierarchicalAttentionImpl(HierarchicalAttentionOptions options);
  void reset() override;

  // words [B, S, W, D]. lengths[b] are the words of each sentence of document b, so that it has lengths[b].size()
  // sentences; empty: all are full. What lies behind is not read. A sentence without words is the vector 0 and still a
  // sentence; a document without sentences is the vector 0. Throws heed::Error for lengths that do not fit.
  HierarchicallyAttended forward(const torch::Tensor& words, const std::vector<std::vector<int64_t>>& lengths = {},
                                 bool want_weights = false);

  HierarchicalAttentionOptions options;
  torch::nn::GRU word_gru = nullptr;
  SelfAttentivePool word_attention = nullptr;
  torch::nn::GRU sentence_gru = nullptr;
  SelfAttentivePool sentence_attention = nullptr;
};
TORCH_MODULE(HierarchicalAttention);

}  // namespace heed::nn
