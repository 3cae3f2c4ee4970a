// What the passes that give gradients share (backward.cc, second.cc): walks over one row, who sees what of a tile and a
// block, sums over rows for keys, sums left for the end. Per-target code.
#if defined(HEED_GRADIENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_GRADIENTS_INL_H_
#undef HEED_GRADIENTS_INL_H_
#else
#define HEED_GRADIENTS_INL_H_
#endif

#include <initializer_list>
#include <vector>

#include "hwy/highway.h"
#include "rows-inl.h"
#include "threads.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

// ---- One row ----

// Sum of x_j or, weighted by its distance, of x_j (distance + j), over whole groups of 16.
inline float SumRow(const float* x, int64_t width) {
  const F d;
  HWY_ALIGN float lanes[kLanes] = {};
  for (int64_t j = 0; j < width; j += kLanes)
    for (int64_t v = 0; v < kLanes; v += kVector)
      hn::Store(hn::Add(hn::LoadU(d, x + j + v), hn::Load(d, lanes + v)), d, lanes + v);
  return SumLanes(lanes);
}
inline float SumRowByDistance(const float* x, int64_t width, float distance) {
  const F d;
  HWY_ALIGN float lanes[kLanes] = {};
  for (int64_t j = 0; j < width; j += kLanes)
    for (int64_t v = 0; v < kLanes; v += kVector)
      hn::Store(hn::MulAdd(hn::LoadU(d, x + j + v), hn::Iota(d, distance + static_cast<float>(j + v)),
                           hn::Load(d, lanes + v)),
                d, lanes + v);
  return SumLanes(lanes);
}

// x_j becomes x_j y_j; 0 stays 0: behind a mask y may be NaN.
inline void MultiplyRow(float* x, int64_t width, const float* y) {
  const F d;
  const VF zero = hn::Zero(d);
  for (int64_t j = 0; j < width; j += kVector) {
    const VF a = hn::LoadU(d, x + j);
    hn::StoreU(hn::IfThenElse(hn::Eq(a, zero), zero, hn::Mul(a, hn::LoadU(d, y + j))), d, x + j);
  }
}

inline void AddRow(const float* x, int64_t n, float* to) {
  const F d;
  int64_t j = 0;
  for (; j + kVector <= n; j += kVector) hn::StoreU(hn::Add(hn::LoadU(d, to + j), hn::LoadU(d, x + j)), d, to + j);
  for (; j < n; ++j) to[j] += x[j];
}

// ---- Rows and blocks ----

// Sums that rows or blocks leave for the end: Plan::State::Back::sums.
enum BackSums { kOfW, kOfBias, kOfAlibi, kOfSinks };

// A tile of rows against a block of keys: who sees what of it.
struct Patch {
  Block block;
  Cover cover;
  int64_t row0, rows;
  Span seen;                         // the keys that the tile sees, in whole groups of 16
  Span seeing[kBlockKeys / kLanes];  // for each group of 16 the rows that see some of it: no others are computed with
  Span spans[kBackMostRows];         // the keys each row has weights for, relative to the block
};

template <class T>
struct GradientRows : Rows<T> {
  using Base = Rows<T>;
  using Base::head_of, Base::query, Base::p, Base::plan, Base::tiling;

  int64_t Dp = round_up(p.D, kLanes), Dvp = round_up(p.Dv, kLanes);
  int64_t rows = tiling.rows(), tiles = tiling.tiles(), heads = p.B * p.Hkv;
  int64_t most_rows = tiles ? tiling.tile(0, 0, 0).row1 : 0;
  int64_t most_keys = std::min(kBlockKeys, round_up(p.S, kWidestPanel));
  float keep = static_cast<float>(1 / (1 - p.a.dropout));

  const float* of_lse(const ConstTensor& t, int64_t b, int64_t hkv, int64_t x) const {
    return static_cast<const float*>(t.data) + b * t.stride[0] + head_of(hkv, x) * t.stride[1] + query(x) * t.stride[2];
  }
  float* of_lse(const Tensor& t, int64_t b, int64_t hkv, int64_t x) const {
    return const_cast<float*>(of_lse(ConstTensor(t), b, hkv, x));
  }
  T* row_of(const Tensor& t, int64_t b, int64_t h, int64_t i) const {
    return static_cast<T*>(t.data) + b * t.stride[0] + h * t.stride[1] + i * t.stride[2];
  }
  float* row_sums(BackSums which, int64_t b, int64_t hkv) const {
    return plan.back.sums[which].floats(0) + (b * p.Hkv + hkv) * rows;
  }

  // ---- A tile against a block ----

  Patch patch_of(const Tile& tile, const Block& block) const {
    Patch patch{block, tile.cover(block.key0, block.key0 + block.keys), tile.row0, tile.row1 - tile.row0, {}, {}, {}};
    patch.seen = {std::max<int64_t>(0, tile.keys.begin - block.key0) / kLanes * kLanes,
                  round_up(std::min(block.keys, tile.keys.end - block.key0), kLanes)};
    std::fill(patch.seeing, patch.seeing + kBlockKeys / kLanes, Span{patch.rows, 0});
    return patch;
  }

  // Enters what rows [r, r + n) see into the patch. Where they see nothing and other rows of the tile do, `matrices`
  // ([rows][kBackStride] each) get zeros. lse2: of the patch's first row.
  Sight enter(int64_t b, int64_t hkv, Patch& patch, int64_t r, int64_t n, const float* lse2,
              std::initializer_list<float*> matrices) const {
    const Sight sight = this->look(b, hkv, patch.row0 + r, n, patch.block, patch.cover);
    const int64_t end = sight.first + sight.width;
    const Span seen = patch.seen;
    for (float* matrix : matrices)
      for (int64_t i = r; i < r + n; ++i) {
        float* row = matrix + i * kBackStride;
        std::fill(row + seen.begin, row + std::clamp(sight.first, seen.begin, seen.end), 0.0f);
        std::fill(row + std::clamp(end, seen.begin, seen.end), row + seen.end, 0.0f);
      }
    for (int64_t i = 0; i < n; ++i)  // a row whose scores are all -inf has lse = -inf and no weights
      patch.spans[r + i] = lse2[r + i] == -std::numeric_limits<float>::infinity() ? Span{0, 0} : sight.spans[i];
    for (int64_t column = sight.first / kLanes; column < end / kLanes; ++column)
      patch.seeing[column] = {std::min(patch.seeing[column].begin, r), r + n};
    return sight;
  }

  // c_j += sum over the patch's rows i of a_ij b_i for the keys j that it sees; a: [rows][kBackStride], b: rows b_row
  // apart, c: [key][c_row]. If fresh, c_j = that sum, 0 for the keys of the block that it does not see.
  void to_keys(const Patch& patch, const float* a, const float* b, int64_t b_row, float* c, int64_t c_row,
               bool fresh = false) const {
    const Span seen = patch.seen;
    const auto clear = [&](int64_t begin, int64_t end) { std::fill(c + begin * c_row, c + end * c_row, 0.0f); };
    if (fresh) {
      clear(0, seen.begin);
      clear(seen.end, std::max(seen.end, patch.block.keys));
    }
    const Product t{a + seen.begin,         kBackStride, b, b_row, kPanel, c + seen.begin * c_row, c_row,
                    fresh ? nullptr : kOnes};
    for (int64_t j = seen.begin, n; j < seen.end; j += n) {
      n = NextGroup(seen.end - j);
      const Span &x = patch.seeing[j / kLanes], &y = patch.seeing[(j + n - 1) / kLanes];
      const Span rows_of{std::min(x.begin, y.begin), std::max(x.end, y.end)};
      if (rows_of.begin < rows_of.end)
        StripOf<true>(n, t, j - seen.begin, rows_of, 0, c_row / kVector);
      else if (fresh)
        clear(j, j + n);
    }
  }

  // ---- Sums over all rows ----

  // Whether d_bias has its own value for each key; else it gets one sum for each row (kOfBias).
  static bool keyed(const Tensor& d_bias) { return d_bias.data && d_bias.shape[3] != 1; }

  // Whether d_bias has a number for each distance between key and query (relative_bias). Rows then share numbers, but
  // no two blocks of keys and tiles of rows that workers are at together do: a block that is one behind is at a later
  // tile, whose distances are all below.
  static bool relative(const Tensor& d_bias) { return keyed(d_bias) && d_bias.shape[2] > 1 && d_bias.stride[2] == -1; }

  void clear_bias(const Tensor& d) const {
    if (!keyed(d)) return;
    parallel(p.a.executor, plan.back.workers, d.shape[0] * d.shape[1], [&](int, int64_t x) {
      float* head = static_cast<float*>(d.data) + x / d.shape[1] * d.stride[0] + x % d.shape[1] * d.stride[1];
      if (relative(d)) return void(std::fill_n(head - (d.shape[2] - 1), d.shape[2] - 1 + d.shape[3], 0.0f));
      for (int64_t i = 0; i < d.shape[2]; ++i) std::fill_n(head + i * d.stride[2], d.shape[3], 0.0f);
    });
  }

  // What row x's keys from `key` on add to a keyed d_bias.
  void add_to_bias(const Tensor& d, int64_t b, int64_t hkv, int64_t x, int64_t key, const float* ds, int64_t n) const {
    float* to = static_cast<float*>(d.data) + (d.shape[0] == 1 ? 0 : b * d.stride[0]) +
                (d.shape[1] == 1 ? 0 : head_of(hkv, x) * d.stride[1]) + (d.shape[2] == 1 ? 0 : query(x) * d.stride[2]);
    AddRow(ds, n, to + key);
  }

  // What rows have left, in double and in order.
  void add_up_rows(BackSums which, const Tensor& t) const {
    const Shape& n = t.shape;
    std::vector<double> sums(n[0] * n[1] * n[2]);
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t x = 0; x < rows; ++x) {
        const int64_t b = n[0] == 1 ? 0 : head / p.Hkv, h = n[1] == 1 ? 0 : head_of(head % p.Hkv, x);
        sums[(b * n[1] + h) * n[2] + (n[2] == 1 ? 0 : query(x))] += plan.back.sums[which].floats(0)[head * rows + x];
      }
    for (int64_t b = 0; b < n[0]; ++b)
      for (int64_t h = 0; h < n[1]; ++h)
        for (int64_t i = 0; i < n[2]; ++i)
          static_cast<float*>(t.data)[b * t.stride[0] + h * t.stride[1] + i * t.stride[2]] =
              static_cast<float>(sums[(b * n[1] + h) * n[2] + i]);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
