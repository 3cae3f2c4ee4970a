// Where the real positions of a padded batch are.
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

}  // namespace heed::translate
