// BLEU and chrF as sacrebleu 2 defines them. Written from its documented behaviour; tests/metrics_test.cc compares.
#include "apps/translate/metrics.h"

#include <heed/attention.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <unordered_map>
#include <vector>

#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

constexpr int kBleuOrder = 4;
constexpr int kChrfOrder = 6;

void check_sizes(std::span<const std::string> hyps, std::span<const std::string> refs, const char* metric) {
  if (hyps.size() != refs.size()) {
    throw Error(std::string(metric) + ": there are " + std::to_string(hyps.size()) + " hypotheses and " +
                std::to_string(refs.size()) + " references; each hypothesis needs one reference.");
  }
  if (hyps.empty()) throw Error(std::string(metric) + ": there are no sentences to score.");
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  size_t at = text.find(from);
  if (at == std::string::npos) return;
  std::string out;
  size_t done = 0;
  for (; at != std::string::npos; at = text.find(from, done)) {
    out.append(text, done, at - done).append(to);
    done = at + from.size();
  }
  out.append(text, done);
  text = std::move(out);
}

std::vector<std::string> split(std::string_view line) {
  std::vector<std::string> words;
  std::string word;
  for (const char32_t c : decode_utf8(line)) {
    if (!is_space(c)) {
      append_utf8(word, c);
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  if (!word.empty()) words.push_back(std::move(word));
  return words;
}

std::string strip_right(std::string_view line) {
  std::u32string text = decode_utf8(line);
  while (!text.empty() && is_space(text.back())) text.pop_back();
  return encode_utf8(text);
}

// Every ASCII sign that stands alone wherever it is: all but ' , - . and letters and digits.
bool is_lone_sign(char c) {
  return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') || (c >= '(' && c <= '+') ||
         (c >= ':' && c <= '@') || c == '/';
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_point(char c) { return c == '.' || c == ','; }

// One of mteval's substitutions on pairs of neighbouring characters: where match(a, b), both are replaced by
// pre a mid b post, and the search goes on behind b. Bytes do for characters, as only ASCII is ever split off.
template <class Match>
std::string on_pairs(const std::string& in, Match match, const char* pre, const char* mid, const char* post) {
  std::string out;
  out.reserve(in.size() + in.size() / 2);
  for (size_t i = 0; i < in.size();) {
    if (i + 1 < in.size() && match(in[i], in[i + 1])) {
      out.append(pre).push_back(in[i]);
      out.append(mid).push_back(in[i + 1]);
      out.append(post);
      i += 2;
    } else {
      out.push_back(in[i++]);
    }
  }
  return out;
}

// The words and signs of a western text: what 13a and zh have in common.
std::vector<std::string> western_tokens(std::string_view text) {
  std::string spaced;
  for (const char c : text) {
    if (is_lone_sign(c)) {
      spaced.append({' ', c, ' '});
    } else {
      spaced.push_back(c);
    }
  }
  // Points and commas stay inside numbers only; a dash is cut from the number before it.
  spaced = on_pairs(
      spaced, [](char a, char b) { return !is_digit(a) && is_point(b); }, "", " ", " ");
  spaced = on_pairs(
      spaced, [](char a, char b) { return is_point(a) && !is_digit(b); }, " ", " ", "");
  spaced = on_pairs(
      spaced, [](char a, char b) { return is_digit(a) && b == '-'; }, "", " ", " ");
  return split(spaced);
}

std::vector<std::string> tokens_13a(std::string_view line) {
  std::string text(line);
  replace_all(text, "<skipped>", "");
  replace_all(text, "-\n", "");
  replace_all(text, "\n", " ");
  // One after the other, so "&amp;lt;" becomes "<": mteval does the same.
  replace_all(text, "&quot;", "\"");
  replace_all(text, "&amp;", "&");
  replace_all(text, "&lt;", "<");
  replace_all(text, "&gt;", ">");
  // The spaces decide what becomes of a point at either end.
  return western_tokens(" " + text + " ");
}

// What sacrebleu's zh takes for a Chinese character: ideographs of the first plane, their punctuation and kin. The
// second range is all between two of its bounds, which it writes with one digit too many, quotation marks and dashes
// included; ideographs of the second plane are none.
bool is_chinese(char32_t c) {
  constexpr struct {
    char32_t first, last;
  } kRanges[] = {{0x3400, 0x4db5}, {0x2001, 0x2a6d}, {0x4e00, 0x9fbb}, {0xf900, 0xfa2d}, {0xfa30, 0xfa6a},
                 {0xfa70, 0xfad9}, {0xff00, 0xffef}, {0x2e80, 0x2fdf}, {0x2ff0, 0x303f}, {0x3100, 0x312f},
                 {0x31a0, 0x31bf}, {0x31c0, 0x31ef}, {0x3200, 0x33ff}, {0xfe10, 0xfe1f}, {0xfe30, 0xfe4f}};
  return std::any_of(std::begin(kRanges), std::end(kRanges), [c](auto r) { return r.first <= c && c <= r.last; });
}

std::vector<std::string> tokens_zh(const std::string& line) {
  std::string spaced;
  std::u32string text = decode_utf8(line);
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), is_space));
  for (const char32_t c : text) {
    if (is_chinese(c)) spaced.push_back(' ');
    append_utf8(spaced, c);
    if (is_chinese(c)) spaced.push_back(' ');
  }
  return western_tokens(spaced);
}

std::vector<std::string> characters(const std::string& line) {
  std::vector<std::string> found;
  for (const char32_t c : decode_utf8(line)) {
    if (!is_space(c)) append_utf8(found.emplace_back(), c);
  }
  return found;
}

std::vector<std::string> bleu_tokens(const std::string& line, const BleuOptions& options) {
  const std::string text = strip_right(options.lowercase ? lower(line) : line);
  switch (options.tokenize) {
    case BleuOptions::Tokenize::k13a:
      return tokens_13a(text);
    case BleuOptions::Tokenize::kZh:
      return tokens_zh(text);
    case BleuOptions::Tokenize::kChar:
      return characters(text);
    case BleuOptions::Tokenize::kNone:
      break;
  }
  return split(text);
}

using Counts = std::unordered_map<std::string, int64_t>;

// Counts of the n-grams of one order; a token holds no space, so joining with spaces keeps n-grams apart.
Counts count_ngrams(const std::vector<std::string>& tokens, size_t n) {
  Counts counts;
  for (size_t i = 0; i + n <= tokens.size(); i++) {
    std::string key = tokens[i];
    for (size_t k = 1; k < n; k++) key.append(1, ' ').append(tokens[i + k]);
    counts[std::move(key)]++;
  }
  return counts;
}

template <class Map>
int64_t count_matches(const Map& hyp, const Map& ref) {
  int64_t matches = 0;
  for (const auto& [ngram, count] : hyp) {
    const auto found = ref.find(ngram);
    if (found != ref.end()) matches += std::min(count, found->second);
  }
  return matches;
}

std::u32string without_space(const std::string& line) {
  std::u32string text = decode_utf8(line);
  std::erase_if(text, is_space);
  return text;
}

std::unordered_map<std::u32string_view, int64_t> count_char_ngrams(std::u32string_view text, size_t n) {
  std::unordered_map<std::u32string_view, int64_t> counts;
  for (size_t i = 0; i + n <= text.size(); i++) counts[text.substr(i, n)]++;
  return counts;
}

}  // namespace

std::string tokenize_13a(std::string_view line) {
  std::string out;
  for (const std::string& token : tokens_13a(line)) {
    if (!out.empty()) out.push_back(' ');
    out += token;
  }
  return out;
}

std::string Bleu::summary() const {
  char text[240];
  std::snprintf(text, sizeof text,
                "BLEU = %.2f %.1f/%.1f/%.1f/%.1f (BP = %.3f ratio = %.3f hyp_len = %lld ref_len = %lld)", score,
                precisions[0], precisions[1], precisions[2], precisions[3], brevity_penalty,
                ref_len ? static_cast<double>(hyp_len) / static_cast<double>(ref_len) : 0.0,
                static_cast<long long>(hyp_len), static_cast<long long>(ref_len));
  return text;
}

Bleu bleu(std::span<const std::string> hyps, std::span<const std::string> refs, const BleuOptions& options) {
  check_sizes(hyps, refs, "BLEU");
  Bleu result;
  std::array<int64_t, kBleuOrder> correct = {}, total = {};
  for (size_t i = 0; i < hyps.size(); i++) {
    const auto hyp = bleu_tokens(hyps[i], options), ref = bleu_tokens(refs[i], options);
    result.hyp_len += static_cast<int64_t>(hyp.size());
    result.ref_len += static_cast<int64_t>(ref.size());
    for (size_t n = 1; n <= kBleuOrder; n++) {
      total[n - 1] += std::max<int64_t>(0, static_cast<int64_t>(hyp.size()) - static_cast<int64_t>(n) + 1);
      correct[n - 1] += count_matches(count_ngrams(hyp, n), count_ngrams(ref, n));
    }
  }
  const double hyp_len = static_cast<double>(result.hyp_len), ref_len = static_cast<double>(result.ref_len);
  result.brevity_penalty = result.hyp_len >= result.ref_len ? 1.0
                           : result.hyp_len > 0             ? std::exp(1 - ref_len / hyp_len)
                                                            : 0.0;
  if (std::all_of(correct.begin(), correct.end(), [](int64_t c) { return c == 0; })) return result;

  double smooth = 1, log_sum = 0;
  for (int n = 0; n < kBleuOrder && total[n] > 0; n++) {
    // The k-th order without a match counts as 1/2^k matches.
    if (correct[n] == 0) smooth *= 2;
    result.precisions[n] = correct[n] == 0 ? 100.0 / (smooth * static_cast<double>(total[n]))
                                           : 100.0 * static_cast<double>(correct[n]) / static_cast<double>(total[n]);
  }
  for (const double p : result.precisions) {
    if (p == 0) return result;  // no sentence is long enough for a 4-gram: the geometric mean is 0
    log_sum += std::log(p);
  }
  result.score = result.brevity_penalty * std::exp(log_sum / kBleuOrder);
  return result;
}

double chrf(std::span<const std::string> hyps, std::span<const std::string> refs) {
  check_sizes(hyps, refs, "chrF");
  std::array<int64_t, kChrfOrder> in_hyp = {}, in_ref = {}, matched = {};
  for (size_t i = 0; i < hyps.size(); i++) {
    const std::u32string hyp = without_space(hyps[i]), ref = without_space(refs[i]);
    for (size_t n = 1; n <= kChrfOrder; n++) {
      const int64_t ref_count = std::max<int64_t>(0, static_cast<int64_t>(ref.size()) - static_cast<int64_t>(n) + 1);
      // sacrebleu leaves out a hypothesis' n-grams where the reference is too short to have any.
      if (ref_count == 0) continue;
      in_ref[n - 1] += ref_count;
      in_hyp[n - 1] += std::max<int64_t>(0, static_cast<int64_t>(hyp.size()) - static_cast<int64_t>(n) + 1);
      matched[n - 1] += count_matches(count_char_ngrams(hyp, n), count_char_ngrams(ref, n));
    }
  }
  double precision = 0, recall = 0;
  int orders = 0;
  for (int n = 0; n < kChrfOrder; n++) {
    if (in_hyp[n] == 0 || in_ref[n] == 0) continue;
    precision += static_cast<double>(matched[n]) / static_cast<double>(in_hyp[n]);
    recall += static_cast<double>(matched[n]) / static_cast<double>(in_ref[n]);
    orders++;
  }
  if (orders == 0 || precision + recall == 0) return 0;
  precision /= orders;
  recall /= orders;
  constexpr double kBeta2 = 4;  // beta 2: recall counts twice as much as precision
  return 100 * ((1 + kBeta2) * precision * recall) / (kBeta2 * precision + recall);
}

}  // namespace heed::translate
