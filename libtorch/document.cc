// Attention over the words of a sentence and the sentences of a document: self-attentive pooling, HAN.
#include "libtorch/document.h"

#include <heed/attention.h>
#include <heed/mask.h>
#include <torch/nn/init.h>
#include <torch/nn/utils/rnn.h>
#include <torch/types.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "libtorch/attention.h"
#include "libtorch/sizes.h"

namespace heed::nn {
namespace {

using torch::Tensor;
using torch::nn::GRU;
using torch::nn::GRUOptions;

}  // namespace

// ---- Self-attentive pooling ----

SelfAttentivePoolImpl::SelfAttentivePoolImpl(SelfAttentivePoolOptions options) : options(options) {
  check_size(options.dim, "SelfAttentivePool", "dim");
  check_size(options.units, "SelfAttentivePool", "units");
  check_size(options.hops, "SelfAttentivePool", "hops");
  reset();
}

void SelfAttentivePoolImpl::reset() {
  key_layer = register_module(
      "key_layer", torch::nn::Linear(torch::nn::LinearOptions(options.dim, options.units).bias(options.bias)));
  torch::nn::init::xavier_uniform_(key_layer->weight);
  if (options.bias) torch::nn::init::zeros_(key_layer->bias);
  queries = register_parameter("queries", torch::empty({options.hops, options.units}));
  torch::nn::init::xavier_uniform_(queries);
}

Attended SelfAttentivePoolImpl::forward(const Tensor& x, const AttendOptions& attend) {
  if (!x.defined() || x.dim() != 3 || x.size(2) != options.dim) {
    throw Error("SelfAttentivePool got " + shape_of(x) + "; it needs [batch, length, " + std::to_string(options.dim) +
                "]");
  }
  const int64_t batch = x.size(0), length = x.size(1);
  const Tensor query = queries.expand({batch, options.hops, options.units});
  const Tensor keys = torch::tanh(key_layer->forward(x));
  const AttentionOptions how{.scale = 1.0, .bias = attend.bias, .mask = attend.mask};
  Attended result;
  result.out = packed_attention(query, keys, x, 1, 1, how).out;
  if (attend.want_weights) {
    // A = A I: the weights come as an output, which has a gradient.
    const Tensor identity = torch::eye(length, x.options()).expand({batch, length, length});
    result.weights = packed_attention(query, keys, identity, 1, 1, how).out;
  }
  return result;
}

Tensor redundancy_penalty(const Tensor& weights) {
  if (!weights.defined() || weights.dim() != 3) {
    throw Error("redundancy_penalty got " + (weights.defined() ? std::to_string(weights.dim()) : "no") +
                " axes; it needs weights [batch, hops, length]");
  }
  return (weights.matmul(weights.transpose(1, 2)) - torch::eye(weights.size(1), weights.options())).pow(2).sum({1, 2});
}

// ---- Hierarchical attention ----

HierarchicalAttentionImpl::HierarchicalAttentionImpl(HierarchicalAttentionOptions options) : options(options) {
  check_size(options.word_dim, "HierarchicalAttention", "word_dim");
  check_size(options.word_hidden, "HierarchicalAttention", "word_hidden");
  check_size(options.word_units, "HierarchicalAttention", "word_units");
  check_size(options.sentence_hidden, "HierarchicalAttention", "sentence_hidden");
  check_size(options.sentence_units, "HierarchicalAttention", "sentence_units");
  reset();
}

void HierarchicalAttentionImpl::reset() {
  const auto& o = options;
  const auto gru = [](int64_t in, int64_t hidden) {
    return GRU(GRUOptions(in, hidden).batch_first(true).bidirectional(true));
  };
  const auto attention = [](int64_t dim, int64_t units) {
    return SelfAttentivePool(SelfAttentivePoolOptions{.dim = dim, .units = units, .hops = 1, .bias = true});
  };
  word_gru = register_module("word_gru", gru(o.word_dim, o.word_hidden));
  word_attention = register_module("word_attention", attention(2 * o.word_hidden, o.word_units));
  sentence_gru = register_module("sentence_gru", gru(2 * o.word_hidden, o.sentence_hidden));
  sentence_attention = register_module("sentence_attention", attention(2 * o.sentence_hidden, o.sentence_units));
}

namespace {

// The words of each sentence of each document, [B][S], 0 for sentences that are not there; and each document's
// sentences, [B].
struct Counts {
  std::vector<int64_t> words;
  std::vector<int64_t> sentences;
};

Counts counted(const std::vector<std::vector<int64_t>>& lengths, int64_t batch, int64_t sentences, int64_t words) {
  if (lengths.empty()) return {std::vector<int64_t>(batch * sentences, words), std::vector<int64_t>(batch, sentences)};
  if (static_cast<int64_t>(lengths.size()) != batch) {
    throw Error("HierarchicalAttention got lengths of " + std::to_string(lengths.size()) +
                " documents for a batch of " + std::to_string(batch) + "; give one list for each");
  }
  Counts counts;
  for (const std::vector<int64_t>& document : lengths) {
    if (static_cast<int64_t>(document.size()) > sentences) {
      throw Error("HierarchicalAttention got a document of " + std::to_string(document.size()) +
                  " sentences; the tensor has room for " + std::to_string(sentences));
    }
    for (const int64_t length : document) {
      if (length < 0 || length > words) {
        throw Error("HierarchicalAttention got a sentence of " + std::to_string(length) +
                    " words; the tensor has room for " + std::to_string(words));
      }
    }
    counts.sentences.push_back(static_cast<int64_t>(document.size()));
    counts.words.insert(counts.words.end(), document.begin(), document.end());
    counts.words.resize(counts.sentences.size() * sentences, 0);
  }
  return counts;
}

// [n, L, 2 * hidden]: a GRU over the first lengths[i] steps of each sequence of x [n, L, D]; 0 behind them.
Tensor both_ways(GRU& gru, const Tensor& x, const std::vector<int64_t>& lengths) {
  std::vector<int64_t> filled, steps;  // LibTorch packs no sequence of length 0
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] == 0) continue;
    filled.push_back(static_cast<int64_t>(i));
    steps.push_back(lengths[i]);
  }
  const Tensor out = torch::zeros({x.size(0), x.size(1), 2 * gru->options.hidden_size()}, x.options());
  if (filled.empty()) return out;
  const Tensor rows = torch::tensor(filled, torch::kInt64);
  const auto packed = torch::nn::utils::rnn::pack_padded_sequence(
      x.index_select(0, rows), torch::tensor(steps, torch::kInt64), /*batch_first=*/true, /*enforce_sorted=*/false);
  const auto states = std::get<0>(gru->forward_with_packed_input(packed));
  const Tensor padded = std::get<0>(
      torch::nn::utils::rnn::pad_packed_sequence(states, /*batch_first=*/true, /*padding_value=*/0, x.size(1)));
  return out.index_copy(0, rows, padded);
}

}  // namespace

HierarchicallyAttended HierarchicalAttentionImpl::forward(const Tensor& words,
                                                          const std::vector<std::vector<int64_t>>& lengths,
                                                          bool want_weights) {
  if (!words.defined() || words.dim() != 4 || words.size(3) != options.word_dim) {
    throw Error("HierarchicalAttention got " + shape_of(words) + "; it needs [batch, sentences, words, " +
                std::to_string(options.word_dim) + "]");
  }
  const int64_t batch = words.size(0), sentences = words.size(1);
  const Counts counts = counted(lengths, batch, sentences, words.size(2));
  const auto pooled = [want_weights](SelfAttentivePool& pool, const Tensor& x, const std::vector<int64_t>& steps) {
    return pool->forward(x, {.mask = heed::lengths(steps), .want_weights = want_weights});
  };
  const Attended of_words =
      pooled(word_attention, both_ways(word_gru, words.flatten(0, 1), counts.words), counts.words);
  const Tensor vectors = of_words.out.view({batch, sentences, 2 * options.word_hidden});
  const Attended of_sentences =
      pooled(sentence_attention, both_ways(sentence_gru, vectors, counts.sentences), counts.sentences);
  HierarchicallyAttended result;
  result.out = of_sentences.out.squeeze(1);
  if (want_weights) {
    result.word_weights = of_words.weights.view({batch, sentences, words.size(2)});
    result.sentence_weights = of_sentences.weights.squeeze(1);
  }
  return result;
}

}  // namespace heed::nn
