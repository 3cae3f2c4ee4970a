// The double backward: the gradients of what backward() computes, and, as a part of it, jvp(). Memory linear in L and
// S.
//
// With `along` the direction, t_ij the tangent of a score and u_ij = keep (d_out_i . along.v_j), all that backward's
// results are multiplied with adds up to sum_ij p_ij ((a_ij - delta_i) t_ij + u_ij); p, a = keep (d_out_i . v_j) and
// delta_i = sum_j p_ij a_ij - d_lse_i are as in backward.cc. Its derivatives (src/reference.cc takes the same steps one
// by one), with E_i = sum_j p_ij t_ij:
//   of a_ij:          p (t - E)                                    on to v and d_out; of d_lse_i: E_i
//   of a score s_ij:  p ((t - E) (a - delta) + u - F_i)            on to q, k, bias, alibi
//   where             F_i = sum_j p ((t - E) (a - delta) + u)
// and t itself contains q and k: p (a - delta) goes on to them through along.k and along.q. As E does not depend on
// d_out, out's and lse's tangents, sum_j p ((t - E) v_j + along.v_j) and E, are the derivatives of d_out and of d_lse.
//
// Two passes, each with one fixed order for its sums, whoever computes them. Rows: a tile walks over its blocks of keys
// once for the sums E, delta and F and once more for q, d_out. Keys: a block walks over all tiles for k, v and bias.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "second.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include "gradients-inl.h"
#include "hwy/highway.h"
#include "passes.h"
#include "threads.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

// ---- One row ----

// A row of the four matrices of a tile and a block. Going in: finished scores and their finished tangents, in powers of
// two, and raw a and u. Coming out of Derivatives: what the products are made with.
struct FourRows {
  float* s;  // score -> weight, 0 if it is dropped
  float* t;  // tangent -> derivative of a, 0 if it is dropped
  float* a;  // a -> derivative of the tangent
  float* u;  // u -> derivative of the score
};

// What a row carries from the first walk on. t, near_t and e are in powers of two. e and delta are what is left of them
// beyond values near them, which are taken off first: the differences t - E and a - delta keep their digits however
// large t and a are.
struct Carried {
  float lse2;
  float near_t, e;      // E = near_t + e
  float near_a, delta;  // delta_i = near_a + delta
  float f;
};

inline constexpr float kNothing = -std::numeric_limits<float>::infinity();  // lse of a row that sees nothing

struct RowSums {
  float t = 0, a = 0, ta = 0, u = 0;  // of p times each, t and a less what is near them
  bool begun = false;                 // near_t is known
};

// a and u with dropout; what is left out is not read.
template <bool kDrop>
HWY_INLINE VF WithDropout(const Drop& drop, int64_t j, VF x, VF keep) {
  if constexpr (kDrop) return hn::IfThenZeroElse(Dropped(drop, j), hn::Mul(keep, x));
  return x;
}

// Adds a row's sums over one block. A weight of 0 adds 0 whatever the others are.
template <bool kDrop, bool kToScores>
inline void AddSums(const FourRows& row, int64_t width, const Carried& mine, const Drop& drop, float keep,
                    RowSums& sums) {
  const F d;
  const VF l = hn::Set(d, mine.lse2), zero = hn::Zero(d), factor = hn::Set(d, keep);
  const VF near_t = hn::Set(d, mine.near_t), near_a = hn::Set(d, mine.near_a);
  HWY_ALIGN float lanes[4][kLanes] = {};
  const auto add = [&](int which, int64_t lane, VF p, VF x) HWY_ATTR {
    hn::Store(hn::MulAdd(p, x, hn::Load(d, lanes[which] + lane)), d, lanes[which] + lane);
  };
  for (int64_t j = 0; j < width; j += kVector) {
    const int64_t lane = j % kLanes;
    const VF p = Exp2(d, hn::Sub(hn::LoadU(d, row.s + j), l), zero);
    const auto hidden = hn::Eq(p, zero);
    const VF t = hn::IfThenZeroElse(hidden, hn::Sub(hn::LoadU(d, row.t + j), near_t));
    add(0, lane, p, t);
    if constexpr (kToScores) {
      const VF a = hn::Sub(WithDropout<kDrop>(drop, j, hn::LoadU(d, row.a + j), factor), near_a);
      const VF off = hn::IfThenZeroElse(hidden, a);
      const VF u = hn::IfThenZeroElse(hidden, WithDropout<kDrop>(drop, j, hn::LoadU(d, row.u + j), factor));
      add(1, lane, p, off);
      add(2, lane, hn::Mul(p, t), off);
      add(3, lane, p, u);
    }
  }
  sums.t += SumLanes(lanes[0]);
  sums.a += SumLanes(lanes[1]);
  sums.ta += SumLanes(lanes[2]);
  sums.u += SumLanes(lanes[3]);
}

// The tangent of the row's first key in [from, to) that has a weight becomes its near_t.
inline void Begin(const FourRows& row, int64_t from, int64_t to, Carried& mine, RowSums& sums) {
  while (from < to && !(row.s[from] - mine.lse2 > -126)) ++from;
  if (from >= to) return;
  mine.near_t = row.t[from];
  sums.begun = true;
}

// What comes out is 0 where the weight is.
template <bool kDrop, bool kToScores>
inline void Derivatives(const FourRows& row, int64_t width, const Carried& mine, const Drop& drop, float keep) {
  const F d;
  const VF l = hn::Set(d, mine.lse2), e = hn::Set(d, mine.e), delta = hn::Set(d, mine.delta), f = hn::Set(d, mine.f);
  const VF zero = hn::Zero(d), factor = hn::Set(d, keep), ln2 = hn::Set(d, static_cast<float>(kLn2));
  const VF near_t = hn::Set(d, mine.near_t), near_a = hn::Set(d, mine.near_a);
  for (int64_t j = 0; j < width; j += kVector) {
    const VF p = Exp2(d, hn::Sub(hn::LoadU(d, row.s + j), l), zero);
    const auto hidden = hn::Eq(p, zero);
    const VF gap = hn::Mul(ln2, hn::Sub(hn::Sub(hn::LoadU(d, row.t + j), near_t), e));
    const VF of_a = hn::IfThenZeroElse(hidden, hn::Mul(p, gap));
    if constexpr (kDrop) {
      const auto dropped = Dropped(drop, j);
      hn::StoreU(hn::IfThenZeroElse(dropped, p), d, row.s + j);
      hn::StoreU(hn::IfThenZeroElse(dropped, of_a), d, row.t + j);
    } else {
      hn::StoreU(p, d, row.s + j);
      hn::StoreU(of_a, d, row.t + j);
    }
    if constexpr (kToScores) {
      const VF off = hn::Sub(hn::Sub(WithDropout<kDrop>(drop, j, hn::LoadU(d, row.a + j), factor), near_a), delta);
      const VF u = WithDropout<kDrop>(drop, j, hn::LoadU(d, row.u + j), factor);
      hn::StoreU(hn::IfThenZeroElse(hidden, hn::Mul(p, off)), d, row.a + j);
      hn::StoreU(hn::IfThenZeroElse(hidden, hn::Mul(p, hn::MulAdd(gap, off, hn::Sub(u, f)))), d, row.u + j);
    }
  }
}

// Both derivatives go on through the cap, and that of the tangent a second time: t contains the raw score in the cap's
// slope 1 - tanh^2, whose derivative is -2 tanh slope / c. bend: tanh slope times the raw tangent.
inline void ThroughCap(const FourRows& row, int64_t width, const float* slope, const float* bend, float factor) {
  const F d;
  const VF f = hn::Set(d, factor), zero = hn::Zero(d);
  for (int64_t j = 0; j < width; j += kVector) {
    const VF of_t = hn::LoadU(d, row.a + j), of_s = hn::LoadU(d, row.u + j), by = hn::LoadU(d, slope + j);
    // Behind a mask slope and bend may be NaN.
    const VF again = hn::IfThenElse(hn::Eq(of_t, zero), zero, hn::Mul(of_t, hn::Mul(f, hn::LoadU(d, bend + j))));
    hn::StoreU(hn::IfThenElse(hn::Eq(of_t, zero), zero, hn::Mul(of_t, by)), d, row.a + j);
    hn::StoreU(hn::IfThenElse(hn::Eq(of_s, zero), again, hn::MulAdd(of_s, by, again)), d, row.u + j);
  }
}

// ---- The passes ----

template <class T>
struct Second : GradientRows<T> {
  using Base = GradientRows<T>;
  using Base::Dp, Base::Dvp, Base::rows, Base::tiles, Base::heads, Base::most_rows, Base::most_keys, Base::keep;
  using Base::head, Base::head_of, Base::query, Base::p, Base::plan, Base::tiling, Base::scale2;
  using Base::of_lse, Base::row_of, Base::row_sums, Base::keyed, Base::add_up_rows;

  const Incoming& in;
  const Tangents& along;
  const SecondGradients& g;
  bool to_scores = g.d_q.data || g.d_k.data || g.d_bias.data || g.d_alibi.data || g.d_sinks.data;
  bool moves = along.q.data || along.k.data || along.bias.data || along.alibi.data || along.sinks.data;  // t
  bool wants_rows = g.d_q.data || g.d_d_out.data || g.d_alibi.data || (g.d_bias.data && !keyed(g.d_bias));
  bool wants_keys = g.d_k.data || g.d_v.data || keyed(g.d_bias);
  float ln2 = static_cast<float>(kLn2);

  // ---- Memory ----

  Carried* carried(int64_t head) const { return reinterpret_cast<Carried*>(plan.back.heads.floats(0)) + head * rows; }

  // Whether row x gives weights to keys.
  bool weighs(int64_t b, int64_t hkv, int64_t x, const Carried& row) const {
    const Span span = tiling.row(b, hkv, x);
    return span.begin < span.end && row.lse2 != kNothing;
  }

  // Panels are for products that sum over D or Dv, strips for those that sum over keys. t_: the tangent of.
  struct Work {
    float *k, *t_k, *v, *t_v;                              // of the block: panels
    float *k_strips, *t_k_strips, *v_strips, *t_v_strips;  //
    float *d_k, *d_v;                                      // its sums: [key][Dp], [key][Dvp]
    float *q, *t_q, *d_out;                                // of the tile: [rows][Dp], [rows][Dp], [rows][Dvp]
    float *d_q, *d_d_out;                                  // its sums, the same
    float *s, *t, *a, *u;                                  // [rows][kBackStride]
    float *bias, *slope, *bend;                            // of one row: [kBlockKeys]
    float* lse2;                                           // of the tile
  };
  int64_t work_size() const { return lay_out(nullptr).second; }
  Work work(int worker) const { return lay_out(plan.back.scratch[worker].floats(0)).first; }
  std::pair<Work, int64_t> lay_out(float* memory) const {
    int64_t used = 0;
    const auto take = [&](bool needed, int64_t n) {
      float* mine = memory + used;
      used += needed ? round_up(n, kLanes) : 0;
      return mine;
    };
    const bool t_k = along.k.data, t_q = along.q.data, t_v = along.v.data;
    Work w{};
    w.k = take(true, most_keys * p.D);
    w.t_k = take(t_k, most_keys * p.D);
    w.v = take(to_scores, most_keys * p.Dv);
    w.t_v = take(to_scores && t_v, most_keys * p.Dv);
    w.k_strips = take(g.d_q.data, most_keys * Dp);
    w.t_k_strips = take(g.d_q.data && t_k, most_keys * Dp);
    w.v_strips = take(g.d_d_out.data, most_keys * Dvp);
    w.t_v_strips = take(g.d_d_out.data && t_v, most_keys * Dvp);
    w.d_k = take(g.d_k.data, most_keys * Dp);
    w.d_v = take(g.d_v.data, most_keys * Dvp);
    w.q = take(true, most_rows * Dp);
    w.t_q = take(t_q, most_rows * Dp);
    w.d_out = take(to_scores || g.d_v.data, most_rows * Dvp);
    w.d_q = take(g.d_q.data, most_rows * Dp);
    w.d_d_out = take(g.d_d_out.data, most_rows * Dvp);
    for (float** matrix : {&w.s, &w.t, &w.a, &w.u}) *matrix = take(true, most_rows * kBackStride);
    for (float** row : {&w.bias, &w.slope, &w.bend}) *row = take(true, kBlockKeys);
    w.lse2 = take(true, most_rows);
    return {w, used};
  }

  // ---- Packing ----

  // Keys `seen` of the block, for the products that need them.
  void pack(int64_t b, int64_t hkv, int64_t key0, Span seen, bool strips, const Work& w) const {
    if (seen.begin >= seen.end) return;
    const auto one = [&](const ConstTensor& t, int64_t dims, int64_t padded, float* panels, float* in_strips) {
      if (!t.data) return;
      const T* from = head(t, b, hkv) + key0 * t.stride[2];
      if (panels) PackPanels(from, t.stride[2], seen.begin, seen.end, dims, panels);
      if (in_strips) PackStrips(from, t.stride[2], seen.begin, seen.end, dims, padded, most_keys * kPanel, in_strips);
    };
    const bool k_strips = strips && g.d_q.data, v_strips = strips && g.d_d_out.data;
    one(p.a.k, p.D, Dp, w.k, k_strips ? w.k_strips : nullptr);
    one(along.k, p.D, Dp, w.t_k, k_strips ? w.t_k_strips : nullptr);
    one(p.a.v, p.Dv, Dvp, to_scores ? w.v : nullptr, v_strips ? w.v_strips : nullptr);
    one(along.v, p.Dv, Dvp, to_scores ? w.t_v : nullptr, v_strips ? w.t_v_strips : nullptr);
  }

  // The tile's rows. One without weights gets zeros: it is computed with where a row beside it has some, and a NaN in
  // it must not come through.
  void gather(int64_t b, int64_t hkv, const Tile& tile, const Work& w) const {
    const Carried* mine = carried(b * p.Hkv + hkv);
    for (int64_t x = tile.row0; x < tile.row1; ++x) {
      const int64_t r = x - tile.row0, h = head_of(hkv, x), i = query(x);
      const bool sees = weighs(b, hkv, x, mine[x]);
      w.lse2[r] = mine[x].lse2;
      const auto one = [&](const ConstTensor& t, int64_t dims, int64_t padded, float factor, float* to) {
        if (sees && t.data)
          WidenRow(head(t, b, h) + i * t.stride[2], dims, padded, factor, to + r * padded);
        else if (t.data)
          std::fill_n(to + r * padded, padded, 0.0f);
      };
      one(p.a.q, p.D, Dp, scale2, w.q);
      one(along.q, p.D, Dp, scale2, w.t_q);
      if (to_scores || g.d_v.data) one(in.d_out, p.Dv, Dvp, 1.0f, w.d_out);
    }
  }

  // ---- A tile against a block ----

  // Scores, tangents, a and u of rows [r, r + n), raw, where they see something.
  void products(int64_t r, int64_t n, const Sight& sight, const Work& w) const {
    const int64_t v0 = sight.first / kVector, v1 = v0 + sight.width / kVector;
    const auto times = [&](const float* a, int64_t a_row, const float* panels, int64_t dims, float* c, bool add) {
      const Product t{a + r * a_row,        a_row, panels, kPanel, dims * kPanel, c + r * kBackStride, kBackStride,
                      add ? kOnes : nullptr};
      StripOf<false>(n, t, 0, {0, dims}, v0, v1);
    };
    const auto zeros = [&](float* c) {
      for (int64_t i = r; i < r + n; ++i) std::fill_n(c + i * kBackStride + sight.first, sight.width, 0.0f);
    };
    times(w.q, Dp, w.k, p.D, w.s, false);
    if (along.q.data) times(w.t_q, Dp, w.k, p.D, w.t, false);
    if (along.k.data) times(w.q, Dp, w.t_k, p.D, w.t, along.q.data);
    if (!along.q.data && !along.k.data) zeros(w.t);
    if (!to_scores) return;
    times(w.d_out, Dvp, w.v, p.Dv, w.a, false);
    if (along.v.data)
      times(w.d_out, Dvp, w.t_v, p.Dv, w.u, false);
    else
      zeros(w.u);
  }

  // One row of the patch, its scores and tangents finished.
  struct Line {
    FourRows row;
    int64_t x, key;  // row of the head, key of the first column
    int64_t width;
    Span inside;     // what it has weights for
    float distance;  // Finish::distance
    Drop drop;
  };

  Line finish(int64_t b, int64_t hkv, const Patch& patch, int64_t r, const Sight& sight, const Bits* bits,
              const Work& w) const {
    const int64_t at = r * kBackStride + sight.first, x = patch.row0 + r, key = patch.block.key0 + sight.first;
    const Span span = patch.spans[r];
    Line line{{w.s + at, w.t + at, w.a + at, w.u + at},           x, key, sight.width,
              {span.begin - sight.first, span.end - sight.first}, 0, {}};
    const Finish finish = this->finish_of(b, hkv, x, key, line.inside, w.bias);
    FinishScores(line.row.s, line.inside, line.width, finish, w.slope, w.bend);
    if (bits) HideKeys(line.row.s, sight.first, line.width, *bits);
    if (finish.cap2 > 0) {
      MultiplyRow(line.row.t, line.width, w.slope);
      MultiplyRow(w.bend, line.width, line.row.t);
    }
    const Finish more = this->added_by(along.bias, along.alibi, b, hkv, x, key, line.inside, w.bias);
    if (!more.nothing()) FinishScores(line.row.t, line.inside, line.width, more);
    line.distance = finish.distance;
    if (p.a.dropout > 0) line.drop = this->drop_of(b, hkv, x, key);
    return line;
  }

  // Calls f<kDrop, kToScores>().
  template <class F>
  void specialised(F&& f) const {
    if (p.a.dropout > 0)
      to_scores ? f.template operator()<true, true>() : f.template operator()<true, false>();
    else
      to_scores ? f.template operator()<false, true>() : f.template operator()<false, false>();
  }

  // Rows [r, r + n) of the patch: the products' left factors. each(line): before they pass through the cap.
  template <class F>
  void derive(int64_t b, int64_t hkv, const Patch& patch, int64_t r, int64_t n, const Sight& sight, const Work& w,
              F&& each) const {
    products(r, n, sight, w);
    const Carried* mine = carried(b * p.Hkv + hkv) + patch.row0;
    for (int64_t i = r; i < r + n; ++i) {
      const Line line = finish(b, hkv, patch, i, sight, sight.holes_of(i - r), w);
      Carried row = mine[i];
      if (patch.spans[i].begin >= patch.spans[i].end) row.lse2 = 0;  // all its scores are -inf by now
      specialised([&]<bool kDrop, bool kToScores>() {
        Derivatives<kDrop, kToScores>(line.row, line.width, row, line.drop, keep);
      });
      each(line);
      if (p.a.softcap > 0 && to_scores)
        ThroughCap(line.row, line.width, w.slope, w.bend, static_cast<float>(-2 * kLn2 / p.a.softcap));
    }
  }

  // Calls f(c, patch) for each block of keys that the tile sees something of, packed.
  template <class F>
  void blocks(int64_t b, int64_t hkv, const Tile& tile, bool strips, const Work& w, F&& f) const {
    for (int64_t key0 = tile.keys.begin / kBlockKeys * kBlockKeys; key0 < tile.keys.end; key0 += kBlockKeys) {
      const int64_t keys = std::min(kBlockKeys, p.S - key0);
      if (tile.cover(key0, key0 + keys) == Cover::empty) continue;
      const Span seen{std::max(tile.keys.begin, key0) - key0, std::min(tile.keys.end, key0 + keys) - key0};
      pack(b, hkv, key0, seen, strips, w);
      Patch patch = this->patch_of(tile, {key0, keys, w.k, nullptr, 0, 0, 0});
      f(patch);
    }
  }

  // ---- Rows ----

  // The sums of a tile's rows over all keys: e, delta and f, and what comes of them at once.
  void sum_up(int64_t b, int64_t hkv, const Tile& tile, const Work& w) const {
    Carried* mine = carried(b * p.Hkv + hkv) + tile.row0;
    const int64_t n_rows = tile.row1 - tile.row0;
    RowSums sums[kBackMostRows];
    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t x = tile.row0 + r, h = head_of(hkv, x), i = query(x);
      mine[r] = {*of_lse(in.lse, b, hkv, x) * kLog2e, 0, 0, 0, 0, 0};
      if (to_scores && weighs(b, hkv, x, mine[r]))
        mine[r].near_a =
            DotRow(head(in.out, b, h) + i * in.out.stride[2], head(in.d_out, b, h) + i * in.d_out.stride[2], p.Dv);
    }
    gather(b, hkv, tile, w);
    if (to_scores || moves)
      blocks(b, hkv, tile, false, w, [&](Patch& patch) {
        for (int64_t r = 0, n; r < n_rows; r += n) {
          n = NextGroup(n_rows - r);
          const Sight sight = this->enter(b, hkv, patch, r, n, w.lse2, {});
          if (sight.width == 0) continue;
          products(r, n, sight, w);
          for (int64_t i = r; i < r + n; ++i) {
            if (patch.spans[i].begin >= patch.spans[i].end) continue;
            const Line line = finish(b, hkv, patch, i, sight, sight.holes_of(i - r), w);
            if (!sums[i].begun) Begin(line.row, line.inside.begin, line.inside.end, mine[i], sums[i]);
            specialised([&]<bool kDrop, bool kToScores>() {
              AddSums<kDrop, kToScores>(line.row, line.width, mine[i], line.drop, keep, sums[i]);
            });
          }
        }
      });
    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t x = tile.row0 + r, h = head_of(hkv, x);
      Carried& row = mine[r];
      RowSums& sum = sums[r];
      float sink = 0, t = 0;  // one more pair, with a = u = 0: its weight, and its tangent beyond near_t
      if (p.a.sinks.data && row.lse2 != kNothing) {
        sink = std::exp2(this->head_value(p.a.sinks, h) - row.lse2);
        t = (along.sinks.data ? this->head_value(along.sinks, h) : 0.0f) - row.near_t;
        if (sink > 0) {
          sum.t += sink * t;
          sum.a -= sink * row.near_a;
          sum.ta -= sink * t * row.near_a;
        }
      }
      if (row.lse2 != kNothing) {
        row.e = sum.t;
        row.delta = sum.a - (in.d_lse.data ? *of_lse(in.d_lse, b, hkv, x) : 0.0f);
        row.f = ln2 * (sum.ta - sum.a * sum.t) + sum.u;
      }
      if (g.d_d_lse.data) *of_lse(g.d_d_lse, b, hkv, x) = ln2 * (row.near_t + row.e);
      if (g.d_sinks.data)
        row_sums(kOfSinks, b, hkv)[x] =
            sink > 0 ? sink * (ln2 * (t - row.e) * -(row.near_a + row.delta) - row.f) : 0.0f;
    }
  }

  // d_q and d_out's gradient of a tile's rows, and what their keys leave for the ends of bias and alibi.
  void rows_of(int64_t b, int64_t hkv, const Tile& tile, const Work& w) const {
    const int64_t n_rows = tile.row1 - tile.row0;
    float* of_bias = g.d_bias.data && !keyed(g.d_bias) ? row_sums(kOfBias, b, hkv) : nullptr;
    float* of_alibi = g.d_alibi.data ? row_sums(kOfAlibi, b, hkv) : nullptr;
    for (float* sums : {of_bias, of_alibi})
      if (sums) std::fill(sums + tile.row0, sums + tile.row1, 0.0f);
    if (g.d_q.data) std::fill_n(w.d_q, n_rows * Dp, 0.0f);
    if (g.d_d_out.data) std::fill_n(w.d_d_out, n_rows * Dvp, 0.0f);

    blocks(b, hkv, tile, true, w, [&](Patch& patch) {
      const auto add = [&](int64_t r, int64_t n, const float* of, const float* strips, int64_t padded, float* to,
                           const Bits* bits) {
        DotScore::ToQueries({of, p.group, patch.row0, patch.spans, bits, strips, most_keys * kPanel, kPanel,
                             padded % kPanel, padded, to, nullptr, nullptr, false},
                            r, n);
      };
      for (int64_t r = 0, n; r < n_rows; r += n) {
        n = NextGroup(n_rows - r);
        const Sight sight = this->enter(b, hkv, patch, r, n, w.lse2, {});
        if (sight.width == 0) continue;
        derive(b, hkv, patch, r, n, sight, w, [&](const Line& line) {
          if (of_bias) of_bias[line.x] += SumRow(line.row.u, line.width);
          if (of_alibi) of_alibi[line.x] += SumRowByDistance(line.row.u, line.width, line.distance);
        });
        if (g.d_q.data) {
          add(r, n, w.u, w.k_strips, Dp, w.d_q, sight.holes_of(0));
          if (along.k.data) add(r, n, w.a, w.t_k_strips, Dp, w.d_q, sight.holes_of(0));
        }
        if (g.d_d_out.data) {
          if (moves) add(r, n, w.t, w.v_strips, Dvp, w.d_d_out, sight.holes_of(0));
          if (along.v.data) add(r, n, w.s, w.t_v_strips, Dvp, w.d_d_out, sight.holes_of(0));
        }
      }
    });

    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t h = head_of(hkv, tile.row0 + r), i = query(tile.row0 + r);
      if (g.d_q.data) NarrowRow(w.d_q + r * Dp, p.D, static_cast<float>(p.scale), row_of(g.d_q, b, h, i));
      if (g.d_d_out.data) NarrowRow(w.d_d_out + r * Dvp, p.Dv, keep, row_of(g.d_d_out, b, h, i));
    }
  }

  // ---- Keys ----

  void keys_of(int64_t b, int64_t hkv, int64_t key0, const Work& w) const {
    const int64_t keys = std::min(kBlockKeys, p.S - key0);
    pack(b, hkv, key0, this->seen_of(b, hkv, key0), false, w);
    const int64_t whole = round_up(keys, kWidestPanel);
    if (g.d_k.data) std::fill_n(w.d_k, whole * Dp, 0.0f);
    if (g.d_v.data) std::fill_n(w.d_v, whole * Dvp, 0.0f);
    for (int64_t t = 0; t < tiles; ++t) {
      const Tile& tile = tiling.tile(b, hkv, t);
      if (tile.cover(key0, key0 + keys) == Cover::empty) continue;
      gather(b, hkv, tile, w);
      Patch patch = this->patch_of(tile, {key0, keys, w.k, nullptr, 0, 0, 0});
      for (int64_t r = 0, n; r < patch.rows; r += n) {
        n = NextGroup(patch.rows - r);
        const Sight sight = this->enter(b, hkv, patch, r, n, w.lse2, {w.t, w.a, w.u});
        if (sight.width == 0) continue;
        derive(b, hkv, patch, r, n, sight, w, [&](const Line& line) {
          const Span inside = line.inside;
          if (keyed(g.d_bias) && inside.begin < inside.end)
            this->add_to_bias(g.d_bias, b, hkv, line.x, line.key + inside.begin, line.row.u + inside.begin,
                              inside.end - inside.begin);
        });
      }
      if (g.d_k.data) {
        this->to_keys(patch, w.u, w.q, Dp, w.d_k, Dp);
        if (along.q.data) this->to_keys(patch, w.a, w.t_q, Dp, w.d_k, Dp);
      }
      if (g.d_v.data && moves) this->to_keys(patch, w.t, w.d_out, Dvp, w.d_v, Dvp);
    }
    for (int64_t j = 0; j < keys; ++j) {
      // q and its tangent come scaled for powers of two.
      if (g.d_k.data) NarrowRow(w.d_k + j * Dp, p.D, ln2, row_of(g.d_k, b, hkv, key0 + j));
      if (g.d_v.data) NarrowRow(w.d_v + j * Dvp, p.Dv, keep, row_of(g.d_v, b, hkv, key0 + j));
    }
  }

  // ---- All of it ----

  void run() const {
    Plan::State::Back& back = plan.back;
    back.heads.floats(heads * rows * sizeof(Carried) / sizeof(float));
    for (Memory& memory : back.scratch) memory.floats(work_size());
    back.sums[kOfBias].floats(g.d_bias.data && !keyed(g.d_bias) ? heads * rows : 0);
    back.sums[kOfAlibi].floats(g.d_alibi.data ? heads * rows : 0);
    back.sums[kOfSinks].floats(g.d_sinks.data ? heads * rows : 0);

    // The last tiles first: under a causal mask they see most.
    parallel(p.a.executor, back.workers, heads * tiles, [&](int worker, int64_t n) {
      const int64_t x = heads * tiles - 1 - n, b = x / tiles / p.Hkv, hkv = x / tiles % p.Hkv;
      const Tile& tile = tiling.tile(b, hkv, x % tiles);
      const Work w = work(worker);
      sum_up(b, hkv, tile, w);
      if (wants_rows) rows_of(b, hkv, tile, w);
    });
    if (g.d_bias.data && !keyed(g.d_bias)) add_up_rows(kOfBias, g.d_bias);
    if (g.d_alibi.data) add_up_rows(kOfAlibi, g.d_alibi);
    if (g.d_sinks.data) add_up_rows(kOfSinks, g.d_sinks);
    if (!wants_keys) return;

    // A piece is one block of one head or, of heads that add to the same part of d_bias, of all of these.
    this->clear_bias(g.d_bias);
    const bool one_b = keyed(g.d_bias) && g.d_bias.shape[0] == 1, one_h = keyed(g.d_bias) && g.d_bias.shape[1] == 1;
    const int64_t by_b = one_b ? std::max<int64_t>(1, p.B) : 1, by_h = one_h ? p.Hkv : 1;
    parallel(p.a.executor, back.workers, heads / (by_b * by_h) * back.blocks, [&](int worker, int64_t n) {
      const int64_t x = n / back.blocks, b = one_b ? 0 : x / (p.Hkv / by_h), hkv = one_h ? 0 : x % p.Hkv;
      const Work w = work(worker);
      for (int64_t b0 = b; b0 < b + by_b; ++b0)
        for (int64_t h0 = hkv; h0 < hkv + by_h; ++h0) keys_of(b0, h0, n % back.blocks * kBlockKeys, w);
    });
  }
};

void SecondPass(const Problem& p, Plan::State& plan, const Incoming& in, const Tangents& along,
                const SecondGradients& g) {
  const Output none{};
  WithRows(p, plan, none, [&]<class T>(const Rows<T>&) {
    Second<T>{{{p, plan, none, plan.back.tiling}}, in, along, g}.run();
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(SecondPass);
void second_pass(const Problem& p, Plan::State& plan, const Incoming& in, const Tangents& along,
                 const SecondGradients& wanted) {
  HWY_DYNAMIC_DISPATCH(SecondPass)(p, plan, in, along, wanted);
}
}  // namespace heed
#endif
