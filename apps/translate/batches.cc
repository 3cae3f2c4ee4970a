// Encoding, grouping by length, and padding.
#include "apps/translate/batches.h"

#include <heed/attention.h>
#include <torch/types.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "libtorch/splitmix.h"

namespace heed::translate {
namespace {

std::string grouped(int64_t n) {
  std::string text = std::to_string(n);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

int64_t length(const std::vector<int32_t>& ids) { return static_cast<int64_t>(ids.size()); }

// Fisher and Yates with our own bounded numbers: what std::shuffle and the standard distributions give is up to the
// library, and a resumed run may be linked against another.
template <class T>
void shuffle(std::vector<T>& items, std::mt19937_64& random) {
  for (uint64_t i = items.size(); i > 1; --i) {
    const uint64_t limit = UINT64_MAX - UINT64_MAX % i;  // rejects what would favour small numbers
    uint64_t x = random();
    while (x >= limit) x = random();
    std::swap(items[i - 1], items[x % i]);
  }
}

void add(const std::vector<int>& source, const std::vector<int>& target, const TokenIds& tokens, Examples& to) {
  if (source.empty() || target.empty()) {
    ++to.empty;
  } else if (static_cast<int64_t>(std::max(source.size(), target.size())) > to.max_pieces) {
    ++to.too_long;
  } else {
    Example example{{source.begin(), source.end()}, {static_cast<int32_t>(tokens.start)}};
    example.source.push_back(static_cast<int32_t>(tokens.eos));
    example.target.insert(example.target.end(), target.begin(), target.end());
    example.target.push_back(static_cast<int32_t>(tokens.eos));
    to.examples.push_back(std::move(example));
  }
}

}  // namespace

std::string Examples::summary() const {
  std::string text = grouped(static_cast<int64_t>(examples.size())) + " pairs";
  if (too_long > 0) text += "; " + grouped(too_long) + " longer than " + grouped(max_pieces) + " pieces left out";
  if (empty > 0) text += "; " + grouped(empty) + " with an empty side left out";
  return text;
}

Examples encode_pairs(const std::vector<Pair>& pairs, const Vocab& source, const Vocab& target, int64_t max_pieces,
                      const TokenIds& tokens) {
  Examples result;
  result.max_pieces = max_pieces;
  result.examples.reserve(pairs.size());
  for (const Pair& pair : pairs) add(source.encode(pair.source), target.encode(pair.target), tokens, result);
  return result;
}

Examples sample_pairs(const std::vector<Pair>& pairs, const Vocab& vocab, double dropout, uint64_t seed,
                      int64_t max_pieces, const TokenIds& tokens) {
  std::vector<std::string_view> texts;
  texts.reserve(2 * pairs.size());
  for (const Pair& pair : pairs) {
    texts.push_back(pair.source);
    texts.push_back(pair.target);
  }
  const std::vector<std::vector<int>> pieces = vocab.sample(texts, dropout, seed);
  Examples result;
  result.max_pieces = max_pieces;
  result.examples.reserve(pairs.size());
  for (size_t i = 0; i < pieces.size(); i += 2) add(pieces[i], pieces[i + 1], tokens, result);
  return result;
}

Batch make_batch(const std::vector<Example>& examples, std::span<const int64_t> indices, int64_t pad) {
  Batch batch;
  int64_t widest_source = 0, widest_target = 0;
  for (const int64_t i : indices) {
    const Example& example = examples.at(static_cast<size_t>(i));
    batch.source_lengths.push_back(length(example.source));
    batch.target_lengths.push_back(length(example.target) - 1);
    widest_source = std::max(widest_source, batch.source_lengths.back());
    widest_target = std::max(widest_target, batch.target_lengths.back());
  }
  const auto rows = static_cast<int64_t>(indices.size());
  batch.source = torch::full({rows, widest_source}, pad, torch::kInt64);
  batch.target_in = torch::full({rows, widest_target}, pad, torch::kInt64);
  batch.target_out = torch::full({rows, widest_target}, pad, torch::kInt64);
  for (int64_t row = 0; row < rows; ++row) {
    const Example& example = examples[static_cast<size_t>(indices[static_cast<size_t>(row)])];
    std::copy(example.source.begin(), example.source.end(), batch.source.data_ptr<int64_t>() + row * widest_source);
    std::copy(example.target.begin(), example.target.end() - 1,
              batch.target_in.data_ptr<int64_t>() + row * widest_target);
    std::copy(example.target.begin() + 1, example.target.end(),
              batch.target_out.data_ptr<int64_t>() + row * widest_target);
  }
  return batch;
}

std::vector<int64_t> shuffled(int64_t n, uint64_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::mt19937_64 random(nn::splitmix(seed, 0));
  shuffle(order, random);
  return order;
}

std::vector<std::vector<int64_t>> make_batches(const std::vector<Example>& examples, int64_t batch_tokens,
                                               uint64_t seed, int64_t epoch) {
  if (batch_tokens < 1) {
    throw Error("batch_tokens is " + std::to_string(batch_tokens) + "; a batch needs room for 1 token at least");
  }
  std::mt19937_64 random(nn::splitmix(seed, static_cast<uint64_t>(epoch) + 1));
  std::vector<int64_t> order(examples.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  shuffle(order, random);
  const auto lengths = [&](int64_t i) {
    const Example& example = examples[static_cast<size_t>(i)];
    return std::pair(example.target.size(), example.source.size());
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths(a) < lengths(b); });

  std::vector<std::vector<int64_t>> batches;
  int64_t widest_source = 0, widest_target = 0;
  for (const int64_t i : order) {
    const Example& example = examples[static_cast<size_t>(i)];
    const int64_t source = std::max(widest_source, length(example.source));
    const int64_t target = std::max(widest_target, length(example.target) - 1);
    // Sources may be half as long again as targets before they make the batch smaller.
    const int64_t rows = batches.empty() ? 0 : static_cast<int64_t>(batches.back().size()) + 1;
    if (batches.empty() || rows * target > batch_tokens || 2 * rows * source > 3 * batch_tokens) {
      batches.emplace_back();
      widest_source = length(example.source);
      widest_target = length(example.target) - 1;
    } else {
      widest_source = source;
      widest_target = target;
    }
    batches.back().push_back(i);
  }
  shuffle(batches, random);
  return batches;
}

std::vector<int64_t> share_of(const std::vector<Example>& examples, std::span<const int64_t> indices, int rank,
                              int world) {
  const auto tokens = [&](int64_t i) {
    const Example& example = examples[static_cast<size_t>(i)];
    return length(example.source) + length(example.target);
  };
  // The longest rows first, each to whoever has the least.
  std::vector<size_t> order(indices.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return tokens(indices[a]) > tokens(indices[b]); });
  std::vector<int64_t> loads(static_cast<size_t>(world));
  std::vector<bool> mine(indices.size());
  for (const size_t row : order) {
    const auto least = std::min_element(loads.begin(), loads.end());
    *least += tokens(indices[row]);
    mine[row] = least - loads.begin() == rank;
  }
  std::vector<int64_t> share;
  for (size_t row = 0; row < indices.size(); ++row) {
    if (mine[row]) share.push_back(indices[row]);
  }
  return share;
}

}  // namespace heed::translate
