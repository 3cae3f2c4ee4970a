// What stands between a message's words and is no word: line breaks, tabs, tables, white space at the ends.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "apps/translate/documents/placeholders.h"

namespace heed::translate {

// Words without a line break, and what stands before them. Where a sentence was wrapped, its lines are one.
struct Line {
  std::string before;
  std::string text;
  std::vector<std::string> breaks;  // what stood between the lines that were joined
  std::vector<size_t> widths;       // of these lines, in characters
};

struct Layout {
  std::vector<Line> lines;
  std::string end;  // what stands behind the last line
};

// Separates at control characters (those within a placeholder stay in it) with the spaces around them, at runs of
// spaces that no sentence's end explains, and at white space at the ends. A line is joined with the next one if it has
// at least 40 characters and ends in a letter or comma, and the next one begins with a small letter.
Layout lay_out(const std::string& text, const Formats& formats);

// Breaks a line's translation into as many lines as were joined, where the source's breaks were in proportion: at a
// space, or between characters if it has too few spaces. False if it has too few characters for that.
bool break_again(std::string& translation, const Line& line, const Formats& formats);

// Below U+0020, or U+007F.
bool is_control(char32_t c);

}  // namespace heed::translate
