// The forward pass: plan -> pack -> tile. out = softmax(score) v and lse, in one walk over the keys.
//
// Rows of a KV head are x = query * group + head of the group (Tiling). Every row carries what it has summed so far:
// o[Dv], 16 lanes of weights, and m, the running maximum as a whole power of two.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forward.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "hwy/highway.h"
#include "pack-inl.h"
#include "passes.h"
#include "score-inl.h"
#include "threads.h"
#include "tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

// One block of keys as the kernel reads it.
struct Block {
  int64_t key0, keys;
  const float* k;  // panels (PackPanels)
  // V: element x of key j at v[x / kPanel * v_strip + j * row + x % kPanel], where row is v_row, or v_last in the last
  // strip if that is narrower.
  const float* v;
  int64_t v_row, v_strip, v_last;
};

// What rows have summed so far.
struct Sums {
  float *o, *lanes, *m;  // [rows][padded], [rows][kLanes], [rows]
};

// A problem with what every piece of it needs. T: what q, k, v and out hold.
template <class T>
struct Forward {
  const Problem& p;
  Plan::State& plan;
  const Output& result;
  int64_t padded = round_up(p.Dv, kLanes);
  float scale2 = static_cast<float>(p.scale * 1.44269504088896340736);
  // V whose rows are short, whole vectors is read where it lies; with long rows between the strips of a panel, or with
  // other tensors between its rows, it is faster packed.
  bool v_in_place = std::is_same_v<T, float> && padded == p.Dv && p.a.v.stride[2] <= 64;

  const T* head(const ConstTensor& t, int64_t b, int64_t h) const {
    return static_cast<const T*>(t.data) + b * t.stride[0] + h * t.stride[1];
  }

  // ---- Memory ----

  int64_t rows_of_block(int64_t key0) const { return std::min(kBlockKeys, round_up(p.S - key0, kWidestPanel)); }
  // Floats of a packed head; its block at key0 begins at key0 * (D + v_packed()).
  int64_t v_packed() const { return v_in_place ? 0 : padded; }
  int64_t packed_head() const { return round_up(p.S, kWidestPanel) * (p.D + v_packed()); }
  int64_t sums_size(int64_t rows) const { return rows * (padded + kLanes + 1) + kLanes; }

  Sums sums(float* memory, int64_t rows) const {
    return {memory, memory + rows * padded, memory + rows * (padded + kLanes)};
  }

  // ---- Pack ----

  Block block_at(int64_t b, int64_t hkv, int64_t key0, float* memory) const {
    const int64_t rows = rows_of_block(key0), last = padded % kPanel == 0 ? kPanel : padded % kPanel;
    Block block{key0, std::min(kBlockKeys, p.S - key0), memory, memory + rows * p.D, kPanel, rows * kPanel, last};
    if (v_in_place) {
      block.v_row = block.v_last = p.a.v.stride[2];
      block.v_strip = kPanel;
      block.v = reinterpret_cast<const float*>(head(p.a.v, b, hkv)) + key0 * block.v_row;
    }
    return block;
  }

  // Packs what rows of the batch see of the block.
  void pack(int64_t b, int64_t hkv, int64_t key0, float* memory) const {
    const Span seen = plan.tiling.keys(b);
    const int64_t begin = std::max(seen.begin, key0) - key0, end = std::min(seen.end, key0 + kBlockKeys) - key0;
    if (begin >= end) return;
    const int64_t rows = rows_of_block(key0);
    PackPanels(head(p.a.k, b, hkv) + key0 * p.a.k.stride[2], p.a.k.stride[2], begin, end, p.D, memory);
    if (v_in_place) return;
    // Strips start at the block's first key; `begin` rows of each stay empty.
    float* v = memory + rows * p.D;
    for (int64_t x = 0; x < padded; x += kPanel, v += rows * kPanel) {
      const int64_t width = std::min(kPanel, padded - x);
      const T* from = head(p.a.v, b, hkv) + key0 * p.a.v.stride[2] + x;
      for (int64_t j = begin; j < end; ++j)
        WidenRow(from + j * p.a.v.stride[2], std::min(width, p.Dv - x), width, 1.0f, v + j * width);
    }
  }

  // ---- Tile ----

  // Row x of the head's queries, and what its scores start from.
  int64_t query(int64_t x) const { return x / p.group; }
  int64_t head_of(int64_t hkv, int64_t x) const { return hkv * p.group + x % p.group; }

  // Queries of rows [row0, row1) as f32 in one piece; for dot scores scaled, so that scores come out in powers of two.
  void gather_queries(int64_t b, int64_t hkv, int64_t row0, int64_t row1, float* to) const {
    const float factor = p.a.score == Score::dot ? scale2 : 1.0f;
    for (int64_t x = row0; x < row1; ++x, to += p.D) {
      const T* from = head(p.a.q, b, head_of(hkv, x)) + query(x) * p.a.q.stride[2];
      const int64_t whole = p.D / kVector * kVector;
      WidenRow(from, whole, whole, factor, to);
      for (int64_t d = whole; d < p.D; ++d) to[d] = WidenOne(from + d) * factor;
    }
  }

  // w of every head of the group in powers of two (additive scores); returns [group][D], or nullptr.
  const float* scale_w(int64_t hkv, float* to) const {
    if (!p.a.w.data) return nullptr;
    for (int64_t g = 0; g < p.group; ++g) {
      const int64_t h = p.a.w.shape[1] == 1 ? 0 : hkv * p.group + g;
      const T* from = static_cast<const T*>(p.a.w.data) + h * p.a.w.stride[1];
      for (int64_t x = 0; x < p.D; ++x) to[g * p.D + x] = WidenOne(from + x) * scale2;
    }
    return to;
  }

  // The bias of row x from key j on, as f32: where it lies, or widened into `buffer` for the keys of the span.
  const float* bias_of(int64_t b, int64_t hkv, int64_t x, int64_t j, Span span, float* buffer) const {
    const ConstTensor& t = p.a.bias;
    if (!t.data) return nullptr;
    const int64_t h = head_of(hkv, x), i = query(x);
    const int64_t at = (t.shape[0] == 1 ? 0 : b * t.stride[0]) + (t.shape[1] == 1 ? 0 : h * t.stride[1]) +
                       (t.shape[2] == 1 ? 0 : i * t.stride[2]) + (t.shape[3] == 1 ? 0 : j);
    if (t.dtype == DType::f32) return static_cast<const float*>(t.data) + at;
    const T* from = static_cast<const T*>(t.data) + at;
    if (t.shape[3] == 1)
      buffer[0] = WidenOne(from);
    else
      WidenRow(from + span.begin, span.end - span.begin, span.end - span.begin, 1.0f, buffer + span.begin);
    return buffer;
  }

  // Working memory of one group of rows.
  struct Group {
    HWY_ALIGN float s[kGroup * kBlockKeys];  // scores, then weights
    HWY_ALIGN float bias[kBlockKeys];
  };

  // Rows [x, x + n) of the head, n <= kGroup, against one block: their scores, weights, and weighted sum of values,
  // added to `sums`. q: of row x.
  template <class ScoreOf>
  void add_block(int64_t b, int64_t hkv, int64_t x, int64_t n, const float* q, const float* w, const Block& block,
                 const Sums& sums, Group& group) const {
    Span spans[kGroup], hull{block.keys, 0};
    for (int64_t r = 0; r < n; ++r) {
      const Span row = plan.tiling.row(b, x + r);
      spans[r] = {std::clamp<int64_t>(row.begin - block.key0, 0, block.keys),
                  std::clamp<int64_t>(row.end - block.key0, 0, block.keys)};
      if (spans[r].begin >= spans[r].end)
        spans[r] = {0, 0};
      else
        hull = {std::min(hull.begin, spans[r].begin), std::max(hull.end, spans[r].end)};
    }
    if (hull.begin >= hull.end) return;

    // 1. Score, against whole groups of 16 keys.
    const int64_t first = hull.begin / kLanes * kLanes, width = round_up(hull.end, kLanes) - first;
    float* s = group.s + first;
    if constexpr (std::is_same_v<ScoreOf, DotScore>) {
      DotScore::Scores({q, p.D, block.k, p.D, nullptr}, 0, n, first / kVector, (first + width) / kVector, s);
    } else {
      for (int64_t r = 0; r < n; ++r)
        ScoreOf::Scores({q, p.D, block.k, p.D, w + (x + r) % p.group * p.D}, r, 1, first / kVector,
                        (first + width) / kVector, s + r * kBlockKeys);
    }

    // 2. Weigh.
    float factor[kGroup];
    Finish finish{1, static_cast<float>(p.a.softcap) * kLog2e};
    if (p.a.bias.shape[3] == 1) finish.bias_stride = 0;
    for (int64_t r = 0; r < n; ++r, s += kBlockKeys) {
      const Span span{spans[r].begin - first, spans[r].end - first};
      if (span.begin >= span.end) {
        // sees nothing of the block; scores are not looked at and no value is added
        factor[r] = 1.0f;
        continue;
      }
      finish.bias = bias_of(b, hkv, x + r, block.key0 + first, span, group.bias);
      FinishScores(s, span, width, finish);
      const float m = std::max(sums.m[r], std::ceil(MaxOfRow(s, width)));
      factor[r] = PowerOfTwo(sums.m[r] - m);
      sums.m[r] = m;
      ExpRow(s, width, m, factor[r], sums.lanes + r * kLanes);
    }

    // 3. Gather, over each row's own keys.
    const int64_t whole = padded / kPanel * kPanel;
    const Product t{group.s, kBlockKeys, block.v, block.v_row, block.v_strip, sums.o, padded, factor};
    MultiplyGroup(t, 0, n, spans, 0, whole / kVector);
    if (whole < padded) {
      const Product last{group.s, kBlockKeys, block.v + whole / kPanel * block.v_strip, block.v_last, 0, sums.o + whole,
                         padded,  factor};
      MultiplyGroup(last, 0, n, spans, 0, (padded - whole) / kVector);
    }
  }

  void start(const Sums& sums, int64_t rows) const {
    std::fill(sums.o, sums.o + rows * (padded + kLanes), 0.0f);
    std::fill(sums.m, sums.m + rows, kFloor);
  }

  // Rows [row0, row1) are done: out and lse.
  void finish(int64_t b, int64_t hkv, int64_t row0, int64_t row1, const Sums& sums) const {
    const F d;
    const Tensor &out = result.out, &lse = result.lse;
    for (int64_t x = row0; x < row1; ++x) {
      const int64_t r = x - row0, h = head_of(hkv, x), i = query(x);
      T* to = static_cast<T*>(out.data) + b * out.stride[0] + h * out.stride[1] + i * out.stride[2];
      const float sum = SumLanes(sums.lanes + r * kLanes);
      const bool sees = sum != 0.0f;  // NaN sees too
      const float inverse = sees ? 1.0f / sum : 0.0f;
      const float* o = sums.o + r * padded;
      const VF by = hn::Set(d, inverse);
      int64_t e = 0;
      for (; e + kVector <= p.Dv; e += kVector) Narrow(hn::Mul(hn::LoadU(d, o + e), by), d, to + e);
      for (; e < p.Dv; ++e) NarrowOne(o[e] * inverse, to + e);
      if (lse.data)
        static_cast<float*>(lse.data)[b * lse.stride[0] + h * lse.stride[1] + i * lse.stride[2]] =
            sees ? static_cast<float>((sums.m[r] + std::log2(static_cast<double>(sum))) * kLn2)
                 : -std::numeric_limits<float>::infinity();
    }
  }

  // ---- Pieces ----

  struct Scratch {
    Group* group;
    float *packed, *q, *w, *sums;
  };

  Scratch scratch(int worker, int64_t packed, int64_t rows) const {
    const int64_t group = sizeof(Group) / sizeof(float), q = round_up(rows * p.D, kLanes);
    const int64_t w = p.a.w.data ? round_up(p.group * p.D, kLanes) : 0;
    float* memory = plan.scratch[worker].floats(group + packed + q + w + sums_size(rows));
    return {reinterpret_cast<Group*>(memory), memory + group, memory + group + packed, memory + group + packed + q,
            memory + group + packed + q + w};
  }

  // All rows of a tile against the blocks that get_block(key0) hands out.
  template <class ScoreOf, class GetBlock>
  void tile(int64_t b, int64_t hkv, const Tile& tile, const Scratch& mine, GetBlock&& get_block) const {
    const int64_t rows = tile.row1 - tile.row0;
    const Sums all = sums(mine.sums, rows);
    start(all, rows);
    gather_queries(b, hkv, tile.row0, tile.row1, mine.q);
    const float* w = scale_w(hkv, mine.w);
    for (int64_t key0 = tile.keys.begin / kBlockKeys * kBlockKeys; key0 < tile.keys.end; key0 += kBlockKeys) {
      if (tile.cover(key0, std::min(key0 + kBlockKeys, p.S)) == Cover::empty) continue;
      const Block block = get_block(key0);
      for (int64_t r = 0, n; r < rows; r += n) {
        n = NextGroup(rows - r);
        add_block<ScoreOf>(b, hkv, tile.row0 + r, n, mine.q + r * p.D, w, block,
                           {all.o + r * padded, all.lanes + r * kLanes, all.m + r}, *mine.group);
      }
    }
    finish(b, hkv, tile.row0, tile.row1, all);
  }

  int64_t most_rows() const {
    return plan.tiling.tiles() == 0 ? 0 : plan.tiling.tile(0, 0).row1 - plan.tiling.tile(0, 0).row0;
  }

  template <class ScoreOf>
  void one_head(int worker, const Piece& piece) const {
    const Scratch mine = scratch(worker, packed_head(), most_rows());
    const Span seen = plan.tiling.keys(piece.b);
    for (int64_t key0 = seen.begin / kBlockKeys * kBlockKeys; key0 < seen.end; key0 += kBlockKeys)
      pack(piece.b, piece.hkv, key0, mine.packed + key0 * (p.D + v_packed()));
    for (int64_t t = 0; t < plan.tiling.tiles(); ++t)
      tile<ScoreOf>(piece.b, piece.hkv, plan.tiling.tile(piece.b, t), mine, [&](int64_t key0) {
        return block_at(piece.b, piece.hkv, key0, mine.packed + key0 * (p.D + v_packed()));
      });
  }

  enum : uint8_t { kUntouched, kBeingPacked, kPacked };

  template <class ScoreOf>
  void one_tile(int worker, const Piece& piece) const {
    const Scratch mine = scratch(worker, 0, most_rows());
    const int64_t head = piece.b * p.Hkv + piece.hkv;
    tile<ScoreOf>(piece.b, piece.hkv, plan.tiling.tile(piece.b, piece.part), mine, [&](int64_t key0) {
      float* memory = plan.packed.floats(0) + head * packed_head() + key0 * (p.D + v_packed());
      std::atomic<uint8_t>& state = plan.done[head * plan.blocks + key0 / kBlockKeys];
      uint8_t now = kUntouched;
      if (state.load(std::memory_order_acquire) != kPacked) {
        if (state.compare_exchange_strong(now, kBeingPacked, std::memory_order_acquire)) {
          pack(piece.b, piece.hkv, key0, memory);
          state.store(kPacked, std::memory_order_release);
        } else {  // another worker is at it, for some microseconds
          while (state.load(std::memory_order_acquire) != kPacked) std::this_thread::yield();
        }
      }
      return block_at(piece.b, piece.hkv, key0, memory);
    });
  }

  // A block of keys with all rows of the head. Who finishes the last block of a head puts the sums together.
  template <class ScoreOf>
  void one_block(int worker, const Piece& piece) const {
    const int64_t b = piece.b, hkv = piece.hkv, rows = plan.tiling.rows(), key0 = piece.part * kBlockKeys;
    const int64_t head = b * p.Hkv + hkv, size = sums_size(rows);
    const Scratch mine = scratch(worker, kBlockKeys * (p.D + v_packed()), rows);
    float* partials = plan.partial.floats(0) + head * plan.blocks * size;
    const Sums all = sums(partials + piece.part * size, rows);
    start(all, rows);
    gather_queries(b, hkv, 0, rows, mine.q);
    const float* w = scale_w(hkv, mine.w);
    pack(b, hkv, key0, mine.packed);
    const Block block = block_at(b, hkv, key0, mine.packed);
    for (int64_t r = 0, n; r < rows; r += n) {
      n = NextGroup(rows - r);
      add_block<ScoreOf>(b, hkv, r, n, mine.q + r * p.D, w, block,
                         {all.o + r * padded, all.lanes + r * kLanes, all.m + r}, *mine.group);
    }

    if (plan.left[head].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const Span seen = plan.tiling.keys(b);
    const int64_t first = seen.begin / kBlockKeys, end = std::max(first + 1, (seen.end + kBlockKeys - 1) / kBlockKeys);
    const Sums total = sums(partials + first * size, rows);
    for (int64_t x = first + 1; x < end; ++x) join(total, sums(partials + x * size, rows), rows);
    finish(b, hkv, 0, rows, total);
  }

  // total = total and next, exactly as if the rows had gone on from one block to the other: both are brought to the
  // larger m, which is exact, and added.
  void join(const Sums& total, const Sums& next, int64_t rows) const {
    const F d;
    for (int64_t r = 0; r < rows; ++r) {
      const float m = std::max(total.m[r], next.m[r]);
      const VF a = hn::Set(d, PowerOfTwo(total.m[r] - m)), c = hn::Set(d, PowerOfTwo(next.m[r] - m));
      total.m[r] = m;
      const auto add = [&](float* to, const float* from, int64_t n) HWY_ATTR {
        for (int64_t x = 0; x < n; x += kVector)
          hn::StoreU(hn::MulAdd(a, hn::LoadU(d, to + x), hn::Mul(c, hn::LoadU(d, from + x))), d, to + x);
      };
      add(total.o + r * padded, next.o + r * padded, padded);
      add(total.lanes + r * kLanes, next.lanes + r * kLanes, kLanes);
    }
  }

  template <class ScoreOf>
  void run() const {
    const int64_t heads = p.B * p.Hkv;
    if (plan.way == Way::tiles) {
      plan.packed.floats(heads * packed_head());
      for (int64_t x = 0; x < heads * plan.blocks; ++x) plan.done[x].store(kUntouched, std::memory_order_relaxed);
    }
    if (plan.way == Way::blocks) {
      plan.partial.floats(heads * plan.blocks * sums_size(plan.tiling.rows()));
      for (int64_t x = 0; x < heads; ++x) plan.left[x].store(0, std::memory_order_relaxed);
      for (const Piece& piece : plan.pieces)
        plan.left[piece.b * p.Hkv + piece.hkv].fetch_add(1, std::memory_order_relaxed);
    }
    parallel(p.a.executor, plan.workers, static_cast<int64_t>(plan.pieces.size()), [&](int worker, int64_t i) {
      const Piece& piece = plan.pieces[i];
      if (plan.way == Way::heads)
        one_head<ScoreOf>(worker, piece);
      else if (plan.way == Way::tiles)
        one_tile<ScoreOf>(worker, piece);
      else
        one_block<ScoreOf>(worker, piece);
    });
  }
};

template <class T>
void Run(const Problem& p, Plan::State& plan, const Output& result) {
  const Forward<T> forward{p, plan, result};
  if (p.a.score == Score::dot)
    forward.template run<DotScore>();
  else
    forward.template run<AdditiveScore>();
}

void ForwardPass(const Problem& p, Plan::State& plan, const Output& result) {
  switch (p.a.q.dtype) {
    case DType::f16:
      return Run<hwy::float16_t>(p, plan, result);
    case DType::bf16:
      return Run<hwy::bfloat16_t>(p, plan, result);
    default:
      return Run<float>(p, plan, result);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(ForwardPass);
void forward_pass(const Problem& p, Plan::State& plan, const Output& result) {
  HWY_DYNAMIC_DISPATCH(ForwardPass)(p, plan, result);
}
}  // namespace heed
#endif
