// A group of query rows against a block of keys: score, weigh, gather. What forward.cc and decode.cc are made of.
// Per-target code.
//
// Rows of a KV head are x = query * group + head of the group (Tiling). Every row carries what it has summed so far:
// o[Dv], 16 lanes of weights, and m, the running maximum as a whole power of two.
#if defined(HEED_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_ROWS_INL_H_
#undef HEED_ROWS_INL_H_
#else
#define HEED_ROWS_INL_H_
#endif

#include <array>
#include <bit>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "hwy/highway.h"
#include "pack-inl.h"
#include "product-inl.h"
#include "score-inl.h"
#include "softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

// One block of keys as the kernel reads it.
struct Block {
  int64_t key0, keys;
  const float* k;  // panels (PackPanels)
  // V: element x of key j at v[x / kPanel * v_strip + j * row + x % kPanel], where row is v_row, or v_last in the last
  // strip if that is narrower. Packed as f32, or where it lies in the problem's dtype.
  const void* v;
  int64_t v_row, v_strip, v_last;
  // Of i8: what 1 is worth in each key and value; else nullptr.
  float *k_scale = nullptr, *v_scale = nullptr;
};

// A group of rows against one block: the rows' keys relative to the block, and the whole groups of 16 keys around them.
struct Sight {
  Span spans[kGroup];
  int64_t first = 0, width = 0;  // 0: no row sees anything
  bool holes = false;            // some row does not see all of its span: `bits` tell of each
  Bits bits[kGroup];

  // Of row r of the group on; nullptr without holes.
  const Bits* holes_of(int64_t r) const { return holes ? bits + r : nullptr; }
};

// What rows have summed so far.
struct Sums {
  float *o, *lanes, *m;  // [rows][padded], [rows][kLanes], [rows]
};

// A problem with what every piece of it needs. T: what q and out hold, and k and v if they lie in one piece.
template <class T>
struct Rows {
  const Problem& p;
  Plan::State& plan;
  const Output& result;
  const Tiling& tiling = plan.tiling;
  int64_t padded = round_up(p.Dv, kLanes);
  float scale2 = static_cast<float>(p.scale * 1.44269504088896340736);
  // V whose rows are short, whole vectors is read where it lies; with long rows between the strips of a panel, or with
  // other tensors between its rows, it is faster packed. For few rows packing never pays.
  bool whole_v = padded == p.Dv, few_rows = tiling.rows() <= kFewRows;
  bool paged = p.page_keys > 0, scaled = p.a.k.dtype == DType::i8;
  int64_t key_bytes = bytes_of(p.a.k.dtype);  // of an element of k or v
  bool v_in_place = whole_v && ((few_rows && plan.way == Way::blocks) ||
                                (!paged && std::is_same_v<T, float> && (few_rows || p.a.v.stride[2] <= 64)));

  const T* head(const ConstTensor& t, int64_t b, int64_t h) const {
    return static_cast<const T*>(t.data) + b * t.stride[0] + h * t.stride[1];
  }

  // ---- Memory ----

  int64_t rows_of_block(int64_t key0) const { return std::min(kBlockKeys, round_up(p.S - key0, kWidestPanel)); }
  // Floats of a row of queries, and of a packed key without its value.
  int64_t q_row = scaled ? ByteScore::row(p.D) : p.D, k_packed = scaled ? (p.D + 3) / 4 : p.D;
  // Floats of a packed head; its block at key0 begins at key0 * packed_key().
  int64_t v_packed() const { return v_in_place && !paged ? 0 : padded; }
  int64_t packed_key() const { return k_packed + v_packed() + (scaled ? 2 : 0); }
  int64_t packed_head() const { return round_up(p.S, kWidestPanel) * packed_key(); }
  int64_t sums_size(int64_t rows) const { return rows * (padded + kLanes + 1) + kLanes; }

  Sums sums(float* memory, int64_t rows) const {
    return {memory, memory + rows * padded, memory + rows * (padded + kLanes)};
  }

  // ---- Where keys and values lie ----

  // Key j of a head, in k or v: in one piece, or in the page that the sequence's table names.
  const char* key_at(const ConstTensor& t, int64_t b, int64_t hkv, int64_t j) const {
    int64_t first = b;
    if (paged) {
      first = p.a.pages.table[b * p.a.pages.table_stride + j / p.page_keys];
      j %= p.page_keys;
    }
    return static_cast<const char*>(t.data) + (first * t.stride[0] + hkv * t.stride[1] + j * t.stride[2]) * key_bytes;
  }

  // Keys [begin, end) in runs that lie behind each other: calls f(begin, end) for each.
  template <class F>
  void in_runs(int64_t begin, int64_t end, F&& f) const {
    for (int64_t next; begin < end; begin = next) {
      next = paged ? std::min(end, (begin / p.page_keys + 1) * p.page_keys) : end;
      f(begin, next);
    }
  }

  // Calls f with a pointer to what k and v hold.
  template <class F>
  void with_keys(F&& f) const {
    if (p.a.k.dtype == DType::i8) return f(static_cast<const int8_t*>(nullptr));
    if constexpr (std::is_same_v<T, float>) {
      if (p.a.k.dtype == DType::f16) return f(static_cast<const hwy::float16_t*>(nullptr));
      if (p.a.k.dtype == DType::bf16) return f(static_cast<const hwy::bfloat16_t*>(nullptr));
    }
    f(static_cast<const T*>(nullptr));
  }

  // ---- Pack ----

  Block block_at(int64_t b, int64_t hkv, int64_t key0, float* memory) const {
    const int64_t rows = rows_of_block(key0), last = padded % kPanel == 0 ? kPanel : padded % kPanel;
    Block block{key0, std::min(kBlockKeys, p.S - key0), memory, memory + rows * k_packed, kPanel, rows * kPanel, last};
    if (scaled) {
      block.k_scale = memory + rows * (k_packed + v_packed());
      block.v_scale = block.k_scale + rows;
    }
    if (v_in_place) {
      block.v_row = block.v_last = p.a.v.stride[2];
      block.v_strip = kPanel;
      if (!paged) block.v = head(p.a.v, b, hkv) + key0 * block.v_row;
    }
    return block;
  }

  // What rows of the head see of the block, relative to it.
  Span seen_of(int64_t b, int64_t hkv, int64_t key0) const {
    const Span seen = tiling.keys(b, hkv);
    return {std::max(seen.begin, key0) - key0, std::min(seen.end, key0 + kBlockKeys) - key0};
  }

  // ahead(key): what to fetch into the cache while the keys from there on are packed, or nullptr.
  template <class Ahead>
  void pack_k(int64_t b, int64_t hkv, int64_t key0, Span keys, float* memory, Ahead&& ahead) const {
    const int64_t stride = p.a.k.stride[2];
    in_runs(key0 + keys.begin, key0 + keys.end, [&](int64_t begin, int64_t end) {
      with_keys([&]<class K>(const K*) {
        const K* rows = reinterpret_cast<const K*>(key_at(p.a.k, b, hkv, begin)) - (begin - key0) * stride;
        if constexpr (std::is_same_v<K, int8_t>)
          PackQuads(rows, stride, begin - key0, end - key0, p.D, reinterpret_cast<int8_t*>(memory), ahead(begin));
        else
          PackPanels(rows, stride, begin - key0, end - key0, p.D, memory, ahead(begin));
      });
    });
  }

  void pack_v(int64_t b, int64_t hkv, int64_t key0, Span keys, float* memory) const {
    const int64_t rows = rows_of_block(key0), stride = p.a.v.stride[2];
    in_runs(key0 + keys.begin, key0 + keys.end, [&](int64_t begin, int64_t end) {
      with_keys([&]<class V>(const V*) {
        const V* from = reinterpret_cast<const V*>(key_at(p.a.v, b, hkv, begin)) - (begin - key0) * stride;
        PackStrips(from, stride, begin - key0, end - key0, p.Dv, padded, rows * kPanel, memory + rows * k_packed);
      });
    });
  }

  // V in pages where it is read in place. If what is seen of the block lies in one page, that is its place; else its
  // rows are copied behind each other, as they are, and the answer is false.
  bool place_v(int64_t b, int64_t hkv, Span keys, Block& block, float* memory) const {
    const int64_t begin = block.key0 + keys.begin, end = block.key0 + keys.end, row = block.v_row * key_bytes;
    if (begin / p.page_keys == (end - 1) / p.page_keys) {
      block.v = key_at(p.a.v, b, hkv, begin) - keys.begin * row;
      return true;
    }
    char* to = reinterpret_cast<char*>(memory + rows_of_block(block.key0) * k_packed);
    block.v = to;
    block.v_row = block.v_last = p.Dv;
    in_runs(begin, end, [&](int64_t first, int64_t last) {
      const char* from = key_at(p.a.v, b, hkv, first);
      const int64_t dense = p.Dv * key_bytes, rows = row == dense ? 1 : last - first,
                    bytes = (last - first) / rows * dense;
      for (int64_t x = 0; x < rows; ++x) std::memcpy(to + (first - block.key0 + x) * dense, from + x * row, bytes);
    });
    return false;
  }

  // i8: the scales of what is seen of the block, zeros around it.
  void pack_scales(int64_t b, int64_t hkv, Span keys, const Block& block) const {
    if (!scaled) return;
    const auto pack = [&](const ConstTensor& t, float* to) {
      std::fill(to + keys.begin / kLanes * kLanes, to + round_up(keys.end, kLanes), 0.0f);
      in_runs(block.key0 + keys.begin, block.key0 + keys.end, [&](int64_t begin, int64_t end) {
        const int64_t page = p.a.pages.table[b * p.a.pages.table_stride + begin / p.page_keys];
        const float* from = static_cast<const float*>(t.data) + page * t.stride[0] + hkv * t.stride[1] +
                            begin % p.page_keys * t.stride[2];
        for (int64_t j = begin; j < end; ++j, from += t.stride[2]) to[j - block.key0] = *from;
      });
    };
    pack(p.a.pages.k_scale, block.k_scale);
    pack(p.a.pages.v_scale, block.v_scale);
  }

  void pack(int64_t b, int64_t hkv, int64_t key0, float* memory) const {
    const Span seen = seen_of(b, hkv, key0);
    if (seen.begin >= seen.end) return;
    pack_k(b, hkv, key0, seen, memory, [](int64_t) -> const char* { return nullptr; });
    if (!v_in_place) pack_v(b, hkv, key0, seen, memory);
    pack_scales(b, hkv, seen, block_at(b, hkv, key0, memory));
  }

  // ---- Tile ----

  // Row x of the head's queries, and what its scores start from.
  int64_t query(int64_t x) const { return tiling.query(x); }
  int64_t head_of(int64_t hkv, int64_t x) const { return hkv * p.group + tiling.head(x); }

  // Queries of rows [row0, row1) as f32, `size` floats each (at least D; zeros behind it); for dot scores scaled, so
  // that scores come out in powers of two. Against keys of bytes: as ByteScore has them, q_row floats each.
  void gather_queries(int64_t b, int64_t hkv, int64_t row0, int64_t row1, int64_t size, float* to) const {
    const float factor = p.a.score == Score::dot ? scale2 : 1.0f;
    for (int64_t x = row0; x < row1; ++x, to += size) {
      const T* from = head(p.a.q, b, head_of(hkv, x)) + query(x) * p.a.q.stride[2];
      if (scaled)
        ByteScore::Round(from, p.D, factor, to);
      else
        WidenRow(from, p.D, size, factor, to);
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

  // A number for each query head, or one for all, in powers of two.
  float head_value(const ConstTensor& t, int64_t h) const {
    const int64_t at = t.shape[1] == 1 ? 0 : h * t.stride[1];
    return kLog2e * (t.dtype == DType::f32 ? static_cast<const float*>(t.data)[at]
                                           : WidenOne(static_cast<const T*>(t.data) + at));
  }

  // What finishes the scores of row x from key j on; `buffer` may come to hold the bias.
  Finish finish_of(int64_t b, int64_t hkv, int64_t x, int64_t j, Span span, float* buffer) const {
    Finish finish = added_by(p.a.bias, p.a.alibi, b, hkv, x, j, span, buffer);
    finish.cap2 = static_cast<float>(p.a.softcap) * kLog2e;
    finish.mod = p.a.score_mod;
    if (finish.mod) finish.row = {b, head_of(hkv, x), query(x), j, 0};
    return finish;
  }

  // What a bias and ALiBi's slopes, the problem's or tangents of theirs, do of it.
  Finish added_by(const ConstTensor& bias, const ConstTensor& alibi, int64_t b, int64_t hkv, int64_t x, int64_t j,
                  Span span, float* buffer) const {
    Finish finish{0, bias_of(bias, b, hkv, x, j, span, buffer)};
    if (bias.shape[3] == 1) finish.bias_stride = 0;
    if (alibi.data) {
      finish.slope2 = head_value(alibi, head_of(hkv, x));
      finish.distance = static_cast<float>(j - (query(x) + p.keys_of(b) - p.L));
    }
    return finish;
  }

  Drop drop_of(int64_t b, int64_t hkv, int64_t x, int64_t j) const {
    return {dropout_row(p.a.seed, b * p.Hq + head_of(hkv, x), query(x)), j, dropout_threshold(p.a.dropout)};
  }

  // The bias of row x from key j on, as f32: where it lies, or widened into `buffer` for the keys of the span.
  const float* bias_of(const ConstTensor& t, int64_t b, int64_t hkv, int64_t x, int64_t j, Span span,
                       float* buffer) const {
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

  // What rows [x, x + n) of the head see of the block; `cover`: of their tile.
  Sight look(int64_t b, int64_t hkv, int64_t x, int64_t n, const Block& block, Cover cover) const {
    Sight sight;
    Span hull{block.keys, 0};
    const bool in_bits = cover == Cover::partial && !tiling.spans();
    for (int64_t r = 0; r < n; ++r) {
      const Span row = tiling.row(b, hkv, x + r);
      Span& span = sight.spans[r];
      span = {std::clamp<int64_t>(row.begin - block.key0, 0, block.keys),
              std::clamp<int64_t>(row.end - block.key0, 0, block.keys)};
      if (in_bits) span = look_closer(b, hkv, x, r, block, sight);
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

  // Enters the bits of row x + r; returns their hull.
  Span look_closer(int64_t b, int64_t hkv, int64_t x, int64_t r, const Block& block, Sight& sight) const {
    Bits& bits = sight.bits[r];
    if (r > 0 && query(x + r) == query(x + r - 1) && !p.a.mask.varies_by_head()) {
      bits = sight.bits[r - 1];
      return sight.spans[r - 1];
    }
    bits = {};
    const int64_t end = std::min(block.key0 + block.keys, p.keys_of(b));
    if (block.key0 >= end) return {};
    p.a.mask.bits(p.mask_shape(b), b, head_of(hkv, x + r), query(x + r), {block.key0, end}, bits.words);
    Span hull{0, 0};
    int64_t count = 0;
    for (int64_t w = 0; w < kBlockKeys / 64; ++w)
      if (const uint64_t word = bits.words[w]; word != 0) {
        if (count == 0) hull.begin = 64 * w + std::countr_zero(word);
        hull.end = 64 * w + 64 - std::countl_zero(word);
        count += std::popcount(word);
      }
    sight.holes |= count < hull.end - hull.begin;
    return hull;
  }

  // 1. Score: rows [x, x + n) against the block's keys [begin, end), whole groups of 16, into s[r * s_row + key]. q: of
  // row x, q_row floats a row.
  template <class ScoreOf, bool kAhead = false>
  void score(int64_t x, int64_t n, const float* q, int64_t q_row, const float* w, const float* k, int64_t begin,
             int64_t end, float* s, int64_t s_row, const char* ahead = nullptr) const {
    const int64_t v0 = begin / kVector, v1 = end / kVector;
    if (scaled) return ByteScore::Scores({q, q_row, k, p.D, nullptr}, n, v0, v1, s, s_row);
    if constexpr (std::is_same_v<ScoreOf, DotScore>)
      ScoreOf::template Scores<kAhead>({q, q_row, k, p.D, nullptr}, n, v0, v1, s, s_row, ahead);
    else
      for (int64_t r = 0; r < n; ++r)
        ScoreOf::Scores({q + r * q_row, q_row, k, p.D, w + tiling.head(x + r) * p.D}, 1, v0, v1, s + r * s_row, s_row);
  }

  // 2. Weigh: scores become weights. Returns what each row's older sums are to be multiplied by (`factor`), or nullptr
  // if there are none yet.
  const float* weigh(int64_t b, int64_t hkv, int64_t x, int64_t n, const Block& block, const Sight& sight, float* s,
                     float* bias, const Sums& sums, float* factor) const {
    const bool first = sums.m[0] == kNotBegun, sigmoid = p.a.weigh == Weigh::sigmoid;
    // Row after row in two walks, so that the long way from a row to its maximum is not waited for.
    s += sight.first;
    for (int64_t r = 0; r < n; ++r) {
      const Span span{sight.spans[r].begin - sight.first, sight.spans[r].end - sight.first};
      factor[r] = 1.0f;
      if (span.begin >= span.end) {  // its scores are not looked at, no value is added
        if (first) sums.m[r] = kFloor;
        if (sight.holes) std::fill_n(s + r * kBlockKeys, sight.width, 0.0f);
        continue;
      }
      FinishScores(s + r * kBlockKeys, span, sight.width,
                   finish_of(b, hkv, x + r, block.key0 + sight.first, span, bias));
      if (sight.holes) HideKeys(s + r * kBlockKeys, sight.first, sight.width, sight.bits[r]);
      if (sigmoid) {  // neither a maximum nor a sum
        SigmoidRow(s + r * kBlockKeys, sight.width);
        sums.m[r] = 0;
        continue;
      }
      const float m = std::max(sums.m[r], std::ceil(MaxOfRow(s + r * kBlockKeys, sight.width)));
      factor[r] = PowerOfTwo(sums.m[r] - m);
      sums.m[r] = m;
    }
    for (int64_t r = 0; r < n && !sigmoid; ++r)
      if (sight.spans[r].begin < sight.spans[r].end)
        ExpRow(s + r * kBlockKeys, sight.width, sums.m[r], factor[r], sums.lanes + r * kLanes);
    if (p.a.dropout > 0)
      for (int64_t r = 0; r < n; ++r)
        DropRow(s + r * kBlockKeys, sight.width, drop_of(b, hkv, x + r, block.key0 + sight.first));
    return first ? nullptr : factor;
  }

  // i8: scores of n rows times what 1 is worth in each key, or weights of each value. scale: nullptr for other dtypes.
  void times(const float* scale, int64_t n, const Sight& sight, float* s) const {
    if (!scale) return;
    const F d;
    for (int64_t r = 0; r < n; ++r, s += kBlockKeys)
      for (int64_t j = sight.first; j < sight.first + sight.width; j += kVector)
        hn::StoreU(hn::Mul(hn::LoadU(d, s + j), hn::LoadU(d, scale + j)), d, s + j);
  }

  // 3. Gather: each row's own keys. V: what block.v holds.
  template <class V, bool kAhead = false>
  void gather(int64_t n, const Block& block, const Sight& sight, const float* s, const Sums& sums, const float* factor,
              const char* ahead = nullptr) const {
    const int64_t whole = padded / kPanel * kPanel;
    const V* v = static_cast<const V*>(block.v);
    ProductOf<V> t{s, kBlockKeys, v, block.v_row, block.v_strip, sums.o, padded, factor};
    t.ahead = ahead;
    const auto multiply = [&](int64_t vectors) {
      sight.holes ? MultiplyWithHoles<kAhead>(t, 0, n, sight.bits, 0, vectors)
                  : MultiplyGroup<kAhead>(t, 0, n, sight.spans, 0, vectors);
    };
    multiply(whole / kVector);
    if (whole == padded) return;
    t.b = v + whole / kPanel * block.v_strip;
    t.b_k = block.v_last;
    t.c = sums.o + whole;
    multiply((padded - whole) / kVector);
  }

  // A group of rows begins with the first block that it sees anything of: until then its o is not set.
  static constexpr float kNotBegun = -std::numeric_limits<float>::infinity();
  void start(const Sums& sums, int64_t rows) const {
    std::fill(sums.lanes, sums.lanes + rows * kLanes, 0.0f);
    std::fill(sums.m, sums.m + rows, kNotBegun);
  }

  // Rows [row0, row1) are done: out and lse.
  void finish(int64_t b, int64_t hkv, int64_t row0, int64_t row1, const Sums& sums) const {
    const Tensor &out = result.out, &lse = result.lse;
    for (int64_t x = row0; x < row1; ++x) {
      const int64_t r = x - row0, h = head_of(hkv, x), i = query(x);
      T* to = static_cast<T*>(out.data) + b * out.stride[0] + h * out.stride[1] + i * out.stride[2];
      float sum = SumLanes(sums.lanes + r * kLanes), factor = 1.0f, m = sums.m[r];
      if (p.a.weigh == Weigh::sigmoid) sum = m > kFloor ? 1.0f : 0.0f;
      const bool sees = sum != 0.0f;  // NaN sees too
      if (p.a.sinks.data) {           // as if it were the score of one more key, whose value is 0
        const float sink = head_value(p.a.sinks, h), before = sees ? m : kFloor;
        m = std::max(before, std::ceil(sink));
        factor = PowerOfTwo(before - m);
        sum = factor * sum + static_cast<float>(std::exp2(static_cast<double>(sink - m)));
      }
      const float* o = sums.o + r * padded;
      const float inverse = p.a.dropout > 0 ? factor / (sum * static_cast<float>(1 - p.a.dropout)) : factor / sum;
      if (sees)
        NarrowRow(o, p.Dv, inverse, to);
      else
        ClearRow(to, p.Dv);
      if (lse.data)
        static_cast<float*>(lse.data)[b * lse.stride[0] + h * lse.stride[1] + i * lse.stride[2]] =
            sum != 0.0f ? static_cast<float>((m + std::log2(static_cast<double>(sum))) * kLn2)
                        : -std::numeric_limits<float>::infinity();
    }
  }

  // ---- Ahead ----

  // Tensors with a row for each query of a head, then those with a row for each key; views without data are left out.
  struct Streams {
    std::array<ConstTensor, 8> tensors;
    int64_t of_queries = 0, of_keys = 0;

    Streams(std::initializer_list<ConstTensor> queries, std::initializer_list<ConstTensor> keys) {
      for (const ConstTensor& t : queries)
        if (t.data) tensors[of_queries++] = t;
      for (const ConstTensor& t : keys)
        if (t.data) tensors[of_queries + of_keys++] = t;
    }
  };

  // What the next head reads and writes, fetched into the cache bit by bit while this one is computed: short sequences
  // would wait for memory otherwise.
  struct Next {
    int64_t b = 0, hkv = 0;
    int64_t left = 0, step = 0;   // rows of all streams
    int64_t stream = 0, row = 0;  // where it is
  };

  // While so many rows of this head are computed, each block of keys counted anew: fetch is called thrice for a group.
  Next next_of(const Piece& piece, const Streams& streams, int64_t rows) const {
    const Span keys = tiling.keys(piece.b, piece.hkv);
    const int64_t all = streams.of_queries * tiling.rows() + streams.of_keys * (keys.end - keys.begin);
    const int64_t steps = std::max<int64_t>(1, 3 * rows / kGroup);
    return {piece.b, piece.hkv, all, (all + steps - 1) / steps};
  }

  void fetch(Next& next, const Streams& streams) const {
    int64_t rows = std::min(next.step, next.left);
    next.left -= rows;
    while (rows > 0) {
      const bool of_query = next.stream < streams.of_queries;
      const Span seen = of_query ? Span{0, tiling.rows()} : tiling.keys(next.b, next.hkv);
      const int64_t now = std::min(rows, seen.end - seen.begin - next.row);
      const ConstTensor& t = streams.tensors[next.stream];
      const int64_t width = t.shape[3] * static_cast<int64_t>(sizeof(T));
      for (int64_t x = seen.begin + next.row; x < seen.begin + next.row + now; ++x) {
        const T* from =
            head(t, next.b, of_query ? head_of(next.hkv, x) : next.hkv) + (of_query ? query(x) : x) * t.stride[2];
        for (int64_t byte = 0; byte < width; byte += kCacheLine)
          hwy::Prefetch(reinterpret_cast<const char*>(from) + byte);
      }
      rows -= now;
      next.row += now;
      if (seen.begin + next.row == seen.end) {
        ++next.stream;
        next.row = 0;
      }
    }
  }

  // ---- Working memory ----

  struct Scratch {
    Group* group;
    float *packed, *q, *w, *sums;
  };

  Scratch scratch(int worker, int64_t packed, int64_t rows) const {
    const int64_t group = sizeof(Group) / sizeof(float), q = round_up(rows * q_row, kLanes);
    const int64_t w = p.a.w.data ? round_up(p.group * p.D, kLanes) : 0;
    float* memory = plan.scratch[worker].floats(group + packed + q + w + sums_size(rows));
    return {reinterpret_cast<Group*>(memory), memory + group, memory + group + packed, memory + group + packed + q,
            memory + group + packed + q + w};
  }
};

// Calls f with Rows for the problem's dtype.
template <class F>
void WithRows(const Problem& p, Plan::State& plan, const Output& result, F&& f) {
  switch (p.a.q.dtype) {
    case DType::f16:
      return f(Rows<hwy::float16_t>{p, plan, result});
    case DType::bf16:
      return f(Rows<hwy::bfloat16_t>{p, plan, result});
    default:
      return f(Rows<float>{p, plan, result});
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
