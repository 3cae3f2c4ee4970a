// Which tokens translate which, counted from sentence pairs alone: IBM Model 1, what attention is compared with.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace heed::translate {

// Two sentences as token ids.
struct TokenPair {
  std::span<const int32_t> source, target;
};

// Brown et al. 1993, Model 1: each target token comes from one source token, any of them equally likely beforehand, or
// from none; t(target | source) is estimated by expectation maximisation, from equal probabilities.
class WordModel {
 public:
  explicit WordModel(std::span<const TokenPair> pairs, int iterations = 5);

  // For each target token the place of the source token it most likely comes from; -1 for none.
  std::vector<int64_t> align(const TokenPair& pair) const;

  // t(target | source), 0 for two that never met. source -1 is "none".
  double probability(int32_t source, int32_t target) const;

 private:
  static uint64_t key(int32_t source, int32_t target) {
    return uint64_t{static_cast<uint32_t>(source)} << 32 | static_cast<uint32_t>(target);
  }
  std::unordered_map<uint64_t, int32_t> slots_;  // of a pair of tokens that met
  std::vector<float> t_;                         // by slot
};

}  // namespace heed::translate
