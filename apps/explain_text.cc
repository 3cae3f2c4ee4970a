// `heed explain` as text: aligned columns, bars, and words in plain language between them.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "apps/explain.h"

namespace heed::app {
namespace {

constexpr size_t kShownKeys = 10;     // of each query word, those with the largest weights
constexpr size_t kShownQueries = 10;  // the first
constexpr int kWidestWord = 24;       // columns
constexpr int kWidestBar = 32;

std::string number(double x, int width, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%*.*f", width, decimals, x);
  // "-0.00" would make readers look for a meaning.
  if (std::string_view(text).find_first_of("123456789") == std::string_view::npos) {
    std::snprintf(text, sizeof text, "%*.*f", width, decimals, 0.0);
  }
  return text;
}

// A bar for a share of 1, in eighths of a column where there is Unicode.
std::string bar(double share, int columns, bool unicode) {
  static const char* const kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  share = std::clamp(share, 0.0, 1.0);
  std::string out;
  if (!unicode) return std::string(static_cast<size_t>(std::lround(share * columns)), '#');
  const long eighths = std::lround(share * columns * 8);
  for (long i = 0; i < eighths / 8; ++i) out += "█";
  return out + kEighths[eighths % 8];
}

// The rows of the table for one query word: which words of the text, and what is left out.
struct Selection {
  std::vector<size_t> shown;   // in the order of the text
  std::vector<size_t> others;  // seen but not shown
  size_t hidden = 0;           // excluded by the mask and not shown
};

Selection select(const Explanation& e, size_t i) {
  const size_t S = e.text.size();
  std::vector<size_t> order(S);
  std::iota(order.begin(), order.end(), size_t{0});
  if (S > kShownKeys + 1) {  // one word more is shown rather than summed: it takes the same line
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return e.weights[i * S + a] > e.weights[i * S + b]; });
  }
  Selection s;
  for (size_t n = 0; n < S; ++n) {
    if (n < kShownKeys || S <= kShownKeys + 1) {
      s.shown.push_back(order[n]);
    } else if (std::isinf(e.scores[i * S + order[n]])) {
      ++s.hidden;
    } else {
      s.others.push_back(order[n]);
    }
  }
  std::sort(s.shown.begin(), s.shown.end());
  return s;
}

class Writer {
 public:
  Writer(const Explanation& e, const Terminal& t)
      : e_(e), style_{t.colour}, unicode_(t.unicode), columns_(std::max(t.columns, 20)) {
    // Only what is shown has a say in the width of the first column.
    const auto widen = [&](const std::string& word) {
      word_width_ = std::max(word_width_, display_width(printable(word, unicode_)));
    };
    for (size_t i = 0; i < std::min(e.query.size(), kShownQueries + 1); ++i) {
      widen(e.query[i]);
      for (size_t j : select(e, i).shown) widen(e.text[j]);
    }
    for (size_t j = 0; j < std::min(e.text.size(), kShownKeys + 1); ++j) widen(e.text[j]);
    word_width_ = std::min(word_width_, kWidestWord);
    // What fits beside the words in the table of vectors, the widest of all.
    const int room = columns_ - kIndent - kName - word_width_ - 2;
    numbers_ = static_cast<size_t>(std::clamp<int64_t>(room / kNumber, 1, e.options.dim));
  }

  std::string write() {
    introduction();
    for (size_t i = 0; i < std::min(e_.query.size(), kShownQueries); ++i) query_word(i);
    if (e_.query.size() > kShownQueries) {
      line("");
      paragraph("The other " + thousands(static_cast<long long>(e_.query.size() - kShownQueries)) +
                " words of the query go the same way and are not shown.");
    }
    fused();
    return out_;
  }

 private:
  static constexpr int kIndent = 4;
  static constexpr int kName = 5;    // columns of "q" and "k, v"
  static constexpr int kNumber = 7;  // columns of one number of a vector

  std::string sign(const char* unicode, const char* ascii) const { return unicode_ ? unicode : ascii; }
  void line(const std::string& text) { out_ += text + "\n"; }

  // Prose, wrapped at the terminal's width or 80 columns, whichever is less.
  void paragraph(const std::string& text) {
    const int width = std::min(columns_, 80);
    std::string current;
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find(' ', at), text.size());
      const std::string word = text.substr(at, end - at);
      if (!current.empty() && display_width(current) + 1 + display_width(word) > width) {
        line(current);
        current.clear();
      }
      current += (current.empty() ? "" : " ") + word;
      at = end + 1;
    }
    if (!current.empty()) line(current);
  }

  std::string word(const std::string& text) const {
    return pad_right(fit(printable(text, unicode_), word_width_, unicode_), word_width_);
  }

  std::string vector(const float* v) const {
    std::string text;
    for (size_t d = 0; d < numbers_; ++d) text += number(v[d], kNumber, 3);
    if (numbers_ < static_cast<size_t>(e_.options.dim)) text += sign(" …", " ...");
    return text;
  }

  // Weighted values are summed in double: this is for the rows that stand for many words.
  std::string vector(const std::vector<double>& v) const {
    const std::vector<float> narrow(v.begin(), v.end());
    return vector(narrow.data());
  }

  void row(const std::string& text) { line(std::string(kIndent, ' ') + text); }

  void rule(int width) {
    std::string text;
    for (int i = 0; i < width; ++i) text += sign("─", "-");
    row(style_.faint(text));
  }

  void heading(const std::string& text) { line("  " + style_.bold(text)); }

  void introduction() {
    const std::string dim = std::to_string(e_.options.dim);
    const auto count = [](size_t n) { return thousands(static_cast<long long>(n)) + (n == 1 ? " word" : " words"); };
    line(style_.bold("Attention, step by step"));
    line("");
    paragraph((e_.query.size() == 1 ? "The word" : "Each of the " + count(e_.query.size())) +
              " of the query looks at the " + (e_.text.size() == 1 ? "one word" : count(e_.text.size())) +
              " of the text and takes from each as much as the two fit.");
    line("");
    paragraph("A word is " + dim + (e_.options.dim == 1 ? " number" : " numbers") +
              " here. They are made from its letters, not learned: words spelled alike get similar numbers, and what "
              "a word means plays no part. " +
              (e_.w.empty() ? "" : "The vector w of the additive score is made the same way. ") +
              "A trained model learns numbers that carry meaning; the three steps stay the same.");
    line("");
    std::string title = "The vectors";
    if (numbers_ < static_cast<size_t>(e_.options.dim)) {
      title += " (" + std::to_string(numbers_) + " of " + dim + " numbers)";
    }
    heading(title);
    vectors("q", e_.query, e_.q);
    vectors(sign("k, v", "k, v"), e_.text, e_.kv);
    if (!e_.w.empty()) row(style_.faint(pad_right("w", kName)) + word("") + vector(e_.w.data()));
  }

  void vectors(const std::string& name, const std::vector<std::string>& list, const std::vector<float>& values) {
    const size_t shown = list.size() > kShownKeys + 1 ? kShownKeys : list.size();
    for (size_t i = 0; i < shown; ++i) {
      row(style_.faint(pad_right(i == 0 ? name : "", kName)) + word(list[i]) +
          vector(values.data() + i * static_cast<size_t>(e_.options.dim)));
    }
    if (shown < list.size()) {
      row(style_.faint("     " + sign("… ", "... ") + "and " + thousands(static_cast<long long>(list.size() - shown)) +
                       " more"));
    }
  }

  void query_word(size_t i) {
    const size_t S = e_.text.size(), D = static_cast<size_t>(e_.options.dim);
    const Selection chosen = select(e_, i);
    const float* scores = e_.scores.data() + i * S;
    const float* weights = e_.weights.data() + i * S;
    const std::string rest_label = chosen.others.empty() ? ""
                                                         : thousands(static_cast<long long>(chosen.others.size())) +
                                                               " other" + (chosen.others.size() == 1 ? "" : "s");

    line("");
    std::string title = fit(printable(e_.query[i], unicode_), columns_ - 6, unicode_);
    std::string rest;
    for (int n = display_width(title) + 4; n < std::min(columns_, 60); ++n) rest += sign("─", "-");
    line(style_.faint(sign("──", "--")) + " " + style_.accent(style_.bold(title)) + " " + style_.faint(rest));
    if (S > kShownKeys + 1) {
      paragraph("The " + std::to_string(kShownKeys) + " words with the largest weights, in the order of the text:");
    }

    // Step 1.
    line("");
    heading("1  score    " + formula());
    for (size_t j : chosen.shown) {
      row(word(e_.text[j]) + (std::isinf(scores[j]) ? style_.faint(pad_left(sign("–", "-"), 8) + "  not seen: causal")
                                                    : number(scores[j], 8, 3)));
    }
    if (!chosen.others.empty()) {
      const auto [low, high] = std::minmax_element(chosen.others.begin(), chosen.others.end(),
                                                   [&](size_t a, size_t b) { return scores[a] < scores[b]; });
      row(style_.faint(pad_right(rest_label, word_width_) + number(scores[*low], 8, 3) + " to " +
                       number(scores[*high], 0, 3)));
    }
    if (chosen.hidden > 0) {
      row(style_.faint("and " + thousands(static_cast<long long>(chosen.hidden)) + " not seen: causal"));
    }

    // Step 2.
    line("");
    heading("2  weigh    " + sign("w = exp(s) / Σ exp(s)", "w = exp(s) / sum exp(s)"));
    const int bar_columns = std::clamp(columns_ - kIndent - word_width_ - 8 - 3, 4, kWidestBar);
    double sum = 0, others = 0;
    for (size_t j = 0; j < S; ++j) sum += weights[j];
    for (size_t j : chosen.others) others += weights[j];
    for (size_t j : chosen.shown) {
      row(word(e_.text[j]) + number(weights[j], 8, 3) + "  " + style_.accent(bar(weights[j], bar_columns, unicode_)));
    }
    if (!chosen.others.empty()) {
      row(style_.faint(pad_right(rest_label, word_width_)) + number(others, 8, 3) + "  " +
          style_.faint(bar(others, bar_columns, unicode_)));
    }
    rule(word_width_ + 8);
    row(pad_right("sum", word_width_) + number(sum, 8, 3) +
        (sum == 0 ? style_.faint("  it sees no word, so nothing is taken") : ""));

    // Step 3.
    line("");
    heading("3  gather   " + sign("o = Σ w · v", "o = sum w * v"));
    for (size_t j : chosen.shown) {
      std::vector<double> weighted(D);
      for (size_t d = 0; d < D; ++d) weighted[d] = weights[j] == 0 ? 0 : double{weights[j]} * e_.kv[j * D + d];
      row(word(e_.text[j]) + vector(weighted));
    }
    if (!chosen.others.empty()) {
      std::vector<double> weighted(D, 0.0);
      for (size_t j : chosen.others) {
        for (size_t d = 0; d < D; ++d) weighted[d] += double{weights[j]} * e_.kv[j * D + d];
      }
      row(style_.faint(pad_right(rest_label, word_width_)) + vector(weighted));
    }
    rule(word_width_ + static_cast<int>(numbers_) * kNumber);
    row(style_.bold(pad_right("sum", word_width_) + vector(e_.out.data() + i * D)));
  }

  std::string formula() const {
    if (e_.options.score == Score::additive) return sign("s = w · tanh(q + k)", "s = w . tanh(q + k)");
    const std::string dim = std::to_string(e_.options.dim);
    return sign("s = q · k / √", "s = q . k / sqrt ") + dim;
  }

  void fused() {
    char difference[32];
    std::snprintf(difference, sizeof difference, "%.1e", e_.difference);
    line("");
    paragraph(
        "heed::forward does the three steps in one pass and never stores the scores. Largest difference from "
        "the sums above: " +
        std::string(e_.difference == 0 ? "0" : difference) + ".");
  }

  const Explanation& e_;
  const Style style_;
  const bool unicode_;
  const int columns_;
  int word_width_ = 3;
  size_t numbers_ = 1;
  std::string out_;
};

}  // namespace

std::string describe(const Explanation& e, const Terminal& terminal) { return Writer(e, terminal).write(); }

}  // namespace heed::app
