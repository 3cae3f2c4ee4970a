// The numbers behind `heed explain`, made with the public three steps and checked against the fused operator.
#include "apps/explain.h"

#include <algorithm>
#include <cmath>

#include "apps/translate/utf8.h"

namespace heed::app {
namespace {

constexpr size_t kLongestNgram = 4;

// FNV-1a, 64 bits (Fowler, Noll, Vo).
uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

// The next number of splitmix64 (Steele, Lea, Flood 2014).
uint64_t next(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Adds to `sum` a vector that depends on `name` alone: numbers spread evenly over -1..1, exact in double, so that no
// machine's libm has a say in them.
void add_random_vector(std::string_view name, std::vector<double>& sum) {
  uint64_t state = hash_bytes(name);
  for (double& x : sum) x += static_cast<double>(next(state) >> 11) * 0x1p-52 - 1.0;
}

std::vector<float> scaled_to_length(const std::vector<double>& v, double length) {
  double squares = 0;
  for (double x : v) squares += x * x;
  std::vector<float> result(v.size());
  const double factor = squares > 0 ? length / std::sqrt(squares) : 0;
  for (size_t i = 0; i < v.size(); ++i) result[i] = static_cast<float>(v[i] * factor);
  return result;
}

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> result;
  std::string word;
  for (char32_t c : translate::decode_utf8(text)) {
    if (!translate::is_space(c)) {
      translate::append_utf8(word, c);
    } else if (!word.empty()) {
      result.push_back(std::move(word));
      word.clear();
    }
  }
  if (!word.empty()) result.push_back(std::move(word));
  return result;
}

std::vector<float> vectors(const std::vector<std::string>& list, int64_t dim) {
  std::vector<float> result;
  for (const std::string& word : list) {
    const std::vector<float> v = word_vector(word, dim);
    result.insert(result.end(), v.begin(), v.end());
  }
  return result;
}

}  // namespace

std::vector<float> word_vector(std::string_view word, int64_t dim) {
  const std::u32string letters = U"<" + translate::lower(translate::decode_utf8(word)) + U">";
  std::vector<double> sum(static_cast<size_t>(dim), 0.0);
  for (size_t n = 1; n <= kLongestNgram; ++n) {
    for (size_t at = 0; at + n <= letters.size(); ++at) {
      // The marks alone are in every word and would only make all words alike.
      if (n == 1 && (at == 0 || at + 1 == letters.size())) continue;
      add_random_vector(translate::encode_utf8(std::u32string_view(letters).substr(at, n)), sum);
    }
  }
  return scaled_to_length(sum, std::sqrt(static_cast<double>(dim)));
}

Explanation explain(std::string_view query, std::string_view text, const ExplainOptions& options) {
  if (options.dim < 1 || options.dim > ExplainOptions::kMaxDim) {
    throw Error("a word's vector cannot have " + std::to_string(options.dim) + " numbers; give 1 to " +
                std::to_string(ExplainOptions::kMaxDim));
  }
  Explanation e;
  e.options = options;
  e.query = words(query);
  e.text = words(text);
  if (e.query.empty()) throw Error("the query has no words; give at least one that is not white space");
  if (e.text.empty()) throw Error("the text has no words; give at least one that is not white space");

  const int64_t L = static_cast<int64_t>(e.query.size()), S = static_cast<int64_t>(e.text.size()), D = options.dim;
  e.q = vectors(e.query, D);
  e.kv = vectors(e.text, D);
  e.scores.resize(static_cast<size_t>(L * S));
  e.weights.resize(static_cast<size_t>(L * S));
  e.out.resize(static_cast<size_t>(L * D));
  e.fused.resize(static_cast<size_t>(L * D));

  Attention a;
  a.q = tensor(e.q.data(), {1, 1, L, D});
  a.k = a.v = tensor(e.kv.data(), {1, 1, S, D});
  a.score = options.score;
  if (options.score == Score::additive) {
    std::vector<double> w(static_cast<size_t>(D), 0.0);
    add_random_vector("w", w);
    e.w = scaled_to_length(w, std::sqrt(static_cast<double>(D)));
    a.w = tensor(e.w.data(), {1, 1, 1, D});
  }
  if (options.causal) a.mask = causal();

  const Tensor scores = tensor(e.scores.data(), {1, 1, L, S});
  const Tensor weights = tensor(e.weights.data(), {1, 1, L, S});
  score(a, scores);
  weigh(scores, weights);
  gather(weights, a.v, tensor(e.out.data(), {1, 1, L, D}));
  forward(a, {.out = tensor(e.fused.data(), {1, 1, L, D})});
  for (size_t i = 0; i < e.out.size(); ++i) {
    e.difference = std::max(e.difference, std::abs(static_cast<double>(e.out[i]) - static_cast<double>(e.fused[i])));
  }
  return e;
}

}  // namespace heed::app
