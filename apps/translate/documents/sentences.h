// Long text in pieces a model can take: sentences, and parts of sentences that are too long.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace heed::translate {

// Words as a model sees their length: those between white space, and every two characters of Chinese or Japanese,
// which have no spaces, as one more.
int64_t count_words(std::string_view text);

// A part of a text and the white space behind it. The text is white space (in the first one, `before`) and then all the
// parts with theirs.
struct Sentence {
  std::string before;  // of the first one: white space at the start of the text
  std::string text;
  std::string after;
};

// A sentence ends with . ! ? or … where the next word does not begin with a small letter, or with 。 ！ ？; quotes and
// brackets that close there belong to it. Behind abbreviations ("Dr.", "e.g."), single letters ("J. Smith") and one or
// two digits ("am 3. Mai") a full stop does not end one. A sentence of more than max_words words is cut, behind a comma
// or the like if there is one in its second half, else between two words; a word of more than 200 characters without
// space anywhere. An empty or blank text has no sentences.
std::vector<Sentence> split_sentences(std::string_view text, int64_t max_words = 100);

}  // namespace heed::translate
