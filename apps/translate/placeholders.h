// What a translation must keep as it is: format directives, variables, markup, addresses, names of files and options.
// And the marker of a menu's accelerator key, which moves to another letter.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace heed::translate {

struct Placeholder {
  enum class Kind {
    printf,      // %s %-5.2f %% %1$s %(name)s %{name} %<PRIu64>, Qt's %1 %L1 %n, strftime's %Y, Lisp's ~a
    brace,       // {0} {name} {x!r:>8} {{x}} and ICU's {n, plural, one {...} other {...}}
    variable,    // $var ${var} $(ARG1) @name %PRODUCTNAME %path%
    tag,         // <b> </b> <br/> <!-- -->
    entity,      // &amp; &#160; and Qt's &&
    url,         // also www.
    email,       //
    path,        // /usr/bin ~/x C:\x src/main.c config.json
    option,      // --foo --foo=BAR -v
    identifier,  // lock_file FILE_NAME main()
    escape,      // a backslash and a letter in the text itself; a terminal's colour
  };
  size_t begin = 0, end = 0;  // bytes of the text
  Kind kind = Kind::printf;
};

// The format languages of a message, as a catalogue's flags name them. Without any, what looks like a directive is
// taken for one unless it may be words: the "% d" of "100% done" is not, but it is to C.
struct Formats {
  bool c = false;      // c-format, python-format and others of printf's kind
  bool brace = false;  // python-brace-format: every brace counts
  bool java = false;   // java-format: an apostrophe quotes
  bool lisp = false;   // lisp-format and scheme-format
  bool gcc = false;    // gcc-internal-format

  static Formats of(std::span<const std::string> flags);
};

// From left to right, without overlaps.
std::vector<Placeholder> find_placeholders(std::string_view text, const Formats& formats = {});

// The texts of these, as Request::required takes them.
std::vector<std::string> texts(std::string_view text, std::span<const Placeholder> placeholders);

// Those of them that take their values from a list (%s, not %1$s), so that their order counts.
std::vector<std::string> directives_in_order(std::string_view text, const Formats& formats = {});

// Whether the target has the source's placeholders, each as often, and no others. Directives of printf without a
// number or a name take their values from a list, so they must stand in the same order; tags must be nested if the
// source's are.
bool intact(std::string_view source, std::string_view target, const Formats& formats = {});

// For measuring: of how many placeholders a translation kept how many. An accelerator counts as one.
struct Kept {
  int64_t placeholders = 0, kept = 0, added = 0;
  bool all() const { return kept == placeholders && added == 0; }
};
Kept kept_placeholders(std::string_view source, std::string_view target, const Formats& formats = {});

// The letter of a menu entry that the keyboard chooses: "&File" (Qt, wx, Windows), "_File" (GTK), "~File"
// (LibreOffice).
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

}  // namespace heed::translate
