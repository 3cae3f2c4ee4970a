// Beam search over token ids for one batch of encoded sentences. Translator (infer.h) puts text around it.
#pragma once

#include <cstdint>
#include <vector>

#include "apps/translate/model.h"

namespace heed::translate {

// Tokens that a translation must contain one after another, in one of several spellings.
struct Constraint {
  std::vector<std::vector<int>> spellings;
  int64_t from = 0, to = 0;  // the source positions whose translation they are; equal: nothing is known of it
  bool apart = false;        // no word may go on into them or out of them: BeamOptions::joints
};

// Whether a token begins and ends as a word's inside does, by token: "ern" does both, "▁Haus" ends so, "." neither.
struct Joints {
  std::vector<bool> begins, ends;
};

struct BeamOptions {
  int64_t beam = 4;
  int64_t nbest = 1;                    // hypotheses returned for each sentence, if so many were finished; at most beam
  double length_penalty = 1.0;          // a hypothesis scores sum of log-probabilities / length^length_penalty
  double coverage_penalty = 0;          // times the sum over the source of log(min(1, attention it received)); 0: off
  std::vector<int64_t> max_steps = {};  // per sentence, at least 1: tokens at most, with the end
  std::vector<std::vector<Constraint>> required = {};  // per sentence; empty: none has any
  const Joints* joints = nullptr;                      // of the tokens, if a constraint is `apart`
  bool attention = false;                              // also Hypothesis::attention
};

struct Hypothesis {
  std::vector<int> tokens;     // ends with </s>, unless max_steps came first
  double score = 0;            // what they are ranked by
  double log_probability = 0;  // sum over the tokens
  torch::Tensor attention;     // [tokens, source length] float32, if asked for: where the model looked for each token
};

// The best hypotheses of each sentence, best first: source [B, S] int64, padded behind lengths. As in Hugging Face's
// beam search with early_stopping=false: each step ranks the 2 * beam best continuations of a sentence; a finished one
// counts if it is among the first `beam`; the `beam` best finished are kept; a sentence is over when they are that many
// and the best unfinished one, scored at its present length, is not better than the worst of them. What is unfinished
// at max_steps competes too, with TokenIds::forced_end, if there is one, as its last token. The model's banned tokens
// are never produced. beam 1 is greedy search. Ties go to the hypothesis that was ahead, then to the smaller token id.
//
// The coverage penalty is that of Wu et al. 2016 (eq. 14), over the attention of the model's alignment().
//
// A sentence with required tokens is searched by dynamic beam allocation (Post & Vilar 2018): the next token of what is
// missing is always among the continuations, the beam is shared evenly by how many of the required tokens a hypothesis
// has, and none may end before it has all. A beam of one more than these tokens gives each number its share; callers
// see to that. Whoever reaches max_steps before is returned as it is. Where a constraint knows its source positions,
// hypotheses are also ranked by how well the model's attention, alignment() again, fits: a token that begins a
// constraint should look there, every other one elsewhere. Without this required text ends up behind the sentence.
//
// Throws heed::Error if the model's outputs are not numbers.
std::vector<std::vector<Hypothesis>> beam_search(Model& model, const torch::Tensor& source,
                                                 const std::vector<int64_t>& lengths, const BeamOptions& options);

}  // namespace heed::translate
