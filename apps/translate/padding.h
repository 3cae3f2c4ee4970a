// Where the real positions of a padded batch are, and how hypotheses lie over the sentences they translate.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace heed::translate {

// Indices of the real positions, row after row: position t of row b is at b * stride_row + t * stride_step. [sum of
// lengths] int64, for index_select on a flattened batch.
inline torch::Tensor real_positions(const std::vector<int64_t>& lengths, int64_t stride_row, int64_t stride_step) {
  std::vector<int64_t> indices;
  for (size_t b = 0; b < lengths.size(); ++b) {
    for (int64_t t = 0; t < lengths[b]; ++t) {
      indices.push_back(static_cast<int64_t>(b) * stride_row + t * stride_step);
    }
  }
  return torch::tensor(indices, torch::kInt64);
}

// Hypothesis i belongs to sentence sources[i / group]; hypotheses of a sentence lie side by side.
struct Layout {
  std::vector<int64_t> sources;
  int64_t group = 1;
};

// The layout with the largest group: [5 5 5 7 7 7] is {[5 7], 3}, while [5 5 7] is {[5 5 7], 1}.
inline Layout layout_of(const std::vector<int64_t>& sources) {
  const auto n = static_cast<int64_t>(sources.size());
  int64_t group = 0;
  for (int64_t begin = 0, end; begin < n; begin = end) {
    for (end = begin + 1; end < n && sources[static_cast<size_t>(end)] == sources[static_cast<size_t>(begin)];) ++end;
    if (group == 0) group = end - begin;
    if (end - begin != group) return {sources, 1};
  }
  Layout layout{{}, group == 0 ? 1 : group};
  for (int64_t i = 0; i < n; i += layout.group) layout.sources.push_back(sources[static_cast<size_t>(i)]);
  return layout;
}

}  // namespace heed::translate
