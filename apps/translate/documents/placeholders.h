// What a translation must keep as it is: format directives, variables, markup, addresses, names of files and options.
#pragma once

#include <cstddef>
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

std::vector<std::string> texts(std::string_view text, std::span<const Placeholder> placeholders);

// Those of them that take their values from a list (%s, not %1$s), so that their order counts.
std::vector<std::string> directives_in_order(std::string_view text, const Formats& formats = {});

// Whether the target has the source's placeholders, each as often, and no others. Directives of printf without a
// number or a name take their values from a list, so they must stand in the same order; tags must be nested if the
// source's are.
bool intact(std::string_view source, std::string_view target, const Formats& formats = {});

}  // namespace heed::translate
