// Widths, cuts and cleaning of text for a terminal.
#include "apps/terminal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

namespace heed::app {
namespace {

TEST(Terminal, DisplayWidth) {
  EXPECT_EQ(display_width("abc"), 3);
  EXPECT_EQ(display_width("äöü"), 3);
  EXPECT_EQ(display_width("今日は"), 6);
  EXPECT_EQ(display_width("🙂"), 2);
  EXPECT_EQ(display_width("e\u0301"), 1) << "a combining accent takes no column";
  EXPECT_EQ(display_width("ｆｕｌｌ"), 8);
  EXPECT_EQ(display_width("█▏─"), 3);
}

TEST(Terminal, FitNeverExceedsTheWidth) {
  EXPECT_EQ(fit("hello", 5), "hello");
  EXPECT_EQ(fit("hello", 4), "hel…");
  EXPECT_EQ(fit("hello", 4, false), "h...");
  EXPECT_EQ(fit("今日は", 5), "今日…");
  EXPECT_EQ(fit("今日は", 4), "今…") << "half a character does not fit";
  for (int width = 0; width < 8; ++width) {
    EXPECT_LE(display_width(fit("今日は", width)), width);
    EXPECT_LE(display_width(fit("hello", width, false)), width);
  }
}

TEST(Terminal, PrintableCannotMoveTheCursor) {
  EXPECT_EQ(printable("a\x1b[2Jb"), "a\uFFFD[2Jb");
  EXPECT_EQ(printable("a\nb\tc"), "a\uFFFDb\uFFFDc");
  EXPECT_EQ(printable("\xff"), "\uFFFD");
  EXPECT_EQ(printable("\u202Eabc"), "\uFFFDabc") << "no reordering";
  EXPECT_EQ(printable("ä今e\u0301", false), "??e");
}

TEST(Terminal, Words) {
  EXPECT_EQ(thousands(0), "0");
  EXPECT_EQ(thousands(999), "999");
  EXPECT_EQ(thousands(1000), "1,000");
  EXPECT_EQ(thousands(-1234567), "-1,234,567");
  EXPECT_EQ(duration(4.2), "4 s");
  EXPECT_EQ(duration(59.7), "1 min 00 s");
  EXPECT_EQ(duration(3725), "1 h 02 min");
  EXPECT_EQ(duration(-1), "?");
}

TEST(Terminal, TheLocaleDecidesOnUnicodeAndAFileHasNoColour) {
  const int fd = open("/dev/null", O_WRONLY);
  for (const char* name : {"LC_ALL", "LC_CTYPE"}) unsetenv(name);
  setenv("LANG", "de_DE.utf8", 1);
  EXPECT_TRUE(terminal(fd).unicode);
  setenv("LC_ALL", "C", 1);
  EXPECT_FALSE(terminal(fd).unicode);
  setenv("TERM", "xterm", 1);
  EXPECT_FALSE(terminal(fd).tty);
  EXPECT_FALSE(terminal(fd).colour);
  close(fd);
}

}  // namespace
}  // namespace heed::app
