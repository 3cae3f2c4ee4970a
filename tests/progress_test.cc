// The progress line: what is dropped when there is no room, and how often it is written.
#include "apps/progress.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace heed::app {
namespace {

const ProgressState kHalf{0.5, {"step 1,200", "loss 3.412", "4,100 tokens/s"}, 102};

TEST(Progress, LineFitsAnyWidth) {
  for (int columns = 1; columns < 150; ++columns) {
    EXPECT_LE(display_width(progress_line("Training", kHalf, columns, true)), columns);
    EXPECT_LE(display_width(progress_line("Training", kHalf, columns, false)), columns);
  }
  const std::string wide = progress_line("Training", kHalf, 120, true);
  for (const char* part : {"Training", "━", "50%", "step 1,200", "loss 3.412", "4,100 tokens/s", "1 min 42 s left"}) {
    EXPECT_NE(wide.find(part), std::string::npos) << part;
  }
  const std::string narrow = progress_line("Training", kHalf, 60, true);
  EXPECT_NE(narrow.find("left"), std::string::npos);
  EXPECT_EQ(narrow.find("tokens/s"), std::string::npos) << "the last detail goes first";
}

TEST(Progress, OddNumbers) {
  EXPECT_EQ(progress_line("T", {NAN, {"step 1"}, NAN}, 80, false), "T  step 1") << "no bar when the end is not known";
  EXPECT_NE(progress_line("T", {7, {}, -1}, 80, false).find("100%"), std::string::npos);
  EXPECT_EQ(progress_line("T", {0.999, {}, -1}, 80, false).find("100%"), std::string::npos)
      << "100% is done, not nearly";
}

TEST(Progress, TerminalRedrawsAtMostTenTimesASecond) {
  std::string written;
  double time = 0;
  int asked = 0;
  {
    Progress bar(
        "Training", {.tty = true, .columns = 80}, [&](const std::string& text) { written += text; },
        [&] { return time; });
    for (int i = 0; i < 1000; ++i, time += 0.001) bar.update([&] { return ++asked, kHalf; });
    EXPECT_LE(asked, 11);
    EXPECT_GE(asked, 9);
    EXPECT_EQ(written.find('\n'), std::string::npos);
    bar.note("kept");
    EXPECT_NE(written.find("\r\x1b[Kkept\n"), std::string::npos) << "the bar makes way";
    bar.update([&] { return kHalf; });
    written.clear();
  }
  EXPECT_EQ(written, "\r\x1b[K") << "nothing stays when it is gone";
}

TEST(Progress, LogGetsALineNowAndThen) {
  std::string written;
  double time = 0;
  Progress bar(
      "Training", {.tty = false, .columns = 80}, [&](const std::string& text) { written += text; },
      [&] { return time; });
  for (; time < 61; time += 0.5) bar.update([&] { return kHalf; });
  EXPECT_EQ(std::count(written.begin(), written.end(), '\n'), 3);
  EXPECT_EQ(written.find('\r'), std::string::npos);
  EXPECT_EQ(written.find('\x1b'), std::string::npos);
  written.clear();
  bar.done("done");
  time += 100;
  bar.update([&] { return kHalf; });
  EXPECT_EQ(written, "done\n");
}

}  // namespace
}  // namespace heed::app
