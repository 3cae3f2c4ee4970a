// The forward pass over whole sequences: plan -> pack -> tile. out = softmax(score) v and lse, in one walk over the
// keys. Few rows go another way: decode.cc.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forward.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <thread>

#include "hwy/highway.h"
#include "passes.h"
#include "rows-inl.h"
#include "threads.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

template <class T>
struct Tiles : Rows<T> {
  using Base = Rows<T>;
  using Base::block_at, Base::sums, Base::start, Base::finish, Base::scratch;
  using Base::head, Base::head_of, Base::query, Base::gather_queries, Base::scale_w;
  using Base::p, Base::plan, Base::result, Base::padded, Base::tiling;
  using Base::pack, Base::packed_head, Base::packed_key, typename Base::Group;
  using typename Base::Scratch, typename Base::Next, typename Base::Streams;

  Streams streams{{p.a.q, result.out}, {this->paged ? ConstTensor() : p.a.k, this->paged ? ConstTensor() : p.a.v}};

  // All rows of a tile against the blocks that get_block(key0) hands out.
  template <class ScoreOf, class GetBlock>
  void tile(int64_t b, int64_t hkv, const Tile& tile, const Scratch& mine, Next& next, GetBlock&& get_block) const {
    const int64_t rows = tile.row1 - tile.row0;
    const Sums all = sums(mine.sums, rows);
    start(all, rows);
    gather_queries(b, hkv, tile.row0, tile.row1, this->q_row, mine.q);
    const float* w = scale_w(hkv, mine.w);
    for (int64_t key0 = tile.keys.begin / kBlockKeys * kBlockKeys; key0 < tile.keys.end; key0 += kBlockKeys) {
      const Cover cover = tile.cover(key0, std::min(key0 + kBlockKeys, p.S));
      if (cover == Cover::empty) continue;
      const Block block = get_block(key0);
      for (int64_t r = 0, n; r < rows; r += n) {
        n = NextGroup(rows - r);
        add_block<ScoreOf>(b, hkv, tile.row0 + r, n, mine.q + r * this->q_row, w, block, cover, next,
                           {all.o + r * padded, all.lanes + r * kLanes, all.m + r}, *mine.group);
      }
    }
    finish(b, hkv, tile.row0, tile.row1, all);
  }

  int64_t most_rows() const { return tiling.tiles() == 0 ? 0 : tiling.tile(0, 0, 0).row1; }

  // The head's rows, each counted as often as add_block has it against a block, about.
  int64_t rows_by_blocks(const Piece& head) const {
    return std::max(tiling.rows(), tiling.pairs(head.b, head.hkv) / kBlockKeys);
  }

  template <class ScoreOf>
  void some_heads(int worker, const Piece& piece) const {
    for (int64_t h = piece.part; h < piece.end; ++h) {
      const Piece one{h / p.Hkv, h % p.Hkv, 0, 0}, after{(h + 1) / p.Hkv, (h + 1) % p.Hkv, 0, 0};
      Next next;
      if (h + 1 < piece.end) next = this->next_of(after, streams, rows_by_blocks(one));
      one_head<ScoreOf>(worker, one, next);
    }
  }

  template <class ScoreOf>
  void one_head(int worker, const Piece& piece, Next& next) const {
    const Scratch mine = scratch(worker, packed_head(), most_rows());
    const Span seen = tiling.keys(piece.b, piece.hkv);
    for (int64_t key0 = seen.begin / kBlockKeys * kBlockKeys; key0 < seen.end; key0 += kBlockKeys)
      pack(piece.b, piece.hkv, key0, mine.packed + key0 * packed_key());
    for (int64_t t = 0; t < tiling.tiles(); ++t)
      tile<ScoreOf>(piece.b, piece.hkv, tiling.tile(piece.b, piece.hkv, t), mine, next, [&](int64_t key0) {
        return block_at(piece.b, piece.hkv, key0, mine.packed + key0 * packed_key());
      });
  }

  enum : uint8_t { kUntouched, kBeingPacked, kPacked };

  template <class ScoreOf>
  void one_tile(int worker, const Piece& piece) const {
    const Scratch mine = scratch(worker, 0, most_rows());
    const int64_t head = piece.b * p.Hkv + piece.hkv;
    Next none;
    tile<ScoreOf>(piece.b, piece.hkv, tiling.tile(piece.b, piece.hkv, piece.part), mine, none, [&](int64_t key0) {
      float* memory = plan.packed.floats(0) + head * packed_head() + key0 * packed_key();
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

  // Rows [x, x + n) of the head, n <= kGroup, against one block: their weighted sum of values, added to `sums`.
  template <class ScoreOf>
  void add_block(int64_t b, int64_t hkv, int64_t x, int64_t n, const float* q, const float* w, const Block& block,
                 Cover cover, Next& next, const Sums& sums, Group& group) const {
    const auto fetch = [&] { this->fetch(next, streams); };
    fetch();
    const Sight sight = this->look(b, hkv, x, n, block, cover);
    if (sight.width == 0) return;
    float factor[kGroup];
    this->template score<ScoreOf>(x, n, q, this->q_row, w, block.k, sight.first, sight.first + sight.width, group.s,
                                  kBlockKeys);
    fetch();
    this->times(block.k_scale, n, sight, group.s);
    const float* older = this->weigh(b, hkv, x, n, block, sight, group.s, group.bias, sums, factor);
    fetch();
    this->times(block.v_scale, n, sight, group.s);
    this->template gather<float>(n, block, sight, group.s, sums, older);
  }

  template <class ScoreOf>
  void run() const {
    const int64_t heads = p.B * p.Hkv;
    if (plan.way == Way::tiles) {
      plan.packed.floats(heads * packed_head());
      for (int64_t x = 0; x < heads * plan.blocks; ++x) plan.done[x].store(kUntouched, std::memory_order_relaxed);
    }
    parallel(p.a.executor, plan.workers, static_cast<int64_t>(plan.pieces.size()), [&](int worker, int64_t i) {
      if (plan.way == Way::heads)
        some_heads<ScoreOf>(worker, plan.pieces[i]);
      else
        one_tile<ScoreOf>(worker, plan.pieces[i]);
    });
  }
};

void ForwardPass(const Problem& p, Plan::State& plan, const Output& result) {
  WithRows(p, plan, result, [&]<class T>(const Rows<T>& rows) {
    const Tiles<T> tiles{rows};
    if (p.a.score == Score::dot)
      tiles.template run<DotScore>();
    else
      tiles.template run<AdditiveScore>();
  });
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
