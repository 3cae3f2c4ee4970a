// `heed explain`: the numbers against a plain computation in double, and the text that shows them.
#include "apps/explain.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "apps/terminal.h"

namespace heed::app {
namespace {

const Terminal kPlain{.tty = false, .colour = false, .unicode = true, .columns = 80};

// Weights and results from e.q, e.kv and e.w, the textbook way.
void check_against_plain(const Explanation& e) {
  const size_t L = e.query.size(), S = e.text.size(), D = static_cast<size_t>(e.options.dim);
  for (size_t i = 0; i < L; ++i) {
    std::vector<double> s(S, -std::numeric_limits<double>::infinity());
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (size_t j = 0; j < S; ++j) {
      if (e.options.causal && j + L > i + S) continue;
      double dot = 0;
      for (size_t d = 0; d < D; ++d) {
        const double q = e.q[i * D + d], k = e.kv[j * D + d];
        dot += e.options.score == Score::dot ? q * k : e.w[d] * std::tanh(q + k);
      }
      s[j] = e.options.score == Score::dot ? dot / std::sqrt(static_cast<double>(D)) : dot;
      largest = std::max(largest, s[j]);
    }
    for (size_t j = 0; j < S; ++j) sum += std::isinf(largest) ? 0 : std::exp(s[j] - largest);
    std::vector<double> out(D, 0.0);
    for (size_t j = 0; j < S; ++j) {
      const double w = sum == 0 ? 0 : std::exp(s[j] - largest) / sum;
      if (std::isinf(s[j])) {
        EXPECT_EQ(e.scores[i * S + j], -std::numeric_limits<float>::infinity());
      } else {
        EXPECT_NEAR(e.scores[i * S + j], s[j], 1e-4);
      }
      EXPECT_NEAR(e.weights[i * S + j], w, 1e-5);
      for (size_t d = 0; d < D; ++d) out[d] += w * e.kv[j * D + d];
    }
    for (size_t d = 0; d < D; ++d) {
      EXPECT_NEAR(e.out[i * D + d], out[d], 1e-4);
      EXPECT_NEAR(e.fused[i * D + d], out[d], 1e-4);
    }
  }
  EXPECT_LT(e.difference, 1e-5);
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++n;
  return n;
}

int widest_line(const std::string& text) {
  int widest = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) widest = std::max(widest, display_width(line));
  return widest;
}

TEST(Explain, MatchesThePlainFormula) {
  for (const Score score : {Score::dot, Score::additive}) {
    for (const bool causal : {false, true}) {
      for (const int64_t dim : {1, 8, 33}) {
        check_against_plain(explain("hello world", "AI and deep learning", {dim, score, causal}));
        check_against_plain(explain("one two three four", "a b", {dim, score, causal}));
      }
    }
  }
}

TEST(Explain, VectorsDependOnTheLettersAlone) {
  EXPECT_EQ(word_vector("learning", 8), word_vector("LEARNING", 8));
  const auto cosine = [](const std::string& a, const std::string& b) {
    const std::vector<float> x = word_vector(a, 256), y = word_vector(b, 256);
    double dot = 0;
    for (size_t i = 0; i < x.size(); ++i) dot += double{x[i]} * y[i];
    return dot / 256;
  };
  EXPECT_NEAR(cosine("learn", "learn"), 1, 1e-5);  // the length is sqrt(dim)
  EXPECT_GT(cosine("learn", "learning"), 0.4);
  EXPECT_LT(std::abs(cosine("learn", "quick")), 0.2);
  // Fixed for ever, on every machine: the guide quotes numbers made of these.
  const std::vector<float> hello = word_vector("hello", 8);
  EXPECT_NEAR(hello[0], 1.5750, 1e-3);
  EXPECT_NEAR(hello[7], 0.1320, 1e-3);
}

TEST(Explain, TextShowsTheStepsInOrder) {
  const Explanation e = explain("hello world", "AI and deep learning");
  const std::string text = describe(e, kPlain);
  for (const char* part : {"hello", "world", "AI", "deep", "learning", "not learned", "1  score", "2  weigh",
                           "3  gather", "1.000", "heed::forward", "█"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part;
  }
  EXPECT_LT(text.find("1  score"), text.find("2  weigh"));
  EXPECT_LT(text.find("2  weigh"), text.find("3  gather"));
  EXPECT_EQ(text.find('\x1b'), std::string::npos) << "no colours without a terminal";
  char weight[16];
  std::snprintf(weight, sizeof weight, "%.3f", e.weights[3]);
  EXPECT_NE(text.find(weight), std::string::npos);
}

TEST(Explain, WithoutUnicodeOnlyAscii) {
  Terminal ascii = kPlain;
  ascii.unicode = false;
  const std::string text = describe(explain("héllo wörld 今日", "ÄI and déep 今日は"), ascii);
  for (const char c : text) ASSERT_LT(static_cast<unsigned char>(c), 0x80);
  EXPECT_NE(text.find('#'), std::string::npos);
}

TEST(Explain, FitsTheTerminalAndAlignsWideCharacters) {
  for (const int columns : {40, 60, 80, 200}) {
    Terminal t = kPlain;
    t.columns = columns;
    for (const int64_t dim : {1, 8, 300}) {
      const std::string text =
          describe(explain("今日は 🙂 e\u0301t\u00e9", "今日 Donaudampfschifffahrt x", {dim}), t);
      EXPECT_LE(widest_line(text), columns);
    }
  }
  // Numbers of the same column end at the same place beside a wide and a narrow word.
  const std::string text = describe(explain("a", "今日 bb"), kPlain);
  int ends[2] = {-1, -1};
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("    今日") && ends[0] < 0) ends[0] = display_width(line);
    if (line.starts_with("    bb") && ends[1] < 0) ends[1] = display_width(line);
  }
  EXPECT_GT(ends[0], 0);
  EXPECT_EQ(ends[0], ends[1]);
}

TEST(Explain, LongTextShowsTenAndSumsTheRest) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "word" + std::to_string(i) + " ";
  const Explanation e = explain("word7", text);
  const std::string shown = describe(e, kPlain);
  EXPECT_LT(count(shown, "\n"), 80u);
  EXPECT_EQ(count(shown, "990 others"), 3u);
  double sum = 0;
  for (const float w : e.weights) sum += w;
  EXPECT_NEAR(sum, 1, 1e-4);
  EXPECT_NE(shown.find("1.000"), std::string::npos);

  // Eleven words take no more room than ten and a line for the rest.
  EXPECT_EQ(describe(explain("a", "b c d e f g h i j k l"), kPlain).find("other"), std::string::npos);
}

TEST(Explain, CausalSaysWhatIsNotSeen) {
  const std::string text = describe(explain("a b c", "x y", {.causal = true}), kPlain);
  EXPECT_NE(text.find("not seen"), std::string::npos);
  EXPECT_NE(text.find("it sees no word"), std::string::npos);
  EXPECT_EQ(text.find("inf"), std::string::npos);
  EXPECT_EQ(text.find("nan"), std::string::npos);
}

TEST(Explain, BadInput) {
  EXPECT_THROW(explain("", "a"), Error);
  EXPECT_THROW(explain("a", " \t\n\u3000"), Error);
  EXPECT_THROW(explain("a", "b", {.dim = 0}), Error);
  EXPECT_THROW(explain("a", "b", {.dim = ExplainOptions::kMaxDim + 1}), Error);
  // Bytes that are no text, and what would move the cursor, are shown as replacement characters.
  const std::string text = describe(explain("\xff\xfe a\x1b[31mb", "\xc3 \x01"), kPlain);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_NE(text.find("\uFFFD"), std::string::npos);
}

}  // namespace
}  // namespace heed::app
