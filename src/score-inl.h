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

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "plan.h"
#include "tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One head's operands for a score. Panels are of the whole problem's numbering: panel 0 holds keys 0..15.
struct ScoreInput {
  const float* q;  // rows of the head
  int64_t q_stride;
  const float* k_panels;  // [panel - first_panel][D][16]
  int64_t first_panel;
  int64_t D;
  const float* w;  // additive: [D]

  const float* panel(int64_t i) const { return k_panels + (i - first_panel) * D * kLanes; }
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
  float* dk;       // the block's sums, added to; nullptr if not wanted. dot: [key][padded]; additive: [panel][D][16]
  float* dw;       // additive: [D][16], added to; nullptr if not wanted
};

// s = q . k
struct DotScore {
  static constexpr bool kTransposedDk = false;

  // Rows [row, row + n) against panels [panel0, panel1): s[r * kBlockKeys + 16 * (panel - panel0)].
  static void Scores(const ScoreInput& in, int64_t row, int64_t n, int64_t panel0, int64_t panel1, float* s) {
    const Product t{
        in.q + row * in.q_stride, in.q_stride, 1, in.panel(panel0), kLanes, in.D * kLanes, s, kBlockKeys, nullptr};
    StripOf(n, t, 0, 0, in.D, 0, panel1 - panel0);
  }

  static void Back(const ScoreInput&, const ScoreGradient& g) {
    const int64_t panels = g.padded / kLanes;
    float ones[kBlockKeys];
    std::fill(ones, ones + kBlockKeys, 1.0f);
    // dq_i += sum over j of ds_ij k_j, only over the keys the row sees
    if (g.dq)
      MultiplySpans({g.ds, kBlockKeys, 1, g.k_rows, g.k_rows_stride, kLanes, g.dq, g.padded, ones}, g.spans, g.rows,
                    panels);
    // dk_j += sum over i of ds_ij q_i: the same kernel reading ds the other way round
    if (g.dk)
      Multiply({g.ds + g.keys.begin, 1, kBlockKeys, g.q_rows, g.q_rows_stride, kLanes, g.dk + g.keys.begin * g.padded,
                g.padded, ones},
               g.keys.end - g.keys.begin, g.rows, 0, panels);
  }
};

// s = w . tanh(q + k), never an L x S x D tensor (Bahdanau et al. 2015)
struct AdditiveScore {
  static constexpr bool kTransposedDk = true;

  static void Scores(const ScoreInput& in, int64_t row, int64_t n, int64_t panel0, int64_t panel1, float* s) {
    const F d;
    for (int64_t r = 0; r < n; ++r, s += kBlockKeys) {
      const float* HWY_RESTRICT q = in.q + (row + r) * in.q_stride;
      for (int64_t panel = panel0; panel < panel1; ++panel)
        for (int64_t v = 0; v < kLanes; v += kVector) {
          const float* HWY_RESTRICT k = in.panel(panel) + v;
          VF sum = hn::Zero(d);
          for (int64_t x = 0; x < in.D; ++x) {
            const VF t = hn::Tanh(d, hn::Add(hn::Set(d, q[x]), hn::LoadU(d, k + x * kLanes)));
            sum = hn::MulAdd(hn::Set(d, in.w[x]), t, sum);
          }
          hn::StoreU(sum, d, s + (panel - panel0) * kLanes + v);
        }
    }
  }

  // With t = tanh(q_id + k_jd): d s_ij / d q_id = d s_ij / d k_jd = w_d (1 - t^2), and d s_ij / d w_d = t.
  static void Back(const ScoreInput& in, const ScoreGradient& g) {
    const F d;
    const VF one = hn::Set(d, 1.0f), zero = hn::Zero(d);
    for (int64_t r = 0; r < g.rows; ++r) {
      const Span span = g.spans[r];
      if (span.begin >= span.end) continue;
      const float* HWY_RESTRICT q = in.q + (g.row0 + r) * in.q_stride;
      const int64_t panel0 = span.begin / kLanes, panel1 = (span.end + kLanes - 1) / kLanes;
      for (int64_t x = 0; x < in.D; ++x) {
        const VF q_x = hn::Set(d, q[x]), w_x = hn::Set(d, in.w[x]);
        VF dq[kPerPanel];
        for (int64_t v = 0; v < kPerPanel; ++v) dq[v] = zero;
        for (int64_t panel = panel0; panel < panel1; ++panel) {
          const float* HWY_RESTRICT k = in.panel(g.key0 / kLanes + panel) + x * kLanes;
          const float* HWY_RESTRICT ds = g.ds + r * kBlockKeys + panel * kLanes;
          for (int64_t v = 0; v < kPerPanel; ++v) {
            const VF ds_v = hn::LoadU(d, ds + v * kVector);
            // A pair that is not visible has ds = 0; a NaN in its key must not come through.
            const VF t =
                hn::IfThenElse(hn::Eq(ds_v, zero), zero, hn::Tanh(d, hn::Add(q_x, hn::LoadU(d, k + v * kVector))));
            const VF to_k = hn::Mul(hn::Mul(ds_v, w_x), hn::NegMulAdd(t, t, one));
            dq[v] = hn::Add(dq[v], to_k);
            if (g.dk) Accumulate(to_k, g.dk + (panel * in.D + x) * kLanes + v * kVector);
            if (g.dw) Accumulate(hn::Mul(ds_v, t), g.dw + x * kLanes + v * kVector);
          }
        }
        if (g.dq) {
          HWY_ALIGN float lanes[kLanes];
          for (int64_t v = 0; v < kPerPanel; ++v) hn::Store(dq[v], d, lanes + v * kVector);
          g.dq[r * g.padded + x] += SumLanes(lanes);
        }
      }
    }
  }

 private:
  static constexpr int64_t kPerPanel = kLanes / kVector;

  static HWY_INLINE void Accumulate(VF x, float* to) {
    const F d;
    hn::StoreU(hn::Add(hn::LoadU(d, to), x), d, to);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
