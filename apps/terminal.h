// What a terminal can show (width, colours, Unicode) and how wide a text is on it.
#pragma once

#include <string>
#include <string_view>

namespace heed::app {

// What a file descriptor is connected to.
struct Terminal {
  bool tty = false;      // a person is watching, so redrawing a line makes sense
  bool colour = false;   // a terminal that is not "dumb", and NO_COLOR (no-color.org) is unset or empty
  bool unicode = false;  // the locale's encoding is UTF-8: LC_ALL, LC_CTYPE or LANG says so
  int columns = 80;      // width; of a terminal its own, elsewhere $COLUMNS or 80
};
Terminal terminal(int fd);

// Columns the text takes: East Asian wide characters and emoji 2, combining marks 0, other characters 1.
int display_width(std::string_view text);

// The text with control characters and bytes that are not UTF-8 replaced, so that printing it cannot move the cursor.
// Without unicode, everything outside ASCII becomes '?'.
std::string printable(std::string_view text, bool unicode = true);

// The text cut to `width` columns, with an ellipsis where something was cut.
std::string fit(std::string_view text, int width, bool unicode = true);

// Spaces added on the right or on the left up to `width` columns.
std::string pad_right(std::string_view text, int width);
std::string pad_left(std::string_view text, int width);

// "12,345": thousands separated by commas.
std::string thousands(long long n);

// "3.14": with so many decimals.
std::string fixed(double x, int decimals);

// "93.10%": a share with so many decimals; "-" if it is not finite.
std::string percent(double share, int decimals = 2);

// "4 s", "2 min 05 s", "1 h 02 min".
std::string duration(double seconds);

// The styles used on a terminal. Each gives the text back unchanged when colour is off.
struct Style {
  bool colour = false;
  std::string bold(std::string_view text) const;
  std::string faint(std::string_view text) const;
  std::string accent(std::string_view text) const;
};

}  // namespace heed::app
