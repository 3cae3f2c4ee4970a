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
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hkv; ++h) pairs += static_cast<double>(tiling.pairs(b, h));
  return pairs * multiplications_a_pair < 1e6 ? 1 : may_run;
}

// Whole heads as pieces: [part, end) of all batches' heads.
void share_heads(int64_t heads, int workers, std::vector<Piece>& pieces) {
  const int64_t some = std::clamp<int64_t>(heads / (8 * workers), 1, 8);
  for (int64_t h = 0; h < heads; h += some) pieces.push_back({0, 0, h, std::min(heads, h + some)});
}

}  // namespace

Tiling::Tiling(const Problem& p, int64_t group, int64_t tile_rows)
    : queries_(p.L),
      keys_(p.S),
      group_(group),
      reciprocal_(((uint64_t{1} << 63) + static_cast<uint64_t>(group) - 1) / static_cast<uint64_t>(group)) {
  const Mask& mask = p.a.mask;
  const bool by_batch = mask.varies_by_batch() || p.ragged, by_head = mask.varies_by_head();
  const int64_t batches = by_batch ? p.B : 1, heads = by_head ? p.Hkv : 1, sets = batches * heads;
  set_of_head_ = by_head;
  set_of_batch_ = by_batch ? heads : 0;
  of_head_ = by_head ? group : 1;
  if (!mask.sees_all() || p.ragged) {
    spans_.reserve(sets * queries_ * of_head_);
    for (int64_t b = 0; b < batches; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < queries_; ++i)
          for (int64_t g = 0; g < of_head_; ++g) spans_.push_back(mask.row(p.mask_shape(b), b, h * of_head_ + g, i));
  }

  tiles_per_head_ = (rows() + tile_rows - 1) / tile_rows;
  tiles_.reserve(sets * tiles_per_head_);
  if (!mask.spans()) covers_.reserve(sets * tiles_per_head_ * ((p.S + kBlockKeys - 1) / kBlockKeys));
  for (int64_t b = 0; b < batches; ++b)
    for (int64_t h = 0; h < heads; ++h) {
      hulls_.push_back({p.S, 0});
      pairs_.push_back(0);
      mask.spans() ? span_tiles(tile_rows, b, h) : hole_tiles(p, tile_rows, b, h);
      if (hulls_.back().begin >= hulls_.back().end) hulls_.back() = {0, 0};
    }
}

void Tiling::span_tiles(int64_t tile_rows, int64_t b, int64_t hkv) {
  for (int64_t t = 0; t < tiles_per_head_; ++t) {
    Tile tile{t * tile_rows, std::min(rows(), (t + 1) * tile_rows), {keys_, 0}, {0, keys_}, 0};
    for (int64_t x = tile.row0; x < tile.row1; ++x) {
      const Span s = row(b, hkv, x);
      if (s.begin < s.end) tile.keys = {std::min(tile.keys.begin, s.begin), std::max(tile.keys.end, s.end)};
      tile.common = {std::max(tile.common.begin, s.begin), std::min(tile.common.end, s.end)};
      tile.pairs += s.end - s.begin;
    }
    add(tile);
  }
}

void Tiling::hole_tiles(const Problem& p, int64_t tile_rows, int64_t b, int64_t hkv) {
  const MaskShape shape = p.mask_shape(b);
  for (int64_t t = 0; t < tiles_per_head_; ++t) {
    Tile tile{t * tile_rows, std::min(rows(), (t + 1) * tile_rows), {keys_, 0}, {0, 0}, 0};
    const Span queries{query(tile.row0), query(tile.row1 - 1) + 1};
    Span hull{keys_, 0};
    for (int64_t x = tile.row0; x < tile.row1; ++x)
      if (const Span s = row(b, hkv, x); s.begin < s.end)
        hull = {std::min(hull.begin, s.begin), std::max(hull.end, s.end)};
    tile.blocks = covers_.data() + covers_.size();
    for (int64_t key0 = 0; key0 < keys_; key0 += kBlockKeys) {
      const Span keys{key0, std::min(shape.keys, key0 + kBlockKeys)};
      bool none = true, all = true;
      for (int64_t g = 0; g < of_head_ && (none || all) && key0 < hull.end && keys.end > hull.begin; ++g) {
        const Cover cover = p.a.mask.cover(shape, b, hkv * of_head_ + g, queries, keys);
        none &= cover == Cover::empty;
        all &= cover == Cover::full;
      }
      covers_.push_back(none ? Cover::empty : all ? Cover::full : Cover::partial);
      if (none) continue;
      tile.keys = {std::min(tile.keys.begin, std::max(keys.begin, hull.begin)), std::min(keys.end, hull.end)};
      const int64_t pairs = (tile.row1 - tile.row0) * (keys.end - keys.begin);
      tile.pairs += all ? pairs : (pairs + 1) / 2;
    }
    add(tile);
  }
}

void Tiling::add(const Tile& tile) {
  tiles_.push_back(tile);
  Span& keys = tiles_.back().keys;
  if (keys.begin >= keys.end) keys = {0, 0};
  Span& hull = hulls_.back();
  if (tile.pairs > 0) hull = {std::min(hull.begin, keys.begin), std::max(hull.end, keys.end)};
  pairs_.back() += tile.pairs;
}

bool Tiling::sees_block(int64_t b, int64_t hkv, int64_t block) const {
  for (int64_t t = 0; t < tiles_per_head_; ++t)
    if (tile(b, hkv, t).cover(block * kBlockKeys, std::min(keys_, (block + 1) * kBlockKeys)) != Cover::empty)
      return true;
  return false;
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
      keys(p.ragged ? p.a.pages.keys : std::vector<int64_t>()),
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
      const Span keys = tiling.keys(b, h);
      const int64_t first = keys.begin / kBlockKeys;
      const int64_t end = std::max(first + 1, (keys.end + kBlockKeys - 1) / kBlockKeys);
      for (int64_t x = first; x < end; x += run) pieces.push_back({b, h, x, std::min(end, x + run)});
    } else {
      // The heaviest tiles of a head first, so that the last pieces to be handed out are small.
      const size_t start = pieces.size();
      for (int64_t t = 0; t < tiling.tiles(); ++t) pieces.push_back({b, h, t, 0});
      std::stable_sort(pieces.begin() + start, pieces.end(), [&](const Piece& x, const Piece& y) {
        return tiling.tile(b, h, x.part).pairs > tiling.tile(b, h, y.part).pairs;
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
