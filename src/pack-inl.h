// K and V of one head laid out for the kernel: 16 keys or 16 columns side by side, padded with zeros.
//
// Per-target code: included by each pass inside foreach_target.
#if defined(HEED_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_PACK_INL_H_
#undef HEED_PACK_INL_H_
#else
#define HEED_PACK_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "plan.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Transposes rows [row0, row1) of a [rows, dims] matrix into panels of 16 rows: out[panel][d][lane]. row0 is a multiple
// of 16; lanes past row1 are zero. This is K for q.k, and V for d_out.v.
inline void PackTransposed(const float* rows, int64_t stride, int64_t row0, int64_t row1, int64_t dims, float* out) {
  for (int64_t r = row0; r < row1; r += kLanes, out += dims * kLanes) {
    const int64_t n = std::min(kLanes, row1 - r);
    const float* HWY_RESTRICT from = rows + r * stride;
    for (int64_t d = 0; d < dims; ++d) {
      for (int64_t lane = 0; lane < n; ++lane) out[d * kLanes + lane] = from[lane * stride + d];
      for (int64_t lane = n; lane < kLanes; ++lane) out[d * kLanes + lane] = 0.0f;
    }
  }
}

// Copies rows [row0, row1) to rows of `padded` floats (a multiple of 16, at least dims), zeros behind the dims.
inline void PackRows(const float* rows, int64_t stride, int64_t row0, int64_t row1, int64_t dims, int64_t padded,
                     float* out) {
  for (int64_t r = row0; r < row1; ++r, out += padded) {
    std::memcpy(out, rows + r * stride, dims * sizeof(float));
    std::memset(out + dims, 0, (padded - dims) * sizeof(float));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
