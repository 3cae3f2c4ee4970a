// The backward pass: weights again from lse, then five products for each tile of rows and block of keys. Memory linear
// in L and S.
//
// Key blocks outside, row tiles inside: dk and dv of a block are complete when its tiles are done, and dq of a row adds
// up over the blocks in ascending order. A worker takes whole heads, or, if there are few, a block of a head, and then
// follows the worker of the block before it from tile to tile (Plan::State::Back). No atomics and one fixed order for
// every sum, so the same bits on any number of threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backward.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <thread>

#include "gradients-inl.h"
#include "hwy/highway.h"
#include "passes.h"
#include "threads.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

// ---- One row ----

// p = 2^(t - lse2) of a row of finished scores, and ds = p (dp - delta), the gradient of the finished score; a weight
// of 0 gives 0 whatever dp is. With dropout, p comes out without the dropped weights, and dp is `keep` times what a
// kept weight gets. Sigmoid weights p = 1 / (1 + 2^-t) have ds = p (1 - p) dp and no use for lse2 and delta.
template <bool kDrop, bool kSigmoid>
inline void WeightsAndGradient(float* t, float* dp, int64_t width, float lse2, float delta, const Drop& drop = {},
                               float keep = 1) {
  const F d;
  const VF l = hn::Set(d, lse2), del = hn::Set(d, delta), zero = hn::Zero(d), factor = hn::Set(d, keep);
  for (int64_t j = 0; j < width; j += kVector) {
    const VF p = kSigmoid ? Sigmoid(hn::LoadU(d, t + j)) : Exp2(d, hn::Sub(hn::LoadU(d, t + j), l), zero);
    VF g = hn::LoadU(d, dp + j), kept = p;
    if constexpr (kDrop) {
      const auto dropped = Dropped(drop, j);
      g = hn::Mul(factor, hn::IfThenZeroElse(dropped, g));
      kept = hn::IfThenZeroElse(dropped, p);
    }
    hn::StoreU(kept, d, t + j);
    const VF ds = kSigmoid ? hn::Mul(hn::NegMulAdd(p, p, p), g) : hn::Mul(p, hn::Sub(g, del));
    hn::StoreU(hn::IfThenElse(hn::Eq(p, zero), zero, ds), d, dp + j);
  }
}

// ---- The pass ----

template <class T, class ScoreOf>
struct Backward : GradientRows<T> {
  using Base = GradientRows<T>;
  using Base::Dp, Base::Dvp, Base::rows, Base::tiles, Base::heads, Base::most_rows, Base::most_keys, Base::keep;
  using Base::head, Base::head_of, Base::query, Base::p, Base::plan, Base::tiling;
  using Base::of_lse, Base::row_of, Base::row_sums, Base::keyed, Base::add_up_rows;
  using typename Base::Next, typename Base::Streams;

  const Incoming& in;
  const Gradients& g;
  bool to_scores = g.d_q.data || g.d_k.data || g.d_w.data || g.d_bias.data || g.d_alibi.data;
  bool to_inputs = g.d_q.data || g.d_k.data || g.d_w.data;
  bool sigmoid = p.a.weigh == Weigh::sigmoid;
  static constexpr bool kDot = std::is_same_v<ScoreOf, DotScore>;
  // d_out and K are read where they lie if their rows are f32, whole vectors and not far apart.
  bool k_in_place = std::is_same_v<T, float> && Dp == p.D && p.a.k.stride[2] <= 64;
  bool d_out_in_place = std::is_same_v<T, float> && Dvp == p.Dv && p.group == 1 && in.d_out.stride[2] <= 64;
  int64_t d_out_row = d_out_in_place ? in.d_out.stride[2] : Dvp;
  // What a gradient still lacks: rows come scaled for powers of two (Rows::gather_queries, scale_w).
  float dq_factor = p.a.score == Score::dot ? static_cast<float>(p.scale) : static_cast<float>(kLn2);
  float dk_factor = static_cast<float>(kLn2);

  Streams streams{{p.a.q, in.out, in.d_out, g.d_q}, {p.a.k, p.a.v, g.d_k, g.d_v}};

  // ---- Memory ----

  // What the rows of one KV head carry.
  struct Head {
    float *lse2, *delta;  // [rows]: lse in powers of two; sum of out * d_out less d_lse
    float* dq;            // [rows][Dp]
  };
  int64_t head_size() const { return round_up(2 * rows, kLanes) + (g.d_q.data ? rows * Dp : 0); }
  Head head_memory(int64_t index, int worker) const {
    float* memory = plan.back.heads.floats(0) + (plan.back.whole_heads ? worker : index) * head_size();
    return {memory, memory + rows, memory + round_up(2 * rows, kLanes)};
  }

  struct Work {
    float *k_panels, *v_panels, *k_copy;  // of the block
    const float* k_strips;                // K's rows where they lie, or k_copy
    float *dk, *dv;                       // its sums: [key][Dp] (additive: in panels as k), [key][Dvp]
    float *q, *d_out_copy;                // of the tile: [rows][Dp], [rows][Dvp]
    const float* d_out;                   // rows d_out_row apart: where they lie, or d_out_copy
    float *s, *ds;                    // [rows][kBackStride]: scores, then weights; gradients of weights, then of scores
    float *bias, *slope, *mod_slope;  // of one row: [kBlockKeys]
    float *w, *dw;                    // additive: [group][D], [group][D][16]
    Next* next;                       // head that this worker does after this one
  };
  int64_t work_size() const { return lay_out(nullptr).second; }
  Work work(int worker) const { return lay_out(plan.back.scratch[worker].floats(0)).first; }
  std::pair<Work, int64_t> lay_out(float* memory) const {
    int64_t used = 0;
    const auto take = [&](int64_t n) {
      float* mine = memory + used;
      used += round_up(n, kLanes);
      return mine;
    };
    Work w{};
    w.k_panels = take(most_keys * p.D);
    w.v_panels = take(most_keys * p.Dv);
    w.k_copy = take(most_keys * Dp);
    w.dk = take(most_keys * Dp);
    w.dv = take(most_keys * Dvp);
    w.q = take(most_rows * Dp);
    w.d_out_copy = take(most_rows * Dvp);
    w.s = take(most_rows * kBackStride);
    w.ds = take(most_rows * kBackStride);
    w.bias = take(kBlockKeys);
    w.slope = take(kBlockKeys);
    w.mod_slope = take(p.a.score_mod ? kBlockKeys : 0);
    w.w = take(p.a.w.data ? p.group * p.D : 0);
    w.dw = take(g.d_w.data ? p.group * p.D * kLanes : 0);
    return {w, used};
  }

  // ---- Before the blocks: what a tile's rows carry ----

  void start_tile(int64_t b, int64_t hkv, int64_t t, const Head& mine) const {
    const Tile& tile = tiling.tile(b, hkv, t);
    plan.back.next[(b * p.Hkv + hkv) * tiles + t].store(static_cast<int32_t>(tile.first_block()),
                                                        std::memory_order_release);
    if (g.d_bias.data && !keyed(g.d_bias))
      std::fill_n(row_sums(kOfBias, b, hkv) + tile.row0, tile.row1 - tile.row0, 0.0f);
    if (g.d_alibi.data) std::fill_n(row_sums(kOfAlibi, b, hkv) + tile.row0, tile.row1 - tile.row0, 0.0f);
    const bool sees = tile.keys.begin < tile.keys.end;
    for (int64_t x = tile.row0; x < tile.row1; ++x) {
      const int64_t h = head_of(hkv, x), i = query(x);
      mine.lse2[x] = sigmoid ? 0.0f : *of_lse(in.lse, b, hkv, x) * kLog2e;
      mine.delta[x] = sigmoid ? 0.0f
                              : DotRow(head(in.out, b, h) + i * in.out.stride[2],
                                       head(in.d_out, b, h) + i * in.d_out.stride[2], p.Dv) -
                                    (in.d_lse.data ? *of_lse(in.d_lse, b, hkv, x) : 0.0f);
      if (g.d_sinks.data) {  // the sink's weight times (0 - delta)
        const float weight = std::exp2(this->head_value(p.a.sinks, h) - mine.lse2[x]);
        row_sums(kOfSinks, b, hkv)[x] = weight > 0 ? -weight * mine.delta[x] : 0.0f;  // lse = -inf: no weight
      }
      if (g.d_q.data && !sees) ClearRow(row_of(g.d_q, b, h, i), p.D);
    }
    if (g.d_q.data && !kDot) std::fill_n(mine.dq + tile.row0 * Dp, sees ? (tile.row1 - tile.row0) * Dp : 0, 0.0f);
  }

  // ---- One block of keys ----

  void block(int64_t b, int64_t hkv, int64_t c, const Head& mine, Work& w) const {
    const int64_t key0 = c * kBlockKeys, keys = std::min(kBlockKeys, p.S - key0);
    const Span seen = this->seen_of(b, hkv, key0);
    if (seen.begin < seen.end) {
      const T *k = head(p.a.k, b, hkv) + key0 * p.a.k.stride[2], *v = head(p.a.v, b, hkv) + key0 * p.a.v.stride[2];
      PackPanels(k, p.a.k.stride[2], seen.begin, seen.end, p.D, w.k_panels);
      if (to_scores) PackPanels(v, p.a.v.stride[2], seen.begin, seen.end, p.Dv, w.v_panels);
      if constexpr (std::is_same_v<T, float>)
        if (k_in_place) w.k_strips = k;
      if (g.d_q.data && kDot && !k_in_place) {
        PackStrips(k, p.a.k.stride[2], seen.begin, seen.end, p.D, Dp, most_keys * kPanel, w.k_copy);
        w.k_strips = w.k_copy;
      }
    }
    if (g.d_w.data) std::fill_n(w.dw, p.group * p.D * kLanes, 0.0f);
    this->scale_w(hkv, w.w);

    bool fresh = true;  // the first tile sets the block's sums
    for (int64_t t = 0; t < tiles; ++t)
      if (tiling.tile(b, hkv, t).cover(key0, key0 + keys) != Cover::empty) {
        if (fresh && g.d_k.data && !kDot) std::fill_n(w.dk, round_up(keys, kWidestPanel) * p.D, 0.0f);
        tile(b, hkv, c, t, keys, fresh, mine, w);
        fresh = false;
      }
    if (fresh && g.d_k.data) std::fill_n(w.dk, round_up(keys, kWidestPanel) * (kDot ? Dp : p.D), 0.0f);
    if (fresh && g.d_v.data) std::fill_n(w.dv, keys * Dvp, 0.0f);

    for (int64_t j = 0; j < keys; ++j) {
      if (g.d_k.data) {
        T* to = row_of(g.d_k, b, hkv, key0 + j);
        if constexpr (kDot)
          NarrowRow(w.dk + j * Dp, p.D, dk_factor, to);
        else
          for (int64_t x = 0; x < p.D; ++x)
            NarrowOne(dk_factor * w.dk[(j / kPanel * p.D + x) * kPanel + j % kPanel], to + x);
      }
      if (g.d_v.data) NarrowRow(w.dv + j * Dvp, p.Dv, keep, row_of(g.d_v, b, hkv, key0 + j));
    }
    if (g.d_w.data) {
      float* to = plan.back.sums[kOfW].floats(0) + ((b * p.Hkv + hkv) * plan.back.blocks + c) * p.group * p.D;
      for (int64_t x = 0; x < p.group * p.D; ++x) to[x] = SumLanes(w.dw + x * kLanes);
    }
  }

  // ---- One tile of rows against one block ----

  void tile(int64_t b, int64_t hkv, int64_t c, int64_t t, int64_t keys, bool fresh, const Head& mine, Work& w) const {
    const Tile& tile = tiling.tile(b, hkv, t);
    const int64_t key0 = c * kBlockKeys;
    Patch patch = this->patch_of(tile, {key0, keys, w.k_panels, nullptr, 0, 0, 0});
    const Span* spans = patch.spans;
    gather_rows(b, hkv, tile, w);
    wait_for_turn(b, hkv, c, t);
    for (int64_t r = 0, n; r < patch.rows; r += n) {
      n = NextGroup(patch.rows - r);
      const int64_t x = tile.row0 + r;
      const Sight sight = this->enter(b, hkv, patch, r, n, mine.lse2 + tile.row0, {w.s, w.ds});
      const bool first = c == tile.first_block();
      if (sight.width == 0) {
        if (first && g.d_q.data && kDot) std::fill_n(mine.dq + x * Dp, n * Dp, 0.0f);
        continue;
      }
      const int64_t v0 = sight.first / kVector, v1 = v0 + sight.width / kVector;
      this->template score<ScoreOf>(x, n, w.q + r * Dp, Dp, w.w, w.k_panels, sight.first, sight.first + sight.width,
                                    w.s + r * kBackStride, kBackStride);
      this->fetch(*w.next, streams);
      if (to_scores) {
        const Product dp{w.d_out + r * d_out_row, d_out_row,  w.v_panels, kPanel, p.Dv * kPanel,
                         w.ds + r * kBackStride,  kBackStride};
        StripOf<false>(n, dp, 0, {0, p.Dv}, v0, v1);
      }
      this->fetch(*w.next, streams);
      for (int64_t i = 0; i < n; ++i) row(b, hkv, x + i, r + i, key0, sight, sight.holes_of(i), spans[r + i], mine, w);
      this->fetch(*w.next, streams);
      if (to_inputs) to_queries(tile, r, n, spans, sight.holes_of(0), first, mine, w);
    }
    if (g.d_v.data)  // dv_j += sum over i of p_ij d_out_i: p read the other way round
      this->to_keys(patch, w.s, w.d_out, d_out_row, w.dv, Dvp, fresh);
    if (g.d_k.data && kDot)  // dk_j += sum over i of ds_ij q_i
      this->to_keys(patch, w.ds, w.q, Dp, w.dk, Dp, fresh);

    if (g.d_q.data && c + 1 == tile.end_block())
      for (int64_t x = tile.row0; x < tile.row1; ++x)
        NarrowRow(mine.dq + x * Dp, p.D, dq_factor, row_of(g.d_q, b, head_of(hkv, x), query(x)));
    plan.back.next[(b * p.Hkv + hkv) * tiles + t].store(static_cast<int32_t>(tile.next_block(c + 1)),
                                                        std::memory_order_release);
  }

  // q and d_out of the tile's rows as f32.
  void gather_rows(int64_t b, int64_t hkv, const Tile& tile, Work& w) const {
    this->gather_queries(b, hkv, tile.row0, tile.row1, Dp, w.q);
    if constexpr (std::is_same_v<T, float>)
      if (d_out_in_place) {
        w.d_out = head(in.d_out, b, head_of(hkv, 0)) + tile.row0 * in.d_out.stride[2];
        return;
      }
    float* to = w.d_out_copy;
    for (int64_t x = tile.row0; x < tile.row1; ++x, to += Dvp)
      WidenRow(head(in.d_out, b, head_of(hkv, x)) + query(x) * in.d_out.stride[2], p.Dv, Dvp, 1.0f, to);
    w.d_out = w.d_out_copy;
  }

  // Row x of the head, r of the tile: weights and the gradients of its scores; what bias and ALiBi's slope get of them.
  void row(int64_t b, int64_t hkv, int64_t x, int64_t r, int64_t key0, const Sight& sight, const Bits* bits, Span span,
           const Head& mine, const Work& w) const {
    const int64_t first = sight.first, width = sight.width;
    float *s = w.s + r * kBackStride + first, *ds = w.ds + r * kBackStride + first;
    const Span inside{span.begin - first, span.end - first};
    const bool sees = span.begin < span.end;
    const Finish finish = this->finish_of(b, hkv, x, key0 + first, inside, w.bias);
    FinishScores(s, inside, width, finish, w.slope, nullptr, w.mod_slope);
    if (bits) HideKeys(s, first, width, *bits);
    const float lse2 = sees ? mine.lse2[x] : 0.0f;
    const auto derive = [&]<bool kDrop>(const Drop& drop) {
      sigmoid ? WeightsAndGradient<kDrop, true>(s, ds, width, 0, 0, drop, keep)
              : WeightsAndGradient<kDrop, false>(s, ds, width, lse2, mine.delta[x], drop, keep);
    };
    if (p.a.dropout > 0)
      derive.template operator()<true>(this->drop_of(b, hkv, x, key0 + first));
    else
      derive.template operator()<false>({});
    if (!to_scores || !sees) return;
    if (finish.mod) MultiplyRow(ds, width, w.mod_slope);
    if (g.d_bias.data && !keyed(g.d_bias)) {
      row_sums(kOfBias, b, hkv)[x] += SumRow(ds, width);
    } else if (g.d_bias.data) {
      this->add_to_bias(g.d_bias, b, hkv, x, key0 + span.begin, ds + inside.begin, span.end - span.begin);
    }
    if (g.d_alibi.data) row_sums(kOfAlibi, b, hkv)[x] += SumRowByDistance(ds, width, finish.distance);
    if (finish.cap2 > 0) MultiplyRow(ds, width, w.slope);  // d cap(s) / d s = 1 - tanh^2
  }

  void to_queries(const Tile& tile, int64_t r, int64_t n, const Span* spans, const Bits* bits, bool fresh,
                  const Head& mine, const Work& w) const {
    const ScoreGradient back{w.ds,
                             p.group,
                             tile.row0,
                             spans,
                             bits,
                             w.k_strips,
                             k_in_place ? kPanel : most_keys * kPanel,
                             k_in_place ? p.a.k.stride[2] : kPanel,
                             k_in_place ? p.a.k.stride[2] : Dp % kPanel,
                             Dp,
                             g.d_q.data ? mine.dq + tile.row0 * Dp : nullptr,
                             g.d_k.data ? w.dk : nullptr,
                             g.d_w.data ? w.dw : nullptr,
                             fresh};
    if constexpr (kDot) {
      if (back.dq) ScoreOf::ToQueries(back, r, n);
    } else {
      ScoreOf::ToAll({w.q, Dp, w.k_panels, p.D, w.w}, back, r, n);
    }
  }

  // ---- The order of sums ----

  // Rows of the tile have been through all blocks before c, and, where heads add to one bias gradient, the heads before
  // this one have added what they have for this tile and block.
  void wait_for_turn(int64_t b, int64_t hkv, int64_t c, int64_t t) const {
    const int64_t index = b * p.Hkv + hkv;
    if (!plan.back.whole_heads) wait(index, t, c);
    const Tensor& d = g.d_bias;
    if (!keyed(d)) return;
    for (int64_t b0 = d.shape[0] == 1 ? 0 : b; b0 <= b; ++b0)
      for (int64_t h0 = d.shape[1] == 1 ? 0 : hkv; h0 < (d.shape[1] == 1 ? p.Hkv : hkv + 1); ++h0) {
        const int64_t other = b0 * p.Hkv + h0;
        if (other >= index) return;
        // What is one for all queries, or for a distance, is added to by other tiles, too; of a distance, in other
        // blocks.
        const bool all = d.shape[2] == 1 || this->relative(d);
        for (int64_t t0 = all ? 0 : t; t0 < (all ? tiles : t + 1); ++t0) {
          const Tile& before = tiling.tile(b0, h0, t0);
          if (this->relative(d) && before.keys.begin < before.keys.end) wait(other, t0, before.end_block());
          if (before.first_block() <= c && before.keys.begin < before.keys.end)
            wait(other, t0, std::min(c + 1, before.end_block()));
        }
      }
  }

  void wait(int64_t head, int64_t t, int64_t turn) const {
    const std::atomic<int32_t>& next = plan.back.next[head * tiles + t];
    for (int spins = 0; next.load(std::memory_order_acquire) < turn;)
      if (++spins > 1000) std::this_thread::yield();
  }

  // ---- All of it ----

  void run() const {
    Plan::State::Back& back = plan.back;
    back.heads.floats((back.whole_heads ? back.workers : heads) * head_size());
    for (Memory& memory : back.scratch) memory.floats(work_size());
    back.sums[kOfW].floats(g.d_w.data ? heads * back.blocks * p.group * p.D : 0);
    back.sums[kOfBias].floats(g.d_bias.data && !keyed(g.d_bias) ? heads * rows : 0);
    back.sums[kOfAlibi].floats(g.d_alibi.data ? heads * rows : 0);
    back.sums[kOfSinks].floats(g.d_sinks.data ? heads * rows : 0);
    for (int64_t x = 0; x < heads * tiles; ++x) back.next[x].store(-1, std::memory_order_relaxed);
    this->clear_bias(g.d_bias);
    if (!back.whole_heads)
      parallel(p.a.executor, back.workers, heads * tiles, [&](int, int64_t x) {
        const int64_t head = x / tiles;
        start_tile(head / p.Hkv, head % p.Hkv, x % tiles, head_memory(head, 0));
      });
    parallel(p.a.executor, back.workers, static_cast<int64_t>(back.pieces.size()), [&](int worker, int64_t x) {
      const Piece& piece = back.pieces[x];
      Work w = work(worker);
      Next next;
      w.next = &next;
      if (!back.whole_heads)
        return block(piece.b, piece.hkv, piece.part, head_memory(piece.b * p.Hkv + piece.hkv, worker), w);
      const Head mine = head_memory(0, worker);
      for (int64_t head = piece.part; head < piece.end; ++head) {
        next = head + 1 < piece.end
                   ? this->next_of({(head + 1) / p.Hkv, (head + 1) % p.Hkv, 0, 0}, streams, back.blocks * rows)
                   : Next();
        for (int64_t t = 0; t < tiles; ++t) start_tile(head / p.Hkv, head % p.Hkv, t, mine);
        for (int64_t c = 0; c < back.blocks; ++c) block(head / p.Hkv, head % p.Hkv, c, mine, w);
      }
    });
    add_up();
  }

  // What rows and blocks have left, in double and in order.
  void add_up() const {
    if (g.d_bias.data && !keyed(g.d_bias)) add_up_rows(kOfBias, g.d_bias);
    if (g.d_alibi.data) add_up_rows(kOfAlibi, g.d_alibi);
    if (g.d_sinks.data) add_up_rows(kOfSinks, g.d_sinks);
    if (!g.d_w.data) return;
    std::vector<double> sums(g.d_w.shape[1] * p.D);
    for (int64_t x = 0; x < heads * plan.back.blocks * p.group; ++x) {
      const int64_t h = x / (plan.back.blocks * p.group) % p.Hkv * p.group + x % p.group;
      for (int64_t e = 0; e < p.D; ++e)
        sums[(g.d_w.shape[1] == 1 ? 0 : h * p.D) + e] += plan.back.sums[kOfW].floats(0)[x * p.D + e];
    }
    for (int64_t h = 0; h < g.d_w.shape[1]; ++h)
      for (int64_t e = 0; e < p.D; ++e)
        static_cast<float*>(g.d_w.data)[h * g.d_w.stride[1] + e] = static_cast<float>(p.scale * sums[h * p.D + e]);
  }
};

void BackwardPass(const Problem& p, Plan::State& plan, const Incoming& in, const Gradients& g) {
  const Output none{};
  WithRows(p, plan, none, [&]<class T>(const Rows<T>&) {
    const Rows<T> rows{p, plan, none, plan.back.tiling};
    if (p.a.score == Score::dot)
      Backward<T, DotScore>{{rows}, in, g}.run();
    else
      Backward<T, AdditiveScore>{{rows}, in, g}.run();
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(BackwardPass);
void backward_pass(const Problem& p, Plan::State& plan, const Incoming& in, const Gradients& gradients) {
  HWY_DYNAMIC_DISPATCH(BackwardPass)(p, plan, in, gradients);
}
}  // namespace heed
#endif
