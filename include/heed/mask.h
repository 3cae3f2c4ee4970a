// Which (query, key) pairs may see each other: masks are values, and they compose.
//
//   heed::Mask m = heed::causal() & heed::window(255, 0) & heed::lengths({17, 23});
//
// A pair a mask excludes is never read by the operator, so a NaN behind a mask cannot leak into a result.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace heed {

// The keys [begin, end) of one row; empty when begin >= end.
struct Span {
  int64_t begin = 0;
  int64_t end = 0;
};

// The problem a mask is asked about: batches, query heads, queries, keys.
struct MaskShape {
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;
};

// A copyable, immutable set of visible pairs. A default-made mask excludes nothing.
class Mask {
 public:
  class Node;  // what one kind of mask knows; defined in src/mask.cc

  Mask() = default;
  explicit Mask(std::shared_ptr<const Node> node) : node_(std::move(node)) {}

  // The keys that query `query` of head `head` in batch `batch` sees, clipped to [0, shape.keys).
  Span row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const;

  // Whether rows differ between batches; if not, a plan made for one batch serves all.
  bool varies_by_batch() const;

  // Throws heed::Error if the mask does not fit the problem (for instance, 3 lengths for a batch of 4).
  void check(const MaskShape& shape) const;

  // True if nothing is excluded.
  bool sees_all() const { return node_ == nullptr; }

  // Pairs that both masks let through.
  friend Mask operator&(const Mask& a, const Mask& b);

  // Whether both are made in the same way of equal parts; they then let the same pairs through.
  friend bool operator==(const Mask& a, const Mask& b);

 private:
  std::shared_ptr<const Node> node_;
};

// Query i sees key j iff j <= i + offset. offset 0 is "top-left" (PyTorch's is_causal, ONNX without a cache); without
// an argument it is S - L, "bottom-right": the last query sees the last key, which is what a cache wants.
Mask causal(std::optional<int64_t> offset = std::nullopt);

// With p = i + offset (offset as for causal), query i sees key j iff p - left <= j <= p + right. Counts neighbours, so
// window(2, 0) sees three keys. A side of -1 is unbounded. Throws heed::Error for a side below -1.
Mask window(int64_t left, int64_t right, std::optional<int64_t> offset = std::nullopt);

// Batch b sees its first keys[b] keys: padding behind them is not read. keys.size() must equal the batch; a count above
// S means all of them. Throws heed::Error for a negative count.
Mask lengths(std::vector<int64_t> keys);

// Packed sequences: documents of these lengths follow each other, one list for each batch or one for all, and with
// p = i + S - L query i sees the keys of the document that position p is in. Positions behind the last document see
// nothing and are not seen. With causal(): each document on its own, causal. Throws heed::Error for a negative length;
// the lengths of a list may add up to at most S.
Mask documents(std::vector<std::vector<int64_t>> lengths);

// Prefix language model (Raffel et al. 2020): query i sees key j iff j < prefix[b] or j <= i + offset (as for causal):
// the first keys in both directions, the rest causal. One prefix for each batch, or one for all; one above S means all
// keys. Throws heed::Error for a negative one.
Mask prefix_lm(std::vector<int64_t> prefix, std::optional<int64_t> offset = std::nullopt);

}  // namespace heed
