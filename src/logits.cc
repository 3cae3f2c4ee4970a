// Rows of logits, 16 lanes at a time, with the engine's own 2^x, sums and strongest.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "logits.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <algorithm>
#include <cmath>
#include <limits>

#include "heed/logits.h"
#include "hwy/highway.h"
#include "passes.h"
#include "softmax-inl.h"
#include "strongest-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kNone = -std::numeric_limits<float>::infinity();

// Calls f(at, x, width) for row[at, at + width) at x, blocks whose widths are multiples of 16: the end of the row is
// filled up with -inf.
template <class Function>
HWY_INLINE void ForBlocks(const float* row, int64_t n, const Function& f) {
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t at = 0; at < whole; at += kBlockKeys) f(at, row + at, std::min(kBlockKeys, whole - at));
  if (whole == n) return;
  HWY_ALIGN float rest[kLanes];
  std::fill(std::copy(row + whole, row + n, rest), rest + kLanes, kNone);
  f(whole, static_cast<const float*>(rest), kLanes);
}

// The largest number of each lane that is none of NaN.
HWY_INLINE void LargestOfLanes(const float* x, int64_t width, float* most) {
  const F d;
  for (int64_t v = 0; v < kLanes; v += kVector) {
    VF top = hn::Set(d, kNone);
    for (int64_t j = v; j < width; j += kLanes) {
      const VF y = hn::LoadU(d, x + j);
      top = hn::IfThenElse(hn::Gt(y, top), y, top);
    }
    hn::StoreU(top, d, most + v);
  }
}

float LogSumExp(const float* row, int64_t n) {
  const F d;
  constexpr int64_t kVectors = kLanes / kVector;
  float most = kNone;
  ForBlocks(row, n, [&](int64_t, const float* x, int64_t width) HWY_ATTR {
    HWY_ALIGN float lanes[kLanes];
    LargestOfLanes(x, width, lanes);
    most = std::max(most, *std::max_element(lanes, lanes + kLanes));
  });

  VF sum[kVectors];
  for (VF& v : sum) v = hn::Zero(d);
  const VF m = hn::Set(d, most), zero = hn::Zero(d), log2e = hn::Set(d, kLog2e);
  auto sound = hn::Le(zero, zero);  // in every lane: all so far were at most the largest, which NaN is not
  ForBlocks(row, n, [&](int64_t, const float* x, int64_t width) HWY_ATTR {
    for (int64_t j = 0; j < width; j += kLanes) {
      for (int64_t v = 0; v < kVectors; ++v) {
        const VF y = hn::LoadU(d, x + j + v * kVector);
        sound = hn::And(sound, hn::Le(y, m));
        sum[v] = hn::Add(sum[v], Exp2(d, hn::Mul(hn::Sub(y, m), log2e), zero));
      }
    }
  });
  if (!hn::AllTrue(d, sound) || most == -kNone) return std::numeric_limits<float>::quiet_NaN();
  if (most == kNone) return most;
  HWY_ALIGN float lanes[kLanes];
  for (int64_t v = 0; v < kVectors; ++v) hn::Store(sum[v], d, lanes + v * kVector);
  return static_cast<float>(static_cast<double>(most) + std::log(static_cast<double>(SumLanes(lanes))));
}

void Largest(const float* row, int64_t n, int64_t k, std::vector<int64_t>& places) {
  places.assign(static_cast<size_t>(std::max<int64_t>(k, 0)), -1);
  if (places.empty()) return;
  std::vector<float> values(places.size(), kNone);
  Strongest top{values.data(), places.data(), k};
  ForBlocks(row, n, [&](int64_t at, const float* x, int64_t width) HWY_ATTR {
    HWY_ALIGN float most[kLanes];
    LargestOfLanes(x, width, most);
    EnterStrongest(x, width, at, most, top);
  });
  places.erase(std::find(places.begin(), places.end(), -1), places.end());
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
void largest(const float* row, int64_t n, int64_t k, std::vector<int64_t>& places) {
  settle_target();
  HWY_DYNAMIC_DISPATCH(Largest)(row, n, k, places);
}
}  // namespace heed
#endif
