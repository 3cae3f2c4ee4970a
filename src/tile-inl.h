// One tile: products in registers, the softmax on rows of scores, the weighted sum. Per-target code.
//
// Contract on bits (docs/design.md, section 2). A product is summed over k in order with FMA, vectors running across
// columns. A row's sum has 16 virtual lanes (key j adds to lane j mod 16) and one fixed tree. The running maximum is an
// integer power of two, so rescaling is exact. Sums over keys begin anew with each block of kBlockKeys keys, and blocks
// are added up in order, so that it does not matter who computes which.
#if defined(HEED_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_TILE_INL_H_
#undef HEED_TILE_INL_H_
#else
#define HEED_TILE_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "dropout.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "pack-inl.h"
#include "plan.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- Products ----

// C [rows x columns] = A [rows x k] times B [k x columns]. A is read element by element, so it may lie either way
// round: element (r, k) is at a + r * a_stride + k, or transposed at a + k * a_stride + r.
template <class B>
struct ProductOf {
  const float* a;
  int64_t a_stride;
  const B* b;  // column vector v of row k is at b + v / kWide * b_panel + v % kWide * kVector + k * b_k
  int64_t b_k, b_panel;
  float* c;
  int64_t c_row;
  const float* factor = nullptr;  // [rows]: C = factor[row] * C + A times B
  // What to fetch into the cache meanwhile, one line for each k of a panel: faster, and processors drop it.
  const char* ahead = nullptr;
};
using Product = ProductOf<float>;

inline constexpr int64_t kGroup = 6;  // rows of a register tile
inline constexpr float kOnes[kBlockKeys] = {
#define HEED_8(x) x, x, x, x, x, x, x, x
    HEED_8(HEED_8(1)), HEED_8(HEED_8(1)), HEED_8(HEED_8(1)), HEED_8(HEED_8(1))
#undef HEED_8
};

// Keeps a loaded vector in its register. GCC 12 would fold the load into each FMA that uses it: 18 loads for 12 FMA,
// and the load ports become the limit (KERNEL-NOTES.md).
HWY_INLINE void Hold(VF& v) {
#if HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_X86 && HWY_TARGET != HWY_EMU128
  asm("" : "+v"(v.raw));
#else
  (void)v;
#endif
}

#if HWY_COMPILER_CLANG
#define HEED_UNROLL _Pragma("unroll")
#else
#define HEED_UNROLL _Pragma("GCC unroll 16")
#endif

template <int V, class B>
HWY_INLINE void LoadVectors(const B* from, VF (&b)[V]) {
  const F d;
  HEED_UNROLL
  for (int v = 0; v < V; ++v) {
    b[v] = Widen(d, from + v * kVector);
    Hold(b[v]);
  }
}

// Keeps a pointer in its register. GCC 12 would rather have one register for each distance from the first row and each
// step of an unrolled loop, which are more than there are.
template <class T>
HWY_INLINE void Hold(T*& p) {
#if HWY_COMPILER_GCC_ACTUAL
  asm("" : "+r"(p));
#else
  (void)p;
#endif
}

// Row r of a tile on its own, over k in [k0, k1).
template <int V, class B>
HWY_INLINE void AddOneRow(VF (&acc)[V], const float* HWY_RESTRICT a, int64_t a_k, const B* HWY_RESTRICT b, int64_t b_k,
                          int64_t k0, int64_t k1) {
  const F d;
  for (int64_t k = k0; k < k1; ++k) {
    const VF x = hn::Set(d, a[k * a_k]);
    HEED_UNROLL
    for (int v = 0; v < V; ++v) acc[v] = hn::MulAdd(x, Widen(d, b + k * b_k + v * kVector), acc[v]);
  }
}

// Each row r in its own range: [begin, end) clipped to lie before (kBefore) or behind what all rows have in common.
template <int R, int V, int r, bool kBefore, class B>
HWY_INLINE void AddRagged(VF (&acc)[R][V], const float* a, int64_t a_row, int64_t a_k, const B* b, int64_t b_k,
                          Span common, const Span* spans) {
  if constexpr (kBefore)
    AddOneRow<V>(acc[r], a + r * a_row, a_k, b, b_k, spans[r].begin, std::min(spans[r].end, common.begin));
  else
    AddOneRow<V>(acc[r], a + r * a_row, a_k, b, b_k, std::max(spans[r].begin, common.end), spans[r].end);
  if constexpr (r + 1 < R) AddRagged<R, V, r + 1, kBefore>(acc, a, a_row, a_k, b, b_k, common, spans);
}

// One k of a register tile. a: a pointer to each row of A, at u, or, transposed, one for all rows, at a_offset.
template <int R, int V, bool kTransposed, size_t P, class B>
HWY_INLINE void Step(const float* const (&a)[P], int u, int64_t a_offset, const B* HWY_RESTRICT b, VF (&acc)[R][V]) {
  const F d;
  VF x[V];
  LoadVectors<V>(b, x);
  HEED_UNROLL
  for (int r = 0; r < R; ++r) {
    const VF y = hn::Set(d, kTransposed ? a[0][a_offset + r] : a[r % P][u]);
    HEED_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = hn::MulAdd(y, x[v], acc[r][v]);
  }
}

// Stretches of k, one behind the other; at least one.
struct Runs {
  const Span *begin, *end;
};

// R rows by V vectors from `row` on: the sums stay in registers over all of k in `runs`, and, if kRagged, over what
// each row has before and behind them (spans[row...]), in order. b and c are those of the first vector.
template <int R, int V, bool kTransposed, bool kRagged, bool kAhead, class B>
HWY_INLINE void Micro(const ProductOf<B>& t, int64_t row, const Runs& runs, const Span* spans, const B* HWY_RESTRICT b0,
                      const char* ahead, float* HWY_RESTRICT c) {
  const F d;
  const int64_t a_row = kTransposed ? 1 : t.a_stride, a_k = kTransposed ? t.a_stride : 1, b_k = t.b_k;
  const float* HWY_RESTRICT a0 = t.a + row * a_row;
  VF acc[R][V];
  HEED_UNROLL
  for (int r = 0; r < R; ++r) {
    HEED_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = hn::Zero(d);
  }
  const Span all{runs.begin->begin, runs.end[-1].end};
  if constexpr (kRagged) AddRagged<R, V, 0, true, B>(acc, a0, a_row, a_k, b0, b_k, all, spans + row);

  // The rows of A: a pointer each, or, transposed, one for all.
  constexpr int kPointers = kTransposed ? 1 : R;
  const float* a[kPointers];
  HEED_UNROLL
  for (int r = 0; r < kPointers; ++r) a[r] = a0 + all.begin * a_k + r * a_row;
  const B* HWY_RESTRICT b = b0 + all.begin * b_k;
  constexpr int kUnroll = R * V <= 12 ? 4 : 2;
  for (const Span* run = runs.begin;; ++run) {
    int64_t left = run->end - run->begin;
    for (; left >= kUnroll; left -= kUnroll) {
      HEED_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        Step<R, V, kTransposed>(a, u, u * a_k, b, acc);
        b += b_k;
        if constexpr (kAhead) {
          hwy::Prefetch(ahead);
          ahead += kCacheLine;
        }
      }
      HEED_UNROLL
      for (int r = 0; r < kPointers; ++r) {
        a[r] += kUnroll * a_k;
        Hold(a[r]);
      }
    }
    for (; left > 0; --left) {
      Step<R, V, kTransposed>(a, 0, 0, b, acc);
      b += b_k;
      HEED_UNROLL
      for (int r = 0; r < kPointers; ++r) a[r] += a_k;
    }
    if (run + 1 == runs.end) break;
    const int64_t gap = run[1].begin - run->end;
    HEED_UNROLL
    for (int r = 0; r < kPointers; ++r) a[r] += gap * a_k;
    b += gap * b_k;
  }

  if constexpr (kRagged) AddRagged<R, V, 0, false, B>(acc, a0, a_row, a_k, b0, b_k, all, spans + row);
  const int64_t c_row = t.c_row;
  float* HWY_RESTRICT to = c + row * c_row;
  if (const float* HWY_RESTRICT factor = t.factor) {
    HEED_UNROLL
    for (int r = 0; r < R; ++r, to += c_row) {
      const VF f = hn::Set(d, factor[row + r]);
      HEED_UNROLL
      for (int v = 0; v < V; ++v)
        hn::StoreU(hn::MulAdd(f, hn::LoadU(d, to + v * kVector), acc[r][v]), d, to + v * kVector);
    }
  } else {
    HEED_UNROLL
    for (int r = 0; r < R; ++r, to += c_row) {
      HEED_UNROLL
      for (int v = 0; v < V; ++v) hn::StoreU(acc[r][v], d, to + v * kVector);
    }
  }
}

// R rows over column vectors [v0, v1), a panel at a time.
template <int R, bool kTransposed, bool kRagged, bool kAhead, class B>
HWY_NOINLINE void Strip(const ProductOf<B>& t, int64_t row, const Runs& runs, const Span* spans, int64_t v0,
                        int64_t v1) {
  const char* ahead = t.ahead;
  for (int64_t v = v0, n; v < v1; v += n) {
    n = std::min(kWide - v % kWide, v1 - v);
    const B* b = t.b + v / kWide * t.b_panel + v % kWide * kVector;
    float* c = t.c + v * kVector;
    if constexpr (kWide == 4) {
      if (n == 4) Micro<R, 4, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, b, ahead, c);
      if (n == 3) Micro<R, 3, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, b, ahead, c);
    }
    if (n == 2) Micro<R, 2, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, b, ahead, c);
    if (n == 1) Micro<R, 1, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, b, ahead, c);
    if constexpr (kAhead)
      for (const Span* run = runs.begin; run != runs.end; ++run) ahead += kCacheLine * (run->end - run->begin);
  }
}

// Rows [row, row + n), n <= kGroup.
template <bool kTransposed, bool kRagged, bool kAhead = false, class B>
inline void StripOf(int64_t n, const ProductOf<B>& t, int64_t row, const Runs& runs, const Span* spans, int64_t v0,
                    int64_t v1) {
  switch (n) {
    case 1:
      return Strip<1, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, v0, v1);
    case 2:
      return Strip<2, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, v0, v1);
    case 3:
      return Strip<3, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, v0, v1);
    case 4:
      return Strip<4, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, v0, v1);
    case 5:
      return Strip<5, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, v0, v1);
    case 6:
      return Strip<6, kTransposed, kRagged, kAhead, B>(t, row, runs, spans, v0, v1);
  }
}

template <bool kTransposed, class B>
inline void StripOf(int64_t n, const ProductOf<B>& t, int64_t row, const Span& run, int64_t v0, int64_t v1) {
  StripOf<kTransposed, false>(n, t, row, Runs{&run, &run + 1}, nullptr, v0, v1);
}

// How many rows the next group takes: groups as even as possible, because 1 or 2 rows alone waste most of the
// registers.
inline int64_t NextGroup(int64_t rows_left) {
  const int64_t groups = (rows_left + kGroup - 1) / kGroup;
  return (rows_left + groups - 1) / groups;
}

// What n rows have in common of their spans of k; where that is nothing, an empty span that splits each row's in two.
inline Span Common(const Span* spans, int64_t n) {
  Span common = spans[0];
  for (int64_t r = 1; r < n; ++r) common = {std::max(common.begin, spans[r].begin), std::min(common.end, spans[r].end)};
  return common.begin < common.end ? common : Span{common.begin, common.begin};
}

// A group of n rows over the k in each row's span: nothing outside is read.
template <bool kAhead = false, class B>
inline void MultiplyGroup(const ProductOf<B>& t, int64_t row, int64_t n, const Span* spans, int64_t v0, int64_t v1) {
  const Span common = Common(spans + row, n);
  if constexpr (!kAhead) {  // few rows are not worth a kernel of their own for spans that are equal
    bool equal = true;
    for (int64_t r = row; r < row + n; ++r) equal &= spans[r].begin == common.begin && spans[r].end == common.end;
    if (equal) return StripOf<false>(n, t, row, common, v0, v1);
  }
  StripOf<false, true, kAhead>(n, t, row, Runs{&common, &common + 1}, spans, v0, v1);
}

// ---- Rows with holes ----

// Which keys of a block a row sees: bit j.
struct Bits {
  uint64_t words[kBlockKeys / 64];
};

// The runs of ones in `bits`; gaps below `close` belong to them.
struct RunsOf {
  Span runs[kBlockKeys / 2];
  int64_t count = 0;

  explicit RunsOf(const Bits& bits, int64_t close = 0) {
    for (int64_t w = 0; w < kBlockKeys / 64; ++w)
      for (uint64_t word = bits.words[w]; word != 0;) {
        const int64_t begin = std::countr_zero(word);
        const uint64_t rest = ~(word >> begin);
        const int64_t end = rest == 0 ? 64 : std::min<int64_t>(64, begin + std::countr_zero(rest));
        word = end == 64 ? 0 : word >> end << end;
        if (count > 0 && 64 * w + begin - runs[count - 1].end <= close)
          runs[count - 1].end = 64 * w + end;
        else
          runs[count++] = {64 * w + begin, 64 * w + end};
      }
  }
  Runs all() const { return {runs, runs + count}; }
};

// Gaps up to this are cheaper multiplied by zeros than jumped over.
constexpr int64_t kCloseGap = 4;

// As MultiplyGroup for n rows of which row r has only the k in bits[r], and zeros in A elsewhere: all rows go over the
// runs of any. What a row does not see may be infinite or NaN, which zero times is not zero: if something of that kind
// comes out, each row goes over its own runs alone.
template <bool kAhead = false, class B>
inline void MultiplyWithHoles(const ProductOf<B>& t, int64_t row, int64_t n, const Bits* bits, int64_t v0, int64_t v1) {
  const F d;
  Bits any{};
  for (int64_t r = 0; r < n; ++r)
    for (int64_t w = 0; w < kBlockKeys / 64; ++w) any.words[w] |= bits[r].words[w];
  const RunsOf runs(any, kCloseGap);
  HWY_ALIGN float kept[kGroup * kPanel];
  // A panel at a time, in memory of its own until it is known to be finite.
  for (int64_t v = v0, panel; v < v1; v += panel) {
    panel = std::min(kWide - v % kWide, v1 - v);
    ProductOf<B> part = t;
    part.c = kept - v * kVector - row * kPanel;
    part.c_row = kPanel;
    part.factor = nullptr;
    if (kAhead) part.ahead += (v - v0) * kCacheLine;  // a part of what is to be fetched with each panel
    const auto multiply = [&](int64_t r, int64_t rows, const RunsOf& over) {
      Span spans[kGroup];
      std::fill_n(spans, rows, Span{over.runs[0].begin, over.runs[over.count - 1].end});
      StripOf<false, kAhead, kAhead>(rows, part, row + r, over.all(), spans - (row + r), v, v + panel);
    };
    if (runs.count > 0) multiply(0, n, runs);
    VF check = hn::Zero(d);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t x = 0; x < panel * kVector; x += kVector)
        check = hn::MulAdd(hn::Load(d, kept + r * kPanel + x), hn::Zero(d), check);
    const bool finite = runs.count > 0 && hn::GetLane(hn::SumOfLanes(d, check)) == 0;
    for (int64_t r = 0; r < n; ++r) {
      float* from = kept + r * kPanel;
      if (!finite) {
        const RunsOf mine(bits[r]);
        if (mine.count > 0)
          multiply(r, 1, mine);
        else
          std::fill_n(from, panel * kVector, 0.0f);
      }
      float* to = t.c + (row + r) * t.c_row + v * kVector;
      if (t.factor) {
        const VF f = hn::Set(d, t.factor[row + r]);
        for (int64_t x = 0; x < panel * kVector; x += kVector)
          hn::StoreU(hn::MulAdd(f, hn::LoadU(d, to + x), hn::Load(d, from + x)), d, to + x);
      } else {
        std::copy_n(from, panel * kVector, to);
      }
    }
  }
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
  constexpr float kExcluded = -std::numeric_limits<float>::infinity();
  if (span.begin >= span.end) span = {width, width};
  std::fill(s, s + span.begin, kExcluded);
  std::fill(s + span.end, s + width, kExcluded);
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
