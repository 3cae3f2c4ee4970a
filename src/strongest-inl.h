// The strongest of many numbers: of a row's weights for probes, of its logits for searches. Per-target code.
#if defined(HEED_STRONGEST_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_STRONGEST_INL_H_
#undef HEED_STRONGEST_INL_H_
#else
#define HEED_STRONGEST_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "hwy/highway.h"
#include "pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The n strongest keys so far, descending. What does not exceed the number that `weights` begins with is not among
// them: 0 for weights, -inf for logits.
struct Strongest {
  float* weights;
  int64_t* keys;
  int64_t n;

  float least() const { return weights[n - 1]; }
  // A weight above the least. Keys come ascending, so behind all that are equal.
  void insert(float weight, int64_t key) {
    int64_t x = n - 1;
    for (; x > 0 && weights[x - 1] < weight; --x) {
      weights[x] = weights[x - 1];
      keys[x] = keys[x - 1];
    }
    weights[x] = weight;
    keys[x] = key;
  }
};

// Enters w[0, width), the first of which is that of `key`. most: the largest of each lane. Blocks that have nothing to
// enter, which are most, end after a look at `most`. It also bounds what is entered: 16 different keys have these
// weights, so what is below the n-th of them is not among the n strongest. Without that, weights that ascend from key
// to key, ALiBi's, would be entered one by one.
inline void EnterStrongest(const float* w, int64_t width, int64_t key, float* most, Strongest& top) {
  const F d;
  float bound = top.least();
  int64_t lanes = 0;
  for (int64_t v = 0; v < kLanes; v += kVector)
    lanes += hn::CountTrue(d, hn::Gt(hn::LoadU(d, most + v), hn::Set(d, bound)));
  if (lanes == 0) return;
  if (lanes >= top.n) {
    std::nth_element(most, most + top.n - 1, most + kLanes, std::greater<>());
    bound =
        std::nextafter(most[top.n - 1], -std::numeric_limits<float>::infinity());  // what equals it may be among them
  }
  for (int64_t j = 0; j < width; j += kVector) {
    uint64_t above = 0;
    hn::StoreMaskBits(d, hn::Gt(hn::LoadU(d, w + j), hn::Set(d, bound)), reinterpret_cast<uint8_t*>(&above));
    for (; above != 0; above &= above - 1)
      if (const int64_t x = j + std::countr_zero(above); w[x] > top.least()) top.insert(w[x], key + x);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#endif  // HEED_STRONGEST_INL_H_
