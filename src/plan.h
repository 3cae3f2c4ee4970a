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

inline constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// An Attention whose arguments have been checked, with its sizes read off. Lives as long as the call.
struct Problem {
  const Attention& a;
  int64_t B, Hq, Hkv, group, L, S, D, Dv;
  double scale;

  MaskShape mask_shape() const { return {B, Hq, L, S}; }
};

// How much of (tile x key block) the mask lets through.
enum class Cover { empty, full, partial };

// Rows [row0, row1). `keys` is the hull of what its rows see, `common` what all of them see.
struct Tile {
  int64_t row0, row1;
  Span keys, common;
  int64_t pairs;

  Cover cover(int64_t key0, int64_t key1) const {
    if (key1 <= keys.begin || key0 >= keys.end) return Cover::empty;
    return common.begin <= key0 && key1 <= common.end ? Cover::full : Cover::partial;
  }
};

// The query rows of one KV head cut into tiles. The heads of a group ride together: row x is query x / group of head
// x % group, so that rows side by side see nearly the same keys.
class Tiling {
 public:
  Tiling() = default;
  Tiling(const Problem& p, int64_t group, int64_t tile_rows);

  // The keys row x of batch b sees. No mask so far differs between heads.
  Span row(int64_t b, int64_t x) const {
    return spans_.empty() ? Span{0, keys_} : spans_[(by_batch_ ? b * queries_ : 0) + query(x)];
  }
  // Divisions are slow enough to show in short sequences.
  int64_t query(int64_t x) const { return group_ == 1 ? x : x / group_; }
  int64_t head(int64_t x) const { return group_ == 1 ? 0 : x % group_; }  // of the group
  // The hull of all keys that any row of batch b sees: what is outside is neither packed nor read.
  Span keys(int64_t b) const { return hulls_[by_batch_ ? b : 0]; }

  int64_t rows() const { return queries_ * group_; }
  int64_t tiles() const { return tiles_per_head_; }
  const Tile& tile(int64_t b, int64_t t) const { return tiles_[(by_batch_ ? b : 0) * tiles_per_head_ + t]; }
  int64_t pairs(int64_t b) const { return pairs_[by_batch_ ? b : 0]; }  // of one KV head

 private:
  int64_t queries_ = 0, keys_ = 0, group_ = 1, tiles_per_head_ = 0;
  bool by_batch_ = false;
  std::vector<Span> spans_, hulls_;
  std::vector<Tile> tiles_;
  std::vector<int64_t> pairs_;
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
