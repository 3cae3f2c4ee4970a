// Sentence ends, abbreviations, and cuts where there are none.
#include "apps/translate/documents/sentences.h"

#include <algorithm>
#include <array>
#include <string>

#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

constexpr size_t kLongestWord = 200;  // characters
constexpr std::u32string_view kFullStops = U"。！？", kStops = U".!?…", kClosers = U"\"'”’»)]}」』）",
                              kOpeners = U"\"'“‘„«([{「『（¿¡-–—*•";

// What stands before a full stop that does not end a sentence, lower case. English and German, and what both share.
constexpr std::array<std::u32string_view, 48> kAbbreviations = {
    U"mr",  U"mrs",  U"ms",   U"dr",  U"prof", U"st",     U"vs",   U"etc",  U"e.g",  U"i.e", U"cf",  U"fig",
    U"no",  U"nr",   U"vol",  U"pp",  U"ca",   U"approx", U"resp", U"incl", U"inc",  U"ltd", U"co",  U"corp",
    U"jr",  U"sr",   U"z.b",  U"d.h", U"bzw",  U"usw",    U"u.a",  U"ggf",  U"evtl", U"vgl", U"abb", U"tel",
    U"str", U"bspw", U"inkl", U"max", U"min",  U"jan",    U"feb",  U"aug",  U"sept", U"oct", U"nov", U"dec"};

bool is_digit(char32_t c) { return c >= '0' && c <= '9'; }
bool has(std::u32string_view set, char32_t c) { return set.find(c) != std::u32string_view::npos; }

int64_t words_of(std::u32string_view text) {
  int64_t words = 0, ideographs = 0;
  bool in_word = false;
  for (const char32_t c : text) {
    ideographs += is_ideograph(c) ? 1 : 0;
    const bool space = is_space(c);
    words += !space && !in_word ? 1 : 0;
    in_word = !space;
  }
  return words + ideographs / 2;
}

// Whether the full stop at text[stop] belongs to the word before it.
bool is_abbreviation(std::u32string_view text, size_t stop) {
  size_t begin = stop;
  while (begin > 0 && !is_space(text[begin - 1]) && !has(kOpeners, text[begin - 1])) --begin;
  const std::u32string word = lower(text.substr(begin, stop - begin));
  if (word.size() == 1 && is_letter(word[0])) return true;
  if (word.size() <= 2 && std::all_of(word.begin(), word.end(), is_digit)) return true;
  return std::find(kAbbreviations.begin(), kAbbreviations.end(), word) != kAbbreviations.end();
}

// The place behind the sentence that goes on at `from`; the text's end if nothing ends it before.
size_t sentence_end(std::u32string_view text, size_t from) {
  for (size_t i = from; i < text.size(); ++i) {
    const bool full = has(kFullStops, text[i]);
    if (!full && !has(kStops, text[i])) continue;
    size_t end = i + 1;
    while (end < text.size() && (has(kStops, text[end]) || has(kFullStops, text[end]))) ++end;
    const bool single = end == i + 1 && text[i] == '.';
    while (end < text.size() && has(kClosers, text[end])) ++end;
    if (full || end == text.size()) return end;
    if (!is_space(text[end])) {
      i = end - 1;
      continue;
    }
    size_t next = end;
    while (next < text.size() && (is_space(text[next]) || has(kOpeners, text[next]))) ++next;
    if (next == text.size()) return end;
    const char32_t c = text[next];
    const bool small = is_letter(c) && c < 0x2E80 && lower(std::u32string_view(&c, 1)) == std::u32string_view(&c, 1) &&
                       (c < 0x590 || c > 0x8FF);  // Hebrew and Arabic have no capitals
    if (!small && !(single && is_abbreviation(text, i))) return end;
    i = end - 1;
  }
  return text.size();
}

// Where to cut text, which has more than max_words words.
size_t cut_place(std::u32string_view text, int64_t max_words) {
  size_t best_comma = 0, best_space = 0;
  int64_t words = 0, ideographs = 0;
  size_t word_begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool space = is_space(text[i]);
    if (!space && (i == 0 || is_space(text[i - 1]))) {
      ++words;
      word_begin = i;
    }
    ideographs += is_ideograph(text[i]) ? 1 : 0;
    const int64_t length = words + ideographs / 2;
    const bool too_long_word = i - word_begin >= kLongestWord && !is_ideograph(text[i]);
    if (length > max_words || too_long_word) {
      if (best_comma > 0) return best_comma;
      return best_space > 0 ? best_space : std::max<size_t>(i, 1);
    }
    if (space && i > 0) best_space = i;
    if (is_ideograph(text[i]) && i > 0 && is_ideograph(text[i - 1])) best_space = i;
    const bool comma =
        has(U"，、；：", text[i]) || (has(U",;:", text[i]) && i + 1 < text.size() && is_space(text[i + 1]));
    if (comma && 2 * length >= max_words) best_comma = i + 1;
  }
  return text.size();
}

// Reads no further than it must, so that a text without any end is not read once for each of its cuts.
bool needs_cut(std::u32string_view text, int64_t max_words) {
  int64_t words = 0, ideographs = 0;
  size_t run = 0;
  for (const char32_t c : text) {
    const bool space = is_space(c);
    words += !space && run == 0 ? 1 : 0;
    run = space ? 0 : run + 1;
    ideographs += is_ideograph(c) ? 1 : 0;
    if (words + ideographs / 2 > max_words || (run > kLongestWord && !is_ideograph(c))) return true;
  }
  return false;
}

}  // namespace

int64_t count_words(std::string_view text) { return words_of(decode_utf8(text)); }

std::vector<Sentence> split_sentences(std::string_view utf8, int64_t max_words) {
  max_words = std::max<int64_t>(max_words, 1);
  const std::u32string all = decode_utf8(utf8);
  const std::u32string_view text = all;
  std::vector<Sentence> sentences;
  size_t begin = 0;
  while (begin < text.size() && is_space(text[begin])) ++begin;
  const std::string before = encode_utf8(text.substr(0, begin));
  while (begin < text.size()) {
    const size_t end = sentence_end(text, begin);
    while (begin < end) {
      const std::u32string_view rest = text.substr(begin, end - begin);
      const size_t length = needs_cut(rest, max_words) ? cut_place(rest, max_words) : rest.size();
      size_t next = begin + length;
      while (next < text.size() && is_space(text[next])) ++next;
      size_t last = begin + length;
      while (last > begin && is_space(text[last - 1])) --last;
      sentences.push_back(
          {"", encode_utf8(text.substr(begin, last - begin)), encode_utf8(text.substr(last, next - last))});
      begin = next;
    }
  }
  if (!sentences.empty()) sentences.front().before = before;
  return sentences;
}

}  // namespace heed::translate
