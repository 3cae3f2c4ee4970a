#include "plan.h"

#include <cstdlib>
#include <new>
#include <numeric>
#include <tuple>

namespace heed {
namespace {

constexpr int64_t kTileRows = 96;    // 16 register tiles; KERNEL-NOTES measured 24 to 192 within 2% of each other
constexpr int64_t kFewestRows = 24;  // of a tile: below it, reading K and V for so few rows costs
constexpr int64_t kSomeRows = 128;   // up to which keys are split when there is too little else to share
constexpr int64_t kManyHeads = 32;   // a worker's share from which heads are pieces

constexpr int64_t kBackRows = 48;  // of a tile in the backward: its weights and their gradients stay in L2
constexpr int64_t kHeadsEach = 4;  // a worker's share from which heads stay whole in the backward

// Rows of a tile, so that there are a few pieces for each worker and tiles are as equal as groups of 6 allow.
int64_t tile_rows(int64_t rows, int64_t heads, int workers) {
  const int64_t wanted = (4 * workers + heads - 1) / heads;  // tiles of a head
  const int64_t most = std::clamp(round_up((rows + wanted - 1) / wanted, 6), kFewestRows, kTileRows);
  const int64_t tiles = std::max<int64_t>(1, (rows + most - 1) / most);
  return std::max<int64_t>(6, round_up((rows + tiles - 1) / tiles, 6));
}

// All workers, or this thread alone: waking another takes as long as some millions of multiplications.
int worth(const Problem& p, const Tiling& tiling, int64_t multiplications_a_pair, int may_run) {
  double pairs = 0;
  for (int64_t b = 0; b < p.B; ++b) pairs += static_cast<double>(tiling.pairs(b)) * p.Hkv;
  return pairs * multiplications_a_pair < 1e6 ? 1 : may_run;
}

// Whole heads as pieces: [part, end) of all batches' heads.
void share_heads(int64_t heads, int workers, std::vector<Piece>& pieces) {
  const int64_t some = std::clamp<int64_t>(heads / (8 * workers), 1, 8);
  for (int64_t h = 0; h < heads; h += some) pieces.push_back({0, 0, h, std::min(heads, h + some)});
}

}  // namespace

Tiling::Tiling(const Problem& p, int64_t group, int64_t tile_rows)
    : queries_(p.L), keys_(p.S), group_(group), by_batch_(p.a.mask.varies_by_batch()) {
  const MaskShape shape = p.mask_shape();
  const int64_t masks = by_batch_ ? p.B : 1, rows = p.L * group;
  if (!p.a.mask.sees_all()) {
    spans_.resize(masks * p.L);
    for (int64_t b = 0; b < masks; ++b)
      for (int64_t i = 0; i < p.L; ++i) spans_[b * p.L + i] = p.a.mask.row(shape, b, 0, i);
  }

  tiles_per_head_ = (rows + tile_rows - 1) / tile_rows;
  hulls_.assign(masks, Span{p.S, 0});
  pairs_.assign(masks, 0);
  tiles_.reserve(masks * tiles_per_head_);
  for (int64_t b = 0; b < masks; ++b) {
    for (int64_t t = 0; t < tiles_per_head_; ++t) {
      Tile tile{t * tile_rows, std::min(rows, (t + 1) * tile_rows), {p.S, 0}, {0, p.S}, 0};
      for (int64_t x = tile.row0; x < tile.row1; ++x) {
        const Span s = row(b, x);
        if (s.begin < s.end) tile.keys = {std::min(tile.keys.begin, s.begin), std::max(tile.keys.end, s.end)};
        tile.common = {std::max(tile.common.begin, s.begin), std::min(tile.common.end, s.end)};
        tile.pairs += s.end - s.begin;
      }
      if (tile.keys.begin >= tile.keys.end) tile.keys = {0, 0};
      Span& hull = hulls_[b];
      if (tile.pairs > 0) hull = {std::min(hull.begin, tile.keys.begin), std::max(hull.end, tile.keys.end)};
      pairs_[b] += tile.pairs;
      tiles_.push_back(tile);
    }
    if (hulls_[b].begin >= hulls_[b].end) hulls_[b] = {0, 0};
  }
}

float* Memory::floats(int64_t n) {
  constexpr int64_t kAlignment = 128;
  if (n > size_) {
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
    data_ = static_cast<float*>(std::aligned_alloc(kAlignment, round_up(n * sizeof(float), kAlignment)));
    if (!data_) throw std::bad_alloc();
    size_ = n;
  }
  return data_;
}

Memory::~Memory() { std::free(data_); }

Plan::Plan() : state_(std::make_unique<State>()) {}
Plan::~Plan() = default;
Plan::Plan(Plan&&) noexcept = default;
Plan& Plan::operator=(Plan&&) noexcept = default;

Plan::State::Made::Made(const Problem& p, int workers)
    : sizes{p.B, p.Hq, p.Hkv, p.L, p.S, p.D, p.Dv},
      dtype(p.a.q.dtype),
      score(p.a.score),
      mask(p.a.mask),
      workers(workers) {}

void Plan::State::prepare(const Problem& p, int may_run) {
  const Made now(p, may_run);
  if (now == made_) return;
  made_ = {};  // in case something below throws
  const int64_t rows = p.L * p.group, heads = p.B * p.Hkv;
  tiling = Tiling(p, p.group, tile_rows(rows, heads, may_run));
  blocks = (p.S + kBlockKeys - 1) / kBlockKeys;

  workers = worth(p, tiling, p.D + p.Dv, may_run);

  if (blocks > 1 && (rows <= kFewRows || (rows <= kSomeRows && heads * tiling.tiles() < 4 * workers)))
    way = Way::blocks;
  else if (workers == 1 || heads >= kManyHeads * workers)
    way = Way::heads;
  else
    way = Way::tiles;

  // Blocks in a row, read without a pause, as long as there are enough pieces for all.
  const int64_t run = std::clamp<int64_t>(heads * blocks / (8 * workers), 1, 8);
  pieces.clear();
  if (way == Way::heads) share_heads(heads, workers, pieces);
  for (int64_t head = 0; head < heads && way != Way::heads; ++head) {
    const int64_t b = head / p.Hkv, h = head % p.Hkv;
    if (way == Way::blocks) {
      const Span keys = tiling.keys(b);
      const int64_t first = keys.begin / kBlockKeys;
      const int64_t end = std::max(first + 1, (keys.end + kBlockKeys - 1) / kBlockKeys);
      for (int64_t x = first; x < end; x += run) pieces.push_back({b, h, x, std::min(end, x + run)});
    } else {
      // The heaviest tiles of a head first, so that the last pieces to be handed out are small.
      const size_t start = pieces.size();
      for (int64_t t = 0; t < tiling.tiles(); ++t) pieces.push_back({b, h, t, 0});
      std::stable_sort(pieces.begin() + start, pieces.end(), [&](const Piece& x, const Piece& y) {
        return tiling.tile(b, x.part).pairs > tiling.tile(b, y.part).pairs;
      });
    }
  }
  done = std::make_unique<std::atomic<uint8_t>[]>(way == Way::tiles ? heads * blocks : 0);
  left = std::make_unique<std::atomic<int32_t>[]>(way == Way::blocks ? heads : 0);
  scratch = std::vector<Memory>(workers);
  made_ = now;
}

void Plan::State::prepare_backward(const Problem& p, int may_run) {
  const Made now(p, may_run);
  if (now == back_made_) return;
  back_made_ = {};
  const int64_t rows = p.L * p.group, heads = p.B * p.Hkv;
  const int64_t tiles = rows <= kBackMostRows ? 1 : (rows + kBackRows - 1) / kBackRows;
  back.tiling = Tiling(p, p.group, std::max<int64_t>(6, round_up((rows + tiles - 1) / tiles, 6)));
  back.blocks = (p.S + kBlockKeys - 1) / kBlockKeys;
  back.workers = worth(p, back.tiling, 3 * p.D + 2 * p.Dv, may_run);
  back.whole_heads = back.workers == 1 || heads >= kHeadsEach * back.workers;
  back.pieces.clear();
  if (back.whole_heads) share_heads(heads, back.workers, back.pieces);
  for (int64_t head = 0; head < heads && !back.whole_heads; ++head)
    for (int64_t c = 0; c < back.blocks; ++c) back.pieces.push_back({head / p.Hkv, head % p.Hkv, c, c + 1});
  back.next = std::make_unique<std::atomic<int32_t>[]>(heads * back.tiling.tiles());
  back.scratch = std::vector<Memory>(back.workers);
  back_made_ = now;
}

InUse::InUse(Plan::State& state) : state_(state) {
  if (state_.busy.exchange(true))
    throw Error("this plan is in use by another call; give each thread a plan of its own");
}

InUse::~InUse() { state_.busy = false; }

}  // namespace heed
