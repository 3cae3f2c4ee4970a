// `heed explain`: the three steps of attention on two texts of the reader's own, with every number shown.
#pragma once

#include <heed/attention.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "apps/terminal.h"

namespace heed::app {

struct ExplainOptions {
  int64_t dim = 8;           // numbers in a word's vector
  Score score = Score::dot;  // additive: w is made by the same generator as the words' vectors
  bool causal = false;       // heed::causal(): word i of the query does not see the last words of the text
  static constexpr int64_t kMaxDim = 1024;
};

// Everything computed on the way, all row-major, L words of the query and S words of the text.
struct Explanation {
  ExplainOptions options;
  std::vector<std::string> query, text;  // the words, as they are written
  std::vector<float> q;                  // [L, dim]
  std::vector<float> kv;                 // [S, dim], keys and values alike
  std::vector<float> w;                  // [dim], of additive scores
  std::vector<float> scores;             // [L, S], step 1; -inf where the mask excludes
  std::vector<float> weights;            // [L, S], step 2; rows sum to 1, or are 0 where no word is seen
  std::vector<float> out;                // [L, dim], step 3
  std::vector<float> fused;              // [L, dim], the same from heed::forward
  double difference = 0;                 // the largest between out and fused
};

// A word's vector, made from its letters: the sum of the vectors of its n-grams of 1 to 4 letters (the word in lower
// case, its beginning and end marked), brought to length sqrt(dim). An n-gram's vector comes from a fixed generator
// seeded with a hash of its bytes, so words spelled alike lie close together, nothing is learned, and the numbers are
// the same on every machine. The idea of hashed n-grams is that of Bojanowski et al. 2017 (fastText), without training.
std::vector<float> word_vector(std::string_view word, int64_t dim);

// Scores, weighs and gathers with the words of `text` as keys and values. Throws heed::Error if there is no word in one
// of them, or for a dim outside 1..kMaxDim.
Explanation explain(std::string_view query, std::string_view text, const ExplainOptions& options = {});

// The explanation as text for a terminal: colour, Unicode and width as the terminal has them. Of a long text the ten
// words with the largest weights are shown and the rest summed; of a long query the first words.
std::string describe(const Explanation& e, const Terminal& terminal);

}  // namespace heed::app
