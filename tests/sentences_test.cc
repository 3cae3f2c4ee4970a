// Long text in sentences, and nothing lost between them.
#include "apps/translate/documents/sentences.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace heed::translate {
namespace {

using Texts = std::vector<std::string>;

std::string whole(const std::vector<Sentence>& sentences) {
  std::string text;
  for (const Sentence& s : sentences) text += s.before + s.text + s.after;
  return text;
}

Texts split(const std::string& text, int64_t max_words = 100) {
  const std::vector<Sentence> sentences = split_sentences(text, max_words);
  if (!sentences.empty()) {
    EXPECT_EQ(whole(sentences), text);
  }
  Texts list;
  for (const Sentence& s : sentences) list.push_back(s.text);
  return list;
}

std::string repeated(const std::string& text, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += text;
  return out;
}

TEST(Sentences, Ends) {
  EXPECT_EQ(split("One. Two!  Three? Four… Five"), (Texts{"One.", "Two!", "Three?", "Four…", "Five"}));
  EXPECT_EQ(split("  One.\n\tTwo. "), (Texts{"One.", "Two."}));
  EXPECT_EQ(split("He said \"Go.\" She went. (Really.) Yes"),
            (Texts{"He said \"Go.\"", "She went.", "(Really.)", "Yes"}));
  EXPECT_EQ(split("What?! No..."), (Texts{"What?!", "No..."}));
  EXPECT_EQ(split("他走了。她呢？好！"), (Texts{"他走了。", "她呢？", "好！"}));
  EXPECT_EQ(split("Он ушёл. Она нет. «Да.» Нет"), (Texts{"Он ушёл.", "Она нет.", "«Да.»", "Нет"}));
  EXPECT_EQ(split("ذهب. عاد."), (Texts{"ذهب.", "عاد."}));
}

TEST(Sentences, NoEnds) {
  for (const char* one : {"Dr. Smith came.", "See e.g. Figure 3.", "J. S. Bach wrote it.", "am 3. Mai",
                          "Version 1.5 is out.", "z.B. Hunde", "wait... what", "a! b", "example.com is up", "no end"}) {
    EXPECT_EQ(split(one), Texts{one});
  }
  EXPECT_EQ(split(""), Texts{});
  EXPECT_EQ(split(" \n "), Texts{});
}

TEST(Sentences, LongOnesAreCut) {
  EXPECT_EQ(split("a b c d e", 2), (Texts{"a b", "c d", "e"}));
  EXPECT_EQ(split("one two, three four five", 4), (Texts{"one two,", "three four five"}));
  EXPECT_EQ(split("a, b c d e f", 5), (Texts{"a, b c d e", "f"})) << "a comma in the first half is too early";
  const std::string text = repeated("word ", 5000);
  const Texts pieces = split(text);
  EXPECT_EQ(pieces.size(), 50u);
  for (const std::string& piece : pieces) EXPECT_EQ(count_words(piece), 100);
  for (const std::string& piece : split(repeated("字", 1000))) EXPECT_LE(count_words(piece), 101);
  for (const std::string& piece : split(repeated("字，", 1000))) EXPECT_LE(count_words(piece), 101);
  EXPECT_EQ(split(std::string(450, 'x')), (Texts{std::string(200, 'x'), std::string(200, 'x'), std::string(50, 'x')}));
}

TEST(Sentences, AMegabyteTakesNoTime) {
  for (const char* part : {"x", "word ", "a. ", ". ", "字", "ab. Cd ", "\"", "...", "1. "}) {
    const std::string text = repeated(part, static_cast<int>((1 << 20) / std::string(part).size()));
    EXPECT_EQ(whole(split_sentences(text)), text) << part;
  }
}

TEST(Sentences, WordsAreCounted) {
  EXPECT_EQ(count_words(""), 0);
  EXPECT_EQ(count_words(" one  two\nthree "), 3);
  EXPECT_EQ(count_words("你好世界"), 3);
}

}  // namespace
}  // namespace heed::translate
