// Buckets of relative positions.
#include <cmath>
#include <string>

#include "heed/attention.h"

namespace heed {

// Raffel et al. 2020, as published with the model: the logarithm is taken in float there, and so it is here, so that
// every distance falls into the same bucket.
int64_t t5_bucket(int64_t distance, bool both_directions, int64_t buckets, int64_t max_distance) {
  const int64_t one_way = both_directions ? buckets / 2 : buckets, exact = one_way / 2;
  if (exact < 1 || max_distance <= exact)
    throw Error("t5_bucket() has " + std::to_string(buckets) + " buckets and a max_distance of " +
                std::to_string(max_distance) + "; give at least " + (both_directions ? "4" : "2") +
                " buckets and a distance above " + std::to_string(exact));
  int64_t first = 0, n;
  if (both_directions) {
    first = distance > 0 ? one_way : 0;
    n = distance < 0 ? -distance : distance;
  } else {
    n = distance < 0 ? -distance : 0;
  }
  if (n < exact) return first + n;
  const float growth = std::log(static_cast<float>(n) / static_cast<float>(exact)) /
                       static_cast<float>(std::log(static_cast<double>(max_distance) / static_cast<double>(exact)));
  const int64_t bucket = exact + static_cast<int64_t>(growth * static_cast<float>(one_way - exact));
  return first + (bucket < one_way ? bucket : one_way - 1);
}

}  // namespace heed
