// Pictures with masks: where they come from, and what of them goes into the network.
#include "apps/segment/data.h"

#include <ATen/Parallel.h>
#include <heed/attention.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "apps/pictures/resize.h"
#include "apps/pictures/tensors.h"
#include "libtorch/splitmix.h"

namespace heed::segment {
namespace {

using pictures::Labels;
using pictures::Picture;

constexpr int64_t kSkippedNamed = 10;  // files that could not be read and are called by name

}  // namespace

// ---- Reading ----

MaskedSet read_data(const std::string& picture_folder, const std::string& mask_folder, const DataOptions& options) {
  MaskedSet set;
  set.classes = options.classes;
  const pictures::MaskPairs found = pictures::find_mask_pairs(picture_folder, mask_folder);
  set.notes.push_back(found.summary());
  pictures::MaskedPictures read = pictures::read_mask_pairs(
      found.pairs, options.classes, {.channels = options.channels}, [&](Picture& picture, Labels& mask) {
        if (std::min(picture.width, picture.height) <= options.shorter_side) return;
        picture = pictures::resize_shorter_side(picture, options.shorter_side);
        mask = pictures::resize(mask, picture.width, picture.height);
      });
  if (!read.skipped.empty()) set.notes.push_back(pictures::summary(read.skipped, kSkippedNamed));
  set.pictures = std::move(read.pictures);
  set.masks = std::move(read.masks);
  return set;
}

std::vector<double> shares_of(const MaskedSet& set) {
  std::vector<double> shares(set.classes.classes.size(), 0);
  double all = 0;
  for (const Labels& mask : set.masks) {
    for (const uint16_t label : mask.values) {
      if (label == pictures::kIgnoredLabel) continue;
      shares[label] += 1;
      all += 1;
    }
  }
  for (double& share : shares) share /= std::max(all, 1.0);
  return shares;
}

// ---- Batches ----

namespace {

constexpr int64_t kDraws = 8;       // numbers in [0, 1) that decide about a picture
constexpr int64_t kNoiseDraws = 2;  // and about its noise, where there may be some

// What happens to one picture. Its part's pixel (y, x) is the picture's at top + y * step and left + x * step.
struct Change {
  double top = 0, left = 0, step = 1;
  bool flip = false, flip_vertical = false;
  double brightness = 1, contrast = 1, saturation = 1;
  double noise = 0;  // its standard deviation in bytes' range
  uint64_t noise_seed = 0;
};

Change change_of(const double* chance, const Augmentation& a, const Picture& picture) {
  Change change;
  // As likely to be doubled as to be halved.
  change.step = std::pow(1 + a.scale, 1 - 2 * chance[0]);
  const auto place = [&](double u, int64_t size, int64_t part) {
    const double slack = static_cast<double>(size) - static_cast<double>(part) * change.step;
    // A part larger than the picture has it in itself, at a random place, too.
    const double offset = a.scale == 0 ? std::floor(u * (slack + 1)) : u * slack;
    return a.scale == 0 ? offset : offset + (change.step - 1) / 2;
  };
  change.top = place(chance[1], picture.height, a.height);
  change.left = place(chance[2], picture.width, a.width);
  change.flip = a.flip && chance[3] < 0.5;
  change.flip_vertical = a.flip_vertical && chance[4] < 0.5;
  const auto factor = [&](double u) { return 1 + a.colour * (2 * u - 1); };
  change.brightness = factor(chance[5]);
  change.contrast = factor(chance[6]);
  change.saturation = factor(chance[7]);
  if (a.noise > 0) {
    change.noise = 255 * a.noise * std::max(0.0, 2 * chance[8] - 1);
    change.noise_seed = static_cast<uint64_t>(chance[9] * 0x1p53);
  }
  return change;
}

// The luma of ITU-R 601, or the grey itself.
float luma(const float* pixel, int64_t channels) {
  return channels == 3 ? 0.299f * pixel[0] + 0.587f * pixel[1] + 0.114f * pixel[2] : pixel[0];
}

// The part, [height, width, channels] in bytes' range, and its labels.
void take_part(const Picture& picture, const Labels& mask, const Change& change, const Augmentation& a,
               std::vector<float>& part, int64_t* targets) {
  const int64_t channels = picture.channels;
  part.resize(static_cast<size_t>(a.height * a.width * channels));
  for (int64_t y = 0; y < a.height; ++y) {
    const int64_t row = change.flip_vertical ? a.height - 1 - y : y;
    const double at_y = change.top + static_cast<double>(row) * change.step;
    const double inside_y = std::clamp(at_y, 0.0, static_cast<double>(picture.height - 1));
    const auto y0 = static_cast<int64_t>(inside_y);
    const int64_t y1 = std::min(y0 + 1, picture.height - 1);
    const auto fy = static_cast<float>(inside_y - static_cast<double>(y0));
    const int64_t nearest_y = std::llround(at_y);
    for (int64_t x = 0; x < a.width; ++x) {
      const int64_t column = change.flip ? a.width - 1 - x : x;
      const double at_x = change.left + static_cast<double>(column) * change.step;
      const double inside_x = std::clamp(at_x, 0.0, static_cast<double>(picture.width - 1));
      const auto x0 = static_cast<int64_t>(inside_x);
      const int64_t x1 = std::min(x0 + 1, picture.width - 1);
      const auto fx = static_cast<float>(inside_x - static_cast<double>(x0));
      float* out = part.data() + (y * a.width + x) * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const auto byte = [&](int64_t i, int64_t j) {
          return static_cast<float>(picture.bytes[static_cast<size_t>((i * picture.width + j) * channels + c)]);
        };
        const float above = byte(y0, x0) * (1 - fx) + byte(y0, x1) * fx;
        const float below = byte(y1, x0) * (1 - fx) + byte(y1, x1) * fx;
        out[c] = above * (1 - fy) + below * fy;
      }
      const int64_t nearest_x = std::llround(at_x);
      const bool inside = nearest_y >= 0 && nearest_y < picture.height && nearest_x >= 0 && nearest_x < picture.width;
      const uint16_t label =
          inside ? mask.values[static_cast<size_t>(nearest_y * picture.width + nearest_x)] : pictures::kIgnoredLabel;
      targets[y * a.width + x] = label == pictures::kIgnoredLabel ? pictures::kIgnoredTarget : label;
    }
  }
}

void change_colours(std::vector<float>& part, int64_t channels, const Change& change) {
  const size_t pixels = part.size() / static_cast<size_t>(channels);
  double mean = 0;
  for (size_t i = 0; i < pixels; ++i) mean += luma(part.data() + i * static_cast<size_t>(channels), channels);
  const auto middle = static_cast<float>(mean / static_cast<double>(pixels) * change.brightness);
  const auto brightness = static_cast<float>(change.brightness), contrast = static_cast<float>(change.contrast),
             saturation = static_cast<float>(channels == 3 ? change.saturation : 1);
  for (size_t i = 0; i < pixels; ++i) {
    float* pixel = part.data() + i * static_cast<size_t>(channels);
    for (int64_t c = 0; c < channels; ++c) pixel[c] = (pixel[c] * brightness - middle) * contrast + middle;
    const float grey = luma(pixel, channels);
    for (int64_t c = 0; c < channels; ++c) {
      pixel[c] = std::clamp(grey + (pixel[c] - grey) * saturation, 0.0f, 255.0f);
    }
  }
}

// The sum of four uniform numbers, which is as near to a normal one as noise needs.
void add_noise(std::vector<float>& part, const Change& change) {
  const double scale = change.noise * std::sqrt(3.0) / 65536;  // a uniform number's variance is 1/12
  for (size_t i = 0; i < part.size(); ++i) {
    const uint64_t bits = nn::splitmix(change.noise_seed, i);
    const auto sum =
        static_cast<double>((bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48));
    part[i] = std::clamp(part[i] + static_cast<float>(scale * (sum - 2 * 65535.0)), 0.0f, 255.0f);
  }
}

}  // namespace

Batch make_batch(const MaskedSet& set, std::span<const int64_t> rows, const pictures::Preprocess& preprocess,
                 const Augmentation& a) {
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t channels = set.pictures.front().channels;
  // Straight lines, of which a byte's number is the value at a whole place.
  const auto tables = pictures::numbers_of(preprocess, channels);
  const int64_t draws = kDraws + (a.noise > 0 ? kNoiseDraws : 0);
  const torch::Tensor chances = torch::rand({count, draws}, torch::kFloat64);
  Batch batch{torch::empty({count, channels, a.height, a.width}, torch::kFloat32),
              torch::empty({count, a.height, a.width}, torch::kInt64)};
  float* const out = batch.pictures.data_ptr<float>();
  int64_t* const targets = batch.targets.data_ptr<int64_t>();
  const double* const chance = chances.data_ptr<double>();
  const int64_t pixels = a.height * a.width;
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> part;
    for (int64_t i = begin; i < end; ++i) {
      const auto row = static_cast<size_t>(rows[static_cast<size_t>(i)]);
      const Change change = change_of(chance + i * draws, a, set.pictures[row]);
      take_part(set.pictures[row], set.masks[row], change, a, part, targets + i * pixels);
      if (a.colour > 0) change_colours(part, channels, change);
      if (change.noise > 0) add_noise(part, change);
      for (int64_t c = 0; c < channels; ++c) {
        const auto& table = tables[static_cast<size_t>(c)];
        const float low = table[0], slope = (table[255] - table[0]) / 255;
        float* plane = out + (i * channels + c) * pixels;
        for (int64_t p = 0; p < pixels; ++p) plane[p] = low + slope * part[static_cast<size_t>(p * channels + c)];
      }
    }
  });
  return batch;
}

torch::Tensor whole(const Picture& picture, const pictures::Preprocess& preprocess) {
  const auto tables = pictures::numbers_of(preprocess, picture.channels);
  const int64_t pixels = picture.height * picture.width;
  torch::Tensor result = torch::empty({1, picture.channels, picture.height, picture.width}, torch::kFloat32);
  float* out = result.data_ptr<float>();
  for (int64_t c = 0; c < picture.channels; ++c) {
    const auto& table = tables[static_cast<size_t>(c)];
    for (int64_t p = 0; p < pixels; ++p) {
      *out++ = table[picture.bytes[static_cast<size_t>(p * picture.channels + c)]];
    }
  }
  return result;
}

}  // namespace heed::segment
