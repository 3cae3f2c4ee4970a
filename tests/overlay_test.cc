// apps/pictures/overlay.cc and tensors.cc: maps over pictures, colours that differ, pictures as tensors and back.
#include "apps/pictures/overlay.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "apps/pictures/tensors.h"
#include "said.h"

namespace heed::pictures {
namespace {

using heed::tests::error_of;
using torch::Tensor;

Picture plain(int64_t width, int64_t height, int64_t channels, uint8_t value) {
  return {width, height, channels, std::vector<uint8_t>(static_cast<size_t>(width * height * channels), value)};
}

Colour colour_at(const Picture& picture, int64_t x, int64_t y) {
  const uint8_t* pixel = &picture.bytes[static_cast<size_t>(3 * (y * picture.width + x))];
  return {pixel[0], pixel[1], pixel[2]};
}

// CIE lightness, 0 to 100: another measure than the one the colours are made by.
double lightness(Colour c) {
  const auto linear = [](uint8_t v) {
    return v / 255.0 <= 0.04045 ? v / 255.0 / 12.92 : std::pow((v / 255.0 + 0.055) / 1.055, 2.4);
  };
  const double y = 0.2126 * linear(c.red) + 0.7152 * linear(c.green) + 0.0722 * linear(c.blue);
  return y > 0.008856 ? 116 * std::cbrt(y) - 16 : 903.3 * y;
}

TEST(Overlay, HeatColoursGrowLighterEvenly) {
  EXPECT_LT(lightness(heat_colour(0)), 8);
  EXPECT_GT(lightness(heat_colour(1)), 90);
  for (int i = 0; i < 16; ++i) {
    const double step = lightness(heat_colour((i + 1) / 16.0)) - lightness(heat_colour(i / 16.0));
    EXPECT_GT(step, 3) << i;
    EXPECT_LT(step, 9) << i;
  }
  const Colour low = heat_colour(0.2), middle = heat_colour(0.5), high = heat_colour(1);
  EXPECT_GT(low.blue, low.green);  // violet
  EXPECT_TRUE((middle.red > 150 && middle.red > 2 * std::max(middle.green, middle.blue)) ||
              middle.red > middle.blue + 40);                                     // red
  EXPECT_TRUE(high.red > 230 && high.green > 220 && high.blue < high.green - 20)  // yellow
      << int{high.red} << " " << int{high.green} << " " << int{high.blue};
  EXPECT_EQ(heat_colour(-3), heat_colour(0));
  EXPECT_EQ(heat_colour(7), heat_colour(1));
  EXPECT_EQ(heat_colour(std::nan("")), heat_colour(0));
}

TEST(Overlay, DistinctColours) {
  const std::vector<Colour> all = distinct_colours(256), few = distinct_colours(12);
  EXPECT_TRUE(std::equal(few.begin(), few.end(), all.begin()));
  std::set<std::vector<int>> seen = {{0, 0, 0}, {255, 255, 255}};
  for (const Colour& c : all) EXPECT_TRUE(seen.insert({c.red, c.green, c.blue}).second);
  for (size_t i = 0; i < few.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const int apart = std::abs(few[i].red - few[j].red) + std::abs(few[i].green - few[j].green) +
                        std::abs(few[i].blue - few[j].blue);
      EXPECT_GT(apart, 60) << i << " and " << j;
    }
  }
  EXPECT_TRUE(distinct_colours(0).empty());
  EXPECT_SAYS(error_of([] { distinct_colours(257); }), "257 colours");
}

TEST(Overlay, Heat) {
  Tensor heat = torch::zeros({2, 2});
  heat[0][1] = 4;
  const Picture grey = plain(40, 20, 1, 100);
  const Picture over = heat_overlay(grey, heat, {.opacity = 1});
  EXPECT_EQ(over.width, 40);
  EXPECT_EQ(over.channels, 3);
  // A bicubic's corner is nearly, but not quite, the value there.
  EXPECT_NEAR(lightness(colour_at(over, 0, 19)), lightness(heat_colour(0)), 2);
  EXPECT_NEAR(lightness(colour_at(over, 39, 0)), lightness(heat_colour(1)), 2);
  EXPECT_NEAR(lightness(colour_at(over, 0, 0)), lightness(heat_colour(0)), 2);
  // Smooth: from left to right along the top no step is large.
  for (int64_t x = 1; x < 40; ++x) {
    const double step = lightness(colour_at(over, x, 0)) - lightness(colour_at(over, x - 1, 0));
    EXPECT_TRUE(step > -1.5 && step < 12) << x << ": " << step;
  }
  // Half of it, on a scale of the caller's, on which 4 is in the middle.
  const Colour half = heat_colour(0.5);
  const Colour mixed =
      colour_at(heat_overlay(plain(2, 2, 3, 100), heat, {.opacity = 0.5, .low = -4, .high = 12}), 1, 0);
  EXPECT_NEAR(mixed.red, (half.red + 100) / 2, 2);
  EXPECT_NEAR(mixed.blue, (half.blue + 100) / 2, 2);
  EXPECT_EQ(heat_overlay(plain(4, 4, 3, 77), heat, {.opacity = 0}).bytes, plain(4, 4, 3, 77).bytes);
  EXPECT_EQ(colour_at(heat_overlay(grey, torch::full({3, 3}, 5.0), {.opacity = 1}), 7, 7), heat_colour(0));

  EXPECT_SAYS(error_of([&] { heat_overlay(grey, torch::zeros({1, 2, 2})); }), "has the shape [1, 2, 2]");
  EXPECT_SAYS(error_of([&] { heat_overlay(grey, Tensor()); }), "undefined");
  EXPECT_SAYS(error_of([&] { heat_overlay(grey, torch::zeros({0, 2})); }), "[0, 2]");
  heat[1][0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_SAYS(error_of([&] { heat_overlay(grey, heat); }), "is nan at [1, 0]");
  EXPECT_SAYS(error_of([&] { heat_overlay(grey, torch::zeros({2, 2}), {.opacity = 1.5}); }), "opacity is 1.5");
  EXPECT_SAYS(error_of([&] { heat_overlay(grey, torch::zeros({2, 2}), {.low = 3, .high = 2}); }), "from 3.0");
  EXPECT_SAYS(error_of([&] { heat_overlay(grey, torch::zeros({2, 2}), {.high = INFINITY}); }), "finite");
}

TEST(Overlay, LabelColours) {
  const Picture picture = plain(3, 1, 1, 100);
  const Colour palette[] = {{0, 0, 0}, {255, 0, 100}};
  const Picture over = label_overlay(picture, {3, 1, {0, 1, kIgnoredLabel}}, palette, 0.5);
  EXPECT_EQ(over.bytes, (std::vector<uint8_t>{50, 50, 50, 178, 50, 100, 100, 100, 100}));
  EXPECT_SAYS(error_of([&] { label_overlay(picture, {1, 3, {0, 1, 1}}, palette); }), "1 x 3 and the picture is 3 x 1");
  EXPECT_SAYS(error_of([&] { label_overlay(picture, {3, 1, {0, 1, 2}}, palette); }), "hold 2, but the palette has 2");
  EXPECT_SAYS(error_of([&] { label_overlay(picture, {3, 1, {0, 1, 1}}, palette, NAN); }), "opacity");
}

TEST(Tensors, Pictures) {
  const Picture picture{2, 1, 3, {0, 51, 255, 102, 153, 204}};
  const Tensor plus = to_tensor(picture);
  EXPECT_EQ(plus.sizes(), (std::vector<int64_t>{3, 1, 2}));
  EXPECT_TRUE(torch::allclose(plus.flatten(), torch::tensor({-1.0, -0.2, -0.6, 0.2, 1.0, 0.6}, torch::kFloat32)));
  const Normalisation imagenet{{0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};
  EXPECT_NEAR(to_tensor(picture, imagenet)[2][0][1].item<double>(), (0.8 - 0.406) / 0.225, 1e-6);
  Picture every{16, 16, 1};
  for (int i = 0; i < 256; ++i) every.bytes.push_back(static_cast<uint8_t>(i));
  EXPECT_EQ(from_tensor(to_tensor(every)).bytes, every.bytes);
  EXPECT_EQ(from_tensor(to_tensor(picture, imagenet), imagenet).bytes, picture.bytes);
  const Tensor wild = torch::tensor({-9.0f, 9.0f, NAN, INFINITY}).view({1, 2, 2});
  EXPECT_EQ(from_tensor(wild).bytes, (std::vector<uint8_t>{0, 255, 0, 255}));
  // Not contiguous, another dtype.
  EXPECT_EQ(from_tensor(to_tensor(every).to(torch::kFloat64).transpose(1, 2)).bytes[1], 16);

  EXPECT_SAYS(error_of([&] { to_tensor(picture, {{1, 2}, {1}}); }), "3 channels got 2 means and 1 deviations");
  EXPECT_SAYS(error_of([&] { to_tensor(picture, {{0}, {1, 0, 1}}); }), "channel 1 got mean");
  EXPECT_SAYS(error_of([&] { from_tensor(torch::zeros({2, 4, 4})); }), "[2, 4, 4] is no picture");
  EXPECT_SAYS(error_of([&] { from_tensor(Tensor()); }), "no picture");
}

TEST(Tensors, Labels) {
  const Labels labels{2, 2, {0, 3, kIgnoredLabel, 65534}};
  const Tensor tensor = to_tensor(labels);
  EXPECT_TRUE(torch::equal(tensor, torch::tensor({{int64_t{0}, int64_t{3}}, {int64_t{-100}, int64_t{65534}}})));
  EXPECT_EQ(labels_from_tensor(tensor).values, labels.values);
  EXPECT_EQ(labels_from_tensor(tensor.t()).values[1], kIgnoredLabel);
  EXPECT_SAYS(error_of([&] { labels_from_tensor(tensor - 1); }), "holds -1;");
  EXPECT_SAYS(error_of([&] { labels_from_tensor(torch::full({1, 1}, 65535, torch::kInt64)); }), "holds 65535");
  EXPECT_SAYS(error_of([&] { labels_from_tensor(torch::zeros({2, 2})); }), "[2, 2] is no mask; int64");
}

}  // namespace
}  // namespace heed::pictures
