// K, V and Q laid out for the kernel, widened to f32: panels of keys or columns side by side. Per-target code.
#if defined(HEED_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_PACK_INL_H_
#undef HEED_PACK_INL_H_
#else
#define HEED_PACK_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "half.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "plan.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, kLanes>;
using VF = hn::Vec<F>;
inline constexpr int64_t kVector = hn::MaxLanes(F());  // 16, 8 or 4 lanes

// Vectors side by side in a register tile. With 32 registers 6 rows x 4 vectors of sums fit, with 16 6 x 2.
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr int kWide = 4;
#else
inline constexpr int kWide = 2;
#endif
// Keys or columns of one panel: what one register tile covers.
inline constexpr int64_t kPanel = kWide * kVector;
static_assert(kBlockKeys % kPanel == 0 && kWidestPanel % kPanel == 0);

inline constexpr int64_t kCacheLine = 64;  // bytes

// ---- One vector of another type ----

#undef HEED_NATIVE_HALF
// Targets whose own conversions of binary16 round as half.h does.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_ARCH_ARM_A64
#define HEED_NATIVE_HALF 1
#else
#define HEED_NATIVE_HALF 0
#endif

HWY_INLINE VF Widen(F d, const float* from) { return hn::LoadU(d, from); }

using Bits16 = hn::Rebind<uint16_t, F>;

HWY_INLINE VF WidenBits(F d, hn::Vec<Bits16> bits, const hwy::bfloat16_t*) {
  const hn::RebindToUnsigned<F> du;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

HWY_INLINE VF WidenBits(F d, hn::Vec<Bits16> bits, const hwy::float16_t*) {
#if HEED_NATIVE_HALF
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, F>(), bits));
#else
  HWY_ALIGN uint16_t halves[kVector];
  HWY_ALIGN float floats[kVector];
  hn::StoreU(bits, Bits16(), halves);
  for (int64_t x = 0; x < kVector; ++x) floats[x] = float_of_half(halves[x]);
  return hn::Load(d, floats);
#endif
}

template <class T>
HWY_INLINE VF Widen(F d, const T* from) {
  return WidenBits(d, hn::LoadU(Bits16(), reinterpret_cast<const uint16_t*>(from)), from);
}

HWY_INLINE VF Widen(F d, const int8_t* from) {
  return hn::ConvertTo(d, hn::PromoteTo(hn::RebindToSigned<F>(), hn::LoadU(hn::Rebind<int8_t, F>(), from)));
}

HWY_INLINE void Narrow(VF x, F d, float* to) { hn::StoreU(x, d, to); }

HWY_INLINE void Narrow(VF x, F d, hwy::bfloat16_t* to) {
  const hn::Rebind<uint16_t, F> d16;
  const hn::RebindToUnsigned<F> du;
  const hn::RebindToSigned<F> di;
  const auto bits = hn::BitCast(du, x), high = hn::ShiftRight<16>(bits);
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), hn::And(high, hn::Set(du, 1))));
  const auto nan = hn::RebindMask(du, hn::Ne(x, x));
  const auto y = hn::IfThenElse(nan, hn::Or(high, hn::Set(du, 0x40)), rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, y)), d16, reinterpret_cast<uint16_t*>(to));
  (void)d;
}

HWY_INLINE void Narrow(VF x, F d, hwy::float16_t* to) {
#if HEED_NATIVE_HALF
  const hn::Rebind<hwy::float16_t, F> d16;
  hn::StoreU(hn::DemoteTo(d16, x), d16, to);
  (void)d;
#else
  HWY_ALIGN float one[kVector];
  hn::Store(x, d, one);
  for (int64_t i = 0; i < kVector; ++i) reinterpret_cast<uint16_t*>(to)[i] = half_of_float(one[i]);
#endif
}

inline float WidenOne(const float* from) { return *from; }
inline float WidenOne(const hwy::bfloat16_t* from) { return float_of_bfloat(*reinterpret_cast<const uint16_t*>(from)); }
inline float WidenOne(const int8_t* from) { return *from; }
inline float WidenOne(const hwy::float16_t* from) { return float_of_half(*reinterpret_cast<const uint16_t*>(from)); }

inline void NarrowOne(float x, float* to) { *to = x; }
inline void NarrowOne(float x, hwy::bfloat16_t* to) { *reinterpret_cast<uint16_t*>(to) = bfloat_of_float(x); }
inline void NarrowOne(float x, hwy::float16_t* to) { *reinterpret_cast<uint16_t*>(to) = half_of_float(x); }

// ---- Rows ----

// to[0, padded) = factor * from[0, n), zeros behind. padded is at least n.
template <class T>
HWY_INLINE void WidenRow(const T* HWY_RESTRICT from, int64_t n, int64_t padded, float factor, float* HWY_RESTRICT to) {
  const F d;
  const VF f = hn::Set(d, factor);
  int64_t x = 0;
  for (; x + kVector <= n; x += kVector) hn::StoreU(hn::Mul(Widen(d, from + x), f), d, to + x);
  for (; x < n; ++x) to[x] = WidenOne(from + x) * factor;
  for (; x < padded; ++x) to[x] = 0.0f;
}

// to[0, n) = factor * from[0, n), rounded to T.
template <class T>
inline void NarrowRow(const float* from, int64_t n, float factor, T* to) {
  const F d;
  const VF f = hn::Set(d, factor);
  int64_t x = 0;
  for (; x + kVector <= n; x += kVector) Narrow(hn::Mul(hn::LoadU(d, from + x), f), d, to + x);
  for (; x < n; ++x) NarrowOne(from[x] * factor, to + x);
}

template <class T>
inline void ClearRow(T* to, int64_t n) {
  for (int64_t x = 0; x < n; ++x) NarrowOne(0.0f, to + x);
}

// ---- Panels ----

// A vector of quads: four elements from each of the rows p, p + quad, p + 2 quad, ...
#if HWY_TARGET != HWY_SCALAR
template <class D>
HWY_INLINE hn::Vec<D> QuadsOf(D d, const float* p, int64_t quad) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    (void)quad;
    return hn::LoadU(d, p);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, QuadsOf(half, p + hn::MaxLanes(half) / 4 * quad, quad), QuadsOf(half, p, quad));
  }
}

#endif

#if HWY_TARGET != HWY_SCALAR
// Four columns, of 4 bytes each, of kVector rows.
template <class T>
HWY_INLINE void Transpose(const T* from, int64_t stride, VF (&columns)[4]) {
  const F d;
  const hn::RepartitionToWide<F> pairs;  // moves two floats at once
  const int64_t quad = 4 * stride * sizeof(T) / sizeof(float);
  const auto row = [&](int64_t r)
                       HWY_ATTR { return QuadsOf(d, reinterpret_cast<const float*>(from + r * stride), quad); };
  const VF a = row(0), b = row(1), c = row(2), e = row(3);
  const auto ab_low = hn::BitCast(pairs, hn::InterleaveLower(d, a, b));   // a0 b0 a1 b1 of each quad
  const auto ab_high = hn::BitCast(pairs, hn::InterleaveUpper(d, a, b));  // a2 b2 a3 b3
  const auto ce_low = hn::BitCast(pairs, hn::InterleaveLower(d, c, e));
  const auto ce_high = hn::BitCast(pairs, hn::InterleaveUpper(d, c, e));
  columns[0] = hn::BitCast(d, hn::InterleaveLower(pairs, ab_low, ce_low));
  columns[1] = hn::BitCast(d, hn::InterleaveUpper(pairs, ab_low, ce_low));
  columns[2] = hn::BitCast(d, hn::InterleaveLower(pairs, ab_high, ce_high));
  columns[3] = hn::BitCast(d, hn::InterleaveUpper(pairs, ab_high, ce_high));
}

// Stores one column of floats, or two of 16-bit elements, the first in the lower halves.
HWY_INLINE void StoreColumns(VF x, const float*, float* to) { hn::StoreU(x, F(), to); }
template <class T>
HWY_INLINE void StoreColumns(VF x, const T* type, float* to) {
  const F d;
  const hn::RebindToSigned<F> di;
  const hn::RebindToUnsigned<F> du;
  const auto bits = hn::BitCast(du, x);
  const auto narrow = [&](auto word) HWY_ATTR { return hn::DemoteTo(Bits16(), hn::BitCast(di, word)); };
  hn::StoreU(WidenBits(d, narrow(hn::And(bits, hn::Set(du, 0xFFFF))), type), d, to);
  hn::StoreU(WidenBits(d, narrow(hn::ShiftRight<16>(bits)), type), d, to + kPanel);
}
HWY_INLINE void StoreColumns(VF x, const hwy::bfloat16_t*, float* to) {
  const F d;
  const hn::RebindToUnsigned<F> du;
  const auto bits = hn::BitCast(du, x);
  hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(bits)), d, to);
  hn::StoreU(hn::BitCast(d, hn::And(bits, hn::Set(du, 0xFFFF0000u))), d, to + kPanel);
}
#endif

#if HWY_TARGET != HWY_SCALAR
// Elements of 16 bytes. 16-bit ones are moved two at a time, as the float they would be together.
template <class T>
inline constexpr int64_t kStep = 16 / sizeof(T);

// kStep columns of kVector rows, into a panel.
template <class T>
HWY_INLINE void PackColumns(const T* from, int64_t stride, float* to) {
  VF columns[4];
  Transpose(from, stride, columns);
  for (int64_t c = 0; c < 4; ++c) StoreColumns(columns[c], from, to + c * (kStep<T> / 4) * kPanel);
}

// The kVector rows from r on, of which [row0, row1) are there and the others zeros.
template <class T>
inline void PackSomeRows(const T* rows, int64_t stride, int64_t r, int64_t row0, int64_t row1, int64_t dims,
                         float* HWY_RESTRICT to) {
  const int64_t begin = std::max<int64_t>(row0 - r, 0), end = std::min(row1 - r, kVector);
  HWY_ALIGN T some[kVector * kStep<T>];
  std::memset(some, 0, sizeof some);
  int64_t x = 0;
  for (; x + kStep<T> <= dims; x += kStep<T>) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(some + i * kStep<T>, rows + (r + i) * stride + x, 16);
    PackColumns(some, kStep<T>, to + x * kPanel);
  }
  for (; x < dims; ++x)
    for (int64_t i = 0; i < kVector; ++i)
      to[x * kPanel + i] = begin <= i && i < end ? WidenOne(rows + (r + i) * stride + x) : 0.0f;
}
#endif

// Transposes rows [row0, row1) of a [rows, dims] matrix into panels: element d of row r lies at
// out[r / kPanel * dims * kPanel + d * kPanel + r % kPanel]. Rows around them that share a group of kLanes are zero:
// they are not read, but computed with. This is K for q.k, and V for d_out.v. Whole vectors of rows at a time, four
// columns each, the last ones too: element by element, a sentence would spend more on this than on all products.
// Meanwhile as many bytes from `ahead` on are fetched into the cache as are read of the rows; nullptr: none.
template <class T>
inline void PackPanels(const T* rows, int64_t stride, int64_t row0, int64_t row1, int64_t dims, float* out,
                       [[maybe_unused]] const char* ahead = nullptr) {
  for (int64_t r = row0 / kLanes * kLanes; r < round_up(row1, kLanes); r += kVector) {
    float* HWY_RESTRICT to = out + r / kPanel * dims * kPanel + r % kPanel;
#if HWY_TARGET == HWY_SCALAR
    const bool there = row0 <= r && r < row1;
    for (int64_t x = 0; x < dims; ++x) to[x * kPanel] = there ? WidenOne(rows + r * stride + x) : 0.0f;
#else
    if (r < row0 || row1 < r + kVector) {
      PackSomeRows(rows, stride, r, row0, row1, dims, to);
      continue;
    }
    const T* HWY_RESTRICT from = rows + r * stride;
    int64_t x = 0;
    for (; x + kStep<T> <= dims; x += kStep<T>, from += kStep<T>) {
      if (ahead) {
        for (int64_t line = 0; line < kVector * 16; line += kCacheLine) hwy::Prefetch(ahead + line);
        ahead += kVector * 16;
      }
      PackColumns(from, stride, to + x * kPanel);
    }
    for (; x < dims; ++x, ++from)
      for (int64_t lane = 0; lane < kVector; ++lane) to[x * kPanel + lane] = WidenOne(from + lane * stride);
#endif
  }
}

// Rows [row0, row1) of a [rows, dims] matrix of bytes in quads, four elements of each of kLanes rows: element d of row
// r lies at out[(r / kLanes * quads + d / 4) * kQuad + r % kLanes * 4 + d % 4], quads = ceil(dims / 4). Zeros and
// `ahead` as in PackPanels.
inline constexpr int64_t kQuad = 4 * kLanes;  // bytes
inline void PackQuads(const int8_t* rows, int64_t stride, int64_t row0, int64_t row1, int64_t dims, int8_t* out,
                      [[maybe_unused]] const char* ahead = nullptr) {
  const int64_t quads = (dims + 3) / 4;
  const auto at = [&](int64_t r) { return out + r / kLanes * quads * kQuad + r % kLanes * 4; };
  const auto pack_one = [&](const int8_t* row, int64_t r, int64_t x0) {
    for (int64_t x = x0; x < 4 * quads; ++x) at(r)[x / 4 * kQuad + x % 4] = row && x < dims ? row[x] : 0;
  };
  int64_t r = row0 / kLanes * kLanes;
  for (; r < row0; ++r) pack_one(nullptr, r, 0);
  for (; r < row1 && r % kVector != 0; ++r) pack_one(rows + r * stride, r, 0);
#if HWY_TARGET != HWY_SCALAR
  for (; r + kVector <= row1; r += kVector) {
    const int8_t* HWY_RESTRICT from = rows + r * stride;
    int64_t x = 0;
    for (; x + 16 <= dims; x += 16) {
      if (ahead) {
        for (int64_t line = 0; line < kVector * 16; line += kCacheLine) hwy::Prefetch(ahead + line);
        ahead += kVector * 16;
      }
      VF columns[4];
      Transpose(from + x, stride, columns);
      for (int64_t c = 0; c < 4; ++c)
        hn::StoreU(columns[c], F(), reinterpret_cast<float*>(at(r) + (x / 4 + c) * kQuad));
    }
    for (int64_t lane = 0; lane < kVector && x < dims; ++lane) pack_one(from + lane * stride, r + lane, x);
  }
#endif
  for (; r < row1; ++r) pack_one(rows + r * stride, r, 0);
  for (; r % kLanes != 0; ++r) pack_one(nullptr, r, 0);
}

// Rows [row0, row1) of a [rows, dims] matrix in strips of kPanel columns, the last one as wide as what is left of
// `padded` (a multiple of 16, at least dims; zeros behind the dims): element x of row r lies at
// out[x / kPanel * strip + r * width + x % kPanel].
template <class T>
inline void PackStrips(const T* rows, int64_t stride, int64_t row0, int64_t row1, int64_t dims, int64_t padded,
                       int64_t strip, float* out) {
  for (int64_t x = 0; x < padded; x += kPanel, out += strip) {
    const int64_t width = std::min(kPanel, padded - x);
    for (int64_t r = row0; r < row1; ++r)
      WidenRow(rows + r * stride + x, std::min(width, dims - x), width, 1.0f, out + r * width);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
