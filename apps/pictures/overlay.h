// What a model saw, drawn over the picture: heat maps and label maps, and the colours for both.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "apps/pictures/picture.h"

namespace heed::pictures {

// The colour of a value in [0, 1], from nearly black over violet, red and orange to light yellow: lightness grows
// evenly to the eye (a straight line in OKLab, Ottosson 2020), so it reads the same in grey. Outside values are cut,
// NaN is 0.
Colour heat_colour(double value);

// n colours that are as far from each other as they can be, each chosen after those before, so that the first ones do
// not depend on n. None is black or white. Throws heed::Error unless 0 <= n <= 256, what a PNG's palette holds.
std::vector<Colour> distinct_colours(int64_t n);

struct HeatOptions {
  double opacity = 0.6;  // of the map over the picture, 0 to 1
  std::optional<double> low = {},
                        high = {};  // the values painted darkest and lightest; missing: the map's smallest and largest
};

// The picture in colour with the map [h, w] over it, brought to the picture's size bicubically. A map whose values are
// all the same is painted darkest. Throws heed::Error when the map has another shape, is empty or not finite, when low
// is above high, and when the opacity is not in [0, 1].
Picture heat_overlay(const Picture& picture, const torch::Tensor& heat, const HeatOptions& options = {});

// The picture in colour, each pixel mixed with its label's colour; pixels labelled kIgnoredLabel stay as they are.
// Throws heed::Error when the sizes differ, a label has no colour, or the opacity is not in [0, 1].
Picture label_overlay(const Picture& picture, const Labels& labels, std::span<const Colour> palette,
                      double opacity = 0.5);

}  // namespace heed::pictures
