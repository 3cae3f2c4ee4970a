// Pictures and masks as tensors, and back.
#include "apps/pictures/tensors.h"

#include <heed/attention.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>

namespace heed::pictures {
namespace {

using torch::Tensor;

struct Channel {
  float mean = 0, deviation = 1;
};

std::vector<Channel> channels_of(const Normalisation& normalisation, int64_t channels) {
  const auto fits = [&](size_t n) { return n == 1 || static_cast<int64_t>(n) == channels; };
  if (!fits(normalisation.mean.size()) || !fits(normalisation.deviation.size())) {
    throw Error("a picture with " + std::to_string(channels) + " channels got " +
                std::to_string(normalisation.mean.size()) + " means and " +
                std::to_string(normalisation.deviation.size()) +
                " deviations; give one for each channel, or one for all");
  }
  std::vector<Channel> all;
  for (size_t c = 0; c < static_cast<size_t>(channels); ++c) {
    const double mean = normalisation.mean[normalisation.mean.size() == 1 ? 0 : c];
    const double deviation = normalisation.deviation[normalisation.deviation.size() == 1 ? 0 : c];
    if (!std::isfinite(mean) || !(deviation > 0) || !std::isfinite(deviation)) {
      throw Error("channel " + std::to_string(c) + " got mean " + std::to_string(mean) + " and deviation " +
                  std::to_string(deviation) + "; both must be finite, and the deviation above 0");
    }
    all.push_back({static_cast<float>(mean), static_cast<float>(deviation)});
  }
  return all;
}

std::string shape(const Tensor& tensor) {
  std::ostringstream text;
  text << tensor.sizes();
  return text.str();
}

}  // namespace

Tensor to_tensor(const Picture& picture, const Normalisation& normalisation) {
  check_picture(picture);
  const std::vector<Channel> channels = channels_of(normalisation, picture.channels);
  const int64_t pixels = picture.width * picture.height;
  Tensor tensor = torch::empty({picture.channels, picture.height, picture.width}, torch::kFloat32);
  float* out = tensor.data_ptr<float>();
  for (int64_t c = 0; c < picture.channels; ++c) {
    const auto [mean, deviation] = channels[static_cast<size_t>(c)];
    float values[256];
    for (int i = 0; i < 256; ++i) values[i] = (static_cast<float>(i) / 255 - mean) / deviation;
    const uint8_t* in = picture.bytes.data() + c;
    for (int64_t i = 0; i < pixels; ++i) *out++ = values[in[i * picture.channels]];
  }
  return tensor;
}

Picture from_tensor(const Tensor& tensor, const Normalisation& normalisation) {
  if (!tensor.defined() || tensor.dim() != 3 || (tensor.size(0) != 1 && tensor.size(0) != 3) || tensor.numel() == 0) {
    throw Error("a tensor " + (tensor.defined() ? shape(tensor) : "without a value") +
                " is no picture; [3, height, width] or [1, height, width] is one");
  }
  const std::vector<Channel> channels = channels_of(normalisation, tensor.size(0));
  const Tensor values = tensor.detach().to(torch::kCPU, torch::kFloat32).contiguous();
  Picture picture{tensor.size(2), tensor.size(1), tensor.size(0)};
  picture.bytes.resize(static_cast<size_t>(values.numel()));
  const int64_t pixels = picture.width * picture.height;
  const float* in = values.data_ptr<float>();
  for (int64_t c = 0; c < picture.channels; ++c) {
    const auto [mean, deviation] = channels[static_cast<size_t>(c)];
    for (int64_t i = 0; i < pixels; ++i) {
      const float value = std::nearbyint((*in++ * deviation + mean) * 255);
      // NaN compares false and becomes 0.
      picture.bytes[static_cast<size_t>(i * picture.channels + c)] =
          static_cast<uint8_t>(value > 0 ? std::min(value, 255.0f) : 0.0f);
    }
  }
  return picture;
}

Tensor to_tensor(const Labels& labels) {
  check_labels(labels);
  Tensor tensor = torch::empty({labels.height, labels.width}, torch::kInt64);
  std::transform(labels.values.begin(), labels.values.end(), tensor.data_ptr<int64_t>(),
                 [](uint16_t label) { return label == kIgnoredLabel ? kIgnoredTarget : int64_t{label}; });
  return tensor;
}

Labels labels_from_tensor(const Tensor& tensor) {
  if (!tensor.defined() || tensor.dim() != 2 || tensor.numel() == 0 || tensor.scalar_type() != torch::kInt64) {
    throw Error("a tensor " + (tensor.defined() ? shape(tensor) : "without a value") +
                " is no mask; int64 [height, width] is one");
  }
  const Tensor values = tensor.detach().to(torch::kCPU).contiguous();
  Labels labels{tensor.size(1), tensor.size(0)};
  const int64_t* in = values.data_ptr<int64_t>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    if ((in[i] < 0 || in[i] >= kIgnoredLabel) && in[i] != kIgnoredTarget) {
      throw Error("the mask holds " + std::to_string(in[i]) + "; a label is 0 to " + std::to_string(kIgnoredLabel - 1) +
                  ", or " + std::to_string(kIgnoredTarget) + " for what is ignored");
    }
    labels.values.push_back(in[i] == kIgnoredTarget ? kIgnoredLabel : static_cast<uint16_t>(in[i]));
  }
  return labels;
}

}  // namespace heed::pictures
