// Partial results over disjoint sets of keys, put together.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "heed/cache.h"
#include "reference.h"

namespace heed {

void merge(const std::vector<Part>& parts, const Output& result) {
  check_merge(parts, result);
  constexpr double kNothing = -std::numeric_limits<double>::infinity();
  const Shape n = result.out.shape;
  std::vector<double> sum(n[3]), lse(parts.size());
  for (int64_t b = 0; b < n[0]; ++b)
    for (int64_t h = 0; h < n[1]; ++h)
      for (int64_t i = 0; i < n[2]; ++i) {
        double largest = kNothing, weights = 0;
        for (size_t x = 0; x < parts.size(); ++x) {
          lse[x] = reference::at(parts[x].lse, b, h, i, 0);
          largest = std::fmax(largest, lse[x]);  // NaN does not count here, but reaches the sum
        }
        sum.assign(n[3], 0.0);
        for (size_t x = 0; x < parts.size(); ++x) {
          if (lse[x] == kNothing) continue;
          const double weight = std::exp(lse[x] - largest);
          weights += weight;
          for (int64_t d = 0; d < n[3]; ++d) sum[d] += weight * reference::at(parts[x].out, b, h, i, d);
        }
        const bool sees = weights != 0;
        for (int64_t d = 0; d < n[3]; ++d) reference::put(result.out, b, h, i, d, sees ? sum[d] / weights : 0.0);
        if (result.lse.data) reference::put(result.lse, b, h, i, 0, sees ? largest + std::log(weights) : kNothing);
      }
}

}  // namespace heed
