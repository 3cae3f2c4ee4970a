// From an attention problem to work: which keys each tile of query rows sees, and how the work is shared.
#pragma once

#include <cstdint>
#include <vector>

#include "heed/attention.h"

namespace heed {

// Rows of one tile and keys of one block. A tile's scores (48 x 256 floats, 48 KB) stay in L2; KERNEL-NOTES measured
// that key blocks of 128 to 512 and tiles of 24 to 192 rows are within 2% of each other.
inline constexpr int64_t kTileRows = 48;
inline constexpr int64_t kBlockKeys = 256;
// Keys ride 16 abreast on every target: 16 virtual lanes. Blocks begin at multiples of it.
inline constexpr int64_t kLanes = 16;

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

// Rows [row0, row1) of one head. `keys` is the hull of what its rows see, `common` what all of them see.
struct Tile {
  int64_t batch, head, row0, row1;
  Span keys, common;
  int64_t pairs;

  Cover cover(int64_t key0, int64_t key1) const {
    if (key1 <= keys.begin || key0 >= keys.end) return Cover::empty;
    return common.begin <= key0 && key1 <= common.end ? Cover::full : Cover::partial;
  }
};

class Plan {
 public:
  explicit Plan(const Problem& p);

  // The keys row i of batch b sees. No mask so far differs between heads.
  Span row(int64_t b, int64_t i) const {
    return spans_.empty() ? Span{0, keys_} : spans_[(by_batch_ ? b * rows_ : 0) + i];
  }
  // The hull of all keys that any row of batch b sees: what is outside is neither packed nor read.
  Span keys(int64_t b) const { return hulls_[by_batch_ ? b : 0]; }

  int64_t tiles_per_head() const { return tiles_per_head_; }
  const Tile& tile(int64_t b, int64_t h, int64_t t) const { return tiles_[(b * heads_ + h) * tiles_per_head_ + t]; }
  const std::vector<Tile>& tiles() const { return tiles_; }
  // Indices into tiles(), most visible pairs first, so that the last ones to be handed out are small.
  const std::vector<int64_t>& heaviest_first() const { return order_; }
  int64_t pairs() const { return pairs_; }

 private:
  int64_t rows_, heads_, keys_, tiles_per_head_, pairs_ = 0;
  bool by_batch_;
  std::vector<Span> spans_, hulls_;
  std::vector<Tile> tiles_;
  std::vector<int64_t> order_;
};

}  // namespace heed
