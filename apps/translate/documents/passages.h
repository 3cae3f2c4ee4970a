// Passages: what the translate command is given to translate, with what must stay in it.
//
// How a placeholder stays where a model would rather not keep it:
//  1. The accelerator's marker is taken out; white space at the ends, line breaks, tabs, other control characters and
//     runs of spaces (tables) stay where they are, and what is between them is translated. A line that goes on in the
//     next one (at least 40 characters, no full stop, a small letter next) is joined with it, and the translation is
//     broken into as many lines. Text of more than 40 words is cut into sentences.
//  2. Each part is translated with its placeholders as required text. The first of the translations found is taken that
//     has the same placeholders (placeholders.h says what that means), no pair of tags that lost the words between
//     them, and all terms; if none has all terms, the first that has the placeholders. Required text comes back with
//     its capitals, whatever the model writes.
//  3. If none has them, the words between the placeholders are translated one by one and put together again: poorer
//     language, but nothing is lost. So, too, if the model is unsure of the whole (confidence below 0.25: the
//     placeholders are there by force) and twice as sure of the words. One or two words that come out with a
//     placeholder more or less stay as they are; if more words do, the passage has no translation, and says why.
//  4. What has no letters outside placeholders is copied.
//  5. The marker goes before a letter of the translation. The whole is looked at once more.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "apps/translate/documents/placeholders.h"
#include "apps/translate/documents/terms.h"
#include "apps/translate/required.h"

namespace heed::translate {

// What is asked of a model, and what it answers. Like Request and Translation (infer.h), which need LibTorch.
struct Task {
  std::string text;
  std::vector<Required> required = {};
};
struct Candidate {
  std::string text;
  double score = 0, confidence = 0;
  int64_t tokens = 1;    // of the translation
  int64_t left_out = 0;  // pieces at the end of the source that were not translated
  int64_t origin = -1;   // the engine's own number for it, by which it finds what else it knows
};
// For each task its translations, best first.
using Engine = std::function<std::vector<std::vector<Candidate>>(std::span<const Task>)>;

struct Passage {
  std::string text;  // UTF-8
  Formats formats = {};
  // Placeholders of which the first must stand before the second: a pair of TMX's elements.
  std::vector<std::pair<std::string, std::string>> before = {};
  std::string prefix = "";  // put before each part: the language token of a model with several (">>fra<< ")
};

struct Rendering {
  std::string text;  // empty if there is no translation
  std::string why;   // there is none: the reason, which fits behind "not translated:"
  enum class How { whole, piecewise, copied } how = How::whole;
  double score = 0, confidence = 1;        // of several parts the means, weighted by their tokens
  int64_t sentences = 1;                   // how many it was cut into
  int64_t left_out = 0;                    // as Candidate's
  std::vector<std::string> missing_terms;  // targets that the translation lacks
  std::vector<Candidate> alternatives;     // the next best ones; none if it was cut
  std::vector<int64_t> origins;            // of the translations it is made of, from left to right
};

struct RenderOptions {
  const Terms* terms = nullptr;
  // false: placeholders are words like others, and white space is the model's to set. Long text is cut all the same.
  bool placeholders = true;
};

// In the order of the passages. Asks the engine once for all parts, and once more for the words between placeholders.
std::vector<Rendering> render(std::span<const Passage> passages, const Engine& engine,
                              const RenderOptions& options = {});

}  // namespace heed::translate
