// Making user interface messages fit for training: markers out, tables and names dropped, one target per source.
#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

#include "apps/translate/gettext.h"
#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

constexpr size_t kMaxCharacters = 200;
constexpr size_t kMaxWords = 40;
constexpr size_t kMaxRatio = 3;
constexpr size_t kRatioFrom = 24;  // bytes; below that "OK" for "Einverstanden" is fine

bool is_alnum(char32_t c) { return is_letter(c) || (c >= '0' && c <= '9'); }

void take_context_off(std::u32string& source, const std::u32string& target) {
  if (const size_t bar = source.find(U'\u2016'); bar != std::u32string::npos) {
    source.erase(0, bar + 1);
  } else if (std::count(source.begin(), source.end(), U'|') == 1 && target.find(U'|') == std::u32string::npos) {
    source.erase(0, source.find(U'|') + 1);
  }
}

// "打开(_O)..." as "打开...": where the script has no letter to underline, the key stands behind in brackets.
void drop_bracketed_key(std::u32string& text, char32_t marker) {
  for (size_t i = 0; i + 3 < text.size(); i++) {
    if (text[i] == '(' && text[i + 1] == marker && text[i + 2] < 0x80 && is_alnum(text[i + 2]) && text[i + 3] == ')') {
      text.erase(i, 4);
      return;
    }
  }
}

// Where the accelerator's marker stands; npos if the text has none, or several signs of which none can be told apart.
size_t marker_place(const std::u32string& text, char32_t marker) {
  const size_t at = text.find(marker);
  if (at == std::u32string::npos || text.find(marker, at + 1) != std::u32string::npos) return std::u32string::npos;
  if (at + 1 >= text.size()) return std::u32string::npos;
  // LibreOffice's are set by a program, which also put them before a dash or slash inside a word: "DDE_-Befehl".
  const bool joint = at > 0 && is_alnum(text[at - 1]) && (text[at + 1] == '-' || text[at + 1] == '/');
  if (!is_alnum(text[at + 1]) && !(marker == '_' && joint)) return std::u32string::npos;
  if (marker == '&') {
    size_t end = at + 1;
    while (end < text.size() && is_alnum(text[end])) end++;
    if (end < text.size() && text[end] == ';') return std::u32string::npos;  // &amp;
    const bool inside = at > 0 && is_alnum(text[at - 1]);
    if (inside && text[at + 1] < 0x80 && !(text[at + 1] >= 'a' && text[at + 1] <= 'z')) return std::u32string::npos;
  }
  return at;
}

// The identifier that the sign at `at` is part of.
std::u32string word_around(const std::u32string& text, size_t at) {
  const auto inside = [&](size_t i) { return i == at || is_alnum(text[i]); };
  size_t first = at, last = at;
  while (first > 0 && inside(first - 1)) first--;
  while (last < text.size() && inside(last)) last++;
  return text.substr(first, last - first);
}

// Told of a word that both sides write alike: lock_file, FILE_NAME and Star_Calc are names, Ma_ximum has a marker.
bool is_identifier(const std::u32string& word) {
  if (word.front() == '_') return false;
  const char32_t behind = word[word.find(U'_') + 1];
  const bool capital_first = lower(word.substr(0, 1)) != word.substr(0, 1);
  return !(capital_first && behind >= 'a' && behind <= 'z');
}

void strip_accelerators(std::u32string& source, std::u32string& target) {
  constexpr size_t kNone = std::u32string::npos;
  for (const char32_t marker : {U'&', U'_', U'~'}) {
    drop_bracketed_key(source, marker);
    drop_bracketed_key(target, marker);
    const size_t s = marker_place(source, marker), t = marker_place(target, marker);
    if (s != kNone && t != kNone) {
      if (marker == '_' && is_identifier(word_around(source, s)) && word_around(source, s) == word_around(target, t)) {
        continue;
      }
    } else if ((s == kNone && source.find(marker) != kNone) || (t == kNone && target.find(marker) != kNone)) {
      continue;  // the other side has signs that are no marker, so this one may be none either
    }
    if (s != kNone) source.erase(s, 1);
    if (t != kNone) target.erase(t, 1);
  }
  // Qt's way to show an ampersand.
  for (std::u32string* text : {&source, &target}) {
    if (const size_t at = text->find(U" && "); at != std::u32string::npos) text->erase(at + 1, 1);
  }
}

std::u32string collapse_space(const std::u32string& text) {
  std::u32string out;
  bool gap = false;
  for (const char32_t c : text) {
    if (is_space(c)) {
      gap = !out.empty();
      continue;
    }
    if (gap) out.push_back(' ');
    gap = false;
    out.push_back(c);
  }
  return out;
}

size_t count_words(const std::u32string& text) {
  return text.empty() ? 0 : 1 + static_cast<size_t>(std::count(text.begin(), text.end(), U' '));
}

bool has_markup(const std::u32string& text) {
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] < 0x20 || text[i] == 0x7F) return true;
    if (text[i] == '~' && i + 1 < text.size() && text[i + 1] == '%') return true;
    if (text[i] != '<' || i + 1 == text.size()) continue;
    const char32_t next = text[i + 1];
    if ((next == '/' || next == '!' || is_letter(next)) && text.find(U'>', i) != std::u32string::npos) return true;
  }
  return false;
}

bool has_letter(const std::u32string& text) { return std::any_of(text.begin(), text.end(), is_letter); }

// The field that counts what is wrong with the pair; nullptr if it is fit.
int64_t* verdict(const std::u32string& source, const std::u32string& target, CleanCounts& counts) {
  if (!has_letter(source) || !has_letter(target)) return &counts.no_letters;
  if (source == target) return &counts.same;
  if (source.front() == '-') return &counts.options;
  for (const std::u32string* text : {&source, &target}) {
    if (text->size() > kMaxCharacters || count_words(*text) > kMaxWords) return &counts.too_long;
    if (has_markup(*text)) return &counts.markup;
  }
  // In bytes, because a Chinese character says as much as several Latin ones and has three bytes.
  const size_t a = encode_utf8(source).size(), b = encode_utf8(target).size();
  if (std::max(a, b) >= kRatioFrom && std::max(a, b) > kMaxRatio * std::min(a, b)) return &counts.ratio;
  return nullptr;
}

}  // namespace

std::vector<Pair> clean_messages(std::span<const Message> messages, CleanCounts* counts) {
  CleanCounts local;
  struct Votes {
    std::vector<std::pair<std::string, int64_t>> targets;  // in the order they were met
  };
  std::vector<std::string> order;
  std::unordered_map<std::string, Votes> by_source;
  for (const Message& message : messages) {
    local.messages++;
    std::u32string source = decode_utf8(message.source), target = decode_utf8(message.target);
    take_context_off(source, target);
    strip_accelerators(source, target);
    source = collapse_space(source);
    target = collapse_space(target);
    if (int64_t* why = verdict(source, target, local)) {
      ++*why;
      continue;
    }
    const std::string key = encode_utf8(source), value = encode_utf8(target);
    auto [it, fresh] = by_source.try_emplace(key);
    if (fresh) {
      order.push_back(key);
    } else {
      local.duplicate++;
    }
    auto& targets = it->second.targets;
    const auto same = std::find_if(targets.begin(), targets.end(), [&](const auto& t) { return t.first == value; });
    if (same == targets.end()) {
      targets.emplace_back(value, 1);
    } else {
      same->second++;
    }
  }
  std::vector<Pair> pairs;
  pairs.reserve(order.size());
  for (std::string& source : order) {
    const auto& targets = by_source[source].targets;
    const auto best = std::max_element(targets.begin(), targets.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    std::string target = best->first;
    pairs.push_back({std::move(source), std::move(target)});
  }
  if (counts != nullptr) *counts = local;
  return pairs;
}

}  // namespace heed::translate
