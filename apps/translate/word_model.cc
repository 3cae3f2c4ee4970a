// IBM Model 1 by expectation maximisation over slots: one for each pair of tokens that met in a sentence pair.
#include "apps/translate/word_model.h"

namespace heed::translate {

WordModel::WordModel(std::span<const TokenPair> pairs, int iterations) {
  // The slots that each target token may have come from, found once: the passes below then are sums over arrays.
  std::vector<int32_t> met;
  std::vector<int32_t> sources;  // the source token of each slot
  const auto slot = [&](int32_t source, int32_t target) {
    const auto [found, fresh] = slots_.try_emplace(key(source, target), static_cast<int32_t>(sources.size()));
    if (fresh) sources.push_back(source);
    met.push_back(found->second);
  };
  for (const TokenPair& pair : pairs) {
    for (const int32_t target : pair.target) {
      slot(-1, target);
      for (const int32_t source : pair.source) slot(source, target);
    }
  }
  t_.assign(sources.size(), 1);
  std::vector<double> counts(sources.size());
  for (int i = 0; i < iterations; ++i) {
    counts.assign(counts.size(), 0);
    size_t at = 0;
    for (const TokenPair& pair : pairs) {
      const size_t n = pair.source.size() + 1;
      for (size_t t = 0; t < pair.target.size(); ++t, at += n) {
        double sum = 0;
        for (size_t s = 0; s < n; ++s) sum += t_[static_cast<size_t>(met[at + s])];
        for (size_t s = 0; s < n; ++s) {
          const auto of = static_cast<size_t>(met[at + s]);
          counts[of] += t_[of] / sum;
        }
      }
    }
    std::unordered_map<int32_t, double> totals;
    for (size_t s = 0; s < sources.size(); ++s) totals[sources[s]] += counts[s];
    for (size_t s = 0; s < sources.size(); ++s) t_[s] = static_cast<float>(counts[s] / totals[sources[s]]);
  }
}

double WordModel::probability(int32_t source, int32_t target) const {
  const auto found = slots_.find(key(source, target));
  return found == slots_.end() ? 0 : t_[static_cast<size_t>(found->second)];
}

std::vector<int64_t> WordModel::align(const TokenPair& pair) const {
  std::vector<int64_t> places;
  for (const int32_t target : pair.target) {
    int64_t best = -1;
    double most = probability(-1, target);
    for (size_t s = 0; s < pair.source.size(); ++s) {
      const double p = probability(pair.source[s], target);
      if (p <= most) continue;
      most = p;
      best = static_cast<int64_t>(s);
    }
    places.push_back(best);
  }
  return places;
}

}  // namespace heed::translate
