// Lines apart, lines together, and lines broken again.
#include "apps/translate/documents/layout.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

constexpr size_t kWrappedLine = 40;  // characters

size_t size_at(std::string_view text, size_t i) {
  size_t size = 0;
  character_at(text, i, size);
  return size;
}

char32_t last_character(std::string_view text) {
  size_t i = text.size(), size = 0;
  while (i > 0 && (static_cast<unsigned char>(text[--i]) & 0xC0) == 0x80) {
  }
  return text.empty() ? U' ' : character_at(text, i, size);
}

// The text as separators and what follows each; `end` is the last separator.
std::vector<std::pair<std::string, std::string>> separated(const std::string& text, const Formats& formats,
                                                           std::string& end) {
  const std::vector<Placeholder> placeholders = find_placeholders(text, formats);
  std::vector<std::pair<std::string, std::string>> list;
  std::string separator, words;
  size_t next = 0;
  for (size_t i = 0; i < text.size();) {
    while (next < placeholders.size() && placeholders[next].end <= i) ++next;
    if (next < placeholders.size() && placeholders[next].begin <= i) {
      words.append(text, i, placeholders[next].end - i);
      i = placeholders[next].end;
      continue;
    }
    // A run of white space and control characters.
    size_t stop = i, spaces = 0;
    bool control = false;
    while (stop < text.size()) {
      size_t size = 0;
      const char32_t c = character_at(text, stop, size);
      if (!is_space(c) && !is_control(c)) break;
      if (next < placeholders.size() && placeholders[next].begin <= stop) break;
      control = control || is_control(c);
      ++spaces;
      stop += size;
    }
    if (stop == i) {
      words.append(text, i, size_at(text, i));
      i += size_at(text, i);
      continue;
    }
    const char32_t last = last_character(words);
    const bool sentence = last == '.' || last == '!' || last == '?' || last == ':' || last == U'…';
    if (words.empty() || control || stop == text.size() || (spaces > 1 && !sentence)) {
      if (!words.empty()) list.emplace_back(std::exchange(separator, {}), std::exchange(words, {}));
      separator.append(text, i, stop - i);
    } else {
      words.append(text, i, stop - i);
    }
    i = stop;
  }
  if (!words.empty()) list.emplace_back(std::exchange(separator, {}), words);
  end = separator;
  return list;
}

// Whether a sentence was wrapped there.
bool goes_on(const std::string& line, const std::string& separator, const std::string& next) {
  if (std::count(separator.begin(), separator.end(), '\n') != 1) return false;
  if (separator.find_first_not_of(" \n") != std::string::npos) return false;
  if (decode_utf8(line).size() < kWrappedLine) return false;
  size_t size = 0;
  const char32_t last = last_character(line), first = character_at(next, 0, size);
  if (!is_letter(last) && last != ',') return false;
  return is_letter(first) && lower(std::u32string_view(&first, 1)) == std::u32string(1, first);
}

}  // namespace

bool is_control(char32_t c) { return c < 0x20 || c == 0x7F; }

Layout lay_out(const std::string& text, const Formats& formats) {
  Layout layout;
  std::string last;  // of the line at hand, as it was before it was joined
  for (auto& [separator, words] : separated(text, formats, layout.end)) {
    const size_t width = decode_utf8(words).size();
    if (!layout.lines.empty() && goes_on(last, separator, words)) {
      Line& line = layout.lines.back();
      line.breaks.push_back(separator);
      line.widths.push_back(width);
      line.text += " " + words;
    } else {
      layout.lines.push_back({separator, words, {}, {width}});
    }
    last = words;
  }
  return layout;
}

bool break_again(std::string& text, const Line& line, const Formats& formats) {
  if (line.breaks.empty()) return true;
  const std::vector<Placeholder> placeholders = find_placeholders(text, formats);
  std::vector<std::pair<size_t, size_t>> spaces, anywhere;  // places: byte, and characters before it
  size_t characters = 0;
  for (size_t i = 0; i < text.size(); i += size_at(text, i), ++characters) {
    const bool inside = std::any_of(placeholders.begin(), placeholders.end(),
                                    [i](const Placeholder& p) { return p.begin < i && i < p.end; });
    if (inside || i == 0) continue;
    if (text[i] == ' ' && i + 1 < text.size()) spaces.emplace_back(i, characters);
    if (text[i] != ' ' && text[i - 1] != ' ') anywhere.emplace_back(i, characters);
  }
  const bool at_spaces = spaces.size() >= line.breaks.size();
  const auto& places = at_spaces ? spaces : anywhere;
  if (places.size() < line.breaks.size()) return false;
  size_t source_width = 0, before = 0, place = 0;
  for (const size_t width : line.widths) source_width += width;
  std::string out;
  size_t copied = 0;
  for (size_t k = 0; k < line.breaks.size(); ++k) {
    before += line.widths[k];
    const size_t wanted = before * characters / std::max<size_t>(source_width, 1);
    const size_t last = places.size() - (line.breaks.size() - k);  // leaves enough for the rest
    const auto away = [&](size_t i) {
      return std::abs(static_cast<int64_t>(places[i].second) - static_cast<int64_t>(wanted));
    };
    while (place < last && away(place + 1) <= away(place)) ++place;
    out += text.substr(copied, places[place].first - copied) + line.breaks[k];
    copied = places[place].first + (at_spaces ? 1 : 0);
    ++place;
  }
  text = out + text.substr(copied);
  return true;
}

}  // namespace heed::translate
