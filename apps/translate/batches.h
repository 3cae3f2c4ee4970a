// From sentence pairs to padded batches: encoded once, grouped by length, shuffled reproducibly.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "apps/translate/model.h"
#include "apps/translate/pairs.h"
#include "apps/translate/vocab.h"

namespace heed::translate {

// A pair as token ids: source ends with TokenIds::eos; target begins with TokenIds::start and ends with TokenIds::eos.
struct Example {
  std::vector<int32_t> source, target;
};

// A sentence longer than this many pieces is left out of training: it is rarely a sentence, and one alone can need more
// memory than all others.
inline constexpr int64_t kMaxPieces = 250;

struct Examples {
  std::vector<Example> examples;
  int64_t too_long = 0;         // pairs left out because a side has more than max_pieces pieces
  int64_t empty = 0;            // pairs left out because a side has no piece at all
  std::string summary() const;  // "28,990 pairs; 10 longer than 250 pieces left out"

  int64_t max_pieces = kMaxPieces;
};

// Encodes pairs, in order, their sides by a vocabulary each. max_pieces counts without start and end.
Examples encode_pairs(const std::vector<Pair>& pairs, const Vocab& source, const Vocab& target,
                      int64_t max_pieces = kMaxPieces, const TokenIds& tokens = {});

// The same by one vocabulary with BPE-dropout, see Vocab::sample.
Examples sample_pairs(const std::vector<Pair>& pairs, const Vocab& vocab, double dropout, uint64_t seed,
                      int64_t max_pieces = kMaxPieces, const TokenIds& tokens = {});

// The batch of the examples with these indices, in this order, padded with `pad`.
Batch make_batch(const std::vector<Example>& examples, std::span<const int64_t> indices, int64_t pad = kPad);

// A random permutation of 0..n-1 that is the same on every machine and standard library.
std::vector<int64_t> shuffled(int64_t n, uint64_t seed);

// Batches of indices for pass `epoch`. Within a batch lengths are alike (sorted by target, then source length, ties in
// random order), so there is little padding; a batch has at most `batch_tokens` target tokens and about as many source
// tokens, padding included (a single longer pair makes a batch of its own); the batches come in random order. Depends
// on (seed, epoch) and nothing else. Throws heed::Error if batch_tokens < 1.
std::vector<std::vector<int64_t>> make_batches(const std::vector<Example>& examples, int64_t batch_tokens,
                                               uint64_t seed, int64_t epoch);

// The rows of a batch that process `rank` of `world` trains on, in their order: dealt out so that all have about as
// many tokens. Empty if there are fewer rows than processes and none is left for this one.
std::vector<int64_t> share_of(const std::vector<Example>& examples, std::span<const int64_t> indices, int rank,
                              int world);

}  // namespace heed::translate
