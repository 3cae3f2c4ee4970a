// Step 1 of the three: how a score comes about, and how its gradient goes back to q and k. Dot and additive. Per-target
// code.
//
// Both have  Scores  (raw scores of a few rows against some panels of keys) and a way back:  ToQueries  (dot, whose
// gradient to keys is one more product of the tile's) or  ToAll.  The passes are written once over them.
#if defined(HEED_SCORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_SCORE_INL_H_
#undef HEED_SCORE_INL_H_
#else
#define HEED_SCORE_INL_H_
#endif

#include "hwy/highway.h"
#include "plan.h"
#include "product-inl.h"
#include "softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A tile's scores and their gradients lie in rows so far apart: behind each other in the cache, not on top.
inline constexpr int64_t kBackStride = kBlockKeys + kLanes;

// Operands of a score: rows of f32 against one block of keys.
struct ScoreInput {
  const float* q;
  int64_t q_stride;
  const float* k;  // the block's panels (PackPanels)
  int64_t D;
  const float* w;  // additive: [D]

  // Element x of the keys of the block's vector v.
  const float* keys(int64_t v, int64_t x) const {
    return k + v / kWide * D * kPanel + v % kWide * kVector + x * kPanel;
  }
};

// Gradients of one tile's scores on their way to one block of keys.
struct ScoreGradient {
  const float* ds;        // [rows][kBackStride], 0 where a pair is not visible
  int64_t group, row0;    // row r belongs to head (row0 + r) % group
  const Span* spans;      // [rows], relative to the block
  const Bits* bits;       // [n] of the rows at hand, if they have holes; else nullptr
  const float* k_strips;  // the block's K, rows in strips (PackStrips); dot
  int64_t k_strip;        // floats from one strip to the next
  int64_t k_row, k_last;  // and from one row to the next; in the last strip if that is narrower
  int64_t padded;         // D rounded up to 16
  float* dq;              // [rows][padded], added to, or, if fresh (dot), written; nullptr if not wanted
  float* dk;              // additive: the block's sums, in panels as k; nullptr if not wanted
  float* dw;              // additive: [group][D][16], added to; nullptr if not wanted
  bool fresh;
};

// s = q . k
struct DotScore {
  // n rows against the block's vectors [v0, v1): s[r * s_stride + v * kVector].
  template <bool kAhead = false>
  static void Scores(const ScoreInput& in, int64_t n, int64_t v0, int64_t v1, float* s, int64_t s_stride,
                     const char* ahead = nullptr) {
    Product t{in.q, in.q_stride, in.k, kPanel, in.D * kPanel, s, s_stride};
    t.ahead = ahead;
    const Span all{0, in.D};
    StripOf<false, false, kAhead>(n, t, 0, Runs{&all, &all + 1}, nullptr, v0, v1);
  }

  // dq_i += sum over j of ds_ij k_j, only over the keys the row sees: rows [r, r + n).
  static void ToQueries(const ScoreGradient& g, int64_t r, int64_t n) {
    const int64_t whole = g.padded / kPanel * kPanel;
    Product t{g.ds, kBackStride, g.k_strips, g.k_row, g.k_strip, g.dq, g.padded, g.fresh ? nullptr : kOnes};
    const auto multiply = [&](int64_t vectors) {
      g.bits ? MultiplyWithHoles(t, r, n, g.bits, 0, vectors) : MultiplyGroup(t, r, n, g.spans, 0, vectors);
    };
    multiply(whole / kVector);
    if (whole == g.padded) return;
    t.b += whole / kPanel * g.k_strip;
    t.b_k = g.k_last;
    t.c += whole;
    multiply((g.padded - whole) / kVector);
  }
};

// s = q . k where k is bytes in quads (PackQuads). A query is rounded to integers of 16 bits: sums of their products
// are exact, so that any order gives the same bits, and two fit where one product of floats does.
//
// A row of queries is then its unit, what 1 is worth in it, and two words for each quad: its elements 0 and 2, and 1
// and 3.
struct ByteScore {
  static constexpr int64_t kMost = 32767;
  static constexpr int64_t kExactQuads = 128;  // 4 * 128 * 32767 * 128 < 2^31

  static int64_t row(int64_t D) { return 1 + (D + 3) / 4 * 2; }

  // factor * from[0, D) rounded; NaN and infinity make the unit NaN, and so every score.
  template <class T>
  static void Round(const T* from, int64_t D, float factor, float* to) {
    float largest = 0;
    bool finite = true;
    for (int64_t x = 0; x < D; ++x) {
      const float q = WidenOne(from + x) * factor;
      largest = std::max(largest, std::fabs(q));
      finite &= std::isfinite(q);
    }
    const float unit = largest / kMost;
    *to++ = finite ? unit : std::numeric_limits<float>::quiet_NaN();
    const auto rounded = [&](int64_t x) -> uint32_t {
      if (x >= D || !finite || unit == 0) return 0;
      const float units = std::nearbyint(WidenOne(from + x) * factor / unit);
      return static_cast<uint32_t>(static_cast<int32_t>(std::clamp<float>(units, -kMost, kMost))) & 0xFFFF;
    };
    for (int64_t x = 0; x < D; x += 4) {
      *to++ = std::bit_cast<float>(rounded(x) | rounded(x + 2) << 16);
      *to++ = std::bit_cast<float>(rounded(x + 1) | rounded(x + 3) << 16);
    }
  }

  // n rows against the block's vectors [v0, v1): s[r * s_stride + v * kVector], k's scales not yet in it.
  static void Scores(const ScoreInput& in, int64_t n, int64_t v0, int64_t v1, float* s, int64_t s_stride) {
    switch (n) {
      case 1:
        return SomeRows<1>(in, v0, v1, s, s_stride);
      case 2:
        return SomeRows<2>(in, v0, v1, s, s_stride);
      case 3:
        return SomeRows<3>(in, v0, v1, s, s_stride);
      case 4:
        return SomeRows<4>(in, v0, v1, s, s_stride);
      case 5:
        return SomeRows<5>(in, v0, v1, s, s_stride);
      case 6:
        return SomeRows<6>(in, v0, v1, s, s_stride);
    }
  }

 private:
  template <int R>
  static HWY_NOINLINE void SomeRows(const ScoreInput& in, int64_t v0, int64_t v1, float* s, int64_t s_stride) {
    for (; v0 + 2 <= v1; v0 += 2) Tile<R, 2>(in, v0, s, s_stride);
    if (v0 < v1) Tile<R, 1>(in, v0, s, s_stride);
  }

  // R rows by V vectors of keys.
  template <int R, int V>
  static HWY_INLINE void Tile(const ScoreInput& in, int64_t v0, float* s, int64_t s_stride) {
    const F d;
    const hn::RebindToSigned<F> di;
    const int64_t quads = (in.D + 3) / 4;
    const int8_t* HWY_RESTRICT k[V];
    VF total[R][V];
    HEED_UNROLL
    for (int v = 0; v < V; ++v) {
      const int64_t key = (v0 + v) * kVector;
      k[v] = reinterpret_cast<const int8_t*>(in.k) + key / kLanes * quads * kQuad + key % kLanes * 4;
      HEED_UNROLL
      for (int r = 0; r < R; ++r) total[r][v] = hn::Zero(d);
    }
    for (int64_t x = 0; x < quads;) {
      hn::Vec<decltype(di)> sum[R][V], more[R][V];  // more: where products of pairs are not added at once (NEON)
      HEED_UNROLL
      for (int r = 0; r < R; ++r) {
        HEED_UNROLL
        for (int v = 0; v < V; ++v) sum[r][v] = more[r][v] = hn::Zero(di);
      }
      for (const int64_t end = std::min(quads, x + kExactQuads); x < end; ++x) {
        const float* HWY_RESTRICT q = in.q + 1 + 2 * x;
        HEED_UNROLL
        for (int v = 0; v < V; ++v) {
          const auto quad = hn::LoadU(di, reinterpret_cast<const int32_t*>(k[v] + x * kQuad));
          HEED_UNROLL
          for (int r = 0; r < R; ++r) Add(quad, q + r * in.q_stride, sum[r][v], more[r][v]);
        }
      }
      HEED_UNROLL
      for (int r = 0; r < R; ++r) {
        HEED_UNROLL
        for (int v = 0; v < V; ++v) total[r][v] = hn::Add(total[r][v], hn::ConvertTo(d, Joined(sum[r][v], more[r][v])));
      }
    }
    HEED_UNROLL
    for (int r = 0; r < R; ++r) {
      const VF unit = hn::Set(d, in.q[r * in.q_stride]);
      HEED_UNROLL
      for (int v = 0; v < V; ++v) hn::StoreU(hn::Mul(total[r][v], unit), d, s + r * s_stride + (v0 + v) * kVector);
    }
  }

  using VI = hn::Vec<hn::RebindToSigned<F>>;

#if HWY_TARGET == HWY_SCALAR
  static void Add(VI quad, const float* q, VI& sum, VI&) {
    const int32_t bytes = hn::GetLane(quad), even = std::bit_cast<int32_t>(q[0]), odd = std::bit_cast<int32_t>(q[1]);
    const auto byte = [&](int x) { return static_cast<int32_t>(static_cast<int8_t>(bytes >> 8 * x)); };
    const auto low = [](int32_t word) { return static_cast<int32_t>(static_cast<int16_t>(word)); };
    const int32_t products = byte(0) * low(even) + byte(1) * low(odd) + byte(2) * (even >> 16) + byte(3) * (odd >> 16);
    sum = hn::Add(sum, hn::Set(hn::RebindToSigned<F>(), products));
  }
  static VI Joined(VI sum, VI) { return sum; }
#else
  // Bytes 0 and 2 of a quad as words, and 1 and 3.
  static HWY_INLINE void Add(VI quad, const float* q, VI& sum, VI& more) {
    const hn::RebindToSigned<F> di;
    const hn::RepartitionToNarrow<decltype(di)> words;
    const auto k = hn::BitCast(words, quad);
    const auto pair = [&](float x) HWY_ATTR { return hn::BitCast(words, hn::Set(di, std::bit_cast<int32_t>(x))); };
    sum = hn::ReorderWidenMulAccumulate(di, hn::ShiftRight<8>(hn::ShiftLeft<8>(k)), pair(q[0]), sum, more);
    sum = hn::ReorderWidenMulAccumulate(di, hn::ShiftRight<8>(k), pair(q[1]), sum, more);
  }
  static HWY_INLINE VI Joined(VI sum, VI more) { return hn::RearrangeToOddPlusEven(sum, more); }
#endif
};

// s = w . tanh(q + k), never an L x S x D tensor (Bahdanau et al. 2015)
struct AdditiveScore {
  static void Scores(const ScoreInput& in, int64_t n, int64_t v0, int64_t v1, float* s, int64_t s_stride) {
    const F d;
    for (int64_t r = 0; r < n; ++r, s += s_stride) {
      const float* HWY_RESTRICT q = in.q + r * in.q_stride;
      for (int64_t v = v0; v < v1; ++v) {
        const float* HWY_RESTRICT k = in.keys(v, 0);
        VF sum = hn::Zero(d);
        for (int64_t x = 0; x < in.D; ++x) {
          const VF t = Tanh(d, hn::Add(hn::Set(d, q[x]), hn::LoadU(d, k + x * kPanel)));
          sum = hn::MulAdd(hn::Set(d, in.w[x]), t, sum);
        }
        hn::StoreU(sum, d, s + v * kVector);
      }
    }
  }

  // Rows [r, r + n). With t = tanh(q_id + k_jd): d s_ij / d q_id = d s_ij / d k_jd = w_d (1 - t^2), d s_ij / d w_d = t.
  // `in` is of the tile's first row and the group's first w.
  static void ToAll(const ScoreInput& in, const ScoreGradient& g, int64_t r, int64_t n) {
    const F d;
    constexpr int64_t kVectors = kLanes / kVector;
    const VF one = hn::Set(d, 1.0f), zero = hn::Zero(d);
    for (const int64_t end = r + n; r < end; ++r) {
      const Span span = g.spans[r];
      if (span.begin >= span.end) continue;
      const int64_t head = (g.row0 + r) % g.group;
      const float* HWY_RESTRICT q = in.q + r * in.q_stride;
      const float* HWY_RESTRICT w = in.w + head * in.D;
      const int64_t v0 = span.begin / kLanes * kVectors, v1 = round_up(span.end, kLanes) / kVector;
      for (int64_t x = 0; x < in.D; ++x) {
        const VF q_x = hn::Set(d, q[x]), w_x = hn::Set(d, w[x]);
        VF dq[kVectors];
        for (int64_t v = 0; v < kVectors; ++v) dq[v] = zero;
        for (int64_t v = v0; v < v1; v += kVectors) {
          for (int64_t lane = 0; lane < kVectors; ++lane) {
            const VF ds = hn::LoadU(d, g.ds + r * kBackStride + (v + lane) * kVector);
            const float* k = in.keys(v + lane, x);
            // A pair that is not visible has ds = 0; a NaN in its key must not come through.
            const VF t = hn::IfThenElse(hn::Eq(ds, zero), zero, Tanh(d, hn::Add(q_x, hn::LoadU(d, k))));
            const VF to_k = hn::Mul(hn::Mul(ds, w_x), hn::NegMulAdd(t, t, one));
            dq[lane] = hn::Add(dq[lane], to_k);
            if (g.dk) Accumulate(to_k, g.dk + (k - in.k));
            if (g.dw) Accumulate(hn::Mul(ds, t), g.dw + (head * in.D + x) * kLanes + lane * kVector);
          }
        }
        if (g.dq) {
          HWY_ALIGN float lanes[kLanes];
          for (int64_t v = 0; v < kVectors; ++v) hn::Store(dq[v], d, lanes + v * kVector);
          g.dq[r * g.padded + x] += SumLanes(lanes);
        }
      }
    }
  }

 private:
  static HWY_INLINE void Accumulate(VF x, float* to) {
    const F d;
    hn::StoreU(hn::Add(hn::LoadU(d, to), x), d, to);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
