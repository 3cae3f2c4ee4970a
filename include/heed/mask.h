// Which (query, key) pairs may see each other: masks are values, and they compose.
//
//   heed::Mask m = heed::causal() & heed::lengths({17, 23});
//   heed::Mask longformer = heed::window(255, 255) | heed::global_tokens({0});
//
// What a mask excludes does not count, whatever is there: a NaN or an infinity behind a mask cannot leak into a result.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
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

// How much of a rectangle of pairs a mask lets through. Masks may say `partial` where it is none or all.
enum class Cover : uint8_t { empty, full, partial };

// A copyable, immutable set of visible pairs. A default-made mask excludes nothing.
class Mask {
 public:
  class Node;  // what one kind of mask knows; src/mask_node.h

  Mask() = default;
  explicit Mask(std::shared_ptr<const Node> node) : node_(std::move(node)) {}

  // A span, clipped to [0, shape.keys), outside of which the row sees nothing; inside it everything, if spans().
  Span row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const;

  // Whether what a row sees is always one span. Masks of which this is known are the fastest.
  bool spans() const;

  // Bit n of `bits` (bit n % 64 of bits[n / 64]) tells whether the row sees key begin + n; [begin, end) lies within the
  // keys. Writes whole words, zeros behind the end.
  void bits(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, Span keys, uint64_t* bits) const;
  bool sees(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, int64_t key) const;

  // Of queries [begin, end) and keys [begin, end), none of them empty.
  Cover cover(const MaskShape& shape, int64_t batch, int64_t head, Span queries, Span keys) const;

  // Whether rows differ between batches, or heads; if not, a plan made for one serves all.
  bool varies_by_batch() const;
  bool varies_by_head() const;

  // Throws heed::Error if the mask does not fit the problem (for instance, 3 lengths for a batch of 4).
  void check(const MaskShape& shape) const;

  // True if nothing is excluded.
  bool sees_all() const { return node_ == nullptr; }

  // Pairs that both masks let through; that at least one does; that this one does not.
  friend Mask operator&(const Mask& a, const Mask& b);
  friend Mask operator|(const Mask& a, const Mask& b);
  friend Mask operator!(const Mask& a);

  // Whether both are made in the same way of equal parts; they then let the same pairs through.
  friend bool operator==(const Mask& a, const Mask& b);

 private:
  std::shared_ptr<const Node> node_;
};

// ---- Masks whose rows are spans ----

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
// the lengths of a list may add up to at most S. Where queries and keys differ in length: ragged().
Mask documents(std::vector<std::vector<int64_t>> lengths);

// Prefix language model (Raffel et al. 2020): query i sees key j iff j < prefix[b] or j <= i + offset (as for causal):
// the first keys in both directions, the rest causal. One prefix for each batch, or one for all; one above S means all
// keys. Throws heed::Error for a negative one.
Mask prefix_lm(std::vector<int64_t> prefix, std::optional<int64_t> offset = std::nullopt);

// Ragged batches without padding: sequence n has queries [queries[n], queries[n + 1]) and keys [keys[n], keys[n + 1]),
// and its queries see its keys ("cu_seqlens": both begin with 0, one entry more than sequences, ascending). With
// p = i + (its keys - its queries), i and j counted from the sequence's first: p - left <= j <= p + right, a side of -1
// is unbounded, so right = 0 is causal, bottom-right. What lies behind the last sequence sees and is seen by nothing.
// Throws heed::Error for offsets that do not fit.
Mask ragged(std::vector<int64_t> queries, std::vector<int64_t> keys, int64_t left = -1, int64_t right = -1);

// ---- Masks with holes ----
// Of these the plan asks for every tile of queries and keys whether it is empty (then it costs nothing), full (then no
// pair is looked at) or partial. p = i + offset in all of them, with offset as for causal.

// Every step-th key of a window: |p - j| <= reach and (p - j) mod step = 0 (Longformer's dilated window, Beltagy et al.
// 2020). Throws heed::Error for a negative reach or a step below 1.
Mask dilated(int64_t reach, int64_t step, std::optional<int64_t> offset = std::nullopt);

// Sparse Transformer, strided (Child et al. 2019): |p - j| < local or (p - j) mod stride = 0; with causal() as in the
// paper. Throws heed::Error for local < 0 or stride < 1.
Mask strided(int64_t local, int64_t stride, std::optional<int64_t> offset = std::nullopt);

// Sparse Transformer, fixed: positions are cut into blocks; p sees its own block and the last `summary` positions of
// each. Throws heed::Error for a block below 1 or a summary outside [0, block].
Mask fixed(int64_t block, int64_t summary, std::optional<int64_t> offset = std::nullopt);

// Positions that see all keys and are seen by all queries: window(w, w) | global_tokens({0}) is Longformer's. Throws
// heed::Error for a negative position.
Mask global_tokens(std::vector<int64_t> positions, std::optional<int64_t> offset = std::nullopt);

// Neighbourhood attention (Hassani et al. 2023) over a line, a picture or a volume: positions are row-major indices of
// `size`, and on each axis a query sees the kernel[axis] keys around it, moved inside where it is near a border, so
// that every query sees equally many. 1 to 3 axes; L = S = the product of size. Throws heed::Error unless each kernel
// is odd and fits its axis.
Mask neighbourhood(std::vector<int64_t> size, std::vector<int64_t> kernel);

// Which blocks of a block-sparse mask are visible, in the compressed form of sparse matrices: queries [r * query_block,
// (r + 1) * query_block) see the blocks of key_block keys numbered key_blocks[starts[r]] ... key_blocks[starts[r + 1] -
// 1], ascending. Blocks that reach over the ends of L and S are fine.
struct BlockTable {
  int64_t query_block = 128;
  int64_t key_block = 128;
  std::vector<int64_t> starts;      // [rows of blocks + 1]
  std::vector<int64_t> key_blocks;  // [starts.back()]
};

// One table for each query head, or one for all. Throws heed::Error for a table that is not well-formed.
Mask block_sparse(std::vector<BlockTable> heads);
Mask block_sparse(BlockTable all);

// A tensor: pairs with a nonzero byte see each other. shape [B, Hq, L, S], an axis of 1 serves all; strides in bytes.
// The tensor is copied, at one bit a pair.
Mask boolean(const bool* visible, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& stride);
Mask boolean(const bool* visible, const std::array<int64_t, 4>& shape);  // dense

// Whether a function that a mask is made of looks at the batch or the head; if not, it is asked for one of them only.
struct Varies {
  bool by_batch = true;
  bool by_head = true;
};

// A function that answers for a row at a time: bit n of `bits` for key keys.begin + n, whole words, zeros behind the
// end. It must not throw. It is called from several threads, for all pairs when a plan is made and again for those of
// partial tiles in each pass: keep the plan.
using SeesRow = std::function<void(int64_t batch, int64_t head, int64_t query, Span keys, uint64_t* bits)>;
Mask where_rows(SeesRow sees, Varies varies = {});

// The same of any function (batch, query head, query, key) -> bool, compiled into the loop over a row's keys.
template <class Sees>
Mask where(Sees sees, Varies varies = {}) {
  return where_rows(
      [sees = std::move(sees)](int64_t batch, int64_t head, int64_t query, Span keys, uint64_t* bits) {
        for (int64_t j = keys.begin; j < keys.end; j += 64) {
          uint64_t word = 0;
          for (int64_t n = 0; n < 64 && j + n < keys.end; ++n)
            word |= uint64_t{static_cast<bool>(sees(batch, head, query, j + n))} << n;
          *bits++ = word;
        }
      },
      varies);
}

}  // namespace heed
