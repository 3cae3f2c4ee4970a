// Message catalogues of translated programs (GNU gettext's .po and .mo) as parallel text.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "apps/translate/pairs.h"

namespace heed::translate {

inline constexpr int64_t kMaxCatalogueBytes = int64_t{256} << 20;

// One translated message, UTF-8, exactly as the catalogue has it (markers, line breaks and all).
struct Message {
  std::string context;         // msgctxt, or empty
  std::string source, target;  // msgid and msgstr; of plural forms the singular and the first form
  bool operator==(const Message&) const = default;
};

struct Catalogue {
  std::vector<Message> messages;
  std::string charset;       // from the header; "UTF-8" if it names none
  int64_t entries = 0;       // messages met, without the header
  int64_t untranslated = 0;  // msgstr is empty
  int64_t fuzzy = 0;         // .po: translations guessed by msgmerge, wrong as often as right; left out
  int64_t obsolete = 0;      // .po: #~ entries; left out
  int64_t invalid = 0;       // bytes that are not text in the catalogue's charset; left out
};

// Parses the text of a .po file (GNU gettext manual, "The Format of PO Files"). Text in a charset other than UTF-8 and
// ASCII is converted with iconv. `name` is the file's name for errors. Throws heed::Error with the line number for a
// syntax error, and for a charset that is unknown.
Catalogue parse_po(std::string_view bytes, const std::string& name);

// Parses a .mo file (GNU gettext manual, "The Format of GNU MO Files") in either byte order. Every offset is checked:
// a truncated or lying file throws heed::Error and never reads outside `bytes`.
Catalogue parse_mo(std::string_view bytes, const std::string& name);

// Why clean_messages dropped messages.
struct CleanCounts {
  int64_t messages = 0;    // given
  int64_t same = 0;        // the target is the source: a name, or not translated
  int64_t no_letters = 0;  // "%d:%d"
  int64_t too_long = 0;    // more than 200 characters or 40 words on a side
  int64_t ratio = 0;       // one side more than three times (in bytes) the other, the longer at least 24 bytes
  int64_t options = 0;     // a line of --help ("-v  be verbose"): a table, not a sentence
  int64_t markup = 0;      // XML or HTML tags, control characters, Lisp's "~%"
  int64_t duplicate = 0;   // the source was there already
};

// User interface messages as sentence pairs fit for training. In order, on both sides:
//  1. a context that sits in the msgid is taken off: "key-id‖Text" (LibreOffice) and, when the target has no bar,
//     "Context|Text" (GLib);
//  2. the marker of the accelerator key is taken out: & (Qt, wx, Windows), _ (GTK), ~ (LibreOffice), and "(_F)" at the
//     end as Chinese and Japanese have it. A marker is the only such sign of its side and stands before a letter or
//     digit; an identifier that is the same on both sides, "R&D" and entities stay;
//  3. white space, line breaks included, becomes single spaces;
//  4. what the fields of CleanCounts name is dropped;
//  5. of messages with one source, one is kept: with the target most of them have, the first of equals. It stands
//     where the source was met first.
std::vector<Pair> clean_messages(std::span<const Message> messages, CleanCounts* counts = nullptr);

}  // namespace heed::translate
