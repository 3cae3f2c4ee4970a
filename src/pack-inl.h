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
// of 16; lanes past row1 are zero. This is K for q.k, and V for d_out.v. Four rows by four columns at a time: element
// by element, a decoder's step would spend more on this than on all products.
inline void PackTransposed(const float* rows, int64_t stride, int64_t row0, int64_t row1, int64_t dims, float* out) {
  for (int64_t r = row0; r < row1; r += kLanes, out += dims * kLanes) {
    const int64_t n = std::min(kLanes, row1 - r);
    if (n < kLanes) std::memset(out, 0, dims * kLanes * sizeof(float));
    int64_t lane = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::FixedTag<float, 4> d4;
    const hn::FixedTag<double, 2> pairs;  // moves two floats at once
    for (; lane + 4 <= n; lane += 4) {
      const float* HWY_RESTRICT from = rows + (r + lane) * stride;
      float* HWY_RESTRICT to = out + lane;
      int64_t d = 0;
      for (; d + 4 <= dims; d += 4) {
        const auto a = hn::LoadU(d4, from + d), b = hn::LoadU(d4, from + stride + d);
        const auto c = hn::LoadU(d4, from + 2 * stride + d), e = hn::LoadU(d4, from + 3 * stride + d);
        const auto ab_low = hn::BitCast(pairs, hn::InterleaveLower(d4, a, b));   // a0 b0 a1 b1
        const auto ab_high = hn::BitCast(pairs, hn::InterleaveUpper(d4, a, b));  // a2 b2 a3 b3
        const auto ce_low = hn::BitCast(pairs, hn::InterleaveLower(d4, c, e));
        const auto ce_high = hn::BitCast(pairs, hn::InterleaveUpper(d4, c, e));
        hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(pairs, ab_low, ce_low)), d4, to + d * kLanes);
        hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(pairs, ab_low, ce_low)), d4, to + (d + 1) * kLanes);
        hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(pairs, ab_high, ce_high)), d4, to + (d + 2) * kLanes);
        hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(pairs, ab_high, ce_high)), d4, to + (d + 3) * kLanes);
      }
      for (; d < dims; ++d)
        for (int64_t x = 0; x < 4; ++x) to[d * kLanes + x] = from[x * stride + d];
    }
#endif
    for (; lane < n; ++lane)
      for (int64_t d = 0; d < dims; ++d) out[d * kLanes + lane] = rows[(r + lane) * stride + d];
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
