// The forward pass for few rows, a decoder's step: blocks of keys, read once from memory, shared between workers, and
// their sums put together in order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "decode.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "passes.h"
#include "rows-inl.h"
#include "threads.h"

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

template <class T>
struct Blocks : Rows<T> {
  using Base = Rows<T>;
  using Base::block_at, Base::look, Base::sums, Base::sums_size, Base::start, Base::weigh, Base::finish, Base::scratch;
  using Base::gather_queries, Base::scale_w;
  using Base::p, Base::plan, Base::padded, Base::v_in_place;
  using Base::pack_k, Base::pack_v, Base::seen_of, Base::key_at, Base::paged;
  using typename Base::Scratch;

  // Some blocks of keys with all rows of the head, read once from memory: a panel of K is packed and scored while it is
  // in cache, V is read where it lies, and what comes next is fetched meanwhile. Who finishes the last blocks of a head
  // puts the sums together.
  template <class ScoreOf>
  void some_blocks(int worker, const Piece& piece) const {
    const int64_t b = piece.b, hkv = piece.hkv, rows = this->tiling.rows();
    const int64_t head_index = b * p.Hkv + hkv, size = sums_size(rows);
    const int64_t scores = rows * kBlockKeys, packed = kPart * p.D + kBlockKeys * this->packed_key();
    const Scratch mine = scratch(worker, scores + packed, rows);
    float *s = mine.packed, *panel = s + scores, *v_memory = panel + kPart * p.D;
    float* partials = plan.partial.floats(0) + head_index * plan.blocks * size;
    gather_queries(b, hkv, 0, rows, this->q_row, mine.q);
    const float* w = scale_w(hkv, mine.w);
    const Span all_seen = this->tiling.keys(b, hkv);
    const bool dense_k = p.a.k.stride[2] == p.D, dense_v = v_in_place && p.a.v.stride[2] == p.Dv;
    const auto ahead_of = [&](const ConstTensor& t, int64_t key) {
      return key_at(t, b, hkv, std::clamp(key, all_seen.begin, all_seen.end - 1));
    };
    // What the products would fetch does not lie in one run then: they are given what is in the cache anyway.
    const bool small_pages = paged && p.page_keys < kBlockKeys;
    const auto keys_ahead = [&](int64_t key) { return dense_k ? ahead_of(p.a.k, key + kAheadKeys) : nullptr; };

    for (int64_t part = piece.part; part < piece.end; ++part) {
      const int64_t key0 = part * kBlockKeys;
      const Span seen = seen_of(b, hkv, key0);
      const Sums all = sums(partials + part * size, rows);
      start(all, rows);
      if (seen.begin >= seen.end || !this->tiling.sees_block(b, hkv, part)) continue;
      Block block = block_at(b, hkv, key0, v_memory);
      for (int64_t key = seen.begin / kPart * kPart; key < seen.end; key += kPart) {
        const Span keys{std::max(key, seen.begin), std::min(key + kPart, seen.end)};
        // Keys [key, key + kPart) lie at `panel`; the kernel counts from the block's first key.
        float* from_block = panel - key * this->k_packed;
        pack_k(b, hkv, key0, keys, from_block, keys_ahead);
        // The first quarter of V
        const char* next = small_pages ? reinterpret_cast<const char*>(panel) : ahead_of(p.a.v, key0 + key / 4);
        const int64_t begin = keys.begin / kLanes * kLanes, end = round_up(keys.end, kLanes);
        for (int64_t r = 0, n; r < rows; r += n) {
          n = NextGroup(rows - r);
          float* to = s + r * kBlockKeys;
          this->template score<ScoreOf, true>(r, n, mine.q + r * this->q_row, this->q_row, w, from_block, begin, end,
                                              to, kBlockKeys, next);
        }
      }
      if (!v_in_place) pack_v(b, hkv, key0, seen, v_memory);
      bool touch = dense_v;
      if (paged && v_in_place) touch &= this->place_v(b, hkv, seen, block, v_memory);  // what is copied is in the cache
      if (touch) {
        const char* v = static_cast<const char*>(block.v);
        const int64_t row = block.v_row * this->key_bytes;
        Touch(v + seen.begin * row, v + seen.end * row);
      }
      this->pack_scales(b, hkv, seen, block);
      for (int64_t r = 0, n; r < rows; r += n) {
        n = NextGroup(rows - r);
        const Sight sight = look(b, hkv, r, n, block, Cover::partial);
        if (sight.width == 0) continue;
        float factor[kGroup];
        const Sums mine_of = {all.o + r * padded, all.lanes + r * kLanes, all.m + r};
        float* from = s + r * kBlockKeys;
        this->times(block.k_scale, n, sight, from);
        const float* older = weigh(b, hkv, r, n, block, sight, from, mine.group->bias, mine_of, factor);
        this->times(block.v_scale, n, sight, from);
        const char* next = small_pages ? reinterpret_cast<const char*>(panel) : ahead_of(p.a.k, key0 + kBlockKeys);
        if (v_in_place)
          this->with_keys(
              [&]<class V>(const V*) { this->template gather<V, true>(n, block, sight, from, mine_of, older, next); });
        else
          this->template gather<float, true>(n, block, sight, from, mine_of, older, next);
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
      if (next.m[r] == Base::kNotBegun) continue;
      if (total.m[r] == Base::kNotBegun) {
        std::copy_n(next.o + r * padded, padded, total.o + r * padded);
        std::copy_n(next.lanes + r * kLanes, kLanes, total.lanes + r * kLanes);
        total.m[r] = next.m[r];
        continue;
      }
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
    plan.partial.floats(heads * plan.blocks * sums_size(this->tiling.rows()));
    for (int64_t x = 0; x < heads; ++x) plan.left[x].store(0, std::memory_order_relaxed);
    for (const Piece& piece : plan.pieces)
      plan.left[piece.b * p.Hkv + piece.hkv].fetch_add(static_cast<int32_t>(piece.end - piece.part),
                                                       std::memory_order_relaxed);
    parallel(p.a.executor, plan.workers, static_cast<int64_t>(plan.pieces.size()),
             [&](int worker, int64_t i) { some_blocks<ScoreOf>(worker, plan.pieces[i]); });
  }
};

void DecodePass(const Problem& p, Plan::State& plan, const Output& result) {
  WithRows(p, plan, result, [&]<class T>(const Rows<T>& rows) {
    const Blocks<T> blocks{rows};
    if (p.a.score == Score::dot)
      blocks.template run<DotScore>();
    else
      blocks.template run<AdditiveScore>();
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(DecodePass);
void decode_pass(const Problem& p, Plan::State& plan, const Output& result) {
  HWY_DYNAMIC_DISPATCH(DecodePass)(p, plan, result);
}
}  // namespace heed
#endif
