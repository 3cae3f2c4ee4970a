// Finding terms word by word.
#include "apps/translate/documents/terms.h"

#include <heed/attention.h>

#include <algorithm>

#include "apps/translate/pairs.h"
#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

constexpr int64_t kMaxTermsBytes = int64_t{64} << 20;

// A run of letters and digits, or one other character.
struct Word {
  std::string text, folded;
  size_t begin = 0, end = 0;  // bytes
  bool spaced = false;        // white space stands before it
};

// Lower case character by character, so that a word's form does not depend on where it stands.
std::string fold(std::u32string_view word) {
  std::string out;
  for (const char32_t c : word) {
    std::u32string small = lower(std::u32string_view(&c, 1));
    if (small == U"ς") small = U"σ";
    out += encode_utf8(small);
  }
  return out;
}

std::vector<Word> words_of(std::string_view utf8) {
  const std::u32string text = decode_utf8(utf8);
  std::vector<Word> words;
  size_t byte = 0;
  bool spaced = false;
  for (size_t i = 0; i < text.size();) {
    const auto is_word = [](char32_t c) { return (is_letter(c) || (c >= '0' && c <= '9')) && !is_ideograph(c); };
    size_t end = i + 1;
    if (is_word(text[i])) {
      while (end < text.size() && is_word(text[end])) ++end;
    }
    const std::u32string_view part = std::u32string_view(text).substr(i, end - i);
    const std::string bytes = encode_utf8(part);
    if (is_space(text[i])) {
      spaced = true;
    } else {
      words.push_back({bytes, fold(part), byte, byte + bytes.size(), spaced});
      spaced = false;
    }
    byte += bytes.size();
    i = end;
  }
  return words;
}

// "GmbH", "IT", "Web UI" have a capital where a word's beginning does not explain it.
bool has_inner_capital(std::string_view utf8) {
  const std::u32string text = decode_utf8(utf8);
  for (size_t i = 1; i < text.size(); ++i) {
    const bool capital = lower(std::u32string_view(&text[i], 1)) != std::u32string_view(&text[i], 1);
    if (capital && is_letter(text[i - 1])) return true;
  }
  return false;
}

}  // namespace

Terms Terms::read(const std::string& path) { return parse(read_bytes(path, kMaxTermsBytes), path); }

Terms Terms::parse(std::string_view text, const std::string& name) {
  Terms terms;
  std::unordered_map<std::string, std::pair<size_t, int64_t>> seen;  // the term and its line
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  if (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF")) {
    throw Error(name + " is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8");
  }
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (trimmed(line).empty() || line.starts_with("#")) continue;
    const std::string where = name + " line " + std::to_string(number);
    if (!is_utf8(line)) throw Error(where + " is not UTF-8; convert the file with iconv -t UTF-8");
    const size_t tab = line.find('\t');
    if (tab == std::string_view::npos) throw Error(where + " has 1 column; a term needs source, a tab and target");
    const std::string_view behind = line.substr(tab + 1);
    Term term{std::string(trimmed(line.substr(0, tab))), std::string(trimmed(behind.substr(0, behind.find('\t'))))};
    if (term.source.empty() || term.target.empty()) {
      throw Error(where + " has an empty " + (term.source.empty() ? "source" : "target") +
                  "; a term needs source, a tab and target");
    }
    term.exact = has_inner_capital(term.source);
    std::string key = term.exact ? "=" : "~";
    const std::vector<Word> words = words_of(term.source);
    if (words.empty()) throw Error(where + " has a source of white space alone; a term needs source, a tab and target");
    for (const Word& word : words) key += (word.spaced ? " " : "") + (term.exact ? word.text : word.folded);
    const auto [it, fresh] = seen.try_emplace(key, terms.terms_.size(), number);
    if (!fresh) {
      const Term& other = terms.terms_[it->second.first];
      if (other.target == term.target) continue;
      throw Error(where + " translates \"" + term.source + "\" as \"" + term.target + "\", and line " +
                  std::to_string(it->second.second) + " as \"" + other.target + "\"; keep one of the two");
    }
    terms.by_first_word_[words.front().folded].push_back(terms.terms_.size());
    terms.terms_.push_back(std::move(term));
  }
  for (auto& [word, list] : terms.by_first_word_) {
    std::stable_sort(list.begin(), list.end(),
                     [&](size_t a, size_t b) { return terms.terms_[a].source.size() > terms.terms_[b].source.size(); });
  }
  return terms;
}

std::vector<TermMatch> Terms::find(std::string_view text) const {
  if (terms_.empty()) return {};
  const std::vector<Word> words = words_of(text);
  std::vector<TermMatch> all;
  for (size_t i = 0; i < words.size(); ++i) {
    const auto candidates = by_first_word_.find(words[i].folded);
    if (candidates == by_first_word_.end()) continue;
    for (const size_t index : candidates->second) {
      const Term& term = terms_[index];
      const std::vector<Word> wanted = words_of(term.source);
      if (wanted.size() > words.size() - i) continue;
      bool same = true;
      for (size_t k = 0; k < wanted.size() && same; ++k) {
        const Word& here = words[i + k];
        same = (term.exact ? here.text == wanted[k].text : here.folded == wanted[k].folded) &&
               (k == 0 || here.spaced == wanted[k].spaced);
      }
      if (same) all.push_back({words[i].begin, words[i + wanted.size() - 1].end, &term});
    }
  }
  // The longest first; of equals the exact one, then the one more to the left.
  std::stable_sort(all.begin(), all.end(), [](const TermMatch& a, const TermMatch& b) {
    const size_t la = a.end - a.begin, lb = b.end - b.begin;
    return la != lb ? la > lb : a.term->exact && !b.term->exact;
  });
  std::vector<TermMatch> kept;
  for (const TermMatch& match : all) {
    const bool free = std::none_of(kept.begin(), kept.end(),
                                   [&](const TermMatch& k) { return match.begin < k.end && k.begin < match.end; });
    if (free) kept.push_back(match);
  }
  std::sort(kept.begin(), kept.end(), [](const TermMatch& a, const TermMatch& b) { return a.begin < b.begin; });
  return kept;
}

}  // namespace heed::translate
