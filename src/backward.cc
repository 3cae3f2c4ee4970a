// The backward pass: weights again from lse, then five products for each tile and block. Memory linear in L and S.
//
// One task owns a KV head: key blocks outside, query tiles inside. dk and dv of a block are complete when its tiles are
// done; dq adds up over the blocks in ascending order. No atomics, so the same bits on any number of threads. A bias
// gradient that several heads or batches share makes them one task, in order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backward.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"
#include "pack-inl.h"
#include "passes.h"
#include "score-inl.h"
#include "threads.h"
#include "tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

using Floats = hwy::AlignedFreeUniquePtr<float[]>;

// Rows of [rows, dims] that the kernel may read in whole vectors: in place if they are, else a padded copy.
struct WholeRows {
  Floats copy;
  const float* data = nullptr;
  int64_t stride = 0;

  WholeRows() = default;
  WholeRows(const float* from, int64_t from_stride, Span rows, int64_t dims) {
    const int64_t padded = round_up(dims, kLanes);
    if (padded == dims) {
      data = from;
      stride = from_stride;
      return;
    }
    copy = hwy::AllocateAligned<float>(std::max<int64_t>(1, (rows.end - rows.begin) * padded));
    PackRows(from, from_stride, rows.begin, rows.end, dims, padded, copy.get());
    data = copy.get() - rows.begin * padded;
    stride = padded;
  }
};

// Rows of one tile. A tile's weights and their gradients (2 x 48 x 256 floats) stay in L2.
constexpr int64_t kTileRows = 48;

inline float DotRow(const float* a, const float* b, int64_t n) {
  const F d;
  HWY_ALIGN float lanes[kLanes] = {};
  int64_t x = 0;
  for (; x + kLanes <= n; x += kLanes)
    for (int64_t v = 0; v < kLanes; v += kVector)
      hn::Store(hn::MulAdd(hn::LoadU(d, a + x + v), hn::LoadU(d, b + x + v), hn::Load(d, lanes + v)), d, lanes + v);
  for (int64_t lane = 0; x < n; ++x, ++lane) lanes[lane] = std::fma(a[x], b[x], lanes[lane]);
  return SumLanes(lanes);
}

// p = 2^(t - lse2) of a row of finished scores, and ds = p (dp - delta), the gradient of the score with its bias; a
// weight of 0 gives 0 whatever dp is.
inline void WeightsAndGradient(float* t, float* dp, int64_t width, float lse2, float delta) {
  const F d;
  const VF l = hn::Set(d, lse2), del = hn::Set(d, delta), zero = hn::Zero(d);
  for (int64_t j = 0; j < width; j += kVector) {
    const VF p = Exp2(d, hn::Sub(hn::LoadU(d, t + j), l), zero);
    hn::StoreU(p, d, t + j);
    const VF ds = hn::Mul(p, hn::Sub(hn::LoadU(d, dp + j), del));
    hn::StoreU(hn::IfThenElse(hn::Eq(p, zero), zero, ds), d, dp + j);
  }
}

// ds becomes the gradient of the score before the cap: d cap(s) / d s = 1 - tanh^2.
inline void ThroughCap(float* ds, int64_t width, const float* slope) {
  const F d;
  for (int64_t j = 0; j < width; j += kVector)
    hn::StoreU(hn::Mul(hn::LoadU(d, ds + j), hn::LoadU(d, slope + j)), d, ds + j);
}

// One KV head of one batch. dw: [group][D] sums of this head's queries, or nullptr.
template <class Score>
void BackwardHead(const Problem& p, const Tiling& tiling, const Incoming& in, const Gradients& g, int64_t b,
                  int64_t hkv, float* dw) {
  const auto head = [&](const auto& t, int64_t h) {
    using T = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(t.data)>>, const float, float>;
    return static_cast<T*>(t.data) + b * t.stride[0] + h * t.stride[1];
  };
  const int64_t D = p.D, Dv = p.Dv, Dp = round_up(D, kLanes), Dvp = round_up(Dv, kLanes);
  const bool want_scores = g.d_q.data || g.d_k.data || g.d_bias.data || dw;
  const Span hull = tiling.keys(b);
  const int64_t first_key = hull.begin / kWidestPanel * kWidestPanel;
  const int64_t room = round_up(hull.end, kWidestPanel) - first_key;

  // K and V of the head, transposed for q.k and d_out.v, and K's rows for dq.
  const Floats k_panels = hwy::AllocateAligned<float>(std::max<int64_t>(1, room * D));
  const Floats v_panels = hwy::AllocateAligned<float>(std::max<int64_t>(1, room * Dv));
  PackPanels(head(p.a.k, hkv), p.a.k.stride[2], hull.begin, hull.end, D, k_panels.get() - first_key * D);
  if (want_scores)
    PackPanels(head(p.a.v, hkv), p.a.v.stride[2], hull.begin, hull.end, Dv, v_panels.get() - first_key * Dv);
  WholeRows k_rows;
  if (g.d_q.data && p.a.score == heed::Score::dot) k_rows = WholeRows(head(p.a.k, hkv), p.a.k.stride[2], hull, D);

  // Each query head of the group: its rows, what comes in, and its dq.
  struct Query {
    WholeRows q, d_out;
    ScoreInput score;
    std::vector<float> lse2, delta;
    Floats dq, dw;
    const float* bias = nullptr;
    float* d_bias = nullptr;
  };
  const ConstTensor& bias = p.a.bias;
  const auto broadcast = [&](const Shape& shape, const Shape& stride, int64_t h) {
    return (shape[0] == 1 ? 0 : b * stride[0]) + (shape[1] == 1 ? 0 : h * stride[1]);
  };
  std::vector<Query> queries(p.group);
  for (int64_t x = 0; x < p.group; ++x) {
    Query& query = queries[x];
    const int64_t h = hkv * p.group + x;
    if (g.d_k.data && p.a.score == heed::Score::dot) query.q = WholeRows(head(p.a.q, h), p.a.q.stride[2], {0, p.L}, D);
    query.d_out = WholeRows(head(in.d_out, h), in.d_out.stride[2], {0, p.L}, Dv);
    query.score = {
        head(p.a.q, h), p.a.q.stride[2], nullptr, D,
        p.a.w.data ? static_cast<const float*>(p.a.w.data) + broadcast(p.a.w.shape, p.a.w.stride, h) : nullptr};
    query.lse2.resize(p.L);
    query.delta.resize(p.L);
    for (int64_t i = 0; i < p.L; ++i) {
      query.lse2[i] = head(in.lse, h)[i * in.lse.stride[2]] * kLog2e;
      query.delta[i] = DotRow(head(in.out, h) + i * in.out.stride[2], head(in.d_out, h) + i * in.d_out.stride[2], Dv) -
                       (in.d_lse.data ? head(in.d_lse, h)[i * in.d_lse.stride[2]] : 0.0f);
    }
    if (g.d_q.data) {
      query.dq = hwy::AllocateAligned<float>(std::max<int64_t>(1, p.L * Dp));
      std::fill_n(query.dq.get(), p.L * Dp, 0.0f);
    }
    if (dw) {
      query.dw = hwy::AllocateAligned<float>(D * kLanes);
      std::fill_n(query.dw.get(), D * kLanes, 0.0f);
    }
    if (bias.data) query.bias = static_cast<const float*>(bias.data) + broadcast(bias.shape, bias.stride, h);
    if (g.d_bias.data)
      query.d_bias = static_cast<float*>(g.d_bias.data) + broadcast(g.d_bias.shape, g.d_bias.stride, h);
  }
  const int64_t bias_row = bias.shape[2] == 1 ? 0 : bias.stride[2], bias_key = bias.shape[3] == 1 ? 0 : 1;
  const int64_t d_bias_row = g.d_bias.shape[2] == 1 ? 0 : g.d_bias.stride[2];
  const float scale = static_cast<float>(p.scale);
  Finish finish{static_cast<float>(p.scale * 1.44269504088896340736), static_cast<float>(p.a.softcap) * kLog2e};
  if (bias.shape[3] == 1) finish.bias_stride = 0;
  HWY_ALIGN float slope[kBlockKeys];  // of the softcap

  // A short sequence fills a part of a block: clearing all of it would cost more than the products.
  const int64_t most_keys = std::min(kBlockKeys, round_up(p.S, kWidestPanel));
  const Floats scratch = hwy::AllocateAligned<float>(2 * kTileRows * kBlockKeys + most_keys * (Dp + Dvp));
  float* s = scratch.get();                 // [rows][kBlockKeys] scores, then weights
  float* ds = s + kTileRows * kBlockKeys;   // [rows][kBlockKeys] d_out.v, then the scores' gradient
  float* dk = ds + kTileRows * kBlockKeys;  // the block's sums, see ScoreGradient
  float* dv = dk + most_keys * Dp;          // [key][Dvp]
  Span spans[kTileRows];

  for (int64_t key0 = 0; key0 < p.S; key0 += kBlockKeys) {
    const int64_t keys = std::min(kBlockKeys, p.S - key0);
    std::fill(dk, dv + most_keys * Dvp, 0.0f);
    for (int64_t x = 0; x < p.group; ++x) {
      Query& query = queries[x];
      // A block that begins before the hull is packed from the hull on; nothing before it is looked at.
      query.score.k = k_panels.get() + (key0 - first_key) * D;
      const float* v_block = v_panels.get() + (key0 - first_key) * Dv;
      for (int64_t t = 0; t < tiling.tiles(); ++t) {
        const Tile& tile = tiling.tile(b, t);
        if (tile.cover(key0, key0 + keys) == Cover::empty) continue;
        const int64_t rows = tile.row1 - tile.row0;
        // The keys of the block that the tile sees, in whole panels: beyond them nothing is computed or read.
        const Span seen{std::max<int64_t>(0, tile.keys.begin - key0) / kLanes * kLanes,
                        round_up(std::min(keys, tile.keys.end - key0), kLanes)};
        for (int64_t r = 0, n; r < rows; r += n) {
          n = NextGroup(rows - r);
          Span group{keys, 0};
          for (int64_t i = r; i < r + n; ++i) {
            const Span row = tiling.row(b, tile.row0 + i);
            spans[i] = {std::clamp<int64_t>(row.begin - key0, 0, keys), std::clamp<int64_t>(row.end - key0, 0, keys)};
            // A row whose scores are all -inf has lse = -inf and no weights.
            if (spans[i].begin >= spans[i].end || query.lse2[tile.row0 + i] == -std::numeric_limits<float>::infinity())
              spans[i] = {0, 0};
            else
              group = {std::min(group.begin, spans[i].begin), std::max(group.end, spans[i].end)};
          }
          if (group.begin >= group.end) group = {seen.begin, seen.begin};
          const int64_t first = group.begin / kLanes * kLanes, width = round_up(group.end, kLanes) - first;
          const int64_t v0 = first / kVector, v1 = v0 + width / kVector;
          for (int64_t i = r; i < r + n; ++i)
            for (float* block : {s, ds}) {
              std::fill(block + i * kBlockKeys + seen.begin, block + i * kBlockKeys + first, 0.0f);
              std::fill(block + i * kBlockKeys + first + width, block + i * kBlockKeys + seen.end, 0.0f);
            }
          if (width == 0) continue;
          Score::Scores(query.score, tile.row0 + r, n, v0, v1, s + r * kBlockKeys + first);
          if (want_scores) {
            const int64_t stride = in.d_out.stride[2];
            const Product t{head(in.d_out, hkv * p.group + x) + (tile.row0 + r) * stride,
                            stride,
                            v_block,
                            kPanel,
                            Dv * kPanel,
                            ds + r * kBlockKeys,
                            kBlockKeys};
            StripOf<false, false>(n, t, 0, {0, Dv}, nullptr, v0, v1);
          }
          for (int64_t i = r; i < r + n; ++i) {
            const int64_t row = tile.row0 + i;
            float* block = s + i * kBlockKeys + first;
            finish.bias = query.bias ? query.bias + row * bias_row + (key0 + first) * bias_key : nullptr;
            FinishScores(block, {spans[i].begin - first, spans[i].end - first}, width, finish, slope);
            WeightsAndGradient(block, ds + i * kBlockKeys + first, width,
                               spans[i].begin < spans[i].end ? query.lse2[row] : 0.0f, query.delta[row]);
            if (query.d_bias) {
              const float* from = ds + i * kBlockKeys;
              float* to = query.d_bias + row * d_bias_row;
              if (g.d_bias.shape[3] == 1)
                for (int64_t j = spans[i].begin; j < spans[i].end; ++j) to[0] += from[j];
              else
                for (int64_t j = spans[i].begin; j < spans[i].end; ++j) to[key0 + j] += from[j];
            }
            if (finish.cap2 > 0) ThroughCap(ds + i * kBlockKeys + first, width, slope);
          }
        }
        if (g.d_v.data)  // dv_j += sum over i of p_ij d_out_i: p read the other way round
          MultiplyTransposed({s + seen.begin, kBlockKeys, query.d_out.data + tile.row0 * query.d_out.stride,
                              query.d_out.stride, kPanel, dv + seen.begin * Dvp, Dvp, kOnes},
                             seen.end - seen.begin, rows, Dvp / kVector);
        if (g.d_q.data || g.d_k.data || dw)
          Score::Back(query.score, {ds, spans, tile.row0, rows, key0, seen,
                                    query.q.data ? query.q.data + tile.row0 * query.q.stride : nullptr, query.q.stride,
                                    k_rows.data ? k_rows.data + key0 * k_rows.stride : nullptr, k_rows.stride, Dp,
                                    g.d_q.data ? query.dq.get() + tile.row0 * Dp : nullptr, g.d_k.data ? dk : nullptr,
                                    dw ? query.dw.get() : nullptr});
      }
    }
    for (int64_t j = 0; j < keys; ++j) {
      if (g.d_k.data) {
        float* to = head(g.d_k, hkv) + (key0 + j) * g.d_k.stride[2];
        for (int64_t x = 0; x < D; ++x)
          to[x] = scale * (Score::kTransposedDk ? dk[(j / kPanel * D + x) * kPanel + j % kPanel] : dk[j * Dp + x]);
      }
      if (g.d_v.data) std::memcpy(head(g.d_v, hkv) + (key0 + j) * g.d_v.stride[2], dv + j * Dvp, Dv * sizeof(float));
    }
  }

  for (int64_t x = 0; x < p.group; ++x) {
    if (g.d_q.data)
      for (int64_t i = 0; i < p.L; ++i) {
        float* to = head(g.d_q, hkv * p.group + x) + i * g.d_q.stride[2];
        for (int64_t e = 0; e < D; ++e) to[e] = scale * queries[x].dq[i * Dp + e];
      }
    if (dw)
      for (int64_t e = 0; e < D; ++e) dw[x * D + e] = scale * SumLanes(queries[x].dw.get() + e * kLanes);
  }
}

void Backward(const Problem& p, const Incoming& in, const Gradients& g) {
  const Tiling tiling(p, 1, kTileRows);
  // A bias gradient is zeroed here, row by row, and then added to by whoever owns it.
  if (g.d_bias.data)
    for (int64_t b = 0; b < g.d_bias.shape[0]; ++b)
      for (int64_t h = 0; h < g.d_bias.shape[1]; ++h)
        for (int64_t i = 0; i < g.d_bias.shape[2]; ++i)
          std::fill_n(static_cast<float*>(g.d_bias.data) + b * g.d_bias.stride[0] + h * g.d_bias.stride[1] +
                          i * g.d_bias.stride[2],
                      g.d_bias.shape[3], 0.0f);
  std::vector<float> dw;
  if (g.d_w.data) dw.resize(p.B * p.Hq * p.D);

  const bool all_batches = g.d_bias.data && g.d_bias.shape[0] == 1, all_heads = g.d_bias.data && g.d_bias.shape[1] == 1;
  const int64_t batch_tasks = all_batches ? 1 : p.B, head_tasks = all_heads ? 1 : p.Hkv;
  parallel(p.a.executor, batch_tasks * head_tasks, [&](int64_t task) {
    const int64_t b0 = all_batches ? 0 : task / head_tasks, b1 = all_batches ? p.B : b0 + 1;
    const int64_t h0 = all_heads ? 0 : task % head_tasks, h1 = all_heads ? p.Hkv : h0 + 1;
    for (int64_t b = b0; b < b1; ++b)
      for (int64_t h = h0; h < h1; ++h) {
        float* mine = dw.empty() ? nullptr : dw.data() + (b * p.Hq + h * p.group) * p.D;
        if (p.a.score == Score::dot)
          BackwardHead<DotScore>(p, tiling, in, g, b, h, mine);
        else
          BackwardHead<AdditiveScore>(p, tiling, in, g, b, h, mine);
      }
  });

  if (g.d_w.data) {
    const bool per_head = g.d_w.shape[1] != 1;
    float* to = static_cast<float*>(g.d_w.data);
    for (int64_t h = 0; h < g.d_w.shape[1]; ++h)
      for (int64_t x = 0; x < p.D; ++x) {
        double sum = 0;
        for (int64_t b = 0; b < p.B; ++b)
          for (int64_t from = per_head ? h : 0; from < (per_head ? h + 1 : p.Hq); ++from)
            sum += dw[(b * p.Hq + from) * p.D + x];
        to[h * g.d_w.stride[1] + x] = static_cast<float>(sum);
      }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(Backward);
void backward_pass(const Problem& p, const Incoming& in, const Gradients& gradients) {
  HWY_DYNAMIC_DISPATCH(Backward)(p, in, gradients);
}
}  // namespace heed
#endif
