// Resizing with Pillow's bytes, crops and flips.
//
// Pillow's way: one pass over the rows, one over the columns, each with weights that a filter gives in double and that
// are rounded to 22 bits behind the point; between the passes pixels are rounded to bytes. Byte-equality needs each of
// these steps as it is, down to how a half is rounded. tests/data/pictures_goldens.py has Pillow make what the test
// compares.
#include "apps/pictures/resize.h"

#include <heed/attention.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

namespace heed::pictures {
namespace {

constexpr int64_t kMaxSide = 65535, kMaxPixels = 200'000'000;

std::string sizes(int64_t width, int64_t height) { return std::to_string(width) + " x " + std::to_string(height); }

void check_new_size(int64_t width, int64_t height) {
  if (width < 1 || height < 1 || width > kMaxSide || height > kMaxSide || width * height > kMaxPixels) {
    throw Error("a picture cannot become " + sizes(width, height) + " pixels; each side needs 1 to " +
                std::to_string(kMaxSide) + ", and both together at most " + std::to_string(kMaxPixels));
  }
}

// ---- Filters: a pixel's weight by its distance ----

double sinc(double x) { return x == 0 ? 1 : std::sin(x * std::numbers::pi) / (x * std::numbers::pi); }

// How far a filter reaches, in pixels of the smaller scale.
double reach(Filter filter) {
  switch (filter) {
    case Filter::bilinear:
      return 1;
    case Filter::bicubic:
      return 2;
    case Filter::lanczos:
      return 3;
    default:
      return 0.5;
  }
}

double weight(Filter filter, double x) {
  switch (filter) {
    case Filter::bilinear:
      return std::max(0.0, 1 - std::abs(x));
    case Filter::bicubic: {
      constexpr double a = -0.5;
      x = std::abs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    }
    case Filter::lanczos:
      return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
    default:
      return x > -0.5 && x <= 0.5 ? 1 : 0;
  }
}

// ---- Weights of one pass ----

constexpr int kPointBits = 32 - 8 - 2;  // a byte, and two bits for weights below 0 and sums above 1

// What each pixel of the new line takes of the old one: `count` pixels from `first` on, with weights from `at` on.
struct Taps {
  struct Pixel {
    int64_t first = 0, count = 0;
    size_t at = 0;
  };
  std::vector<Pixel> pixels;
  std::vector<int32_t> weights;
};

Taps taps_of(int64_t old_size, int64_t new_size, Filter filter) {
  const double scale = static_cast<double>(old_size) / static_cast<double>(new_size);
  const double stretch = std::max(scale, 1.0);
  const double support = reach(filter) * stretch;
  Taps taps;
  std::vector<double> exact;
  for (int64_t i = 0; i < new_size; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const int64_t first = std::max(static_cast<int64_t>(centre - support + 0.5), int64_t{0});
    const int64_t end = std::min(static_cast<int64_t>(centre + support + 0.5), old_size);
    exact.clear();
    double sum = 0;
    for (int64_t j = first; j < end; ++j) {
      exact.push_back(weight(filter, (static_cast<double>(j) - centre + 0.5) * (1 / stretch)));
      sum += exact.back();
    }
    taps.pixels.push_back({first, end - first, taps.weights.size()});
    for (double w : exact) {
      if (sum != 0) w /= sum;
      taps.weights.push_back(static_cast<int32_t>((w < 0 ? -0.5 : 0.5) + w * (1 << kPointBits)));
    }
  }
  return taps;
}

constexpr int32_t kHalf = 1 << (kPointBits - 1);

uint8_t to_byte(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kPointBits, 0, 255)); }

Picture resize_rows(const Picture& from, int64_t width, Filter filter) {
  const Taps taps = taps_of(from.width, width, filter);
  Picture to{width, from.height, from.channels};
  to.bytes.resize(static_cast<size_t>(width * from.height * from.channels));
  uint8_t* out = to.bytes.data();
  for (int64_t y = 0; y < from.height; ++y) {
    const uint8_t* row = &from.bytes[static_cast<size_t>(y * from.width * from.channels)];
    for (const Taps::Pixel& pixel : taps.pixels) {
      const int32_t* weights = taps.weights.data() + pixel.at;
      for (int64_t c = 0; c < from.channels; ++c) {
        const uint8_t* in = row + pixel.first * from.channels + c;
        int32_t sum = kHalf;
        for (int64_t j = 0; j < pixel.count; ++j) sum += in[j * from.channels] * weights[j];
        *out++ = to_byte(sum);
      }
    }
  }
  return to;
}

Picture resize_columns(const Picture& from, int64_t height, Filter filter) {
  const Taps taps = taps_of(from.height, height, filter);
  Picture to{from.width, height, from.channels};
  const size_t row = static_cast<size_t>(from.width * from.channels);
  to.bytes.resize(row * static_cast<size_t>(height));
  std::vector<int32_t> sums(row);
  uint8_t* out = to.bytes.data();
  for (const Taps::Pixel& pixel : taps.pixels) {
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int64_t j = 0; j < pixel.count; ++j) {
      const int32_t w = taps.weights[pixel.at + static_cast<size_t>(j)];
      const uint8_t* in = from.bytes.data() + static_cast<size_t>(pixel.first + j) * row;
      for (size_t x = 0; x < row; ++x) sums[x] += in[x] * w;
    }
    out = std::transform(sums.begin(), sums.end(), out, to_byte);
  }
  return to;
}

// ---- Whole pixels, of pictures and labels alike ----

// Where each pixel of a new line comes from. Pillow adds the steps up instead of multiplying, so their rounding does,
// too.
std::vector<int64_t> nearest(int64_t old_size, int64_t new_size) {
  const double step = static_cast<double>(old_size) / static_cast<double>(new_size);
  double at = step * 0.5;
  std::vector<int64_t> places;
  for (int64_t i = 0; i < new_size; ++i, at += step) {
    places.push_back(std::min(static_cast<int64_t>(at), old_size - 1));
  }
  return places;
}

// The pixels at these columns of these rows. A pixel is `channels` values; `width` is that of the old picture.
template <class Value>
std::vector<Value> pick(const std::vector<Value>& from, int64_t width, int64_t channels,
                        const std::vector<int64_t>& columns, const std::vector<int64_t>& rows) {
  std::vector<Value> to(columns.size() * rows.size() * static_cast<size_t>(channels));
  auto out = to.begin();
  for (const int64_t y : rows) {
    for (const int64_t x : columns) out = std::copy_n(from.begin() + (y * width + x) * channels, channels, out);
  }
  return to;
}

std::vector<int64_t> range(int64_t first, int64_t count) {
  std::vector<int64_t> places(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) places[static_cast<size_t>(i)] = first + i;
  return places;
}

// Pictures and labels differ in the names and the channels of their values.
Picture picked(const Picture& from, const std::vector<int64_t>& columns, const std::vector<int64_t>& rows) {
  return {static_cast<int64_t>(columns.size()), static_cast<int64_t>(rows.size()), from.channels,
          pick(from.bytes, from.width, from.channels, columns, rows)};
}
Labels picked(const Labels& from, const std::vector<int64_t>& columns, const std::vector<int64_t>& rows) {
  return {static_cast<int64_t>(columns.size()), static_cast<int64_t>(rows.size()),
          pick(from.values, from.width, 1, columns, rows)};
}
void check(const Picture& picture) { check_picture(picture); }
void check(const Labels& labels) { check_labels(labels); }

template <class Pixels>
Pixels cropped(const Pixels& from, int64_t left, int64_t top, int64_t width, int64_t height) {
  check(from);
  if (left < 0 || top < 0 || width < 1 || height < 1 || width > from.width - left || height > from.height - top) {
    throw Error("a part of " + sizes(width, height) + " pixels at (" + std::to_string(left) + ", " +
                std::to_string(top) + ") is not inside a picture of " + sizes(from.width, from.height) +
                "; take a smaller part or resize the picture first");
  }
  return picked(from, range(left, width), range(top, height));
}

template <class Pixels>
Pixels centre_cropped(const Pixels& from, int64_t width, int64_t height) {
  const auto half = [](int64_t rest) { return rest / 2 + (rest % 2 == 1 && rest / 2 % 2 == 1 ? 1 : 0); };
  if (width > from.width || height > from.height) {
    throw Error("the middle " + sizes(width, height) + " pixels of a picture of " + sizes(from.width, from.height) +
                " were asked for; resize it first");
  }
  return cropped(from, half(from.width - width), half(from.height - height), width, height);
}

template <class Pixels>
Pixels flipped(const Pixels& from) {
  check(from);
  std::vector<int64_t> columns = range(0, from.width);
  std::reverse(columns.begin(), columns.end());
  return picked(from, columns, range(0, from.height));
}

}  // namespace

Picture resize(const Picture& picture, int64_t width, int64_t height, Filter filter) {
  check_picture(picture);
  check_new_size(width, height);
  if (width == picture.width && height == picture.height) return picture;
  if (filter == Filter::nearest) {
    return picked(picture, nearest(picture.width, width), nearest(picture.height, height));
  }
  if (width == picture.width) return resize_columns(picture, height, filter);
  if (height == picture.height) return resize_rows(picture, width, filter);
  return resize_columns(resize_rows(picture, width, filter), height, filter);
}

Labels resize(const Labels& labels, int64_t width, int64_t height) {
  check_labels(labels);
  check_new_size(width, height);
  return picked(labels, nearest(labels.width, width), nearest(labels.height, height));
}

Picture resize_shorter_side(const Picture& picture, int64_t side, Filter filter) {
  check_picture(picture);
  if (side < 1 || side > kMaxSide) check_new_size(side, side);
  const bool wide = picture.width > picture.height;
  const int64_t longer = wide ? side * picture.width / picture.height : side * picture.height / picture.width;
  return resize(picture, wide ? longer : side, wide ? side : longer, filter);
}

Picture crop(const Picture& picture, int64_t left, int64_t top, int64_t width, int64_t height) {
  return cropped(picture, left, top, width, height);
}
Labels crop(const Labels& labels, int64_t left, int64_t top, int64_t width, int64_t height) {
  return cropped(labels, left, top, width, height);
}

Picture centre_crop(const Picture& picture, int64_t width, int64_t height) {
  return centre_cropped(picture, width, height);
}
Labels centre_crop(const Labels& labels, int64_t width, int64_t height) {
  return centre_cropped(labels, width, height);
}

Picture flip(const Picture& picture) { return flipped(picture); }
Labels flip(const Labels& labels) { return flipped(labels); }

}  // namespace heed::pictures
