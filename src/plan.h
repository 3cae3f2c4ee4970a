// From an attention problem to work: which keys each tile of query rows sees, and how the work is shared.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "heed/attention.h"

namespace heed {

// Keys of one block. Sums over keys begin anew with each block and are added up block by block, whoever computes them:
// that is where split work is cut (docs/design.md, section 2).
inline constexpr int64_t kBlockKeys = 256;
// Keys ride 16 abreast on every target: 16 virtual lanes. Blocks begin at multiples of it.
inline constexpr int64_t kLanes = 16;
// The widest panel of packed keys or columns of any target; memory for panels is cut in units of it.
inline constexpr int64_t kWidestPanel = 64;

// Rows of the largest tile in the backward: what is not more than one tile stays one.
inline constexpr int64_t kBackMostRows = 66;

// Up to so many rows, a head's keys are not worth packing as a whole.
inline constexpr int64_t kFewRows = 24;

inline constexpr int64_t bytes_of(DType t) {
  return t == DType::f64 ? 8 : t == DType::f32 ? 4 : t == DType::i8 ? 1 : 2;
}

inline constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// An Attention whose arguments have been checked, with its sizes read off. Lives as long as the call.
struct Problem {
  const Attention& a;
  int64_t B, Hq, Hkv, group, L, S, D, Dv;
  double scale;
  int64_t page_keys = 0;  // of pages; 0: k and v lie in one piece
  bool ragged = false;    // sequences have different numbers of keys

  MaskShape mask_shape() const { return {B, Hq, L, S}; }
  int64_t keys_of(int64_t b) const { return ragged ? a.pages.keys[b] : S; }
  // The masks of sequence b: as if it were alone with its keys.
  MaskShape mask_shape(int64_t b) const { return {B, Hq, L, keys_of(b)}; }
};

// Rows [row0, row1). `keys` is the hull of what its rows see, `common` what all of them see.
struct Tile {
  int64_t row0, row1;
  Span keys, common;
  int64_t pairs;                  // of rows with holes an estimate
  const Cover* blocks = nullptr;  // rows with holes: what there is of each block of keys; nullptr: spans tell

  // Keys [key0, key1) lie in one block.
  Cover cover(int64_t key0, int64_t key1) const {
    if (key1 <= keys.begin || key0 >= keys.end) return Cover::empty;
    if (blocks) return blocks[key0 / kBlockKeys];
    return common.begin <= key0 && key1 <= common.end ? Cover::full : Cover::partial;
  }

  // The blocks that its rows see something of begin with `first_block` and end before `end_block`; `next_block` is the
  // first of them from c on.
  int64_t first_block() const { return keys.begin / kBlockKeys; }
  int64_t end_block() const { return (keys.end + kBlockKeys - 1) / kBlockKeys; }
  int64_t next_block(int64_t c) const {
    while (blocks && c < end_block() && blocks[c] == Cover::empty) ++c;
    return c;
  }
};

// The query rows of one KV head cut into tiles. The heads of a group ride together: row x is query x / group of head
// x % group, so that rows side by side see nearly the same keys. What rows see is kept once for all batches, and once
// for all heads, unless the mask differs between them.
class Tiling {
 public:
  Tiling() = default;
  Tiling(const Problem& p, int64_t group, int64_t tile_rows);
  Tiling(Tiling&&) = default;  // tiles point into covers_
  Tiling& operator=(Tiling&&) = default;

  // Keys that row x of the head sees: those in this span, if spans(), or some of them.
  Span row(int64_t b, int64_t hkv, int64_t x) const {
    if (spans_.empty()) return Span{0, keys_};
    return spans_[(set(b, hkv) * queries_ + query(x)) * of_head_ + (of_head_ == 1 ? 0 : head(x))];
  }
  bool spans() const { return covers_.empty(); }
  // x / group by a multiplication, exact for x < 2^63 / group: a division of 64 bits takes an Intel core before Ice
  // Lake 40 cycles and more, and short sequences have five for each row. (`group == 1 ? x : x / group` is a division to
  // GCC.)
  int64_t query(int64_t x) const { return static_cast<int64_t>(static_cast<unsigned __int128>(x) * reciprocal_ >> 63); }
  int64_t head(int64_t x) const { return x - query(x) * group_; }  // of the group
  // The hull of all keys that any row of the head sees: what is outside is neither packed nor read.
  Span keys(int64_t b, int64_t hkv) const { return hulls_[set(b, hkv)]; }
  // Whether any row of the head sees anything of a block of keys.
  bool sees_block(int64_t b, int64_t hkv, int64_t block) const;

  int64_t rows() const { return queries_ * group_; }
  int64_t tiles() const { return tiles_per_head_; }
  const Tile& tile(int64_t b, int64_t hkv, int64_t t) const { return tiles_[set(b, hkv) * tiles_per_head_ + t]; }
  int64_t pairs(int64_t b, int64_t hkv) const { return pairs_[set(b, hkv)]; }

 private:
  int64_t set(int64_t b, int64_t hkv) const { return b * set_of_batch_ + hkv * set_of_head_; }
  void span_tiles(int64_t tile_rows, int64_t b, int64_t hkv);
  void hole_tiles(const Problem& p, int64_t tile_rows, int64_t b, int64_t hkv);
  void add(const Tile& tile);

  int64_t queries_ = 0, keys_ = 0, group_ = 1, tiles_per_head_ = 0;
  uint64_t reciprocal_ = uint64_t{1} << 63;     // 2^63 / group, rounded up
  int64_t set_of_batch_ = 0, set_of_head_ = 0;  // steps between sets of spans, tiles, hulls and pairs
  int64_t of_head_ = 1;                         // spans of a query: one, or one for each head of the group
  std::vector<Span> spans_, hulls_;
  std::vector<Tile> tiles_;
  std::vector<int64_t> pairs_;
  std::vector<Cover> covers_;  // [set][tile][block]
};

// Memory that only grows and stays aligned for any vector; not initialised.
class Memory {
 public:
  float* floats(int64_t n);  // at least n of them; what was there before is lost when it grows
  ~Memory();
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

// How the forward pass shares its work.
enum class Way {
  heads,   // many heads: a piece is some KV heads, each packed where its worker keeps it in cache
  tiles,   // few heads: a piece is one tile; who first needs a block of keys packs it for all
  blocks,  // few rows: a piece is some blocks of keys with all rows; the partial sums are put together in order
};

struct Piece {
  int64_t b, hkv;
  int64_t part, end;  // tiles: the tile; blocks: the blocks [part, end); heads: [part, end) of all batches' heads
};

// What heed::Plan keeps between calls.
struct Plan::State {
  // Makes what the forward needs unless it was made for an equal problem. workers: how many pieces may run at once.
  void prepare(const Problem& p, int workers);
  // The same for the backward: `back`.
  void prepare_backward(const Problem& p, int workers);

  Tiling tiling;
  Way way = Way::heads;
  int workers = 1;
  std::vector<Piece> pieces;
  int64_t blocks = 0;                            // of keys in a head
  Memory packed;                                 // Way::tiles: K and V of every head
  Memory partial;                                // Way::blocks: sums of every block
  std::vector<Memory> scratch;                   // of each worker
  std::unique_ptr<std::atomic<uint8_t>[]> done;  // Way::tiles: whether a block is packed
  std::unique_ptr<std::atomic<int32_t>[]> left;  // Way::blocks: blocks of a head to do
  std::atomic<bool> busy{false};

  // How the backward shares its work: a piece is some KV heads whole, or, if heads are few, one block of its keys with
  // all rows that see it. Sums over keys of a row are added up block by block, so a piece of a block waits at each tile
  // of rows until the blocks before it have passed (`next`): like carriages, one behind the other.
  struct Back {
    Tiling tiling;
    bool whole_heads = true;
    int workers = 1;
    int64_t blocks = 0;
    std::vector<Piece> pieces;  // [part, end): heads of all batches, or blocks of one
    // Of each head and tile: the block whose turn it is. Starts at the tile's first, ends behind its last.
    std::unique_ptr<std::atomic<int32_t>[]> next;
    Memory heads;                 // what rows carry: of each head, or of each worker's if heads stay whole
    std::vector<Memory> scratch;  // of each worker
    std::array<Memory, 4> sums;   // of gradients that all heads add to (gradients-inl.h says which)
  } back;

 private:
  // What a plan was made for.
  struct Made {
    std::array<int64_t, 7> sizes{};
    DType dtype{};
    Score score{};
    Mask mask;
    std::vector<int64_t> keys;  // of each sequence, if they differ
    int workers = 0;
    Made() = default;
    Made(const Problem& p, int workers);
    bool operator==(const Made&) const = default;
  };
  Made made_, back_made_;
};

// Marks a plan as in use for as long as it lives; heed::Error if it is in use already.
class InUse {
 public:
  explicit InUse(Plan::State& state);
  ~InUse();
  InUse(const InUse&) = delete;

 private:
  Plan::State& state_;
};

}  // namespace heed
