// Terminology: reading it, and finding terms in a text.
#include "apps/translate/documents/terms.h"

#include <gtest/gtest.h>
#include <heed/attention.h>

#include <functional>
#include <string>
#include <vector>

namespace heed::translate {
namespace {

using Texts = std::vector<std::string>;

Texts targets(const Terms& terms, const std::string& text) {
  Texts list;
  for (const TermMatch& match : terms.find(text)) list.push_back(match.term->target);
  return list;
}

std::string error(const std::string& text) {
  try {
    Terms::parse(text, "t.tsv");
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Terms, AreFound) {
  const Terms terms = Terms::parse(
      "\xEF\xBB\xBF# our words\n\nfile\tDatei\r\nhard "
      "disk\tFestplatte\tnoun\ndisk\tPlatte\nIT\tEDV\nStraße\tstreet\nC++\tC++\n"
      "文件\tfile\ne-mail\tE-Mail\n",
      "t.tsv");
  EXPECT_EQ(terms.terms().size(), 8u);
  EXPECT_EQ(targets(terms, "The File, the FILE and a file."), (Texts{"Datei", "Datei", "Datei"}));
  EXPECT_EQ(targets(terms, "files, profile, file2, file_name"), Texts{"Datei"}) << "whole words";
  EXPECT_EQ(targets(terms, "a hard  disk and a disk, hard\ndisk"), (Texts{"Festplatte", "Platte", "Festplatte"}));
  EXPECT_EQ(targets(terms, "Is it IT? It is."), Texts{"EDV"}) << "capitals inside count";
  EXPECT_EQ(targets(terms, "STRASSE straße"), Texts{"street"});
  EXPECT_EQ(targets(terms, "C++ or C"), Texts{"C++"});
  EXPECT_EQ(targets(terms, "打开文件夹"), Texts{"file"});
  EXPECT_EQ(targets(terms, "an E-mail, an e mail"), Texts{"E-Mail"});
  EXPECT_EQ(targets(terms, ""), Texts{});
  EXPECT_TRUE(targets(Terms(), "file").empty());
}

TEST(Terms, TheLongestWins) {
  const Terms terms = Terms::parse("a b\t1\nb c d\t2\nc\t3\n", "t.tsv");
  EXPECT_EQ(targets(terms, "a b c d"), Texts{"2"});
  EXPECT_EQ(targets(terms, "a b c"), (Texts{"1", "3"}));
  const std::string text = "x a b y";
  const std::vector<TermMatch> found = terms.find(text);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(text.substr(found[0].begin, found[0].end - found[0].begin), "a b");
}

TEST(Terms, ErrorsNameTheLine) {
  EXPECT_NE(error("a\tb\nno tab\n").find("t.tsv line 2 has 1 column"), std::string::npos);
  EXPECT_NE(error("a\t\n").find("line 1 has an empty target"), std::string::npos);
  EXPECT_NE(error("\tb\n").find("line 1 has an empty source"), std::string::npos);
  EXPECT_NE(error("\xc2\xa0\tb\n").find("white space alone"), std::string::npos);
  EXPECT_NE(error("a\tb\n\xff\tb\n").find("line 2 is not UTF-8"), std::string::npos);
  EXPECT_NE(error("\xff\xfe"
                  "a")
                .find("UTF-16"),
            std::string::npos);
  EXPECT_NE(error("a\tb\nA\tc\n").find("line 2 translates \"A\" as \"c\", and line 1 as \"b\""), std::string::npos);
  EXPECT_EQ(error("a\tb\nA\tb\nUS\tx\nus\ty\n"), "no error");
  EXPECT_TRUE(Terms::parse("", "t.tsv").empty());
}

}  // namespace
}  // namespace heed::translate
