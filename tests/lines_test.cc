// Lines from a pipe: ends, huge lines, and answers while the other side waits.
#include "apps/lines.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

namespace heed::app {
namespace {

// All lines of `text`, read through a pipe `most` at a time.
std::vector<LineReader::Line> lines_of(const std::string& text, int64_t max_bytes, int64_t most) {
  int ends[2];
  if (pipe(ends) != 0) throw Error("no pipe");
  std::thread writer([&] {
    for (size_t at = 0; at < text.size();) {
      const ssize_t n = write(ends[1], text.data() + at, text.size() - at);
      if (n <= 0) break;
      at += static_cast<size_t>(n);
    }
    close(ends[1]);
  });
  LineReader reader(ends[0], max_bytes);
  std::vector<LineReader::Line> all;
  for (;;) {
    const std::vector<LineReader::Line> some = reader.read(most);
    if (some.empty()) break;
    EXPECT_LE(static_cast<int64_t>(some.size()), most);
    all.insert(all.end(), some.begin(), some.end());
  }
  writer.join();
  close(ends[0]);
  return all;
}

std::vector<std::string> texts(const std::vector<LineReader::Line>& lines) {
  std::vector<std::string> list;
  for (const LineReader::Line& line : lines) list.push_back(line.too_long ? "<too long>" : line.text);
  return list;
}

using Texts = std::vector<std::string>;

TEST(Lines, EveryKindOfEnd) {
  for (const int64_t most : {1, 2, 100}) {
    EXPECT_EQ(texts(lines_of("", 10, most)), Texts{});
    EXPECT_EQ(texts(lines_of("\n", 10, most)), Texts{""});
    EXPECT_EQ(texts(lines_of("a\r\nb\n\nc", 10, most)), (Texts{"a", "b", "", "c"}));
    EXPECT_EQ(texts(lines_of("a\n", 10, most)), Texts{"a"});
    EXPECT_EQ(texts(lines_of(std::string("a\0b\n", 4), 10, most)), Texts{std::string("a\0b", 3)});
  }
}

TEST(Lines, LimitIsExact) {
  EXPECT_EQ(texts(lines_of("1234567890\n", 10, 5)), Texts{"1234567890"});
  EXPECT_EQ(texts(lines_of("1234567890\r\n", 10, 5)), Texts{"1234567890"});
  EXPECT_EQ(texts(lines_of("12345678901\n", 10, 5)), Texts{"<too long>"});
  EXPECT_EQ(texts(lines_of("12345678901", 10, 5)), Texts{"<too long>"});
  std::string text(1 << 20, 'x');
  text += "\nshort\n";
  text.append(1 << 18, 'y');
  EXPECT_EQ(texts(lines_of(text, 5000, 5)), (Texts{"<too long>", "short", "<too long>"}));
}

TEST(Lines, LinesThatCrossBlocksStayWhole) {
  std::string text;
  Texts wanted;
  for (int i = 0; i < 3000; ++i) {
    wanted.push_back(std::string(static_cast<size_t>(i % 97), 'a' + i % 26));
    text += wanted.back() + "\n";
  }
  EXPECT_EQ(texts(lines_of(text, 5000, 64)), wanted);
}

TEST(Lines, AnswersBeforeTheInputEnds) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  LineReader reader(ends[0], 100);
  for (const char* text : {"one\n", "two\n"}) {
    ASSERT_EQ(write(ends[1], text, 4), 4);
    // Would wait for ever if it insisted on more lines.
    const std::vector<LineReader::Line> lines = reader.read(100);
    ASSERT_EQ(lines.size(), 1u);
    EXPECT_EQ(lines[0].text, std::string(text, 3));
  }
  close(ends[1]);
  EXPECT_TRUE(reader.read(100).empty());
  close(ends[0]);
}

TEST(Lines, SaysWhyReadingFails) {
  LineReader reader(-1, 100);
  EXPECT_THROW(reader.read(1), Error);
}

}  // namespace
}  // namespace heed::app
