// BLEU and chrF against sacrebleu 2.4.3. The goldens are synthetic text and come from
//   python3 -m venv /tmp/golden && /tmp/golden/bin/pip install sacrebleu==2.4.3
//   /tmp/golden/bin/python tests/data/make_metrics_golden.py
#include "apps/translate/metrics.h"

#include <gtest/gtest.h>
#include <heed/attention.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

std::string data_path(const std::string& name) {
#ifdef HEED_TEST_DATA
  return std::string(HEED_TEST_DATA) + "/" + name;
#else
  return (std::filesystem::path(__FILE__).parent_path() / "data" / name).string();
#endif
}

struct Golden {
  std::vector<std::string> hyps, refs;
  nlohmann::json json;
};

const Golden& golden() {
  static const Golden loaded = [] {
    Golden g;
    std::ifstream tsv(data_path("metrics_golden.tsv"), std::ios::binary);
    for (std::string line; std::getline(tsv, line);) {
      const size_t tab = line.find('\t');
      g.hyps.push_back(line.substr(0, tab));
      g.refs.push_back(line.substr(tab + 1));
    }
    std::ifstream json(data_path("metrics_golden.json"));
    if (json) g.json = nlohmann::json::parse(json);
    return g;
  }();
  return loaded;
}

void expect_bleu(const Bleu& got, const nlohmann::json& want) {
  EXPECT_NEAR(got.score, want["score"].get<double>(), 1e-9);
  for (int n = 0; n < 4; n++) EXPECT_NEAR(got.precisions[n], want["precisions"][n].get<double>(), 1e-9) << n;
  EXPECT_NEAR(got.brevity_penalty, want["bp"].get<double>(), 1e-12);
  EXPECT_EQ(got.hyp_len, want["hyp_len"].get<int64_t>());
  EXPECT_EQ(got.ref_len, want["ref_len"].get<int64_t>());
}

TEST(Metrics, EqualSacrebleuOnTheWholeCorpusAndOnParts) {
  const Golden& g = golden();
  ASSERT_EQ(g.hyps.size(), 1000u) << "tests/data/metrics_golden.tsv is missing or damaged";
  ASSERT_GE(g.json["scores"].size(), 40u);
  for (const auto& row : g.json["scores"]) {
    const size_t first = row["first"], last = row["last"];
    SCOPED_TRACE("lines " + std::to_string(first) + " to " + std::to_string(last));
    const auto hyps = std::span(g.hyps).subspan(first, last - first);
    const auto refs = std::span(g.refs).subspan(first, last - first);
    EXPECT_NEAR(chrf(hyps, refs), row["chrf"].get<double>(), 1e-9);
    expect_bleu(bleu(hyps, refs), row["13a"]);
    expect_bleu(bleu(hyps, refs, {.lowercase = true}), row["13a_lc"]);
    expect_bleu(bleu(hyps, refs, {.tokenize = BleuOptions::Tokenize::kNone}), row["none"]);
    expect_bleu(bleu(hyps, refs, {.lowercase = true, .tokenize = BleuOptions::Tokenize::kNone}), row["none_lc"]);
    expect_bleu(bleu(hyps, refs, {.tokenize = BleuOptions::Tokenize::kZh}), row["zh"]);
    expect_bleu(bleu(hyps, refs, {.tokenize = BleuOptions::Tokenize::kChar}), row["char"]);
  }
}

TEST(Metrics, TokenisesAndLowersLikeSacrebleuLineByLine) {
  const Golden& g = golden();
  ASSERT_EQ(g.json["tokens_13a"].size(), 200u);
  for (size_t i = 0; i < 200; i++) {
    EXPECT_EQ(tokenize_13a(g.refs[i]), g.json["tokens_13a"][i].get<std::string>()) << "line " << i;
    EXPECT_EQ(lower(g.refs[i]), g.json["lower"][i].get<std::string>()) << "line " << i;
  }
}

TEST(Metrics, Tokenises13a) {
  EXPECT_EQ(tokenize_13a("Er sagte: \"3,5 km/h\", oder?"), "Er sagte : \" 3,5 km / h \" , oder ?");
  EXPECT_EQ(tokenize_13a("&quot;a&quot; &amp;lt; b-c 5-6 don't"), "\" a \" < b-c 5 - 6 don't");
  EXPECT_EQ(tokenize_13a("well-\nknown a\nb"), "wellknown a b");
  EXPECT_EQ(tokenize_13a("你好。ü.ü"), "你好。ü . ü");
  EXPECT_EQ(tokenize_13a(""), "");
}

TEST(Metrics, PerfectAndHopeless) {
  const std::vector<std::string> refs = {"the quick brown fox jumps", "das ist ein kleines Haus"};
  EXPECT_NEAR(bleu(refs, refs).score, 100, 1e-12);
  EXPECT_NEAR(chrf(refs, refs), 100, 1e-12);
  const std::vector<std::string> empty = {"", ""};
  const Bleu none = bleu(empty, refs);
  EXPECT_EQ(none.score, 0);
  EXPECT_EQ(none.brevity_penalty, 0);
  EXPECT_EQ(none.hyp_len, 0);
  EXPECT_EQ(none.ref_len, 10);
  EXPECT_EQ(chrf(empty, refs), 0);
  EXPECT_EQ(bleu(empty, empty).score, 0);
  EXPECT_EQ(chrf(empty, empty), 0);
}

TEST(Metrics, SmoothsEachEmptyOrderByHalf) {
  // 1-grams 3/4, 2-grams 1/3, 3- and 4-grams none of 2 and 1: 1/(2*2) and 1/(4*1).
  const std::vector<std::string> hyp = {"a b x c"}, ref = {"a b c d"};
  const Bleu b = bleu(hyp, ref);
  EXPECT_NEAR(b.precisions[0], 75, 1e-12);
  EXPECT_NEAR(b.precisions[1], 100.0 / 3, 1e-12);
  EXPECT_NEAR(b.precisions[2], 25, 1e-12);
  EXPECT_NEAR(b.precisions[3], 25, 1e-12);
  EXPECT_EQ(b.summary(), "BLEU = 35.36 75.0/33.3/25.0/25.0 (BP = 1.000 ratio = 1.000 hyp_len = 4 ref_len = 4)");
}

TEST(Metrics, DifferentNumbersOfSentencesAreAnErrorWithBothNumbers) {
  const std::vector<std::string> three(3, "a"), two(2, "a"), none;
  for (const auto& run : {+[](std::span<const std::string> h, std::span<const std::string> r) { bleu(h, r); },
                          +[](std::span<const std::string> h, std::span<const std::string> r) { chrf(h, r); }}) {
    try {
      run(three, two);
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("3 hypotheses and 2 references"), std::string::npos) << e.what();
    }
    EXPECT_THROW(run(none, none), Error);
  }
}

TEST(Metrics, BytesThatAreNotUtf8DoNoHarm) {
  const std::vector<std::string> hyp = {"ab\xff\xc3(\xe2\x82", "\x80\x80"}, ref = {"ab\xff\xc3(\xe2\x82", "x"};
  EXPECT_GT(bleu(hyp, ref).hyp_len, 0);
  EXPECT_GT(chrf(hyp, ref), 0);
}

TEST(Utf8, ChecksAndRoundTrips) {
  for (const char* good : {"", "abc", "äöü", "你好", "🙂", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(is_utf8(good)) << good;
    EXPECT_EQ(encode_utf8(decode_utf8(good)), good);
  }
  for (const char* bad :
       {"\x80", "\xc0\xaf", "\xc3", "\xe2\x82", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff", "a\xe4z"}) {
    EXPECT_FALSE(is_utf8(bad));
  }
  EXPECT_EQ(decode_utf8("a\xe4z"), U"a\xFFFDz");
  EXPECT_EQ(lower("ÄÖÜẞ ΣΊΣΥΦΟΣ ÀÉ ДОМ"), "äöüß σίσυφος àé дом");
}

}  // namespace
}  // namespace heed::translate
