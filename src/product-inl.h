// The register kernel: products of a few rows, over all of their sum, over a span of each row, or around holes.
// Per-target code.
//
// Contract on bits (docs/design.md, section 2). A product is summed over k in order with FMA, vectors running across
// columns. Sums over keys begin anew with each block of kBlockKeys keys, and blocks are added up in order, so that it
// does not matter who computes which.
#if defined(HEED_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_PRODUCT_INL_H_
#undef HEED_PRODUCT_INL_H_
#else
#define HEED_PRODUCT_INL_H_
#endif

#include <algorithm>
#include <bit>

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

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
