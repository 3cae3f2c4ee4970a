// Probes of where the attention went: scores as in the forward, weights from lse as in the backward, and from the
// weights of a row all that is wanted of them, in one walk. Memory linear in L and S.
//
// A piece is some tiles of rows of one head, which carry their sums over all blocks of keys. What keys receive is
// summed over the piece's rows in order, and pieces add theirs to the head's sums, in double, one after the other: the
// last first, because that is how they are handed out. So every sum has one fixed order, whoever computes it.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "probe/pass.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "hwy/highway.h"
#include "probe.h"
#include "rows-inl.h"
#include "strongest-inl.h"
#include "threads.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

// ---- One row ----

// t[0, width) becomes w = 2^(t - lse2). The row's 16 lanes of entropy get the sums of w (lse2 - t), `mass` factor * w
// for each key, and `most`[kLanes] the largest w of each lane. mass: nullptr if the row adds to none.
inline void WeightsOfRow(float* t, int64_t width, float lse2, float* lanes, float* mass, float factor, float* most) {
  const F d;
  constexpr int64_t kVectors = kLanes / kVector;
  const VF l = hn::Set(d, lse2), zero = hn::Zero(d), floor = hn::Set(d, kFloor), f = hn::Set(d, factor);
  const VF none = hn::Set(d, -126.0f);
  VF sum[kVectors], largest[kVectors];
  HEED_UNROLL
  for (int64_t v = 0; v < kVectors; ++v) sum[v] = largest[v] = zero;
  for (int64_t j = 0; j < width; j += kLanes) {
    HEED_UNROLL
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t at = j + v * kVector;
      const VF s = hn::LoadU(d, t + at);
      // Where nothing is seen the weight is 0 even if lse is NaN, and 0 times its logarithm is 0.
      const VF y = hn::IfThenElse(hn::Lt(s, floor), none, hn::Sub(s, l));
      const VF w = Exp2(d, y, zero);
      hn::StoreU(w, d, t + at);
      sum[v] = hn::NegMulAdd(w, y, sum[v]);
      largest[v] = hn::Max(w, largest[v]);
      if (mass) hn::StoreU(hn::MulAdd(f, w, hn::LoadU(d, mass + at)), d, mass + at);
    }
  }
  HEED_UNROLL
  for (int64_t v = 0; v < kVectors; ++v) {
    hn::StoreU(hn::Add(hn::LoadU(d, lanes + v * kVector), sum[v]), d, lanes + v * kVector);
    hn::StoreU(largest[v], d, most + v * kVector);
  }
}

// ---- The pass ----

// A row of the list that is wanted dense.
struct Listed {
  int64_t head, x;  // KV head of all batches, row of it
  int64_t n;        // place in the list
};

// Whose turn it is to add to a head's sums: waits for the pieces handed out before, and lets the next one go on however
// its own piece ends.
class Turn {
 public:
  Turn(std::atomic<int32_t>& now, int32_t mine) : now_(now), mine_(mine) {}
  ~Turn() {
    wait();
    now_.store(mine_ + 1, std::memory_order_release);
  }
  void wait() const {
    for (int spins = 0; now_.load(std::memory_order_acquire) < mine_;)
      if (++spins > 1000) std::this_thread::yield();
  }

 private:
  std::atomic<int32_t>& now_;
  const int32_t mine_;
};

template <class T>
struct ProbeRows : Rows<T> {
  using Base = Rows<T>;
  using Base::head, Base::head_of, Base::query, Base::p, Base::plan, Base::tiling, typename Base::Group;

  const ConstTensor& lse;
  const Probes& wanted;
  const std::vector<Listed>& listed;  // by head and row

  static constexpr int64_t kTiles = 8;  // of a piece: so many rows share the packing of a block of keys
  int64_t rows = tiling.rows(), tiles = tiling.tiles(), heads = p.B * p.Hkv;
  int64_t pieces = (tiles + kTiles - 1) / kTiles;  // of a head
  int64_t most_rows = tiles ? tiling.tile(0, 0, std::min(kTiles, tiles) - 1).row1 : 0;
  int64_t most_keys = std::min(kBlockKeys, round_up(p.S, kWidestPanel));
  int64_t padded_keys = round_up(p.S, kWidestPanel);
  int64_t k = wanted.top_keys.data      ? wanted.top_keys.shape[3]
              : wanted.top_weights.data ? wanted.top_weights.shape[3]
                                        : 0;
  bool wants_largest = wanted.largest_key.data || wanted.largest.data;
  int64_t top = std::max<int64_t>(k, wants_largest);  // strongest keys that are kept
  bool wants_all = top > 0 || wanted.entropy.data;
  Span massed = wanted.mass_queries.value_or(Span{0, p.L});

  // ---- Memory ----

  // What a row carries beside its lanes and its strongest keys.
  struct Carried {
    float lse2, factor;
    bool looked_at, adds;  // is anything wanted of it; does it add to its head's mass
    int64_t first, end;    // in the list of rows
  };

  struct Work {
    Group* group;
    float *k, *q, *w;    // of the block; of the piece's rows; of additive scores
    float* lanes;        // [rows][kLanes]
    float* top_weights;  // [rows][top]
    int64_t* top_keys;
    Carried* rows;
    float* mass;  // [group][padded_keys]: what keys received from the piece's rows
  };
  int64_t work_size() const { return lay_out(nullptr).second; }
  Work work(int worker) const { return lay_out(plan.back.scratch[worker].floats(0)).first; }
  std::pair<Work, int64_t> lay_out(float* memory) const {
    int64_t used = 0;
    const auto take = [&]<class X>(X*& to, int64_t n) {
      to = reinterpret_cast<X*>(memory + used);
      used += round_up(n * static_cast<int64_t>(sizeof(X)), 64) / static_cast<int64_t>(sizeof(float));
    };
    Work w{};
    take(w.group, 1);
    take(w.k, most_keys * p.D);
    take(w.q, most_rows * p.D);
    take(w.w, p.a.w.data ? p.group * p.D : 0);
    take(w.lanes, most_rows * kLanes);
    take(w.top_weights, most_rows * top);
    take(w.top_keys, most_rows * top);
    take(w.rows, most_rows);
    take(w.mass, wanted.mass.data ? p.group * padded_keys : 0);
    return {w, used};
  }

  // Of a head of all batches: what its keys have received so far, [group][S].
  double* sums(int64_t head) const {
    return reinterpret_cast<double*>(plan.back.heads.floats(0)) + head * p.group * p.S;
  }

  float* of_row(const Tensor& t, int64_t b, int64_t h, int64_t i) const {
    return static_cast<float*>(t.data) + b * t.stride[0] + h * t.stride[1] + i * t.stride[2];
  }
  int64_t* of_row(const KeyTensor& t, int64_t b, int64_t h, int64_t i) const {
    return t.data + b * t.stride[0] + h * t.stride[1] + i * t.stride[2];
  }
  float value(const ConstTensor& t, int64_t b, int64_t h, int64_t i) const {
    return static_cast<const float*>(t.data)[b * t.stride[0] + h * t.stride[1] + i * t.stride[2]];
  }

  // ---- Before the blocks ----

  // Rows [row0, row1) of the head; whether anything is wanted of any.
  bool start(int64_t b, int64_t hkv, int64_t row0, int64_t row1, const Work& w) const {
    bool any = false;
    const int64_t index = b * p.Hkv + hkv;
    auto next = std::lower_bound(listed.begin(), listed.end(), std::pair(index, row0),
                                 [](const Listed& l, auto& at) { return std::pair(l.head, l.x) < at; });
    for (int64_t x = row0; x < row1; ++x) {
      const int64_t h = head_of(hkv, x), i = query(x);
      Carried& row = w.rows[x - row0];
      row = {value(lse, b, h, i) * kLog2e, 1, false, false, next - listed.begin(), 0};
      while (next != listed.end() && next->head == index && next->x == x) ++next;
      row.end = next - listed.begin();
      if (wanted.mass_factor.data) row.factor = value(wanted.mass_factor, b, h, i);
      row.adds = wanted.mass.data && massed.begin <= i && i < massed.end && row.factor != 0;
      row.looked_at = wants_all || row.adds || row.first < row.end;
      any |= row.looked_at;
      for (int64_t n = row.first; n < row.end; ++n) std::fill_n(of_row(wanted.weights, 0, 0, listed[n].n), p.S, 0.0f);
    }
    if (!any) return false;
    std::fill_n(w.lanes, (row1 - row0) * kLanes, 0.0f);
    std::fill_n(w.top_weights, (row1 - row0) * top, 0.0f);
    std::fill_n(w.top_keys, (row1 - row0) * top, -1);
    this->gather_queries(b, hkv, row0, row1, p.D, w.q);
    this->scale_w(hkv, w.w);
    return true;
  }

  // ---- A block of keys ----

  // Rows [x, x + n) of the head, r of the piece on, against the block.
  void group(int64_t b, int64_t hkv, int64_t x, int64_t r, int64_t n, const Block& block, Cover cover,
             const Work& w) const {
    bool any = false;
    for (int64_t i = r; i < r + n; ++i) any |= w.rows[i].looked_at;
    if (!any) return;
    const Sight sight = this->look(b, hkv, x, n, block, cover);
    if (sight.width == 0) return;
    const float* q = w.q + r * p.D;
    const int64_t end = sight.first + sight.width;
    if (p.a.score == Score::dot)
      this->template score<DotScore>(x, n, q, p.D, w.w, block.k, sight.first, end, w.group->s, kBlockKeys);
    else
      this->template score<AdditiveScore>(x, n, q, p.D, w.w, block.k, sight.first, end, w.group->s, kBlockKeys);
    for (int64_t i = 0; i < n; ++i)
      if (sight.spans[i].begin < sight.spans[i].end && w.rows[r + i].looked_at)
        row(b, hkv, x + i, r + i, block, sight, i, w);
  }

  // Row x of the head, r of the piece, i of its group.
  void row(int64_t b, int64_t hkv, int64_t x, int64_t r, const Block& block, const Sight& sight, int64_t i,
           const Work& w) const {
    const Carried& mine = w.rows[r];
    // All its scores are -inf.
    if (mine.lse2 == -std::numeric_limits<float>::infinity()) return;
    float* s = w.group->s + i * kBlockKeys + sight.first;
    const int64_t key = block.key0 + sight.first;
    const Span inside{sight.spans[i].begin - sight.first, sight.spans[i].end - sight.first};
    FinishScores(s, inside, sight.width, this->finish_of(b, hkv, x, key, inside, w.group->bias));
    if (sight.holes) HideKeys(s, sight.first, sight.width, sight.bits[i]);
    HWY_ALIGN float most[kLanes];
    WeightsOfRow(s, sight.width, mine.lse2, w.lanes + r * kLanes,
                 mine.adds ? w.mass + tiling.head(x) * padded_keys + key : nullptr, mine.factor, most);
    if (top > 0 && mine.lse2 == mine.lse2) {
      Strongest strongest{w.top_weights + r * top, w.top_keys + r * top, top};
      EnterStrongest(s, sight.width, key, most, strongest);
    }
    for (int64_t n = mine.first; n < mine.end; ++n)
      std::copy_n(s + inside.begin, inside.end - inside.begin,
                  of_row(wanted.weights, 0, 0, listed[n].n) + key + inside.begin);
  }

  // ---- After the blocks ----

  void finish(int64_t b, int64_t hkv, int64_t x, int64_t r, const Work& w) const {
    const int64_t h = head_of(hkv, x), i = query(x);
    const float lse2 = w.rows[r].lse2;
    const bool nan = lse2 != lse2;
    float* weights = w.top_weights + r * top;
    if (nan) std::fill_n(weights, top, lse2);
    if (nan) std::fill_n(w.top_keys + r * top, top, -1);
    if (wanted.top_weights.data) std::copy_n(weights, k, of_row(wanted.top_weights, b, h, i));
    if (wanted.top_keys.data) std::copy_n(w.top_keys + r * top, k, of_row(wanted.top_keys, b, h, i));
    if (wanted.largest.data) *of_row(wanted.largest, b, h, i) = weights[0];
    if (wanted.largest_key.data) *of_row(wanted.largest_key, b, h, i) = w.top_keys[r * top];
    if (!wanted.entropy.data) return;
    float sum = SumLanes(w.lanes + r * kLanes);
    if (p.a.sinks.data && lse2 != -std::numeric_limits<float>::infinity()) {
      const float y = this->head_value(p.a.sinks, h) - lse2;  // -inf: a sink without weight
      if (!(y <= -126)) sum -= static_cast<float>(std::exp2(static_cast<double>(y))) * y;
    }
    *of_row(wanted.entropy, b, h, i) = nan ? lse2 : static_cast<float>(kLn2) * sum;
  }

  // What keys `seen` received from the piece's rows joins what the head's keys have; with the last piece that is all.
  void add_mass(int64_t b, int64_t hkv, bool first, bool last, Span seen, const Work& w) const {
    double* all = sums(b * p.Hkv + hkv);
    if (first) std::fill_n(all, p.group * p.S, 0.0);
    for (int64_t g = 0; g < p.group; ++g) {
      const float* mine = w.mass + g * padded_keys;
      double* to = all + g * p.S;
      for (int64_t j = seen.begin; j < seen.end; ++j) to[j] += mine[j];
      float* out = of_row(wanted.mass, b, hkv * p.group + g, 0);
      for (int64_t j = 0; last && j < p.S; ++j) out[j] = static_cast<float>(to[j]);
    }
  }

  // ---- All of it ----

  // Tiles [t0, t1) of a head.
  void piece(int64_t b, int64_t hkv, int64_t t0, int64_t t1, const Work& w) const {
    const int64_t row0 = tiling.tile(b, hkv, t0).row0, row1 = tiling.tile(b, hkv, t1 - 1).row1;
    Span hull{p.S, 0};
    if (start(b, hkv, row0, row1, w))
      for (int64_t t = t0; t < t1; ++t)
        if (const Span keys = tiling.tile(b, hkv, t).keys; keys.begin < keys.end)
          hull = {std::min(hull.begin, keys.begin), std::max(hull.end, keys.end)};
    std::optional<Turn> turn;
    if (wanted.mass.data) {
      turn.emplace(plan.back.next[b * p.Hkv + hkv], static_cast<int32_t>(pieces - 1 - t0 / kTiles));
      for (int64_t g = 0; g < p.group && hull.begin < hull.end; ++g)
        std::fill_n(w.mass + g * padded_keys + hull.begin / kLanes * kLanes,
                    round_up(hull.end, kLanes) - hull.begin / kLanes * kLanes, 0.0f);
    }
    for (int64_t key0 = hull.begin / kBlockKeys * kBlockKeys; key0 < hull.end; key0 += kBlockKeys) {
      const Block block{key0, std::min(kBlockKeys, p.S - key0), w.k, nullptr, 0, 0, 0};
      bool packed = false;
      for (int64_t t = t0; t < t1; ++t) {
        const Tile& tile = tiling.tile(b, hkv, t);
        const Cover cover = tile.cover(key0, key0 + block.keys);
        if (cover == Cover::empty) continue;
        if (!packed) {
          const T* from = head(p.a.k, b, hkv) + key0 * p.a.k.stride[2];
          PackPanels(from, p.a.k.stride[2], std::max(hull.begin, key0) - key0,
                     std::min(hull.end, key0 + block.keys) - key0, p.D, w.k);
          packed = true;
        }
        for (int64_t x = tile.row0, n; x < tile.row1; x += n) {
          n = NextGroup(tile.row1 - x);
          group(b, hkv, x, x - row0, n, block, cover, w);
        }
      }
    }
    for (int64_t x = row0; x < row1 && wants_all; ++x) finish(b, hkv, x, x - row0, w);
    if (!turn) return;
    turn->wait();
    add_mass(b, hkv, t1 == tiles, t0 == 0, hull, w);
  }

  void run() const {
    Plan::State::Back& back = plan.back;
    for (Memory& memory : back.scratch) memory.floats(work_size());
    if (wanted.mass.data) back.heads.floats(2 * heads * p.group * p.S);
    for (int64_t x = 0; x < (tiles ? heads : 0); ++x) back.next[x].store(0, std::memory_order_relaxed);
    // The last tiles of a head first: under a causal mask they see most.
    parallel(p.a.executor, back.workers, heads * pieces, [&](int worker, int64_t n) {
      const int64_t head = n / pieces, t0 = (pieces - 1 - n % pieces) * kTiles;
      piece(head / p.Hkv, head % p.Hkv, t0, std::min(tiles, t0 + kTiles), work(worker));
    });
    if (tiles == 0 && wanted.mass.data)  // no queries
      for (int64_t h = 0; h < p.B * p.Hq; ++h) std::fill_n(of_row(wanted.mass, h / p.Hq, h % p.Hq, 0), p.S, 0.0f);
  }
};

void ProbePass(const Problem& p, Plan::State& plan, const ConstTensor& lse, const Probes& wanted) {
  std::vector<Listed> listed;
  for (size_t n = 0; n < wanted.rows.size(); ++n) {
    const WeightRow& row = wanted.rows[n];
    listed.push_back(
        {row.batch * p.Hkv + row.head / p.group, row.query * p.group + row.head % p.group, static_cast<int64_t>(n)});
  }
  std::sort(listed.begin(), listed.end(),
            [](const Listed& a, const Listed& b) { return std::pair(a.head, a.x) < std::pair(b.head, b.x); });
  const Output none{};
  WithRows(p, plan, none, [&]<class T>(const Rows<T>&) {
    ProbeRows<T>{{p, plan, none, plan.back.tiling}, lse, wanted, listed}.run();
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(ProbePass);
void probe_pass(const Problem& p, Plan::State& plan, const ConstTensor& lse, const Probes& wanted) {
  HWY_DYNAMIC_DISPATCH(ProbePass)(p, plan, lse, wanted);
}
}  // namespace heed
#endif
