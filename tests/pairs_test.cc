// Reading sentence pairs: good files, odd files, bad files; and the split.
#include "apps/translate/pairs.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "said.h"

namespace heed::translate {
namespace {

using heed::tests::error_of;
using heed::tests::expect_in;

namespace fs = std::filesystem;
using namespace std::string_literals;

class PairsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() / ("heed_pairs_" + std::to_string(getpid()));
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string file(const std::string& name, const std::string& text) const {
    const std::string path = (dir_ / name).string();
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::string gz_file(const std::string& name, const std::string& text) const {
    const std::string path = (dir_ / name).string();
    const gzFile out = gzopen(path.c_str(), "wb");
    EXPECT_EQ(gzwrite(out, text.data(), static_cast<unsigned>(text.size())), static_cast<int>(text.size()));
    gzclose(out);
    return path;
  }

  fs::path dir_;
};

TEST_F(PairsTest, TsvTakesTwoColumnsAndCountsWhatItLeaves) {
  const std::string text =
      "\xEF\xBB\xBFGo.\tGeh.\tCC-BY 2.0 (France) #1 (A) & #2 (B)\r\n"
      "\n"
      "   \t  \r\n"
      "only one column\n"
      "Hi!\t\tthird\n"
      "\tHallo!\n"
      "bad \xe4\tb\n" +
      "nul\0l\tx\n"s + std::string(6000, 'x') + "\ty\n" + "  äöü 你好 \t Straße\v\n" + "last\tletzte";
  const PairFile f = read_tsv(file("a.tsv", text));
  EXPECT_EQ(f.pairs, (std::vector<Pair>{{"Go.", "Geh."}, {"äöü 你好", "Straße"}, {"last", "letzte"}}));
  EXPECT_EQ(f.lines, 11);
  EXPECT_EQ(f.skipped_empty, 4);
  EXPECT_EQ(f.skipped_columns, 1);
  EXPECT_EQ(f.skipped_utf8, 2);
  EXPECT_EQ(f.skipped_long, 1);
  EXPECT_EQ(f.lines, f.skipped() + static_cast<int64_t>(f.pairs.size()));
  EXPECT_EQ(f.summary(),
            "3 pairs of 11 read; skipped: 4 empty, 2 not UTF-8 text, 1 longer than 5,000 bytes, 1 without a tab");
  EXPECT_EQ(read_pairs(gz_file("b.txt.gz", text)).pairs, f.pairs);
  EXPECT_EQ(read_pairs(gz_file("B.TSV.GZ", text)).pairs, f.pairs);
  EXPECT_EQ(read_tsv(file("c.tsv", "a\tb\n")).summary(), "1 pair");
}

TEST_F(PairsTest, TheLimitOnLinesIsExact) {
  const std::string fits = "a\t" + std::string(kMaxLineBytes - 2, 'b');
  const PairFile f = read_tsv(file("a.tsv", fits + "\r\n" + fits + "c\r\n" + fits + "\n" + fits));
  EXPECT_EQ(f.pairs.size(), 3u);
  EXPECT_EQ(f.skipped_long, 1);
}

TEST_F(PairsTest, HugeLinesCostNeitherMemoryNorTime) {
  std::string text = "a\tb\n" + std::string(50'000'000, 'x') + "\nc\td\n";
  for (int i = 0; i < 2000; i++) text += std::string(20'000, '\t') + "\n";
  const std::string path = gz_file("a.tsv.gz", text);
  const auto start = std::chrono::steady_clock::now();
  const PairFile f = read_tsv(path);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  EXPECT_EQ(f.pairs.size(), 2u);
  EXPECT_EQ(f.skipped_long, 2001);
}

TEST_F(PairsTest, LineAlignedFiles) {
  const std::string de = gz_file("a.de.gz", "Haus\r\n\nTür\nb\xe4\nx\n");
  const PairFile f = read_lines(file("a.en", "house\nempty there\ndoor\nbad there\n\n"), de);
  EXPECT_EQ(f.pairs, (std::vector<Pair>{{"house", "Haus"}, {"door", "Tür"}}));
  EXPECT_EQ(f.lines, 5);
  EXPECT_EQ(f.skipped_empty, 2);
  EXPECT_EQ(f.skipped_utf8, 1);
  // A tab is nothing special here.
  EXPECT_EQ(read_lines(file("t", "a\tb\n"), file("u", "c")).pairs, (std::vector<Pair>{{"a\tb", "c"}}));

  const std::string what = error_of([&] { read_lines(file("b.en", "1\n2\n3\n"), de); });
  expect_in("b.en has 3 lines", what);
  expect_in("a.de.gz has 5;", what);
  expect_in("c.en is empty", error_of([&] { read_lines(file("c.en", ""), de); }));
}

TEST_F(PairsTest, Sentences) {
  const SentenceFile f = read_sentences(file("a", "one\r\n\n zwei \nb\xff\n"));
  EXPECT_EQ(f.sentences, (std::vector<std::string>{"one", "zwei"}));
  EXPECT_EQ(f.summary(), "2 sentences of 4 read; skipped: 1 empty, 1 not UTF-8 text");
}

TEST_F(PairsTest, OneClearSentenceForWhatCannotBeRead) {
  for (const std::string ending : {".tsv", ".txt", ".po", ".mo", ".tsv.gz", ".mo.gz"}) {
    expect_in("there is no such file", error_of([&] { read_pairs((dir_ / ("no" + ending)).string()); }));
    fs::create_directories(dir_ / ("dir" + ending));
    expect_in("is a directory", error_of([&] { read_pairs((dir_ / ("dir" + ending)).string()); }));
    expect_in("is empty", error_of([&] { read_pairs(file("empty" + ending, "")); }));
  }
  expect_in("one.tsv line 1 has 1 column; a pair needs source, a tab and target",
            error_of([&] { read_tsv(file("one.tsv", "abc\ndef\n")); }));
  expect_in("two.tsv line 3 has 1 column", error_of([&] { read_tsv(file("two.tsv", "\n\nabc\n")); }));
  expect_in("none of its 2 lines is UTF-8", error_of([&] { read_tsv(file("l.tsv", "\xe4\ta\n\n\xfc\tb\n")); }));
  expect_in("UTF-16", error_of([&] { read_tsv(file("w.tsv", "\xff\xfe"s + "a\0\t\0"s)); }));
  expect_in("no usable pair", error_of([&] { read_tsv(file("blank.tsv", "\n\n \n")); }));
  expect_in(".tsv, .txt, .po, .mo or .tmx", error_of([&] { read_pairs(file("a.docx", "x")); }));

  std::ifstream in(gz_file("good.tsv.gz", "a\tb\n" + std::string(3000, 'z') + "\n"), std::ios::binary);
  const std::string gz((std::istreambuf_iterator<char>(in)), {});
  expect_in("cut off", error_of([&] { read_tsv(file("cut.tsv.gz", gz.substr(0, gz.size() - 9))); }));
  std::string damaged = gz;
  damaged[gz.size() / 2] = static_cast<char>(damaged[gz.size() / 2] ^ 0x55);
  expect_in("damaged", error_of([&] { read_tsv(file("damaged.tsv.gz", damaged)); }));
  expect_in("10 bytes", error_of([&] { read_bytes(file("big", "12345678901"), 10); }));
}

TEST_F(PairsTest, CataloguesAreReadAndCleaned) {
  const std::string po =
      "msgid \"\"\nmsgstr \"Content-Type: text/plain; charset=UTF-8\\n\"\n\n"
      "msgid \"_Open File\"\nmsgstr \"Datei ö_ffnen\"\n\nmsgid \"Later\"\nmsgstr \"\"\n\n"
      "#, fuzzy\nmsgid \"Close\"\nmsgstr \"Klo\"\n\nmsgid \"OK\"\nmsgstr \"OK\"\n";
  const PairFile f = read_pairs(gz_file("de.po.gz", po));
  EXPECT_EQ(f.pairs, (std::vector<Pair>{{"Open File", "Datei öffnen"}}));
  EXPECT_EQ(f.lines, 4);
  EXPECT_EQ(f.skipped_empty, 1);
  EXPECT_EQ(f.skipped_unfit, 2);
  expect_in("no usable pair", error_of([&] { read_pairs(file("x.po", "msgid \"a\"\nmsgstr \"\"\n")); }));
}

TEST(Split, KeepsNearlyEqualSourcesTogether) {
  EXPECT_EQ(split_key("Save as… (Ctrl+S)"), "saveasctrls");
  EXPECT_EQ(split_key("ÜBER 12"), split_key("über 99!"));
  EXPECT_EQ(split_key("1 + 2"), "1+2");
  std::vector<Pair> pairs;
  for (int i = 0; i < 5000; i++) {
    const std::string word = "w" + std::string(1, static_cast<char>('a' + i % 26)) +
                             std::string(1, static_cast<char>('a' + i / 26 % 26)) +
                             std::string(1, static_cast<char>('a' + i / 676));
    pairs.push_back({word + " open", "x"});
    pairs.push_back({word + " OPEN " + std::to_string(i) + "!", "y"});
  }
  const Split split = split_pairs(pairs, 0.1);
  EXPECT_EQ(split.train.size() + split.held_out.size(), pairs.size());
  EXPECT_NEAR(static_cast<double>(split.held_out.size()), 1000, 150);
  std::map<std::string, int> sides;
  for (const Pair& p : split.train) sides[split_key(p.source)] |= 1;
  for (const Pair& p : split.held_out) sides[split_key(p.source)] |= 2;
  for (const auto& [key, side] : sides) EXPECT_NE(side, 3) << key;

  // A pair's side depends on nothing but itself, and is a promise: these are the values of the first release.
  const Split part = split_pairs(std::span(pairs).subspan(4000, 100), 0.1);
  for (const Pair& p : part.held_out) {
    EXPECT_NE(std::find(split.held_out.begin(), split.held_out.end(), p), split.held_out.end()) << p.source;
  }
  std::string sides_of;
  for (const char* s : {"Open", "Close", "Save as", "Undo", "Redo", "你好", "12:30", "Haus"}) {
    sides_of += split_pairs(std::vector<Pair>{{s, "x"}}, 0.5).held_out.empty() ? 't' : 'h';
  }
  EXPECT_EQ(sides_of, "thhththh");

  // What is left can be split again, with another salt.
  EXPECT_TRUE(split_pairs(split.train, 0.1).held_out.empty());
  const double again = static_cast<double>(split_pairs(split.train, 0.1, 1).held_out.size());
  EXPECT_NEAR(again / static_cast<double>(split.train.size()), 0.1, 0.02);

  EXPECT_TRUE(split_pairs(pairs, 0).held_out.empty());
  EXPECT_TRUE(split_pairs(pairs, 1).train.empty());
  EXPECT_THROW(split_pairs(pairs, 1.5), Error);
  EXPECT_THROW(split_pairs(pairs, -0.1), Error);
}

TEST(Pairs, ReadsTheSharedData) {
  const char* shared = std::getenv("HEED_SHARED");
#ifdef HEED_SHARED_DIR
  if (shared == nullptr) shared = HEED_SHARED_DIR;
#endif
  const std::string dir = std::string(shared ? shared : "") + "/data/multi30k/";
  if (!fs::exists(dir + "val.en.gz")) GTEST_SKIP() << dir << "val.en.gz is not there";
  const PairFile f = read_lines(dir + "val.en.gz", dir + "val.de.gz");
  EXPECT_EQ(f.pairs.size(), 1014u);
  EXPECT_EQ(f.skipped(), 0);
}

}  // namespace
}  // namespace heed::translate
