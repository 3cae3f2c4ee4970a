// Corpus BLEU and chrF, equal to sacrebleu's to the last digits it prints and beyond.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace heed::translate {

struct BleuOptions {
  bool lowercase = false;  // compare lower-cased text (Unicode lower case), sacrebleu's -lc
  enum class Tokenize {
    k13a,   // sacrebleu's default, mteval-v13a: for plain, detokenised text
    kZh,    // each Chinese character by itself, the rest nearly as 13a
    kChar,  // each character by itself: for any script without spaces
    kNone   // cut at white space only: for text that is tokenised already, as Multi30k's *.tok.*
  } tokenize = Tokenize::k13a;
};

struct Bleu {
  double score = 0;                       // 0..100
  std::array<double, 4> precisions = {};  // per cent, of 1- to 4-grams, after smoothing
  double brevity_penalty = 0;             // 0..1
  int64_t hyp_len = 0, ref_len = 0;       // tokens

  // "BLEU = 41.02 68.1/48.0/35.2/26.3 (BP = 0.990 ratio = 0.990 hyp_len = 12000 ref_len = 12121)"
  std::string summary() const;
};

// Corpus BLEU (Papineni et al. 2002) of hypotheses against one reference each, exponential smoothing as in
// mteval-v13a: sacrebleu's corpus_bleu(hyps, [refs]). An empty hypothesis counts as no tokens. Throws heed::Error when
// there are no sentences or the numbers of hypotheses and references differ.
Bleu bleu(std::span<const std::string> hyps, std::span<const std::string> refs, const BleuOptions& options = {});

// Corpus chrF2 (Popović 2015), 0..100: character 1- to 6-grams without white space, beta 2, no words: sacrebleu's
// corpus_chrf(hyps, [refs]). Throws heed::Error as bleu does.
double chrf(std::span<const std::string> hyps, std::span<const std::string> refs);

// One line as mteval-v13a tokenises it: tokens joined by single spaces.
std::string tokenize_13a(std::string_view line);

}  // namespace heed::translate
