// Pictures and masks as tensors, and back.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "apps/pictures/picture.h"

namespace heed::pictures {

// What a channel's values in [0, 1] become: (x - mean) / deviation. One number for each channel, or one for all. As
// they stand, [-1, 1]; ImageNet's are {0.485, 0.456, 0.406} and {0.229, 0.224, 0.225}.
struct Normalisation {
  std::vector<double> mean = {0.5};
  std::vector<double> deviation = {0.5};
};

// [C, H, W] float32: (byte / 255 - mean) / deviation. Throws heed::Error when the numbers do not fit the channels or a
// deviation is not positive.
torch::Tensor to_tensor(const Picture& picture, const Normalisation& normalisation = {});

// The picture of a tensor [C, H, W], C 1 or 3: the inverse, rounded to the nearest byte, what lies outside cut to 0 and
// 255 (NaN to 0). Throws heed::Error for other shapes.
Picture from_tensor(const torch::Tensor& tensor, const Normalisation& normalisation = {});

// The target that LibTorch's cross entropy leaves out unless told another.
inline constexpr int64_t kIgnoredTarget = -100;

// [H, W] int64, kIgnoredLabel as kIgnoredTarget; and back, for int64 values that are labels or kIgnoredTarget, else
// heed::Error.
torch::Tensor to_tensor(const Labels& labels);
Labels labels_from_tensor(const torch::Tensor& tensor);

}  // namespace heed::pictures
