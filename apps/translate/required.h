// What a translation must contain.
#pragma once

#include <cstddef>
#include <string>

namespace heed::translate {

struct Required {
  std::string text;
  // The bytes of the source that it stands for, so that it gets their place. Equal: nothing is known of it.
  size_t begin = 0, end = 0;
  // No letter or digit may touch it, where the script puts spaces between words: "%s" must not become "%sen".
  bool apart = false;
  bool operator==(const Required&) const = default;
};

}  // namespace heed::translate
