// Keys and values in pages that sequences share: taken, counted, copied when written to, given back.
#include "heed/cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <string>

#include "check.h"
#include "half.h"

namespace heed {
namespace {

constexpr int32_t kNoPage = -1;

// Room for pages, aligned for any vector and not initialised: [pages, kv_heads, page_keys, row].
struct Pool {
  static constexpr std::align_val_t kAlignment{128};
  struct Free {
    void operator()(char* p) const { ::operator delete(p, kAlignment); }
  };

  int64_t page_bytes = 0;
  std::unique_ptr<char, Free> data;

  char* page(int64_t x) const { return data.get() + x * page_bytes; }
  // The same pages with room for more.
  Pool grown(int64_t pages, int64_t room) const {
    Pool pool{page_bytes, {}};
    if (page_bytes == 0) return pool;
    pool.data.reset(static_cast<char*>(::operator new(room* page_bytes, kAlignment)));
    if (pages > 0) std::memcpy(pool.data.get(), data.get(), pages * page_bytes);
    return pool;
  }
};

// A row as f32.
void widen(const ConstTensor& t, int64_t b, int64_t h, int64_t i, std::vector<float>& to) {
  const int64_t at = b * t.stride[0] + h * t.stride[1] + i * t.stride[2];
  const uint16_t* bits = static_cast<const uint16_t*>(t.data) + at;
  if (t.dtype == DType::f32)
    std::copy_n(static_cast<const float*>(t.data) + at, to.size(), to.begin());
  else
    std::transform(bits, bits + to.size(), to.begin(), t.dtype == DType::f16 ? float_of_half : float_of_bfloat);
}

// Rounds a row to bytes and returns what 1 is worth in it: its largest size / 127. NaN and infinity in a row make that
// NaN, and so reach whatever sees it.
float quantise(const std::vector<float>& row, int8_t* to) {
  float largest = 0;
  bool finite = true;
  for (const float x : row) {
    largest = std::max(largest, std::fabs(x));
    finite &= std::isfinite(x);
  }
  const float scale = largest / 127;
  for (const float x : row) {
    const double steps = finite && scale > 0 ? std::nearbyint(x / static_cast<double>(scale)) : 0.0;
    *to++ = static_cast<int8_t>(std::clamp(steps, -127.0, 127.0));
  }
  return finite ? scale : std::numeric_limits<float>::quiet_NaN();
}

void check_cache(const CacheShape& s) {
  for (const auto& [name, size] : {std::pair("batch", s.batch), {"kv_heads", s.kv_heads}, {"head_size", s.head_size}})
    if (size < 1) throw Error("a cache has " + std::string(name) + " " + text(size) + "; it needs at least 1");
  if (s.value_size < 0)
    throw Error("a cache has value_size " + text(s.value_size) + "; it must be positive, or 0 for head_size");
  if (s.dtype != DType::f32 && s.dtype != DType::f16 && s.dtype != DType::bf16 && s.dtype != DType::i8)
    throw Error("a cache has dtype number " + text(static_cast<int64_t>(s.dtype)) +
                "; it holds f32 (0), f16 (2), bf16 (3) or i8 (4)");
  if (s.page_keys < kLanes || s.page_keys % kLanes != 0)
    throw Error("a cache has page_keys " + text(s.page_keys) + "; it must be a multiple of " + text(kLanes) +
                ", such as 64 or 256");
  if (s.window < 0) throw Error("a cache has window " + text(s.window) + "; it must be positive, or 0 for none");
  const double page = 8.0 * s.kv_heads * s.page_keys * (s.head_size + s.value_size);
  if (page > 0x1p50) throw Error("a page of " + text(s.page_keys) + " keys is larger than any memory; check the sizes");
}

}  // namespace

struct Cache::State {
  struct Sequence {
    int64_t length = 0;
    int64_t first_page = 0;  // those before have been given back
  };

  CacheShape shape;
  Pool k, v, k_scale, v_scale;
  std::vector<int32_t> uses;   // of each page: how many sequences have it
  std::vector<int32_t> free;   // pages that none has; has room for all, so that giving back cannot fail
  int64_t columns = 1;         // of the table
  std::vector<int32_t> table;  // [batch, columns]
  std::vector<Sequence> sequences;

  int32_t& page(int64_t sequence, int64_t x) { return table[sequence * columns + x]; }
  int64_t pages_of(int64_t keys) const { return (keys + shape.page_keys - 1) / shape.page_keys; }
  int64_t first_seen(int64_t length) const {  // by the query behind so many keys
    return shape.window == 0 ? 0 : std::max<int64_t>(0, length + 1 - shape.window);
  }

  void check_sequence(int64_t s) const {
    if (s < 0 || s >= shape.batch)
      throw Error("sequence " + text(s) + " is asked for but the cache has " + text(shape.batch) +
                  "; they are numbered from 0");
  }

  // Pages that n more keys of a sequence take: new ones, and a copy of the last if others have it, too.
  int64_t needed(int64_t s, int64_t n) {
    const int64_t length = sequences[s].length, have = pages_of(length);
    if (n == 0) return 0;
    const bool copy = length % shape.page_keys != 0 && uses[page(s, have - 1)] > 1;
    return pages_of(length + n) - have + copy;
  }

  // Room for so many pages more, and for so many columns: all that can fail of an append.
  void reserve(int64_t pages, int64_t wide) {
    reserve_pages(pages);
    if (wide <= columns) return;
    wide = std::max(wide, 2 * columns);
    std::vector<int32_t> wider(shape.batch * wide, kNoPage);
    for (int64_t s = 0; s < shape.batch; ++s)
      std::copy_n(table.begin() + s * columns, columns, wider.begin() + s * wide);
    table.swap(wider);
    columns = wide;
  }

  void reserve_pages(int64_t pages) {
    const int64_t have = uses.size(), more = pages - static_cast<int64_t>(free.size());
    if (more <= 0) return;
    const int64_t room = have + std::max(more, have / 2);
    if (room > std::numeric_limits<int32_t>::max())
      throw Error("a cache of " + text(room) + " pages is wanted but there can be " +
                  text(std::numeric_limits<int32_t>::max()) + "; make pages larger than " + text(shape.page_keys) +
                  " keys");
    Pool next[] = {k.grown(have, room), v.grown(have, room), k_scale.grown(have, room), v_scale.grown(have, room)};
    free.reserve(room);
    uses.resize(room, 0);
    k = std::move(next[0]);
    v = std::move(next[1]);
    k_scale = std::move(next[2]);
    v_scale = std::move(next[3]);
    for (int64_t x = room - 1; x >= have; --x) free.push_back(static_cast<int32_t>(x));
  }

  int32_t take() {
    const int32_t x = free.back();
    free.pop_back();
    uses[x] = 1;
    return x;
  }

  void give_back(int32_t& x) {
    if (x != kNoPage && --uses[x] == 0) free.push_back(x);
    x = kNoPage;
  }

  // The pages that n more keys are written to, the sequence's own.
  void make_room(int64_t s, int64_t n) {
    Sequence& q = sequences[s];
    for (const int64_t end = first_seen(q.length) / shape.page_keys; q.first_page < end; ++q.first_page)
      give_back(page(s, q.first_page));
    for (int64_t x = q.length / shape.page_keys; x < pages_of(q.length + n); ++x) {
      int32_t& now = page(s, x);
      if (now != kNoPage && uses[now] == 1) continue;
      const int32_t own = take();
      if (now != kNoPage)
        for (const Pool* pool : {&k, &v, &k_scale, &v_scale})
          if (pool->page_bytes > 0) std::memcpy(pool->page(own), pool->page(now), pool->page_bytes);
      give_back(now);
      now = own;
    }
  }

  // Row `row` of batch b of t becomes key `key` of a page, in every head.
  void write(const Pool& pool, const Pool& scales, const ConstTensor& t, int64_t b, int64_t row, int32_t to,
             int64_t key, std::vector<float>& wide) {
    const int64_t size = t.shape[3];
    wide.resize(size);
    for (int64_t h = 0; h < shape.kv_heads; ++h) {
      const int64_t at = h * shape.page_keys + key;
      char* place = pool.page(to) + at * size * bytes_of(shape.dtype);
      if (t.dtype == shape.dtype) {
        const int64_t from = b * t.stride[0] + h * t.stride[1] + row * t.stride[2];
        std::memcpy(place, static_cast<const char*>(t.data) + from * bytes_of(t.dtype), size * bytes_of(t.dtype));
        continue;
      }
      widen(t, b, h, row, wide);
      if (shape.dtype == DType::i8)
        reinterpret_cast<float*>(scales.page(to))[at] = quantise(wide, reinterpret_cast<int8_t*>(place));
      else if (shape.dtype == DType::f32)
        std::copy_n(wide.begin(), size, reinterpret_cast<float*>(place));
      else
        std::transform(wide.begin(), wide.end(), reinterpret_cast<uint16_t*>(place),
                       shape.dtype == DType::f16 ? half_of_float : bfloat_of_float);
    }
  }

  // Behind the sequences [begin, end), from batch 0 on of k and v.
  void append(int64_t begin, int64_t end, const ConstTensor& new_k, const ConstTensor& new_v) {
    const int64_t n = new_k.shape[2];
    check_appended("k", new_k, {end - begin, shape.kv_heads, n, shape.head_size});
    check_appended("v", new_v, {end - begin, shape.kv_heads, n, shape.value_size});
    if (n == 0) return;
    int64_t pages = 0, wide = 0;
    for (int64_t s = begin; s < end; ++s) {
      pages += needed(s, n);
      wide = std::max(wide, pages_of(sequences[s].length + n));
    }
    std::vector<float> row;
    row.reserve(std::max(shape.head_size, shape.value_size));
    reserve(pages, wide);
    for (int64_t s = begin; s < end; ++s) {
      make_room(s, n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = sequences[s].length + i, key = at % shape.page_keys;
        const int32_t to = page(s, at / shape.page_keys);
        write(k, k_scale, new_k, s - begin, i, to, key, row);
        write(v, v_scale, new_v, s - begin, i, to, key, row);
      }
      sequences[s].length += n;
    }
  }
};

Cache::Cache(const CacheShape& shape) {
  check_cache(shape);
  state_ = std::make_unique<State>();
  State& c = *state_;
  c.shape = shape;
  if (shape.value_size == 0) c.shape.value_size = shape.head_size;
  const int64_t keys = shape.kv_heads * shape.page_keys, scale = shape.dtype == DType::i8 ? sizeof(float) : 0;
  c.k.page_bytes = keys * shape.head_size * bytes_of(shape.dtype);
  c.v.page_bytes = keys * c.shape.value_size * bytes_of(shape.dtype);
  c.k_scale.page_bytes = c.v_scale.page_bytes = keys * scale;
  c.table.assign(shape.batch, kNoPage);
  c.sequences.resize(shape.batch);
}

Cache::~Cache() = default;
Cache::Cache(Cache&&) noexcept = default;
Cache& Cache::operator=(Cache&&) noexcept = default;

void Cache::append(const ConstTensor& k, const ConstTensor& v) { state_->append(0, state_->shape.batch, k, v); }

void Cache::append(int64_t sequence, const ConstTensor& k, const ConstTensor& v) {
  state_->check_sequence(sequence);
  state_->append(sequence, sequence + 1, k, v);
}

int64_t Cache::length(int64_t sequence) const {
  state_->check_sequence(sequence);
  return state_->sequences[sequence].length;
}

int64_t Cache::first(int64_t sequence) const {
  state_->check_sequence(sequence);
  return state_->sequences[sequence].first_page * state_->shape.page_keys;
}

void Cache::truncate(int64_t sequence, int64_t keys) {
  State& c = *state_;
  c.check_sequence(sequence);
  State::Sequence& s = c.sequences[sequence];
  if (keys < 0 || keys > s.length)
    throw Error("sequence " + text(sequence) + " is to be cut to " + text(keys) + " keys but has " + text(s.length) +
                "; it can only get shorter");
  if (keys > 0 && c.first_seen(keys) < first(sequence))
    throw Error("sequence " + text(sequence) + " is to be cut to " + text(keys) + " keys but those before key " +
                text(first(sequence)) + " have been given back; a window of " + text(c.shape.window) +
                " needs them from " + text(c.first_seen(keys)) + " on");
  for (int64_t x = c.pages_of(keys); x < c.pages_of(s.length); ++x) c.give_back(c.page(sequence, x));
  s.length = keys;
  if (keys == 0) s.first_page = 0;
}

void Cache::fork(int64_t from, int64_t to) {
  state_->check_sequence(from);
  state_->check_sequence(to);
  std::vector<int64_t> all(state_->shape.batch);
  std::iota(all.begin(), all.end(), 0);
  all[to] = from;
  select(all);
}

void Cache::select(const std::vector<int64_t>& from) {
  State& c = *state_;
  if (static_cast<int64_t>(from.size()) != c.shape.batch)
    throw Error("select got " + text(from.size()) + " sequences but the cache has " + text(c.shape.batch) +
                "; name one for each");
  for (const int64_t s : from) c.check_sequence(s);
  std::vector<int32_t> table;
  std::vector<State::Sequence> sequences;
  table.reserve(c.table.size());
  sequences.reserve(from.size());
  for (const int64_t s : from) {
    sequences.push_back(c.sequences[s]);
    table.insert(table.end(), c.table.begin() + s * c.columns, c.table.begin() + (s + 1) * c.columns);
  }
  for (const int32_t x : table)
    if (x != kNoPage) ++c.uses[x];
  for (int32_t& x : c.table) c.give_back(x);
  c.table.swap(table);
  c.sequences.swap(sequences);
}

Attention Cache::view(Attention a) const { return view(std::move(a), 0, state_->shape.batch); }

Attention Cache::view(Attention a, int64_t begin, int64_t count) const {
  const State& c = *state_;
  if (begin < 0 || count < 1 || begin + count > c.shape.batch)
    throw Error("sequences " + text(begin) + " to " + text(begin + count - 1) + " are asked for but the cache has " +
                text(c.shape.batch) + "; they are numbered from 0");
  const int64_t pages = c.uses.size();
  const auto pool = [&](const Pool& p, DType t, int64_t size) {
    return tensor(static_cast<const void*>(p.data.get()), t, {pages, c.shape.kv_heads, c.shape.page_keys, size});
  };
  a.k = pool(c.k, c.shape.dtype, c.shape.head_size);
  a.v = pool(c.v, c.shape.dtype, c.shape.value_size);
  a.pages = {c.table.data() + begin * c.columns, c.columns, c.columns};
  for (int64_t s = begin; s < begin + count; ++s) a.pages.keys.push_back(c.sequences[s].length);
  if (c.shape.dtype == DType::i8) {
    a.pages.k_scale = pool(c.k_scale, DType::f32, 1);
    a.pages.v_scale = pool(c.v_scale, DType::f32, 1);
  }
  return a;
}

int64_t Cache::bytes() const {
  const State& c = *state_;
  const int64_t page = c.k.page_bytes + c.v.page_bytes + c.k_scale.page_bytes + c.v_scale.page_bytes;
  return page * static_cast<int64_t>(c.uses.size());
}

}  // namespace heed
