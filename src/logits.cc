// Rows of logits, some lanes at a time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "logits.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "heed/logits.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "passes.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, 16>;
using V = hn::Vec<F>;
// A sum has 16 lanes and one tree, however wide a vector is.
constexpr int64_t kLanes = 16, kVector = hn::MaxLanes(F()), kVectors = kLanes / kVector;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Calls f(at, lanes) for 16 numbers after the other, the last of them filled up with -inf.
template <class Function>
HWY_INLINE void ForLanes(const float* row, int64_t n, const Function& f) {
  int64_t at = 0;
  for (; at + kLanes <= n; at += kLanes) f(at, row + at);
  if (at == n) return;
  HWY_ALIGN float rest[kLanes];
  std::fill(std::copy(row + at, row + n, rest), rest + kLanes, -kInfinity);
  f(at, static_cast<const float*>(rest));
}

float LogSumExp(const float* row, int64_t n) {
  const F d;
  const V infinite = hn::Set(d, kInfinity), none = hn::Set(d, -kInfinity);
  V top[kVectors];
  for (V& v : top) v = none;
  auto sound = hn::Lt(none, infinite);  // in every lane: all so far are below +inf, which NaN is not
  ForLanes(row, n, [&](int64_t, const float* x) HWY_ATTR {
    for (int64_t v = 0; v < kVectors; ++v) {
      const V y = hn::LoadU(d, x + v * kVector);
      sound = hn::And(sound, hn::Lt(y, infinite));
      top[v] = hn::Max(y, top[v]);
    }
  });
  if (!hn::AllTrue(d, sound)) return std::numeric_limits<float>::quiet_NaN();
  for (int64_t v = 1; v < kVectors; ++v) top[0] = hn::Max(top[0], top[v]);
  const float most = hn::GetLane(hn::MaxOfLanes(d, top[0]));
  if (most == -kInfinity) return most;

  V sum[kVectors];
  for (V& v : sum) v = hn::Zero(d);
  const V m = hn::Set(d, most);
  ForLanes(row, n, [&](int64_t, const float* x) HWY_ATTR {
    for (int64_t v = 0; v < kVectors; ++v)
      sum[v] = hn::Add(sum[v], hn::Exp(d, hn::Sub(hn::LoadU(d, x + v * kVector), m)));
  });
  HWY_ALIGN float lanes[kLanes];
  for (int64_t v = 0; v < kVectors; ++v) hn::Store(sum[v], d, lanes + v * kVector);
  double total = 0;
  for (const float lane : lanes) total += static_cast<double>(lane);
  return static_cast<float>(static_cast<double>(most) + std::log(total));
}

void Largest(const float* row, int64_t n, int64_t k, std::vector<int>& places) {
  places.clear();
  const F d;
  float least = k > 0 ? -kInfinity : kInfinity;  // what a number must exceed to get in
  if (0 < k && k <= kLanes) {
    // The largest of each lane are numbers of the row, so what is below the k-th of them is not among the k largest.
    V top[kVectors];
    for (V& v : top) v = hn::Set(d, -kInfinity);
    ForLanes(row, n, [&](int64_t, const float* x) HWY_ATTR {
      for (int64_t v = 0; v < kVectors; ++v) {
        const V y = hn::LoadU(d, x + v * kVector);
        top[v] = hn::IfThenElse(hn::Gt(y, top[v]), y, top[v]);
      }
    });
    HWY_ALIGN float lanes[kLanes];
    for (int64_t v = 0; v < kVectors; ++v) hn::Store(top[v], d, lanes + v * kVector);
    std::nth_element(lanes, lanes + k - 1, lanes + kLanes, std::greater<>());
    least = std::nextafter(lanes[k - 1], -kInfinity);
  }
  ForLanes(row, n, [&](int64_t at, const float* x) HWY_ATTR {
    // Nearly all are too small: that is seen of 16 at once.
    const V bound = hn::Set(d, least);
    auto any = hn::Gt(hn::LoadU(d, x), bound);
    for (int64_t v = 1; v < kVectors; ++v) any = hn::Or(any, hn::Gt(hn::LoadU(d, x + v * kVector), bound));
    if (hn::AllFalse(d, any)) return;
    for (int64_t i = 0; i < kLanes; ++i) {
      if (!(x[i] > least)) continue;
      const auto place = std::upper_bound(places.begin(), places.end(), x[i],
                                          [row](float value, int other) { return value > row[other]; });
      places.insert(place, static_cast<int>(at + i));
      if (static_cast<int64_t>(places.size()) > k) places.pop_back();
      if (static_cast<int64_t>(places.size()) == k) least = row[places.back()];
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(LogSumExp);
HWY_EXPORT(Largest);
float log_sum_exp(const float* row, int64_t n) {
  settle_target();
  return HWY_DYNAMIC_DISPATCH(LogSumExp)(row, n);
}
void largest(const float* row, int64_t n, int64_t k, std::vector<int>& places) {
  settle_target();
  HWY_DYNAMIC_DISPATCH(Largest)(row, n, k, places);
}
}  // namespace heed
#endif
