// A .po file (GNU gettext manual, "The Format of PO Files") that can be filled in and stays the same elsewhere, byte
// for byte.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "apps/translate/documents/charset.h"

namespace heed::translate {

// An entry that is neither the header nor obsolete (#~), its text in UTF-8 with the escapes undone.
struct PoEntry {
  int64_t line = 0;  // of its msgid, from 1
  std::string context, id, plural;
  bool has_plural = false;
  std::vector<std::string> forms;  // msgstr, or msgstr[0], msgstr[1], ...
  std::vector<std::string> flags;  // of its "#," lines: "fuzzy", "c-format", ...
  bool is_text = true;             // false: bytes that are not text in the file's charset

  bool has_flag(std::string_view flag) const;
  bool untranslated() const;  // every form is empty

  // Where a translation goes, in the file's bytes.
  size_t head = 0;                    // a line "#, fuzzy" can be put in before this line
  std::optional<size_t> flags_at;     // behind the "#," of a line that is there
  size_t str_begin = 0, str_end = 0;  // from the first msgstr to its last closing quote
};

class PoFile {
 public:
  // Throws heed::Error with the line number for a syntax error, and for a charset that is unknown. `name` is the file's
  // name for errors.
  PoFile(std::string bytes, std::string name);

  const std::string& bytes() const { return bytes_; }
  const std::string& name() const { return name_; }
  const std::vector<PoEntry>& entries() const { return entries_; }
  int64_t obsolete() const { return obsolete_; }
  // The header's text; empty if there is none.
  const std::string& header() const { return header_; }
  // As the header names it, in capitals; empty if it names none, or the template's CHARSET.
  const std::string& named_charset() const { return named_charset_; }
  // Lines that are not text in the charset, comments included; the first one's number, or 0.
  int64_t first_bad_line() const { return first_bad_line_; }
  // Whether the file's charset has every character of the text.
  bool can_write(std::string_view text) const { return charset_->from_utf8(text).has_value(); }

  struct Filling {
    size_t entry;                    // of an untranslated one
    std::vector<std::string> forms;  // one; for an entry with plural forms, all of them
  };
  // The file with these translations in it, each marked fuzzy. Lines are wrapped at 79 columns, as gettext's tools do,
  // unless the file has longer ones. The entries must come in order; can_write must hold for each text.
  std::string filled(std::span<const Filling> fillings) const;

 private:
  friend class PoParser;
  std::string quoted(std::string_view keyword, std::string_view text, std::string_view eol,
                     std::string_view indent) const;

  std::string bytes_, name_, header_, named_charset_;
  std::optional<Charset> charset_;
  std::vector<PoEntry> entries_;
  int64_t obsolete_ = 0, first_bad_line_ = 0;
  bool wrapped_ = true;
};

// The charset that a catalogue's header names, in capitals; empty when it names none, or CHARSET as msginit leaves it.
std::string header_charset(std::string_view header);

}  // namespace heed::translate
