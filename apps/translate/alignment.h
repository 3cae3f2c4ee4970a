// Which word of the source each word of a translation comes from, read off the attention.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace heed::translate {

// Where a translation looked, piece by piece: what Translation holds.
struct Looks {
  std::span<const std::string> source_pieces;     // with the final </s>
  std::span<const std::string> target_pieces;     // with the final </s>, if it was reached
  std::span<const std::vector<float>> attention;  // [target_pieces][source_pieces], rows sum to 1
};

struct WordAlignment {
  struct Link {
    int64_t source, target;  // words, from 0
    float weight;            // of the attention of the target word that the source word received
    bool operator==(const Link&) const = default;
  };
  std::vector<std::string> source, target;  // words: what stands between spaces
  std::vector<std::vector<float>> weights;  // [target][source]
  std::vector<Link> links;                  // by target, then source
};

// Pieces to words: a word begins with a piece that begins with U+2581 (and with the first piece). A target word's
// weights are the mean of its pieces' and a source word's the sum of its pieces'. Each target word is linked to the
// source word with the largest weight, unless </s> has more, which is where a model looks for what the source does not
// say; each source word that no target word was linked to, to the one that looked at it most, if it got at least half
// of what that one gave its best. Throws heed::Error if the sizes do not fit.
WordAlignment align_words(const Looks& looks);

// "0-0 1-2 2-1": source-target, by source, then target, as Pharaoh, fast_align and GIZA's tools write it.
std::string pharaoh(const WordAlignment& alignment);

}  // namespace heed::translate
