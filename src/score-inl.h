// Step 1 of the three: how a score comes about, and how its gradient goes back to q and k. Dot and additive. Per-target
// code.
//
// A policy has  Scores  (raw scores of a few rows against some panels of keys) and  Back  (their gradient); forward.cc
// and backward.cc are written once over it.
#if defined(HEED_SCORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_SCORE_INL_H_
#undef HEED_SCORE_INL_H_
#else
#define HEED_SCORE_INL_H_
#endif

#include "hwy/highway.h"
#include "plan.h"
#include "tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One head's operands for a score, against one block of keys.
struct ScoreInput {
  const float* q;  // rows of f32
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
  const float* ds;      // [rows][kBlockKeys], 0 where a pair is not visible; of the scores before scale
  const Span* spans;    // [rows], relative to the block
  int64_t row0, rows;   // of the head
  int64_t key0;         // the block's first key
  Span keys;            // what the tile sees of the block, relative to it, in whole panels
  const float* q_rows;  // row row0 of q, padded to whole vectors (dot)
  int64_t q_rows_stride;
  const float* k_rows;  // key key0 of k, padded to whole vectors (dot)
  int64_t k_rows_stride;
  int64_t padded;  // D rounded up to 16
  float* dq;       // [rows][padded], added to; nullptr if not wanted
  float* dk;       // the block's sums, added to; nullptr if not wanted. dot: [key][padded]; additive: as k's panels
  float* dw;       // additive: [D][16], added to; nullptr if not wanted
};

// s = q . k
struct DotScore {
  static constexpr bool kTransposedDk = false;

  // Rows [row, row + n) against the block's vectors [v0, v1): s[r * kBlockKeys + (v - v0) * kVector].
  static void Scores(const ScoreInput& in, int64_t row, int64_t n, int64_t v0, int64_t v1, float* s) {
    const Product t{in.q + row * in.q_stride, in.q_stride, in.k, kPanel, in.D * kPanel, s - v0 * kVector, kBlockKeys};
    StripOf<false, false>(n, t, 0, {0, in.D}, nullptr, v0, v1);
  }

  static void Back(const ScoreInput&, const ScoreGradient& g) {
    const int64_t vectors = g.padded / kVector;
    // dq_i += sum over j of ds_ij k_j, only over the keys the row sees
    if (g.dq) {
      const Product t{g.ds, kBlockKeys, g.k_rows, g.k_rows_stride, kPanel, g.dq, g.padded, kOnes};
      for (int64_t r = 0, n; r < g.rows; r += n) {
        n = NextGroup(g.rows - r);
        MultiplyGroup(t, r, n, g.spans, 0, vectors);
      }
    }
    // dk_j += sum over i of ds_ij q_i: the same kernel reading ds the other way round
    if (g.dk)
      MultiplyTransposed({g.ds + g.keys.begin, kBlockKeys, g.q_rows, g.q_rows_stride, kPanel,
                          g.dk + g.keys.begin * g.padded, g.padded, kOnes},
                         g.keys.end - g.keys.begin, g.rows, vectors);
  }
};

// s = w . tanh(q + k), never an L x S x D tensor (Bahdanau et al. 2015)
struct AdditiveScore {
  static constexpr bool kTransposedDk = true;

  static void Scores(const ScoreInput& in, int64_t row, int64_t n, int64_t v0, int64_t v1, float* s) {
    const F d;
    for (int64_t r = 0; r < n; ++r, s += kBlockKeys) {
      const float* HWY_RESTRICT q = in.q + (row + r) * in.q_stride;
      for (int64_t v = v0; v < v1; ++v) {
        const float* HWY_RESTRICT k = in.keys(v, 0);
        VF sum = hn::Zero(d);
        for (int64_t x = 0; x < in.D; ++x) {
          const VF t = Tanh(d, hn::Add(hn::Set(d, q[x]), hn::LoadU(d, k + x * kPanel)));
          sum = hn::MulAdd(hn::Set(d, in.w[x]), t, sum);
        }
        hn::StoreU(sum, d, s + (v - v0) * kVector);
      }
    }
  }

  // With t = tanh(q_id + k_jd): d s_ij / d q_id = d s_ij / d k_jd = w_d (1 - t^2), and d s_ij / d w_d = t.
  static void Back(const ScoreInput& in, const ScoreGradient& g) {
    const F d;
    constexpr int64_t kVectors = kLanes / kVector;
    const VF one = hn::Set(d, 1.0f), zero = hn::Zero(d);
    for (int64_t r = 0; r < g.rows; ++r) {
      const Span span = g.spans[r];
      if (span.begin >= span.end) continue;
      const float* HWY_RESTRICT q = in.q + (g.row0 + r) * in.q_stride;
      const int64_t v0 = span.begin / kLanes * kVectors, v1 = round_up(span.end, kLanes) / kVector;
      for (int64_t x = 0; x < in.D; ++x) {
        const VF q_x = hn::Set(d, q[x]), w_x = hn::Set(d, in.w[x]);
        VF dq[kVectors];
        for (int64_t v = 0; v < kVectors; ++v) dq[v] = zero;
        for (int64_t v = v0; v < v1; v += kVectors) {
          for (int64_t lane = 0; lane < kVectors; ++lane) {
            const VF ds = hn::LoadU(d, g.ds + r * kBlockKeys + (v + lane) * kVector);
            const float* k = in.keys(v + lane, x);
            // A pair that is not visible has ds = 0; a NaN in its key must not come through.
            const VF t = hn::IfThenElse(hn::Eq(ds, zero), zero, Tanh(d, hn::Add(q_x, hn::LoadU(d, k))));
            const VF to_k = hn::Mul(hn::Mul(ds, w_x), hn::NegMulAdd(t, t, one));
            dq[lane] = hn::Add(dq[lane], to_k);
            if (g.dk) Accumulate(to_k, g.dk + (k - in.k));
            if (g.dw) Accumulate(hn::Mul(ds, t), g.dw + x * kLanes + lane * kVector);
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
