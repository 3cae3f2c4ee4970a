// Partial results over disjoint sets of keys, put together.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "half.h"
#include "heed/cache.h"

namespace heed {
namespace {

// Element d of a row.
double element(const char* row, DType t, int64_t d) {
  switch (t) {
    case DType::f64:
      return reinterpret_cast<const double*>(row)[d];
    case DType::f16:
      return float_of_half(reinterpret_cast<const uint16_t*>(row)[d]);
    case DType::bf16:
      return float_of_bfloat(reinterpret_cast<const uint16_t*>(row)[d]);
    default:
      return reinterpret_cast<const float*>(row)[d];
  }
}

void put(char* row, DType t, int64_t d, double x) {
  const float f = static_cast<float>(x);
  switch (t) {
    case DType::f64:
      reinterpret_cast<double*>(row)[d] = x;
      break;
    case DType::f16:
      reinterpret_cast<uint16_t*>(row)[d] = half_of_float(f);
      break;
    case DType::bf16:
      reinterpret_cast<uint16_t*>(row)[d] = bfloat_of_float(f);
      break;
    default:
      reinterpret_cast<float*>(row)[d] = f;
  }
}

template <class View>
auto* row_of(const View& t, int64_t b, int64_t h, int64_t i) {
  using Byte = std::conditional_t<std::is_same_v<View, Tensor>, char, const char>;
  return static_cast<Byte*>(t.data) + (b * t.stride[0] + h * t.stride[1] + i * t.stride[2]) * bytes_of(t.dtype);
}

}  // namespace

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
          lse[x] = element(row_of(parts[x].lse, b, h, i), parts[x].lse.dtype, 0);
          largest = std::fmax(largest, lse[x]);  // NaN does not count here, but reaches the sum
        }
        sum.assign(n[3], 0.0);
        for (size_t x = 0; x < parts.size(); ++x) {
          if (lse[x] == kNothing) continue;
          const double weight = std::exp(lse[x] - largest);
          weights += weight;
          const char* out = row_of(parts[x].out, b, h, i);
          for (int64_t d = 0; d < n[3]; ++d) sum[d] += weight * element(out, parts[x].out.dtype, d);
        }
        const bool sees = weights != 0;
        char* to = row_of(result.out, b, h, i);
        for (int64_t d = 0; d < n[3]; ++d) put(to, result.out.dtype, d, sees ? sum[d] / weights : 0.0);
        if (result.lse.data)
          put(row_of(result.lse, b, h, i), result.lse.dtype, 0, sees ? largest + std::log(weights) : kNothing);
      }
}

}  // namespace heed
