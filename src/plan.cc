#include "plan.h"

#include <algorithm>
#include <numeric>

namespace heed {

Plan::Plan(const Problem& p) : rows_(p.L), heads_(p.Hq), keys_(p.S), by_batch_(p.a.mask.varies_by_batch()) {
  const MaskShape shape = p.mask_shape();
  const int64_t masks = by_batch_ ? p.B : 1;
  if (!p.a.mask.sees_all()) {
    spans_.resize(masks * p.L);
    for (int64_t b = 0; b < masks; ++b)
      for (int64_t i = 0; i < p.L; ++i) spans_[b * p.L + i] = p.a.mask.row(shape, b, 0, i);
  }

  tiles_per_head_ = (p.L + kTileRows - 1) / kTileRows;
  hulls_.assign(masks, Span{p.S, 0});
  tiles_.resize(p.B * p.Hq * tiles_per_head_);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t t = 0; t < tiles_per_head_; ++t) {
      Tile tile{b, 0, t * kTileRows, std::min(p.L, (t + 1) * kTileRows), {p.S, 0}, {0, p.S}, 0};
      for (int64_t i = tile.row0; i < tile.row1; ++i) {
        const Span s = row(b, i);
        if (s.begin < s.end) tile.keys = {std::min(tile.keys.begin, s.begin), std::max(tile.keys.end, s.end)};
        tile.common = {std::max(tile.common.begin, s.begin), std::min(tile.common.end, s.end)};
        tile.pairs += s.end - s.begin;
      }
      if (tile.keys.begin >= tile.keys.end) tile.keys = {0, 0};
      Span& hull = hulls_[by_batch_ ? b : 0];
      if (tile.pairs > 0) hull = {std::min(hull.begin, tile.keys.begin), std::max(hull.end, tile.keys.end)};
      for (int64_t h = 0; h < p.Hq; ++h) {
        tile.head = h;
        tiles_[(b * p.Hq + h) * tiles_per_head_ + t] = tile;
      }
      pairs_ += tile.pairs * p.Hq;
    }
  for (Span& hull : hulls_)
    if (hull.begin >= hull.end) hull = {0, 0};

  order_.resize(tiles_.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(),
                   [this](int64_t x, int64_t y) { return tiles_[x].pairs > tiles_[y].pairs; });
}

}  // namespace heed
