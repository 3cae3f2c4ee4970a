// Rows of scores on their way to weights: 2^x and tanh, what finishes a score, the softmax or sigmoid of a row,
// dropout; and sums in 16 lanes. Per-target code.
//
// Contract on bits (docs/design.md, section 2). A row's sum has 16 virtual lanes (key j adds to lane j mod 16) and one
// fixed tree. The running maximum is an integer power of two, so rescaling is exact.
#if defined(HEED_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_SOFTMAX_INL_H_
#undef HEED_SOFTMAX_INL_H_
#else
#define HEED_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "dropout.h"
#include "hwy/highway.h"
#include "pack-inl.h"
#include "product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- 2^x and tanh ----

inline constexpr float kLog2e = 1.44269504088896341f;
inline constexpr double kLn2 = 0.693147180559945309417;

// (2^f - 1) / f for f in [-1/2, 1/2]: degree 5, from Chebyshev interpolation.
template <class D, class V>
HWY_INLINE V Exp2Slope(D d, V f) {
  V p = hn::Set(d, 0x1.44138ap-13f);
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.5f0890p-10f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.3b2a54p-7f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.c6af6cp-5f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.ebfbe0p-3f));
  return hn::MulAdd(p, f, hn::Set(d, 0x1.62e430p-1f));
}

// e << 23 for an integer-valued |e| < 2^22: what has to be added to the bits of a float to multiply it by 2^e.
template <class D, class V>
HWY_INLINE auto ExponentBits(D d, V e) {
  const hn::RebindToSigned<D> di;
  return hn::ShiftLeft<23>(hn::BitCast(di, hn::Add(e, hn::Set(d, 0x1.8p23f))));
}

// 2^(x - m) for an integer-valued m >= x - 1/2. x is split into a whole part n and a fraction in [-1/2, 1/2] before m
// comes in, so that another m changes the exponent and nothing else. Below 2^-125 the result is 0, never a denormal;
// x = -inf gives 0 whatever m is. Within 0.9 ulp.
template <class D, class V>
HWY_INLINE V Exp2(D d, V x, V m) {
  const hn::RebindToSigned<D> di;
  const V n = hn::Round(x);
  const V f = hn::Sub(x, n);
  const V p = hn::MulAdd(Exp2Slope(d, f), f, hn::Set(d, 1.0f));
  const V e = hn::Sub(n, m);
  const V y = hn::BitCast(d, hn::Add(hn::BitCast(di, p), ExponentBits(d, e)));
  return hn::IfThenZeroElse(hn::Lt(e, hn::Set(d, -125.0f)), y);
}

// tanh x = (e - 1) / (e + 1) with e = 2^u, u = 2 x log2(e). e - 1 = 2^n (2^f - 1) + (2^n - 1) loses nothing where x is
// small: there n is 0 and 2^f - 1 comes from its own polynomial. Within 4 ulp; NaN stays NaN.
template <class D, class V>
HWY_INLINE V Tanh(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V u = hn::Max(hn::Set(d, -30.0f), hn::Min(hn::Set(d, 30.0f), hn::Mul(x, hn::Set(d, 2 * kLog2e))));
  const V n = hn::Round(u), f = hn::Sub(u, n), one = hn::Set(d, 1.0f);
  const V power = hn::BitCast(d, hn::Add(hn::BitCast(di, one), ExponentBits(d, n)));
  const V less_one = hn::MulAdd(power, hn::Mul(Exp2Slope(d, f), f), hn::Sub(power, one));
  const V y = hn::Div(less_one, hn::Add(less_one, hn::Set(d, 2.0f)));
  // Of a number and NaN x86's minimum and maximum are the second operand, which above is x; others' are the number.
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
  return y;
#else
  return hn::IfThenElse(hn::Eq(x, x), y, x);
#endif
}

// 2^n for an integer-valued n <= 0; 0 below -126 and for NaN.
HWY_INLINE float PowerOfTwo(float n) {
  return n >= -126.0f ? std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23) : 0.0f;
}

// 16 lanes to one number, always by the same tree: halves are added to halves.
inline float SumLanes(const float* lanes) {
#if HWY_TARGET == HWY_SCALAR
  float s[kLanes];
  std::copy(lanes, lanes + kLanes, s);
  for (int64_t step = kLanes / 2; step > 0; step /= 2)
    for (int64_t i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
#else
  const hn::FixedTag<float, 4> d4;
  const auto quad = [&](int64_t x) HWY_ATTR { return hn::LoadU(d4, lanes + 4 * x); };
  HWY_ALIGN float s[4];
  hn::Store(hn::Add(hn::Add(quad(0), quad(2)), hn::Add(quad(1), quad(3))), d4, s);
  return (s[0] + s[2]) + (s[1] + s[3]);
#endif
}

// a . b in 16 lanes and their tree; columns of different dtypes are not needed.
template <class T>
inline float DotRow(const T* a, const T* b, int64_t n) {
  const F d;
  HWY_ALIGN float lanes[kLanes] = {};
  int64_t x = 0;
  for (; x + kLanes <= n; x += kLanes)
    for (int64_t v = 0; v < kLanes; v += kVector)
      hn::Store(hn::MulAdd(Widen(d, a + x + v), Widen(d, b + x + v), hn::Load(d, lanes + v)), d, lanes + v);
  for (int64_t lane = 0; x < n; ++x, ++lane) lanes[lane] = std::fma(WidenOne(a + x), WidenOne(b + x), lanes[lane]);
  return SumLanes(lanes);
}

// ---- Softmax ----

// Scores at or below this (in powers of two) count as minus infinity: a bias of -inf excludes its pair.
inline constexpr float kFloor = -1e30f;

// What makes a weight's exponent of a raw score s in powers of two: t = cap(s) + bias * log2(e) + slope2 * (j - p).
struct Finish {
  float cap2 = 0;               // softcap * log2(e); 0: none
  const float* bias = nullptr;  // of the row's first key; nullptr: none
  int64_t bias_stride = 1;      // 0: one value for the row
  float slope2 = 0;             // ALiBi's slope * log2(e); 0: none
  float distance = 0;           // j - p of the row's first key
  const ScoreMod* mod = nullptr;
  ScoreRow row{};  // for mod: from the row's first key on
  bool nothing() const { return cap2 == 0 && !bias && slope2 == 0; }
};

// bias[j] of a vector of keys, log2(e) not yet in it; beside the span it is not read.
HWY_INLINE VF BiasOf(const Finish& how, int64_t j, Span span) {
  const F d;
  if (how.bias_stride == 0) return hn::Set(d, *how.bias);
  if (span.begin <= j && j + kVector <= span.end) return hn::LoadU(d, how.bias + j);
  HWY_ALIGN float some[kVector] = {};
  for (int64_t x = std::max(j, span.begin); x < std::min(j + kVector, span.end); ++x) some[x - j] = how.bias[x];
  return hn::Load(d, some);
}

// s[0, width), whole vectors, becomes -inf outside the span. By whole vectors, too: a vector that is read before
// numbers written into it one by one are in the cache waits for them, which cost a seventh of short sequences of ragged
// lengths.
inline void Exclude(float* s, Span span, int64_t width) {
  const F d;
  const VF excluded = hn::Set(d, -std::numeric_limits<float>::infinity());
  if (span.begin >= span.end) span = {width, width};
  for (int64_t j = 0; j < span.begin; j += kVector) {
    const auto before = hn::FirstN(d, static_cast<size_t>(std::min(span.begin - j, kVector)));
    hn::StoreU(hn::IfThenElse(before, excluded, hn::LoadU(d, s + j)), d, s + j);
  }
  for (int64_t j = span.end / kVector * kVector; j < width; j += kVector) {
    const auto within = hn::FirstN(d, static_cast<size_t>(std::max<int64_t>(span.end - j, 0)));
    hn::StoreU(hn::IfThenElse(within, hn::LoadU(d, s + j), excluded), d, s + j);
  }
}

// s[0, width), whole vectors, in place, and what lies outside the span (within the width, or empty) becomes -inf. If
// slope is given it gets the derivative of the cap, which the backward multiplies by; tanh gets what the cap is made
// of; mod_slope, within the span, the derivative of the user's function.
inline void FinishScores(float* s, Span span, int64_t width, const Finish& how, float* slope = nullptr,
                         float* tanh = nullptr, float* mod_slope = nullptr) {
  const F d;
  if (!how.nothing()) {
    const VF log2e = hn::Set(d, kLog2e);
    const VF cap = hn::Set(d, how.cap2), inverse = hn::Set(d, how.cap2 > 0 ? 1 / how.cap2 : 0.0f);
    const VF slope2 = hn::Set(d, how.slope2);
    for (int64_t j = 0; j < width; j += kVector) {
      VF t = hn::LoadU(d, s + j);
      if (how.cap2 > 0) {
        const VF h = Tanh(d, hn::Mul(t, inverse));
        if (slope) hn::StoreU(hn::NegMulAdd(h, h, hn::Set(d, 1.0f)), d, slope + j);
        if (tanh) hn::StoreU(h, d, tanh + j);
        t = hn::Mul(cap, h);
      }
      if (how.bias) t = hn::MulAdd(BiasOf(how, j, span), log2e, t);
      if (how.slope2 != 0) t = hn::MulAdd(slope2, hn::Iota(d, how.distance + static_cast<float>(j)), t);
      hn::StoreU(t, d, s + j);
    }
  }
  if (how.mod && span.begin < span.end) {  // in natural units
    ScoreRow row = how.row;
    row.key += span.begin;
    row.count = span.end - span.begin;
    for (int64_t j = span.begin; j < span.end; ++j) s[j] *= static_cast<float>(kLn2);
    how.mod->apply(row, s + span.begin, mod_slope ? mod_slope + span.begin : nullptr);
    for (int64_t j = span.begin; j < span.end; ++j) s[j] *= kLog2e;
  }
  Exclude(s, span, width);
}

// What a row does not see of t[0, width) becomes -inf; t is that of key `first`, a multiple of 16.
inline void HideKeys(float* t, int64_t first, int64_t width, const Bits& bits) {
  const F d;
  const VF excluded = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < width; j += kVector) {
    const int64_t key = first + j;
    const uint64_t some = bits.words[key / 64] >> (key % 64);
    const auto seen = hn::LoadMaskBits(d, reinterpret_cast<const uint8_t*>(&some));
    hn::StoreU(hn::IfThenElse(seen, hn::LoadU(d, t + j), excluded), d, t + j);
  }
}

// All rows of a transposed A over all k.
inline void MultiplyTransposed(const Product& t, int64_t rows, int64_t k, int64_t vectors) {
  for (int64_t r = 0, n; r < rows; r += n) {
    n = NextGroup(rows - r);
    StripOf<true>(n, t, r, {0, k}, 0, vectors);
  }
}

// The largest of t[0, width), at least kFloor. NaN does not count.
inline float MaxOfRow(const float* t, int64_t width) {
  const F d;
  VF a = hn::Set(d, kFloor), b = a;
  int64_t j = 0;
  for (; j + 2 * kVector <= width; j += 2 * kVector) {
    a = hn::Max(hn::LoadU(d, t + j), a);  // a if the other is NaN, on every target
    b = hn::Max(hn::LoadU(d, t + j + kVector), b);
  }
  if (j < width) a = hn::Max(hn::LoadU(d, t + j), a);
  return hn::GetLane(hn::MaxOfLanes(d, hn::Max(a, b)));
}

// t[0, width) becomes p = 2^(t - m); the row's 16 lanes become factor * lanes + the sums of p.
inline void ExpRow(float* t, int64_t width, float m, float factor, float* lanes) {
  const F d;
  constexpr int64_t kVectors = kLanes / kVector;
  const VF vm = hn::Set(d, m);
  VF sum[kVectors];
  HEED_UNROLL
  for (int64_t v = 0; v < kVectors; ++v) sum[v] = hn::Zero(d);
  for (int64_t j = 0; j < width; j += kLanes) {
    HEED_UNROLL
    for (int64_t v = 0; v < kVectors; ++v) {
      const VF p = Exp2(d, hn::LoadU(d, t + j + v * kVector), vm);
      hn::StoreU(p, d, t + j + v * kVector);
      sum[v] = hn::Add(sum[v], p);
    }
  }
  HEED_UNROLL
  for (int64_t v = 0; v < kVectors; ++v)
    hn::StoreU(hn::MulAdd(hn::Set(d, factor), hn::LoadU(d, lanes + v * kVector), sum[v]), d, lanes + v * kVector);
}

// t[0, width) becomes p = 1 / (1 + 2^-t): e = 2^-|t| is never above 1.
HWY_INLINE VF Sigmoid(VF t) {
  const F d;
  const VF one = hn::Set(d, 1.0f), e = Exp2(d, hn::Neg(hn::Abs(t)), hn::Zero(d));
  return hn::Div(hn::IfThenElse(hn::Lt(t, hn::Zero(d)), e, one), hn::Add(one, e));
}
inline void SigmoidRow(float* t, int64_t width) {
  const F d;
  for (int64_t j = 0; j < width; j += kVector) hn::StoreU(Sigmoid(hn::LoadU(d, t + j)), d, t + j);
}

// ---- Dropout ----

// What decides over the weights of one row from key `key0` on (dropout.h).
struct Drop {
  uint64_t row = 0;
  int64_t key0 = 0;
  uint32_t threshold = 0;  // 0: nothing is dropped
};

// Which of the vector's keys are dropped. j: relative to key0.
HWY_INLINE hn::Mask<F> Dropped(const Drop& drop, int64_t j) {
  const F d;
  const hn::RebindToUnsigned<F> du;
  const hn::RebindToSigned<F> di;
  const auto key = hn::Iota(du, static_cast<uint32_t>(drop.key0 + j));
  auto bits = hn::Add(hn::Set(du, static_cast<uint32_t>(drop.row)), hn::Mul(key, hn::Set(du, kWeyl)));
  bits = hn::Mul(hn::Xor(bits, hn::ShiftRight<16>(bits)), hn::Set(du, kMix1));
  const auto upper = hn::Set(du, static_cast<uint32_t>(drop.row >> 32));
  bits = hn::Mul(hn::Xor(hn::Xor(bits, hn::ShiftRight<13>(bits)), upper), hn::Set(du, kMix2));
  bits = hn::ShiftRight<8>(hn::Xor(bits, hn::ShiftRight<16>(bits)));
  return hn::RebindMask(d, hn::Lt(hn::BitCast(di, bits), hn::Set(di, static_cast<int32_t>(drop.threshold))));
}

// Sets the dropped weights of p[0, width) to 0.
inline void DropRow(float* p, int64_t width, const Drop& drop) {
  const F d;
  for (int64_t j = 0; j < width; j += kVector)
    hn::StoreU(hn::IfThenZeroElse(Dropped(drop, j), hn::LoadU(d, p + j)), d, p + j);
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
