// The letter of a menu entry that the keyboard chooses, and its marker, which a translation moves to another letter.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "apps/translate/documents/placeholders.h"

namespace heed::translate {

// "&File" (Qt, wx, Windows), "_File" (GTK) or "~File" (LibreOffice).
struct Accelerator {
  char marker = '&';
  std::string letter;  // one character, UTF-8, lower case
};

// Takes the marker out of the text. A marker is the only such sign outside placeholders and stands directly before a
// letter or digit of a text of one line and at most 120 characters. "R&D", "Black & white", "&amp;" and names like
// lock_file have none; inside a word _ is one only if the word is written like "Sen_d". "打开(_O)" has one, too.
std::optional<Accelerator> take_accelerator(std::string& text, const Formats& formats = {});

// Puts a marker before a letter outside placeholders: the same one where it begins a word, else the same one anywhere,
// else the first letter or digit; in a script without keys of its own (Chinese, Japanese, Korean, Thai) as "(&F)" at
// the end, before the dots or the colon.
void put_accelerator(std::string& text, const Accelerator& accelerator, const Formats& formats = {});

// For measuring: of how many placeholders a translation kept how many. An accelerator counts as one.
struct Kept {
  int64_t placeholders = 0, kept = 0, added = 0;
  bool all() const { return kept == placeholders && added == 0; }
};
Kept kept_placeholders(std::string_view source, std::string_view target, const Formats& formats = {});

}  // namespace heed::translate
