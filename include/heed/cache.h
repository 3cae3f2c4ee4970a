// A cache of keys and values for decoding, in pages; and partial results over different keys put together.
//
//   heed::Cache cache({.batch = B, .kv_heads = Hkv, .head_size = D, .dtype = heed::DType::f16});
//   cache.append(k, v);  // [B, Hkv, n, D]: a prompt, or the next token
//   heed::forward(cache.view({.q = q, .mask = heed::causal()}), {.out = out});  // q: [B, Hq, n, D]
//
// Sequences grow, shrink and fork each on its own. Positions are counted from a sequence's first key, whatever has been
// given back since, so that masks mean what they mean without a cache, and so do the bits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "heed/attention.h"

namespace heed {

// What a cache holds, and how.
struct CacheShape {
  int64_t batch = 1;  // sequences
  int64_t kv_heads = 1;
  int64_t head_size = 0;   // D of the keys
  int64_t value_size = 0;  // Dv of the values; 0: D
  // f32, f16, bf16, or i8: each key and value of a head is rounded to 255 steps, from -127 to 127 times its largest
  // size / 127, which is kept beside it as f32. An element is then off by at most 1/254 of its row's largest.
  DType dtype = DType::f32;
  int64_t page_keys = 256;  // keys of a page, a multiple of 16. From 256 on values are read without a copy
  // Keys that a query sees at most, counting its own, as with window(window - 1, 0); 0: all. Pages that nothing to come
  // can see are used again, so that memory does not grow with the sequence.
  int64_t window = 0;
};

// Keys and values of a batch of sequences. Functions that change it are for one thread at a time; several may read at
// once. Each throws heed::Error for arguments that do not fit, or std::bad_alloc, and then has changed nothing.
class Cache {
 public:
  explicit Cache(const CacheShape& shape);
  ~Cache();
  Cache(Cache&&) noexcept;
  Cache& operator=(Cache&&) noexcept;

  // Puts k [batch, kv_heads, n, D] and v [batch, kv_heads, n, Dv] behind all sequences, or [1, ...] behind one. f32,
  // f16 or bf16 each, converted to the cache's dtype. Views given out before are no longer valid.
  void append(const ConstTensor& k, const ConstTensor& v);
  void append(int64_t sequence, const ConstTensor& k, const ConstTensor& v);

  // Keys of a sequence, and the first of them that is still there (other than 0 only with a window).
  int64_t length(int64_t sequence) const;
  int64_t first(int64_t sequence) const;

  // Forgets all but the first `keys` keys: what a draft proposed and the model refused. With a window, heed::Error
  // where the next query would see keys that have been given back; 0 keys always go.
  void truncate(int64_t sequence, int64_t keys);

  // `to` forgets what it had and goes on from what `from` has. They share pages; one that is full is never copied, the
  // last one when either writes to it.
  void fork(int64_t from, int64_t to);
  // Sequence b goes on from what sequence from[b] has now: what a beam search does after each step.
  void select(const std::vector<int64_t>& from);

  // `a` with this cache's k, v and pages; a.q has the sequences [begin, begin + count) as its batch, or all. Valid
  // until the cache changes.
  Attention view(Attention a) const;
  Attention view(Attention a, int64_t begin, int64_t count) const;

  // Bytes of all pages, in use or free.
  int64_t bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What forward gave for some of the keys.
struct Part {
  ConstTensor out;  // [B, H, L, Dv]
  ConstTensor lse;  // [B, H, L, 1]
};

// out and lse over all keys from those over disjoint sets of them: keys split between processes, or a prefix that many
// sequences share, read once for all their queries. Each row is the mean of the parts' rows, weighted with exp(lse),
// computed in double and rounded once; a part whose lse is -inf is not read. A sink may be in one part only.
// result.out's dtype is that of each part's out, or the parts are f32; lse is f32 for f16 and bf16, else out's dtype.
// result may be one of the parts.
void merge(const std::vector<Part>& parts, const Output& result);

}  // namespace heed
