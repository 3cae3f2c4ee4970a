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

// Keys packed and scored at a time when there are few rows: a panel, and whole groups of 16.
constexpr int64_t kPart = std::max(kPanel, kLanes);
// How far before its use K is fetched from memory when there are few rows.
constexpr int64_t kAheadKeys = 32;

// Reads rows that lie in one piece, so that they are in the cache: a plain walk is as fast as memory goes, which the
// order of the kernel's own reads is not.
inline void Touch(const char* from, const char* end) {
  const hn::CappedTag<uint8_t, 16> d;
  auto all = hn::Zero(d);
  for (; from < end; from += kCacheLine) all = hn::Or(all, hn::LoadU(d, reinterpret_cast<const uint8_t*>(from)));
  HWY_ALIGN uint8_t kept[16];
  hn::Store(all, d, kept);
  [[maybe_unused]] volatile uint8_t sink = kept[0];  // so that the loads are not left out
}

// One block of keys as the kernel reads it.
struct Block {
  int64_t key0, keys;
  const float* k;  // panels (PackPanels)
  // V: element x of key j at v[x / kPanel * v_strip + j * row + x % kPanel], where row is v_row, or v_last in the last
  // strip if that is narrower. Packed as f32, or where it lies in the problem's dtype.
  const void* v;
  int64_t v_row, v_strip, v_last;
};

// A group of rows against one block: the rows' keys relative to the block, and the whole groups of 16 keys around them.
struct Sight {
  Span spans[kGroup];
  int64_t first = 0, width = 0;  // 0: no row sees anything
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
  // other tensors between its rows, it is faster packed. For few rows packing never pays.
  bool whole_v = padded == p.Dv, few_rows = plan.way == Way::blocks && plan.tiling.rows() <= 24;
  bool v_in_place = whole_v && (few_rows || (std::is_same_v<T, float> && p.a.v.stride[2] <= 64));

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
      block.v = head(p.a.v, b, hkv) + key0 * block.v_row;
    }
    return block;
  }

  // What rows of the batch see of the block, relative to it.
  Span seen_of(int64_t b, int64_t key0) const {
    const Span seen = plan.tiling.keys(b);
    return {std::max(seen.begin, key0) - key0, std::min(seen.end, key0 + kBlockKeys) - key0};
  }

  void pack_k(int64_t b, int64_t hkv, int64_t key0, Span keys, float* memory, const char* ahead = nullptr) const {
    const int64_t stride = p.a.k.stride[2];
    PackPanels(head(p.a.k, b, hkv) + key0 * stride, stride, keys.begin, keys.end, p.D, memory, ahead);
  }

  // Strips of kPanel columns, the last one as wide as what is left; each starts at the block's first key.
  void pack_v(int64_t b, int64_t hkv, int64_t key0, Span keys, float* memory) const {
    const int64_t rows = rows_of_block(key0), stride = p.a.v.stride[2];
    float* v = memory + rows * p.D;
    for (int64_t x = 0; x < padded; x += kPanel, v += rows * kPanel) {
      const int64_t width = std::min(kPanel, padded - x);
      const T* from = head(p.a.v, b, hkv) + key0 * stride + x;
      for (int64_t j = keys.begin; j < keys.end; ++j)
        WidenRow(from + j * stride, std::min(width, p.Dv - x), width, 1.0f, v + j * width);
    }
  }

  void pack(int64_t b, int64_t hkv, int64_t key0, float* memory) const {
    const Span seen = seen_of(b, key0);
    if (seen.begin >= seen.end) return;
    pack_k(b, hkv, key0, seen, memory);
    if (!v_in_place) pack_v(b, hkv, key0, seen, memory);
  }

  // ---- Tile ----

  // Row x of the head's queries, and what its scores start from.
  int64_t query(int64_t x) const { return plan.tiling.query(x); }
  int64_t head_of(int64_t hkv, int64_t x) const { return hkv * p.group + plan.tiling.head(x); }

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

  // What rows [x, x + n) of the head see of the block.
  Sight look(int64_t b, int64_t x, int64_t n, const Block& block) const {
    Sight sight;
    Span hull{block.keys, 0};
    for (int64_t r = 0; r < n; ++r) {
      const Span row = plan.tiling.row(b, x + r);
      Span& span = sight.spans[r];
      span = {std::clamp<int64_t>(row.begin - block.key0, 0, block.keys),
              std::clamp<int64_t>(row.end - block.key0, 0, block.keys)};
      if (span.begin >= span.end)
        span = {0, 0};
      else
        hull = {std::min(hull.begin, span.begin), std::max(hull.end, span.end)};
    }
    if (hull.begin >= hull.end) return sight;
    sight.first = hull.begin / kLanes * kLanes;
    sight.width = round_up(hull.end, kLanes) - sight.first;
    return sight;
  }

  // 1. Score: rows [x, x + n) against the block's keys [begin, end), whole groups of 16, into s[r][key]. q: of row x.
  template <class ScoreOf, bool kAhead = false>
  void score(int64_t x, int64_t n, const float* q, const float* w, const float* k, int64_t begin, int64_t end, float* s,
             const char* ahead = nullptr) const {
    const int64_t v0 = begin / kVector, v1 = end / kVector;
    if constexpr (std::is_same_v<ScoreOf, DotScore>) {
      Product t{q, p.D, k, kPanel, p.D * kPanel, s, kBlockKeys};
      t.ahead = ahead;
      StripOf<false, false, kAhead>(n, t, 0, {0, p.D}, nullptr, v0, v1);
    } else {
      for (int64_t r = 0; r < n; ++r)
        ScoreOf::Scores({q, p.D, k, p.D, w + plan.tiling.head(x + r) * p.D}, r, 1, v0, v1, s + r * kBlockKeys + begin);
    }
  }

  // 2. Weigh: scores become weights; factor[r] is what the row's older sums are to be multiplied by.
  void weigh(int64_t b, int64_t hkv, int64_t x, int64_t n, const Block& block, const Sight& sight, float* s,
             float* bias, const Sums& sums, float* factor) const {
    Finish finish{1, static_cast<float>(p.a.softcap) * kLog2e};
    if (p.a.bias.shape[3] == 1) finish.bias_stride = 0;
    // Row after row in two walks, so that the long way from a row to its maximum is not waited for.
    s += sight.first;
    for (int64_t r = 0; r < n; ++r) {
      const Span span{sight.spans[r].begin - sight.first, sight.spans[r].end - sight.first};
      factor[r] = 1.0f;
      if (span.begin >= span.end) continue;  // its scores are not looked at, no value is added
      finish.bias = bias_of(b, hkv, x + r, block.key0 + sight.first, span, bias);
      FinishScores(s + r * kBlockKeys, span, sight.width, finish);
      const float m = std::max(sums.m[r], std::ceil(MaxOfRow(s + r * kBlockKeys, sight.width)));
      factor[r] = PowerOfTwo(sums.m[r] - m);
      sums.m[r] = m;
    }
    for (int64_t r = 0; r < n; ++r)
      if (sight.spans[r].begin < sight.spans[r].end)
        ExpRow(s + r * kBlockKeys, sight.width, sums.m[r], factor[r], sums.lanes + r * kLanes);
  }

  // 3. Gather: each row's own keys. V: what block.v holds.
  template <class V, bool kAhead = false>
  void gather(int64_t n, const Block& block, const Sight& sight, const float* s, const Sums& sums, const float* factor,
              const char* ahead = nullptr) const {
    const int64_t whole = padded / kPanel * kPanel;
    const V* v = static_cast<const V*>(block.v);
    ProductOf<V> t{s, kBlockKeys, v, block.v_row, block.v_strip, sums.o, padded, factor};
    t.ahead = ahead;
    MultiplyGroup<kAhead>(t, 0, n, sight.spans, 0, whole / kVector);
    if (whole == padded) return;
    t.b = v + whole / kPanel * block.v_strip;
    t.b_k = block.v_last;
    t.c = sums.o + whole;
    MultiplyGroup<kAhead>(t, 0, n, sight.spans, 0, (padded - whole) / kVector);
  }

  // Rows [x, x + n) of the head, n <= kGroup, against one block: their weighted sum of values, added to `sums`.
  template <class ScoreOf>
  void add_block(int64_t b, int64_t hkv, int64_t x, int64_t n, const float* q, const float* w, const Block& block,
                 const Sums& sums, Group& group) const {
    const Sight sight = look(b, x, n, block);
    if (sight.width == 0) return;
    float factor[kGroup];
    score<ScoreOf>(x, n, q, w, block.k, sight.first, sight.first + sight.width, group.s);
    weigh(b, hkv, x, n, block, sight, group.s, group.bias, sums, factor);
    gather<float>(n, block, sight, group.s, sums, factor);
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

  // What the next head reads and writes, fetched into the cache bit by bit while this one is computed.
  struct Next {
    const Piece* piece = nullptr;
    int64_t row = 0, rows = 0, step = 0;  // rows of q, out, k and v, in this order
  };

  Next next_of(const Piece* piece) const {
    Next next{piece};
    if (!piece) return next;
    const Span seen = plan.tiling.keys(piece->b);
    const int64_t groups = std::max<int64_t>(1, plan.tiling.rows() / kGroup);
    next.rows = 2 * plan.tiling.rows() + 2 * (seen.end - seen.begin);
    next.step = (next.rows + groups - 1) / groups;
    return next;
  }

  void fetch(Next& next) const {
    if (!next.piece) return;
    const int64_t b = next.piece->b, hkv = next.piece->hkv, rows = plan.tiling.rows();
    const int64_t first = plan.tiling.keys(b).begin, keys = (next.rows - 2 * rows) / 2;
    for (const int64_t end = std::min(next.rows, next.row + next.step); next.row < end; ++next.row) {
      int64_t x = next.row, dims = p.D;
      const T* from;
      if (x < 2 * rows) {
        const bool writes = x >= rows;
        const ConstTensor t = writes ? ConstTensor(result.out) : p.a.q;
        if (writes) x -= rows, dims = p.Dv;
        from = head(t, b, head_of(hkv, x)) + query(x) * t.stride[2];
      } else {
        const bool value = x >= 2 * rows + keys;
        const ConstTensor& t = value ? p.a.v : p.a.k;
        if (value) dims = p.Dv;
        from = head(t, b, hkv) + (first + x - 2 * rows - (value ? keys : 0)) * t.stride[2];
      }
      for (int64_t d = 0; d < dims; d += kCacheLine / sizeof(T)) hwy::Prefetch(from + d);
    }
  }

  // All rows of a tile against the blocks that get_block(key0) hands out.
  template <class ScoreOf, class GetBlock>
  void tile(int64_t b, int64_t hkv, const Tile& tile, const Scratch& mine, Next& next, GetBlock&& get_block) const {
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
        fetch(next);
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
  void some_heads(int worker, const Piece& piece) const {
    for (int64_t h = piece.part; h < piece.end; ++h) {
      const Piece one{h / p.Hkv, h % p.Hkv, 0, 0}, after{(h + 1) / p.Hkv, (h + 1) % p.Hkv, 0, 0};
      Next next = next_of(h + 1 < piece.end ? &after : nullptr);
      one_head<ScoreOf>(worker, one, next);
    }
  }

  template <class ScoreOf>
  void one_head(int worker, const Piece& piece, Next& next) const {
    const Scratch mine = scratch(worker, packed_head(), most_rows());
    const Span seen = plan.tiling.keys(piece.b);
    for (int64_t key0 = seen.begin / kBlockKeys * kBlockKeys; key0 < seen.end; key0 += kBlockKeys)
      pack(piece.b, piece.hkv, key0, mine.packed + key0 * (p.D + v_packed()));
    for (int64_t t = 0; t < plan.tiling.tiles(); ++t)
      tile<ScoreOf>(piece.b, piece.hkv, plan.tiling.tile(piece.b, t), mine, next, [&](int64_t key0) {
        return block_at(piece.b, piece.hkv, key0, mine.packed + key0 * (p.D + v_packed()));
      });
  }

  enum : uint8_t { kUntouched, kBeingPacked, kPacked };

  template <class ScoreOf>
  void one_tile(int worker, const Piece& piece) const {
    const Scratch mine = scratch(worker, 0, most_rows());
    const int64_t head = piece.b * p.Hkv + piece.hkv;
    Next none;
    tile<ScoreOf>(piece.b, piece.hkv, plan.tiling.tile(piece.b, piece.part), mine, none, [&](int64_t key0) {
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

  // Some blocks of keys with all rows of the head, read once from memory: a panel of K is packed and scored while it is
  // in cache, V is read where it lies, and what comes next is fetched meanwhile. Who finishes the last blocks of a head
  // puts the sums together.
  template <class ScoreOf>
  void some_blocks(int worker, const Piece& piece) const {
    const int64_t b = piece.b, hkv = piece.hkv, rows = plan.tiling.rows();
    const int64_t head_index = b * p.Hkv + hkv, size = sums_size(rows);
    const int64_t scores = rows * kBlockKeys, packed = kPart * p.D + (v_in_place ? 0 : kBlockKeys * (p.D + padded));
    const Scratch mine = scratch(worker, scores + packed, rows);
    float *s = mine.packed, *panel = s + scores, *v_memory = panel + kPart * p.D;
    float* partials = plan.partial.floats(0) + head_index * plan.blocks * size;
    gather_queries(b, hkv, 0, rows, mine.q);
    const float* w = scale_w(hkv, mine.w);
    const Span all_seen = plan.tiling.keys(b);
    const bool dense_k = p.a.k.stride[2] == p.D, dense_v = v_in_place && p.a.v.stride[2] == p.Dv;
    const auto ahead_of = [&](const ConstTensor& t, int64_t key, int64_t end) {
      return reinterpret_cast<const char*>(head(t, b, hkv) + std::min(key, end) * t.stride[2]);
    };

    for (int64_t part = piece.part; part < piece.end; ++part) {
      const int64_t key0 = part * kBlockKeys;
      const Span seen = seen_of(b, key0);
      const Sums all = sums(partials + part * size, rows);
      start(all, rows);
      if (seen.begin >= seen.end) continue;
      const Block block = block_at(b, hkv, key0, v_memory);
      for (int64_t key = seen.begin / kPart * kPart; key < seen.end; key += kPart) {
        const Span keys{std::max(key, seen.begin), std::min(key + kPart, seen.end)};
        // Keys [key, key + kPart) lie at `panel`; the kernel counts from the block's first key.
        float* from_block = panel - key * p.D;
        pack_k(b, hkv, key0, keys, from_block,
               dense_k ? ahead_of(p.a.k, key0 + keys.begin + kAheadKeys, all_seen.end) : nullptr);
        // The first quarter of V
        const char* next = ahead_of(p.a.v, key0 + key / 4, all_seen.end);
        const int64_t begin = keys.begin / kLanes * kLanes, end = round_up(keys.end, kLanes);
        for (int64_t r = 0, n; r < rows; r += n) {
          n = NextGroup(rows - r);
          float* to = s + r * kBlockKeys;
          if (r == 0 && dense_v)
            score<ScoreOf, true>(r, n, mine.q + r * p.D, w, from_block, begin, end, to, next);
          else
            score<ScoreOf>(r, n, mine.q + r * p.D, w, from_block, begin, end, to);
        }
      }
      if (!v_in_place) pack_v(b, hkv, key0, seen, v_memory);
      if (dense_v)
        Touch(ahead_of(p.a.v, key0 + seen.begin, all_seen.end), ahead_of(p.a.v, key0 + seen.end, all_seen.end));
      for (int64_t r = 0, n; r < rows; r += n) {
        n = NextGroup(rows - r);
        const Sight sight = look(b, r, n, block);
        if (sight.width == 0) continue;
        float factor[kGroup];
        const Sums mine_of = {all.o + r * padded, all.lanes + r * kLanes, all.m + r};
        float* from = s + r * kBlockKeys;
        weigh(b, hkv, r, n, block, sight, from, mine.group->bias, mine_of, factor);
        const char* next = ahead_of(p.a.k, key0 + kBlockKeys, all_seen.end);
        if (!v_in_place)
          gather<float>(n, block, sight, from, mine_of, factor);
        else if (r == 0 && dense_k)
          gather<T, true>(n, block, sight, from, mine_of, factor, next);
        else
          gather<T>(n, block, sight, from, mine_of, factor);
      }
    }

    const int32_t count = static_cast<int32_t>(piece.end - piece.part);
    if (plan.left[head_index].fetch_sub(count, std::memory_order_acq_rel) != count) return;
    const int64_t first = all_seen.begin / kBlockKeys;
    const int64_t end = std::max(first + 1, (all_seen.end + kBlockKeys - 1) / kBlockKeys);
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
        plan.left[piece.b * p.Hkv + piece.hkv].fetch_add(static_cast<int32_t>(piece.end - piece.part),
                                                         std::memory_order_relaxed);
    }
    parallel(p.a.executor, plan.workers, static_cast<int64_t>(plan.pieces.size()), [&](int worker, int64_t i) {
      const Piece& piece = plan.pieces[i];
      if (plan.way == Way::heads)
        some_heads<ScoreOf>(worker, piece);
      else if (plan.way == Way::tiles)
        one_tile<ScoreOf>(worker, piece);
      else
        some_blocks<ScoreOf>(worker, piece);
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
