// Finding accelerators among other signs, and a letter for them.
#include "apps/translate/documents/accelerators.h"

#include <algorithm>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_alnum(char c) { return is_lower(c) || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

bool is_letter_or_digit(char32_t c) { return is_letter(c) || (c >= '0' && c <= '9'); }

// A script that keyboards type through others.
bool is_without_keys(char32_t c) {
  return (c >= 0x0E00 && c <= 0x0EFF) || (c >= 0x1100 && c <= 0x11FF) || (c >= 0x2E80 && c <= 0xD7AF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x20000 && c <= 0x3FFFF);
}

bool inside(std::span<const Placeholder> placeholders, size_t i) {
  return std::any_of(placeholders.begin(), placeholders.end(),
                     [i](const Placeholder& p) { return p.begin <= i && i < p.end; });
}

}  // namespace

std::optional<Accelerator> take_accelerator(std::string& text, const Formats& formats) {
  constexpr size_t kLongest = 120;
  if (text.find('\n') != std::string::npos || decode_utf8(text).size() > kLongest) return std::nullopt;
  const std::vector<Placeholder> placeholders = find_placeholders(text, formats);
  std::optional<Accelerator> found;
  size_t place = 0;
  for (const char marker : {'&', '_', '~'}) {
    int64_t signs = 0;
    size_t at = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != marker || inside(placeholders, i)) continue;
      ++signs;
      at = i;
    }
    if (signs != 1 || at + 1 >= text.size() || inside(placeholders, at + 1)) continue;
    size_t size = 0;
    const char32_t behind = character_at(text, at + 1, size);
    if (!is_letter_or_digit(behind)) continue;
    const char before = at > 0 ? text[at - 1] : ' ';
    const bool in_word = is_alnum(before) || static_cast<unsigned char>(before) >= 0x80;
    const bool small = behind >= 0x80 || is_lower(static_cast<char>(behind));
    if (in_word && !small) continue;                    // R&D, FILE_NAME
    if (marker == '~' && !is_letter(behind)) continue;  // ~5 MB
    if (marker == '_' && in_word) {                     // lock_file, but Sen_d
      size_t word = at;
      while (word > 0 && (is_alnum(text[word - 1]) || static_cast<unsigned char>(text[word - 1]) >= 0x80)) --word;
      const char32_t first = character_at(text, word, size);
      if (lower(std::u32string_view(&first, 1)) == std::u32string(1, first)) continue;
      character_at(text, at + 1, size);
    }
    if (found) return std::nullopt;  // two signs that could be one: neither is known
    found = Accelerator{marker, lower(std::string_view(text).substr(at + 1, size))};
    place = at;
  }
  if (!found) return std::nullopt;
  const bool bracketed = place > 0 && text[place - 1] == '(' && found->letter.size() == 1 && place + 2 < text.size() &&
                         text[place + 2] == ')';
  if (bracketed) {
    text.erase(place - 1, 4);
  } else {
    text.erase(place, 1);
  }
  return found;
}

void put_accelerator(std::string& text, const Accelerator& accelerator, const Formats& formats) {
  const std::vector<Placeholder> placeholders = find_placeholders(text, formats);
  std::optional<size_t> at_word, anywhere, first;
  bool in_word = false;
  for (size_t i = 0, size = 0; i < text.size(); i += size) {
    const char32_t c = character_at(text, i, size);
    if (inside(placeholders, i)) {
      in_word = false;
      continue;
    }
    const bool letter = is_letter_or_digit(c);
    if (letter && !is_without_keys(c)) {
      const bool same = lower(std::string_view(text).substr(i, size)) == accelerator.letter;
      if (same && !in_word && !at_word) at_word = i;
      if (same && !anywhere) anywhere = i;
      if (!first) first = i;
    }
    in_word = letter;
  }
  for (const std::optional<size_t>& place : {at_word, anywhere, first}) {
    if (!place) continue;
    // Where it would not be seen as one ("lock_file"), another place is better.
    std::string with = text;
    with.insert(*place, 1, accelerator.marker);
    std::string without = with;
    if (take_accelerator(without, formats) && without == text) {
      text = std::move(with);
      return;
    }
  }
  size_t end = text.size();
  for (;;) {
    const std::string_view head = std::string_view(text).substr(0, end);
    size_t tail = 0;
    for (const std::string_view mark : {"...", "…", ":", "：", "。", " "})
      tail = head.ends_with(mark) ? mark.size() : tail;
    if (tail == 0) break;
    end -= tail;
  }
  std::string letter = accelerator.letter;
  if (letter.size() == 1 && is_lower(letter[0])) letter[0] = static_cast<char>(letter[0] - 32);
  text.insert(end, std::string("(") + accelerator.marker + letter + ")");
}

Kept kept_placeholders(std::string_view source, std::string_view target, const Formats& formats) {
  std::string a(source), b(target);
  const auto marker = take_accelerator(a, formats), kept_marker = take_accelerator(b, formats);
  std::map<std::string, std::pair<int64_t, int64_t>> counts;
  for (const std::string& each : texts(a, find_placeholders(a, formats))) ++counts[each].first;
  for (const std::string& each : texts(b, find_placeholders(b, formats))) ++counts[each].second;
  if (marker) ++counts[std::string(1, marker->marker)].first;
  if (kept_marker) ++counts[std::string(1, kept_marker->marker)].second;
  Kept kept;
  for (const auto& [text, count] : counts) {
    kept.placeholders += count.first;
    kept.kept += std::min(count.first, count.second);
    kept.added += std::max<int64_t>(count.second - count.first, 0);
  }
  return kept;
}

}  // namespace heed::translate
