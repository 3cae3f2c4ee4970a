// From logits to labels, whole or tile by tile.
#include "apps/segment/infer.h"

#include <ATen/Parallel.h>
#include <heed/attention.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "apps/pictures/preprocess.h"
#include "apps/pictures/resize.h"
#include "apps/segment/data.h"

namespace heed::segment {
namespace {

using pictures::Labels;
using pictures::Picture;
using torch::Tensor;

// Where each of `size` places lies between `from` others: as torch's upsampling with align_corners=false.
struct Between {
  std::vector<int64_t> low, high;
  std::vector<float> part;  // of high
};
Between between(int64_t size, int64_t from) {
  Between result;
  const double step = static_cast<double>(from) / static_cast<double>(size);
  for (int64_t i = 0; i < size; ++i) {
    const double at = std::clamp((static_cast<double>(i) + 0.5) * step - 0.5, 0.0, static_cast<double>(from - 1));
    result.low.push_back(static_cast<int64_t>(at));
    result.high.push_back(std::min(result.low.back() + 1, from - 1));
    result.part.push_back(static_cast<float>(at - static_cast<double>(result.low.back())));
  }
  return result;
}

// The picture with its border repeated to the right and below, if a side is shorter than `least`.
Picture padded(const Picture& picture, int64_t least) {
  if (picture.width >= least && picture.height >= least) return picture;
  Picture result{std::max(picture.width, least), std::max(picture.height, least), picture.channels};
  result.bytes.reserve(static_cast<size_t>(result.width * result.height * result.channels));
  for (int64_t y = 0; y < result.height; ++y) {
    for (int64_t x = 0; x < result.width; ++x) {
      const int64_t from = std::min(y, picture.height - 1) * picture.width + std::min(x, picture.width - 1);
      const auto begin = picture.bytes.begin() + from * picture.channels;
      result.bytes.insert(result.bytes.end(), begin, begin + picture.channels);
    }
  }
  return result;
}

// The labels of a picture that the network takes whole; of the padding nothing remains.
Segmented segment_whole(Model& model, const Picture& picture, int64_t height, int64_t width, bool attention) {
  const Picture enlarged = padded(picture, model.least_side());
  Seen seen = model.forward(whole(enlarged, model.preprocess()), attention);
  const auto share = [](int64_t part, int64_t of, int64_t size) {
    return static_cast<int64_t>(
        std::llround(static_cast<double>(size) * static_cast<double>(of) / static_cast<double>(part)));
  };
  const int64_t all_high = share(picture.height, enlarged.height, height);
  const int64_t all_wide = share(picture.width, enlarged.width, width);
  Labels labels = labels_of(seen.logits[0], all_high, all_wide);
  if (all_high != height || all_wide != width) labels = pictures::crop(labels, 0, 0, width, height);
  return {std::move(labels), std::move(seen.maps)};
}

// Tiles along one side: where each begins, and up to where it is believed.
struct Cut {
  int64_t begin = 0, size = 0;  // of the tile
  int64_t from = 0, to = 0;     // the part of the side that is taken from it
};
// They begin at multiples of `unit`, the network's strides together: elsewhere it would sample the picture between the
// places where it samples the whole.
std::vector<Cut> cuts(int64_t side, int64_t unit, const InferOptions& options) {
  if (side <= options.tile) return {{0, side, 0, side}};
  const int64_t step = std::max<int64_t>((options.tile - options.overlap) / unit, 1) * unit;
  const int64_t end = (side - options.tile + unit - 1) / unit * unit;  // where the last one begins
  std::vector<Cut> result;
  for (int64_t begin = 0;; begin = std::min(begin + step, end)) {
    const int64_t from = result.empty() ? 0 : (result.back().begin + result.back().size + begin) / 2;
    if (!result.empty()) result.back().to = from;
    result.push_back({begin, std::min(options.tile, side - begin), from, side});
    if (begin == end) return result;
  }
}

Labels segment_tiles(Model& model, const Picture& picture, const InferOptions& options) {
  Labels labels{picture.width, picture.height,
                std::vector<uint16_t>(static_cast<size_t>(picture.width * picture.height))};
  for (const Cut& down : cuts(picture.height, model.least_side(), options)) {
    for (const Cut& right : cuts(picture.width, model.least_side(), options)) {
      const Picture tile = pictures::crop(picture, right.begin, down.begin, right.size, down.size);
      const Labels part = segment_whole(model, tile, tile.height, tile.width, false).labels;
      for (int64_t y = down.from; y < down.to; ++y) {
        const auto begin = part.values.begin() + (y - down.begin) * part.width;
        std::copy(begin + (right.from - right.begin), begin + (right.to - right.begin),
                  labels.values.begin() + y * labels.width + right.from);
      }
    }
  }
  return labels;
}

}  // namespace

Labels labels_of(const Tensor& logits, int64_t height, int64_t width) {
  const Tensor source = logits.to(torch::kFloat32).contiguous();
  const int64_t classes = source.size(0), high = source.size(1), wide = source.size(2);
  const Between rows = between(height, high), columns = between(width, wide);
  const float* in = source.data_ptr<float>();
  Labels labels{width, height, std::vector<uint16_t>(static_cast<size_t>(height * width))};
  at::parallel_for(0, height, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> line(static_cast<size_t>(wide)), best(static_cast<size_t>(width));
    for (int64_t y = begin; y < end; ++y) {
      const auto i = static_cast<size_t>(y);
      uint16_t* out = labels.values.data() + y * width;
      for (int64_t k = 0; k < classes; ++k) {
        const float* above = in + (k * high + rows.low[i]) * wide;
        const float* below = in + (k * high + rows.high[i]) * wide;
        for (int64_t x = 0; x < wide; ++x)
          line[static_cast<size_t>(x)] = above[x] + (below[x] - above[x]) * rows.part[i];
        for (size_t x = 0; x < best.size(); ++x) {
          const float low = line[static_cast<size_t>(columns.low[x])];
          const float value = low + (line[static_cast<size_t>(columns.high[x])] - low) * columns.part[x];
          if (k == 0 || value > best[x]) {
            best[x] = value;
            out[x] = static_cast<uint16_t>(k);
          }
        }
      }
    }
  });
  return labels;
}

Segmented segment(Model& model, const Picture& picture, int64_t height, int64_t width, const InferOptions& options) {
  if (options.overlap < 0 || options.tile < model.least_side() || options.tile <= options.overlap) {
    throw Error("tiles of " + std::to_string(options.tile) + " pixels with an overlap of " +
                std::to_string(options.overlap) + " do not fit; a tile must be larger than the overlap and at least " +
                std::to_string(model.least_side()));
  }
  const torch::NoGradGuard no_grad;
  model.eval();
  if (height == 0) height = picture.height;
  if (width == 0) width = picture.width;
  const Picture prepared = pictures::prepare(picture, model.preprocess());
  if (std::max(prepared.height, prepared.width) <= options.tile) {
    return segment_whole(model, prepared, height, width, options.attention);
  }
  Segmented result{segment_tiles(model, prepared, options)};
  if (prepared.height != height || prepared.width != width) {
    result.labels = pictures::resize(result.labels, width, height);
  }
  if (options.attention) {
    const double smaller =
        static_cast<double>(options.tile) / static_cast<double>(std::max(prepared.height, prepared.width));
    const auto side = [&](int64_t size) {
      return std::max<int64_t>(static_cast<int64_t>(static_cast<double>(size) * smaller), 1);
    };
    const Picture copy = pictures::resize(prepared, side(prepared.width), side(prepared.height));
    result.maps = segment_whole(model, copy, copy.height, copy.width, true).maps;
  }
  return result;
}

}  // namespace heed::segment
