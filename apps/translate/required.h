// What a translation must contain.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace heed::translate {

struct Required {
  std::string text;
  // The bytes of the source that it stands for, so that it gets their place. Equal: nothing is known of it.
  size_t begin = 0, end = 0;
  // No letter or digit may touch it, where the script puts spaces between words: "%s" must not become "%sen".
  bool apart = false;
  bool operator==(const Required&) const = default;
};

std::vector<std::string> texts_of(std::span<const Required> required);

// Those of the wanted texts that a text does not have, each as often as it lacks it. An empty one is never lacking.
std::vector<std::string> lacking(std::string_view text, std::span<const std::string> wanted);

// How often a part, which is not empty, occurs in a text, without overlaps.
int64_t occurrences(std::string_view text, std::string_view part);

}  // namespace heed::translate
