// How the hypotheses of a beam search lie over the sentences they translate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace heed::nn {

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

}  // namespace heed::nn
