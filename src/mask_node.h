// What one kind of mask answers. The kinds are in mask.cc (rows that are spans, and how masks combine) and in
// mask_holes.cc (all others).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "heed/mask.h"

namespace heed {

class Mask::Node {
 public:
  virtual ~Node() = default;

  // As Mask::row, but not clipped yet.
  virtual Span row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const = 0;
  virtual bool spans() const { return false; }

  // As Mask::bits; by default what row() says.
  virtual void bits(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, Span keys,
                    uint64_t* bits) const;

  // As Mask::cover; by default row by row, exact.
  virtual Cover cover(const MaskShape& shape, int64_t batch, int64_t head, Span queries, Span keys) const;

  virtual bool varies_by_batch() const { return false; }
  virtual bool varies_by_head() const { return false; }
  virtual void check(const MaskShape&) const {}
  virtual bool equals(const Node& other) const = 0;
};

// ---- Rows of bits ----

inline int64_t words(int64_t bits) { return (bits + 63) / 64; }
inline bool bit(const uint64_t* bits, int64_t n) { return bits[n / 64] >> (n % 64) & 1; }
inline void set_bit(uint64_t* bits, int64_t n) { bits[n / 64] |= uint64_t{1} << (n % 64); }

// The bits [begin, end) of a word, clipped to it.
inline uint64_t bits_between(int64_t begin, int64_t end) {
  begin = std::max<int64_t>(begin, 0);
  end = std::min<int64_t>(end, 64);
  if (begin >= end) return 0;
  return (end == 64 ? ~uint64_t{0} : (uint64_t{1} << end) - 1) & ~((uint64_t{1} << begin) - 1);
}

inline void set_bits(uint64_t* bits, int64_t begin, int64_t end) {
  if (begin >= end) return;
  for (int64_t w = begin / 64; w <= (end - 1) / 64; ++w) bits[w] |= bits_between(begin - 64 * w, end - 64 * w);
}

// Of a row's bits for `keys`: sets those of the keys [begin, end), which may be any numbers, also far outside.
inline void set_keys(uint64_t* bits, Span keys, int64_t begin, int64_t end) {
  set_bits(bits, std::clamp(begin, keys.begin, keys.end) - keys.begin,
           std::clamp(end, keys.begin, keys.end) - keys.begin);
}

// a + b without wrapping round: offsets come from the user and may be anything.
inline int64_t add(int64_t a, int64_t b) {
  int64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return b > 0 ? INT64_MAX : INT64_MIN;
  return sum;
}

// Where query i stands among the keys.
inline int64_t position(const MaskShape& shape, int64_t query, std::optional<int64_t> offset) {
  return add(query, offset.value_or(shape.keys - shape.queries));
}

}  // namespace heed
