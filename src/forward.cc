// The forward pass: plan -> pack -> tile. out = softmax(score) v and lse, in one walk over the keys.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forward.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <cmath>
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

// Below this many multiplications a call is done in the calling thread: waking another takes about as long.
constexpr double kWorthSharing = 2e5;
constexpr int64_t kPackKeys = 1024;  // keys packed by one task

// K and, if its rows are not whole vectors, V of every KV head, from the first to the last key that any row sees.
struct Packed {
  hwy::AlignedFreeUniquePtr<float[]> k, v;
  int64_t k_head, v_head, padded;  // floats of one head; Dv rounded up to 16
  bool v_in_place;                 // V is read where it lies
};

inline Packed PackAll(const Problem& p, const Plan& plan, Executor* executor, bool share) {
  Packed packed;
  const int64_t keys = round_up(p.S, kLanes);
  packed.padded = round_up(p.Dv, kLanes);
  packed.v_in_place = packed.padded == p.Dv;
  packed.k_head = keys * p.D;
  packed.v_head = packed.v_in_place ? 0 : keys * packed.padded;
  packed.k = hwy::AllocateAligned<float>(p.B * p.Hkv * packed.k_head);
  if (packed.v_head) packed.v = hwy::AllocateAligned<float>(p.B * p.Hkv * packed.v_head);

  const int64_t chunks = (p.S + kPackKeys - 1) / kPackKeys;
  const auto pack = [&](int64_t task) {
    const int64_t head = task / chunks, b = head / p.Hkv, h = head % p.Hkv;
    const Span keys = plan.keys(b);
    const int64_t row0 = std::max(keys.begin / kLanes * kLanes, task % chunks * kPackKeys);
    const int64_t row1 = std::min(keys.end, (task % chunks + 1) * kPackKeys);
    if (row0 >= row1) return;
    const float* k = static_cast<const float*>(p.a.k.data) + b * p.a.k.stride[0] + h * p.a.k.stride[1];
    PackTransposed(k, p.a.k.stride[2], row0, row1, p.D, packed.k.get() + head * packed.k_head + row0 * p.D);
    if (packed.v_in_place) return;
    const float* v = static_cast<const float*>(p.a.v.data) + b * p.a.v.stride[0] + h * p.a.v.stride[1];
    PackRows(v, p.a.v.stride[2], row0, row1, p.Dv, packed.padded,
             packed.v.get() + head * packed.v_head + row0 * packed.padded);
  };
  const int64_t tasks = p.B * p.Hkv * chunks;
  if (share)
    parallel(executor, tasks, pack);
  else
    for (int64_t t = 0; t < tasks; ++t) pack(t);
  return packed;
}

template <class Score>
void ForwardTile(const Problem& p, const Plan& plan, const Tile& tile, const Packed& packed, const Output& result) {
  const int64_t b = tile.batch, h = tile.head, hkv = h / p.group, rows = tile.row1 - tile.row0, padded = packed.padded;
  const auto head = [&](const ConstTensor& t, int64_t at_head) {
    return static_cast<const float*>(t.data) + b * t.stride[0] + at_head * t.stride[1];
  };
  const ScoreInput in{
      head(p.a.q, h) + tile.row0 * p.a.q.stride[2],
      p.a.q.stride[2],
      packed.k.get() + (b * p.Hkv + hkv) * packed.k_head,
      0,
      p.D,
      p.a.w.data ? static_cast<const float*>(p.a.w.data) + (p.a.w.shape[1] == 1 ? 0 : h * p.a.w.stride[1]) : nullptr};
  const float* v = packed.v_in_place ? head(p.a.v, hkv) : packed.v.get() + (b * p.Hkv + hkv) * packed.v_head;
  const int64_t v_stride = packed.v_in_place ? p.a.v.stride[2] : padded;
  const ConstTensor& bias = p.a.bias;
  const float* bias_head = bias.data
                               ? static_cast<const float*>(bias.data) + (bias.shape[0] == 1 ? 0 : b * bias.stride[0]) +
                                     (bias.shape[1] == 1 ? 0 : h * bias.stride[1])
                               : nullptr;
  const int64_t bias_row = bias.shape[2] == 1 ? 0 : bias.stride[2], bias_key = bias.shape[3] == 1 ? 0 : 1;
  const float scale2 = static_cast<float>(p.scale * 1.44269504088896340736);

  const auto scratch = hwy::AllocateAligned<float>(rows * (kBlockKeys + padded + kLanes));
  float* s = scratch.get();               // [rows][kBlockKeys] scores, then weights before normalisation
  float* o = s + rows * kBlockKeys;       // [rows][padded] weighted sums so far
  float* lanes = o + rows * padded;       // [rows][16] sums of weights so far
  float m[kTileRows], factor[kTileRows];  // the running maximum, a whole power of two; what it rescales by
  Span spans[kTileRows];                  // what each row sees of the block
  std::fill(o, lanes + rows * kLanes, 0.0f);
  std::fill(m, m + rows, kFloor);

  for (int64_t key0 = tile.keys.begin / kBlockKeys * kBlockKeys; key0 < tile.keys.end; key0 += kBlockKeys) {
    const int64_t keys = std::min(kBlockKeys, p.S - key0);
    if (tile.cover(key0, key0 + keys) == Cover::empty) continue;
    for (int64_t r = 0, n; r < rows; r += n) {
      n = NextGroup(rows - r);
      Span hull{keys, 0};
      for (int64_t i = r; i < r + n; ++i) {
        const Span row = plan.row(b, tile.row0 + i);
        spans[i] = {std::clamp<int64_t>(row.begin - key0, 0, keys), std::clamp<int64_t>(row.end - key0, 0, keys)};
        if (spans[i].begin >= spans[i].end) {
          spans[i] = {0, 0};
        } else {
          hull = {std::min(hull.begin, spans[i].begin), std::max(hull.end, spans[i].end)};
        }
        factor[i] = 1.0f;
      }
      if (hull.begin >= hull.end) continue;
      const int64_t first = hull.begin / kLanes * kLanes, width = round_up(hull.end, kLanes) - first;
      float* block = s + r * kBlockKeys + first;
      Score::Scores(in, r, n, (key0 + first) / kLanes, (key0 + first + width) / kLanes, block);
      for (int64_t i = r; i < r + n; ++i, block += kBlockKeys) {
        const Span span{spans[i].begin - first, spans[i].end - first};
        const float* row_bias =
            bias_head ? bias_head + (tile.row0 + i) * bias_row + (key0 + first) * bias_key : nullptr;
        const float largest = FinishScores(block, span, width, scale2, row_bias, bias_key);
        const float m_new = std::max(m[i], std::ceil(largest));
        factor[i] = PowerOfTwo(m[i] - m_new);
        if (factor[i] != 1.0f)
          for (int64_t x = 0; x < kLanes; ++x) lanes[i * kLanes + x] *= factor[i];
        m[i] = m_new;
        ExpRow(block, width, m_new, lanes + i * kLanes);
      }
    }
    MultiplySpans({s, kBlockKeys, 1, v + key0 * v_stride, v_stride, kLanes, o, padded, factor}, spans, rows,
                  padded / kLanes);
  }

  const Tensor& out = result.out;
  const Tensor& lse = result.lse;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = tile.row0 + r;
    float* to = static_cast<float*>(out.data) + b * out.stride[0] + h * out.stride[1] + i * out.stride[2];
    const float sum = SumLanes(lanes + r * kLanes);
    const bool sees = sum != 0.0f;  // NaN sees too
    for (int64_t x = 0; x < p.Dv; ++x) to[x] = sees ? o[r * padded + x] / sum : 0.0f;
    if (lse.data)
      static_cast<float*>(lse.data)[b * lse.stride[0] + h * lse.stride[1] + i * lse.stride[2]] =
          sees ? static_cast<float>((m[r] + std::log2(static_cast<double>(sum))) * kLn2)
               : -std::numeric_limits<float>::infinity();
  }
}

void Forward(const Problem& p, const Plan& plan, const Output& result) {
  const bool share = static_cast<double>(plan.pairs()) * (p.D + p.Dv) > kWorthSharing;
  const Packed packed = PackAll(p, plan, p.a.executor, share);
  const auto tile = [&](int64_t task) {
    const Tile& t = plan.tiles()[plan.heaviest_first()[task]];
    if (p.a.score == Score::dot)
      ForwardTile<DotScore>(p, plan, t, packed, result);
    else
      ForwardTile<AdditiveScore>(p, plan, t, packed, result);
  };
  const int64_t tasks = static_cast<int64_t>(plan.tiles().size());
  if (share)
    parallel(p.a.executor, tasks, tile);
  else
    for (int64_t t = 0; t < tasks; ++t) tile(t);
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(Forward);
void forward_pass(const Problem& p, const Plan& plan, const Output& result) {
  HWY_DYNAMIC_DISPATCH(Forward)(p, plan, result);
}
}  // namespace heed
#endif
