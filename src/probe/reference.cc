// Probes in plain loops in double: the truth for tests, and what f64 tensors run on.
#include "reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "probe.h"

namespace heed::reference {
namespace {

void put(const KeyTensor& t, int64_t b, int64_t h, int64_t i, int64_t x, int64_t key) {
  t.data[b * t.stride[0] + h * t.stride[1] + i * t.stride[2] + x * t.stride[3]] = key;
}

// The n largest of a row of weights, the smaller key first where they are equal; weights of 0 do not count.
std::vector<int64_t> strongest(const std::vector<double>& weights, int64_t n) {
  std::vector<int64_t> keys;
  for (int64_t j = 0; j < static_cast<int64_t>(weights.size()); ++j)
    if (weights[j] > 0) keys.push_back(j);
  std::stable_sort(keys.begin(), keys.end(), [&](int64_t x, int64_t y) { return weights[x] > weights[y]; });
  if (static_cast<int64_t>(keys.size()) > n) keys.resize(n);
  return keys;
}

double plogp(double w) { return w == 0 ? 0 : w * std::log(w); }

}  // namespace

void probe(const Problem& p, const ConstTensor& lse, const Probes& wanted) {
  const Span queries = wanted.mass_queries.value_or(Span{0, p.L});
  const int64_t k = wanted.top_keys.data      ? wanted.top_keys.shape[3]
                    : wanted.top_weights.data ? wanted.top_weights.shape[3]
                                              : 0;
  std::vector<double> weights(p.S), mass(p.S);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hq; ++h) {
      mass.assign(p.S, 0);
      for (int64_t i = 0; i < p.L; ++i) {
        const double l = at(lse, b, h, i, 0);
        const bool nan = std::isnan(l), sees = l != -std::numeric_limits<double>::infinity();
        for (int64_t j = 0; j < p.S; ++j)
          weights[j] = sees && p.a.mask.sees(p.mask_shape(), b, h, i, j) ? std::exp(pair_score(p, b, h, i, j) - l) : 0;

        const auto value_of = [&](const std::vector<int64_t>& keys, int64_t x) {
          return nan ? l : x < static_cast<int64_t>(keys.size()) ? weights[keys[x]] : 0;
        };
        const auto key_of = [&](const std::vector<int64_t>& keys, int64_t x) {
          return !nan && x < static_cast<int64_t>(keys.size()) ? keys[x] : -1;
        };
        if (wanted.top_keys.data || wanted.top_weights.data || wanted.largest_key.data || wanted.largest.data) {
          const std::vector<int64_t> keys = strongest(weights, std::max<int64_t>(k, 1));
          for (int64_t x = 0; x < k; ++x) {
            if (wanted.top_keys.data) put(wanted.top_keys, b, h, i, x, key_of(keys, x));
            if (wanted.top_weights.data) put(wanted.top_weights, b, h, i, x, value_of(keys, x));
          }
          if (wanted.largest_key.data) put(wanted.largest_key, b, h, i, 0, key_of(keys, 0));
          if (wanted.largest.data) put(wanted.largest, b, h, i, 0, value_of(keys, 0));
        }
        if (wanted.entropy.data) {
          double sum = p.a.sinks.data && sees ? plogp(std::exp(at(p.a.sinks, 0, h, 0, 0) - l)) : 0;
          for (const double w : weights) sum += plogp(w);
          put(wanted.entropy, b, h, i, 0, nan ? l : 0 - sum);
        }
        const double factor = wanted.mass_factor.data ? at(wanted.mass_factor, b, h, i, 0) : 1;
        if (queries.begin <= i && i < queries.end && factor != 0)
          for (int64_t j = 0; j < p.S; ++j)
            if (weights[j] != 0) mass[j] += factor * weights[j];
        for (size_t n = 0; n < wanted.rows.size(); ++n)
          if (const WeightRow& row = wanted.rows[n]; row.batch == b && row.head == h && row.query == i)
            for (int64_t j = 0; j < p.S; ++j) put(wanted.weights, 0, 0, n, j, weights[j]);
      }
      for (int64_t j = 0; j < p.S && wanted.mass.data; ++j) put(wanted.mass, b, h, 0, j, mass[j]);
    }
}

}  // namespace heed::reference
