// Translation with a trained model: greedy and beam search, batched.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "apps/translate/model.h"
#include "apps/translate/required.h"
#include "apps/translate/vocab.h"

namespace heed::translate {

// What to translate: a line of text, and what its translation must contain.
struct Request {
  std::string text;
  std::vector<Required> required = {};  // each must occur, as often as it is listed: terms, placeholders
};

struct SearchOptions {
  int beam = 4;  // 1 is greedy
  double length_penalty =
      1.0;  // a hypothesis scores sum of log-probabilities / length^length_penalty (length counts </s>)
  double coverage_penalty = 0;  // Wu et al. 2016's beta: hypotheses that have not looked at some part of the source
                                // lose; 0.2 is usual, 0: off
  int nbest = 1;                // how many translations of a sentence to return, at most `beam`
  int max_length = 0;           // in pieces, with </s>; 0: 2 * source + 10, at most 256; never beyond max_positions
  int batch_tokens = 4000;      // source tokens times beam in one batch; each thread has one
  bool attention = false;       // also return the attention matrix
};

struct Translation {
  std::string text;
  double score = 0;                           // as SearchOptions::length_penalty says, minus the coverage penalty; of
                                              // required text also how well it is placed (search.h)
  double confidence = 0;                      // geometric mean of the tokens' probabilities, 0 to 1
  std::vector<std::string> source_pieces;     // with the final </s>
  std::vector<std::string> target_pieces;     // with the final </s>, if it was reached
  std::vector<std::vector<float>> attention;  // [target_pieces][source_pieces], if asked for; rows sum to 1
  int64_t left_out = 0;                       // pieces at the end of a source that is too long, not translated
  std::vector<std::string> missing;           // of Request::required: what could not be made to occur
  std::vector<Translation> alternatives;      // the next best ones, best first, at most SearchOptions::nbest - 1
};

// A model and its vocabulary, ready to translate.
class Translator {
 public:
  // From a folder of ours (source.spm and target.spm alike, with our ids), or of Marian's models as Hugging Face keeps
  // them: source.spm and target.spm cut text, vocab.json numbers the pieces, and target_vocab.json the target's where
  // the two sides have numbers of their own.
  static Translator load(const std::string& dir);
  Translator(std::shared_ptr<Model> model, std::shared_ptr<const Vocab> vocab);
  Translator(std::shared_ptr<Model> model, std::shared_ptr<const Vocab> source, std::shared_ptr<const Vocab> target);

  // What the folder says of beam, length penalty and greatest length.
  const Generation& generation() const { return model_->config().generation; }

  // Translations in the order of the sentences. The result of a sentence does not depend on the others' presence, up to
  // the rounding of the BLAS's matrix products, which can turn a tie. An empty or blank sentence translates to an empty
  // one, without pieces. Of a sentence with more pieces than the model has positions (config().max_positions, </s>
  // included) the end is left out, and left_out says so. progress, if given, is called with the number of sentences
  // done, from any thread, one call at a time. May be called from several threads at once.
  std::vector<Translation> translate(std::span<const Request> requests, const SearchOptions& options = {},
                                     const std::function<void(int64_t)>& progress = {}) const;
  std::vector<Translation> translate(std::span<const std::string> sentences, const SearchOptions& options = {},
                                     const std::function<void(int64_t)>& progress = {}) const;

 private:
  std::shared_ptr<Model> model_;
  std::shared_ptr<const Vocab> source_, target_;
};

// The attention matrices as JSON: [{"source": [...], "target": [...], "text": "...", "score": x, "attention":
// [[...]]}].
std::string attention_json(std::span<const Translation> translations);

}  // namespace heed::translate
