// Heat maps and label maps over pictures; colours that the eye tells apart.
#include "apps/pictures/overlay.h"

#include <heed/attention.h>
#include <torch/nn/functional/upsampling.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <sstream>
#include <string>
#include <utility>

namespace heed::pictures {
namespace {

using torch::Tensor;

// ---- OKLab (Ottosson 2020): distances and lightness as the eye sees them ----

struct Lab {
  double lightness = 0, a = 0, b = 0;
};

double to_linear(uint8_t byte) {
  const double v = byte / 255.0;
  return v <= 0.04045 ? v / 12.92 : std::pow((v + 0.055) / 1.055, 2.4);
}

uint8_t from_linear(double v) {
  v = v <= 0.0031308 ? 12.92 * v : 1.055 * std::pow(v, 1 / 2.4) - 0.055;
  return static_cast<uint8_t>(std::lround(255 * std::clamp(v, 0.0, 1.0)));
}

Lab to_lab(Colour colour) {
  const double r = to_linear(colour.red), g = to_linear(colour.green), b = to_linear(colour.blue);
  const double l = std::cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const double m = std::cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const double s = std::cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return {0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
          1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
          0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s};
}

// Colours outside of sRGB are cut to it.
Colour from_lab(Lab lab) {
  const auto cubed = [&](double a, double b) {
    const double root = lab.lightness + a * lab.a + b * lab.b;
    return root * root * root;
  };
  const double l = cubed(0.3963377774, 0.2158037573);
  const double m = cubed(-0.1055613458, -0.0638541728);
  const double s = cubed(-0.0894841775, -1.2914855480);
  return {from_linear(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
          from_linear(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
          from_linear(-0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s)};
}

double distance(Lab x, Lab y) { return std::hypot(x.lightness - y.lightness, x.a - y.a, x.b - y.b); }

// ---- Painting ----

void check_opacity(double opacity) {
  if (!(opacity >= 0 && opacity <= 1)) {
    throw Error("the overlay's opacity is " + std::to_string(opacity) + "; it must be from 0 to 1");
  }
}

void paint(uint8_t* pixel, Colour colour, double opacity) {
  const uint8_t over[] = {colour.red, colour.green, colour.blue};
  for (int c = 0; c < 3; ++c) {
    pixel[c] = static_cast<uint8_t>(std::lround(pixel[c] * (1 - opacity) + over[c] * opacity));
  }
}

// The map as float64 [1, 1, h, w].
Tensor checked_heat(const Tensor& heat) {
  if (!heat.defined() || heat.dim() != 2 || heat.numel() == 0) {
    std::ostringstream shape;
    if (heat.defined()) shape << "has the shape " << heat.sizes();
    throw Error("the heat map " + (heat.defined() ? shape.str() : "is undefined") + "; it needs [height, width]");
  }
  const Tensor values = heat.detach().to(torch::kCPU, torch::kFloat64).contiguous();
  const double* in = values.data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    if (!std::isfinite(in[i])) {
      throw Error("the heat map is " + std::to_string(in[i]) + " at [" + std::to_string(i / heat.size(1)) + ", " +
                  std::to_string(i % heat.size(1)) + "]; its values must be finite");
    }
  }
  return values.view({1, 1, heat.size(0), heat.size(1)});
}

}  // namespace

Colour heat_colour(double value) {
  value = value > 0 ? std::min(value, 1.0) : 0;  // NaN compares false
  // From violet (hue 300 degrees) the short way over red to yellow (100), strongest in the middle, where sRGB has room.
  const double hue = (300 + 160 * value) * std::numbers::pi / 180;
  const double chroma = 0.06 + 0.16 * std::sin(std::numbers::pi * std::min(1.0, 0.05 + 0.85 * value));
  return from_lab({0.15 + 0.80 * value, chroma * std::cos(hue), chroma * std::sin(hue)});
}

std::vector<Colour> distinct_colours(int64_t n) {
  if (n < 0 || n > 256) {
    throw Error(std::to_string(n) + " colours were asked for; there are 0 to 256");
  }
  // Of a grid over sRGB always the colour whose nearest neighbour among those chosen is the farthest. Black and white
  // count as chosen: they are what is written on and with.
  std::vector<std::pair<Colour, Lab>> grid;
  constexpr int kSteps = 9;
  for (int i = 0; i < kSteps * kSteps * kSteps; ++i) {
    const auto level = [](int step) { return static_cast<uint8_t>(step % kSteps * 255 / (kSteps - 1)); };
    const Colour colour{level(i / kSteps / kSteps), level(i / kSteps), level(i)};
    grid.emplace_back(colour, to_lab(colour));
  }
  std::vector<double> nearest(grid.size(), std::numeric_limits<double>::infinity());
  const auto choose = [&](Lab lab) {
    for (size_t i = 0; i < grid.size(); ++i) nearest[i] = std::min(nearest[i], distance(grid[i].second, lab));
  };
  choose(to_lab({0, 0, 0}));
  choose(to_lab({255, 255, 255}));
  std::vector<Colour> colours;
  while (static_cast<int64_t>(colours.size()) < n) {
    const auto& [colour, lab] = grid[static_cast<size_t>(std::ranges::max_element(nearest) - nearest.begin())];
    colours.push_back(colour);
    choose(lab);
  }
  return colours;
}

Picture heat_overlay(const Picture& picture, const Tensor& heat, const HeatOptions& options) {
  check_opacity(options.opacity);
  const Tensor map = checked_heat(heat);
  const double low = options.low.value_or(map.min().item<double>());
  const double high = options.high.value_or(map.max().item<double>());
  if (!(low <= high) || !std::isfinite(high - low)) {
    throw Error("the heat map is to be painted from " + std::to_string(low) + " to " + std::to_string(high) +
                "; both must be finite, and the first not above the second");
  }
  Picture painted = with_channels(picture, 3);
  namespace functional = torch::nn::functional;
  const Tensor large = functional::interpolate(map, functional::InterpolateFuncOptions()
                                                        .size(std::vector<int64_t>{painted.height, painted.width})
                                                        .mode(torch::kBicubic)
                                                        .align_corners(false))
                           .contiguous();
  const double* in = large.data_ptr<double>();
  std::array<Colour, 256> colours;
  for (size_t i = 0; i < colours.size(); ++i) colours[i] = heat_colour(static_cast<double>(i) / 255);
  const double scale = high > low ? 255 / (high - low) : 0;
  for (int64_t i = 0; i < painted.width * painted.height; ++i) {
    const double place = std::clamp((in[i] - low) * scale, 0.0, 255.0);
    paint(&painted.bytes[static_cast<size_t>(3 * i)], colours[static_cast<size_t>(std::lround(place))],
          options.opacity);
  }
  return painted;
}

Picture label_overlay(const Picture& picture, const Labels& labels, std::span<const Colour> palette, double opacity) {
  check_opacity(opacity);
  check_labels(labels);
  Picture painted = with_channels(picture, 3);
  if (labels.width != painted.width || labels.height != painted.height) {
    throw Error("the labels are " + std::to_string(labels.width) + " x " + std::to_string(labels.height) +
                " and the picture is " + std::to_string(painted.width) + " x " + std::to_string(painted.height) +
                "; resize the labels to the picture");
  }
  for (size_t i = 0; i < labels.values.size(); ++i) {
    const uint16_t label = labels.values[i];
    if (label == kIgnoredLabel) continue;
    if (label >= palette.size()) {
      throw Error("the labels hold " + std::to_string(label) + ", but the palette has " +
                  std::to_string(palette.size()) + " colours; give every label one");
    }
    paint(&painted.bytes[3 * i], palette[label], opacity);
  }
  return painted;
}

}  // namespace heed::pictures
