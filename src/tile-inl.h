// One tile: products in registers, the online softmax on rows of scores, the weighted sum. Per-target code.
//
// Contract on bits (docs/design.md, section 2). A product is summed over k in order with FMA, vectors running across
// columns. A row's sum has 16 virtual lanes (key j adds to lane j mod 16) and one fixed tree. The running maximum is an
// integer power of two, so rescaling is exact and blocks may be cut anywhere.
#if defined(HEED_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_TILE_INL_H_
#undef HEED_TILE_INL_H_
#else
#define HEED_TILE_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "hwy/highway.h"
#include "plan.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::CappedTag<float, kLanes>;
using VF = hn::Vec<F>;
inline constexpr int64_t kVector = hn::MaxLanes(F());  // 16, 8 or 4 lanes; 1 on SCALAR

// ---- Products ----

// A [rows x k] times B [k x columns], added to C [rows x columns], which is first multiplied by factor[row] (or taken
// as zero without factors). A is read element by element, so either of its strides may be 1: a transposed A costs
// nothing.
struct Product {
  const float* a;
  int64_t a_row, a_k;
  const float* b;
  int64_t b_k, b_panel;  // panel p of 16 columns of row k is at b + p * b_panel + k * b_k
  float* c;
  int64_t c_row;
  const float* factor;  // [rows] or nullptr
};

// R rows by V vectors: the accumulators stay in registers over all of k.
template <int R, int V>
HWY_INLINE void Micro(const Product& t, int64_t row, int64_t k0, int64_t k1, const float* b0, const float* b1,
                      float* c0) {
  const F d;
  VF acc[R][V];
  float* HWY_RESTRICT c = c0 + row * t.c_row;
  if (t.factor) {
    for (int r = 0; r < R; ++r) {
      const VF f = hn::Set(d, t.factor[row + r]);
      for (int v = 0; v < V; ++v) acc[r][v] = hn::Mul(f, hn::LoadU(d, c + r * t.c_row + v * kVector));
    }
  } else {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] = hn::Zero(d);
  }
  const float* HWY_RESTRICT a = t.a + row * t.a_row + k0 * t.a_k;
  b0 += k0 * t.b_k;
  b1 += k0 * t.b_k;
  for (int64_t k = k0; k < k1; ++k) {
    VF b[V];
    b[0] = hn::LoadU(d, b0);
    if constexpr (V == 2) b[1] = hn::LoadU(d, b1);
    for (int r = 0; r < R; ++r) {
      const VF x = hn::Set(d, a[r * t.a_row]);
      for (int v = 0; v < V; ++v) acc[r][v] = hn::MulAdd(x, b[v], acc[r][v]);
    }
    a += t.a_k;
    b0 += t.b_k;
    b1 += t.b_k;
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) hn::StoreU(acc[r][v], d, c + r * t.c_row + v * kVector);
}

// R rows over columns [16 panel0, 16 panel1), two vectors at a time.
template <int R>
HWY_NOINLINE void Strip(const Product& t, int64_t row, int64_t k0, int64_t k1, int64_t panel0, int64_t panel1) {
  constexpr int64_t kPerPanel = kLanes / kVector;
  int64_t v = panel0 * kPerPanel;
  const int64_t end = panel1 * kPerPanel;
  const auto b = [&](int64_t i) { return t.b + i / kPerPanel * t.b_panel + i % kPerPanel * kVector; };
  for (; v + 2 <= end; v += 2) Micro<R, 2>(t, row, k0, k1, b(v), b(v + 1), t.c + v * kVector);
  if (v < end) Micro<R, 1>(t, row, k0, k1, b(v), b(v), t.c + v * kVector);
}

inline constexpr int64_t kGroup = 6;  // rows of a register tile; 6 x 2 vectors fill 12 of AVX2's 16 registers

// Rows [row, row + n), n <= 6.
inline void StripOf(int64_t n, const Product& t, int64_t row, int64_t k0, int64_t k1, int64_t panel0, int64_t panel1) {
  switch (n) {
    case 1:
      return Strip<1>(t, row, k0, k1, panel0, panel1);
    case 2:
      return Strip<2>(t, row, k0, k1, panel0, panel1);
    case 3:
      return Strip<3>(t, row, k0, k1, panel0, panel1);
    case 4:
      return Strip<4>(t, row, k0, k1, panel0, panel1);
    case 5:
      return Strip<5>(t, row, k0, k1, panel0, panel1);
    case 6:
      return Strip<6>(t, row, k0, k1, panel0, panel1);
  }
}

// How many rows the next group takes: groups as even as possible, because 1 or 2 rows alone waste most of the
// registers.
inline int64_t NextGroup(int64_t rows_left) {
  const int64_t groups = (rows_left + kGroup - 1) / kGroup;
  return (rows_left + groups - 1) / groups;
}

// All rows and k.
inline void Multiply(const Product& t, int64_t rows, int64_t k, int64_t panel0, int64_t panel1) {
  for (int64_t r = 0, n; r < rows; r += n) {
    n = NextGroup(rows - r);
    StripOf(n, t, r, 0, k, panel0, panel1);
  }
}

// The same where row r has only k in [spans[r].begin, spans[r].end): nothing outside is read. A group of rows shares
// what its rows have in common; what is left at either end goes row by row, still in order of k.
inline void MultiplySpans(const Product& t, const Span* spans, int64_t rows, int64_t panels) {
  for (int64_t r = 0, n; r < rows; r += n) {
    n = NextGroup(rows - r);
    Span common = spans[r];
    for (int64_t i = 1; i < n; ++i)
      common = {std::max(common.begin, spans[r + i].begin), std::min(common.end, spans[r + i].end)};
    if (common.begin >= common.end) {
      for (int64_t i = 0; i < n; ++i) Strip<1>(t, r + i, spans[r + i].begin, spans[r + i].end, 0, panels);
      continue;
    }
    // The pieces of a row follow each other in memory order; only the first one may scale what was there before.
    Product again = t;
    float ones[kTileRows];
    std::fill(ones, ones + rows, 1.0f);
    again.factor = ones;
    bool ragged_begin = false;
    for (int64_t i = 0; i < n; ++i) ragged_begin |= spans[r + i].begin < common.begin;
    if (ragged_begin)
      for (int64_t i = 0; i < n; ++i) Strip<1>(t, r + i, spans[r + i].begin, common.begin, 0, panels);
    StripOf(n, ragged_begin ? again : t, r, common.begin, common.end, 0, panels);
    for (int64_t i = 0; i < n; ++i)
      if (spans[r + i].end > common.end) Strip<1>(again, r + i, common.end, spans[r + i].end, 0, panels);
  }
}

// ---- Softmax ----

inline constexpr float kLog2e = 1.44269504088896341f;
inline constexpr double kLn2 = 0.693147180559945309417;
// Scores at or below this (in powers of two) count as minus infinity: a bias of -inf excludes its pair.
inline constexpr float kFloor = -1e30f;

// 2^(x - m) for an integer-valued m >= x - 1/2. x is split into a whole part n and a fraction in [-1/2, 1/2] before m
// comes in, so that another m changes the exponent and nothing else. Below 2^-126 the result is 0, never a denormal. A
// polynomial of degree 6, 0.6 ulp (Chebyshev interpolation of (2^f - 1) / f).
template <class D, class V>
HWY_INLINE V Exp2(D d, V x, V m) {
  const V n = hn::Round(x);
  const V f = hn::Sub(x, n);
  V p = hn::Set(d, 0x1.44138ap-13f);
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.5f0890p-10f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.3b2a54p-7f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.c6af6cp-5f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.ebfbe0p-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.62e430p-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  // The exponent is clamped before it becomes an integer; p * 2^e is then put together from two factors that cannot
  // overflow.
  V e = hn::Sub(n, m);
  const auto tiny = hn::Lt(e, hn::Set(d, -125.0f));
  e = hn::Min(hn::Max(e, hn::Set(d, -126.0f)), hn::Set(d, 127.0f));
  const hn::RebindToSigned<D> di;
  const auto bits = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, e), hn::Set(di, 127)));
  const V y = hn::Mul(p, hn::BitCast(d, bits));
  return hn::IfThenElse(tiny, hn::Zero(d), y);
}

// 2^n for an integer-valued n <= 0; 0 below -126.
HWY_INLINE float PowerOfTwo(float n) { return n < -126.0f ? 0.0f : std::ldexp(1.0f, static_cast<int>(n)); }

// 16 lanes to one number, always by the same tree.
inline float SumLanes(const float* lanes) {
  float s[kLanes];
  std::copy(lanes, lanes + kLanes, s);
  for (int64_t step = kLanes / 2; step > 0; step /= 2)
    for (int64_t i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
}

// Which lanes of [j, j + lanes) lie in the span.
template <class D>
HWY_INLINE auto Inside(D d, int64_t j, Span span) {
  const auto lane = hn::Iota(d, 0);
  const float begin = static_cast<float>(std::clamp<int64_t>(span.begin - j, 0, kLanes));
  const float end = static_cast<float>(std::clamp<int64_t>(span.end - j, 0, kLanes));
  return hn::And(hn::Ge(lane, hn::Set(d, begin)), hn::Lt(lane, hn::Set(d, end)));
}

// One row of raw scores s[0, 16 panels) becomes log2 weights before normalisation: t = s * scale2 + bias * log2(e),
// floored; what lies outside the span becomes the floor. bias_stride is 0 (one value for the row) or 1; bias may be
// nullptr. Returns the row's maximum.
inline float FinishScores(float* s, Span span, int64_t width, float scale2, const float* bias, int64_t bias_stride) {
  const F d;
  const VF c = hn::Set(d, scale2), log2e = hn::Set(d, kLog2e), floor = hn::Set(d, kFloor);
  const VF row_bias = bias && bias_stride == 0 ? hn::Set(d, *bias) : hn::Zero(d);
  VF largest = floor;
  for (int64_t j = 0; j < width; j += kVector) {
    VF t = hn::Mul(hn::LoadU(d, s + j), c);
    const bool whole = span.begin <= j && j + kVector <= span.end;
    if (bias) {
      VF b = row_bias;
      if (bias_stride != 0 && whole) {
        b = hn::LoadU(d, bias + j);
      } else if (bias_stride != 0) {  // bias beside the span is not read
        HWY_ALIGN float some[kVector] = {};
        for (int64_t x = std::max(j, span.begin); x < std::min(j + kVector, span.end); ++x) some[x - j] = bias[x];
        b = hn::Load(d, some);
      }
      t = hn::MulAdd(b, log2e, t);
    }
    t = hn::IfThenElse(hn::Lt(t, floor), floor, t);  // a NaN passes
    if (!whole) t = hn::IfThenElse(Inside(d, j, span), t, floor);
    hn::StoreU(t, d, s + j);
    largest = hn::IfThenElse(hn::Lt(largest, t), t, largest);
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

// t[0, width) becomes p = 2^(t - m), 0 at the floor; p is added to the row's 16 lanes.
inline void ExpRow(float* t, int64_t width, float m, float* lanes) {
  const F d;
  const VF vm = hn::Set(d, m), floor = hn::Set(d, kFloor);
  for (int64_t j = 0; j < width; j += kLanes)
    for (int64_t v = 0; v < kLanes; v += kVector) {
      const VF x = hn::LoadU(d, t + j + v);
      const VF p = hn::IfThenElse(hn::Eq(x, floor), hn::Zero(d), Exp2(d, x, vm));
      hn::StoreU(p, d, t + j + v);
      hn::StoreU(hn::Add(hn::LoadU(d, lanes + v), p), d, lanes + v);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
