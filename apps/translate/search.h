// Beam search over token ids for one batch of encoded sentences. Translator (infer.h) puts text around it.
#pragma once

#include <cstdint>
#include <vector>

#include "apps/translate/model.h"

namespace heed::translate {

struct BeamOptions {
  int64_t beam = 4;
  double length_penalty = 1.0;     // a hypothesis scores sum of log-probabilities / length^length_penalty
  std::vector<int64_t> max_steps;  // per sentence, at least 1: tokens at most, with kEos
  bool attention = false;          // also Hypothesis::attention
};

struct Hypothesis {
  std::vector<int> tokens;  // ends with kEos, unless max_steps came first
  double score = 0;
  torch::Tensor attention;  // [tokens, source length] float32, if asked for: where the model looked for each token
};

// The best hypothesis of each sentence: source [B, S] int64, padded behind lengths. As in Hugging Face's beam search
// with early_stopping=false: each step ranks the 2 * beam best continuations of a sentence;
// a finished one counts if it is among the first `beam`; the `beam` best finished are kept; a sentence is over when
// they are that many and the best unfinished one, scored at its present length, is not better than the worst of them.
// What is unfinished at max_steps competes too. kPad and kBos are never produced. beam 1 is greedy search.
// Ties go to the hypothesis that was ahead, then to the smaller token id. Throws heed::Error if the model's outputs are
// not numbers.
std::vector<Hypothesis> beam_search(Model& model, const torch::Tensor& source, const std::vector<int64_t>& lengths,
                                    const BeamOptions& options);

}  // namespace heed::translate
