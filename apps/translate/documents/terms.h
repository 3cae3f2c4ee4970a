// Terminology: how certain words must be translated.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace heed::translate {

struct Term {
  std::string source, target;
  bool exact = false;  // capitals count
  bool operator==(const Term&) const = default;
};

// A term in a text.
struct TermMatch {
  size_t begin = 0, end = 0;  // bytes of the text
  const Term* term = nullptr;
};

class Terms {
 public:
  Terms() = default;
  // Lines of source TAB target; further columns, empty lines and lines that begin with # are passed over. Throws
  // heed::Error naming the line when a column is missing or empty, when it is not UTF-8, or when a source has two
  // targets.
  static Terms read(const std::string& path);
  static Terms parse(std::string_view text, const std::string& name);

  bool empty() const { return terms_.empty(); }
  const std::vector<Term>& terms() const { return terms_; }

  // The terms in a text, from left to right: whole words only (each ideograph of Chinese or Japanese is a word), of
  // terms that overlap the longest. Capitals do not count, unless the term has one behind a word's first letter, as
  // "IT", "GmbH" and "iPhone" have: then they must be the same, so that "it" is not taken for "IT".
  std::vector<TermMatch> find(std::string_view text) const;

 private:
  std::vector<Term> terms_;
  std::unordered_map<std::string, std::vector<size_t>> by_first_word_;  // lower case; the longest terms first
};

}  // namespace heed::translate
