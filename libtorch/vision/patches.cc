// Patches: the convolution, and what it is given.
#include "libtorch/vision/patches.h"

#include <heed/attention.h>

#include <sstream>
#include <string>

namespace heed::nn {
namespace {

using torch::Tensor;

void check(const Tensor& pictures, const PatchEmbedOptions& o) {
  std::ostringstream shape;
  shape << pictures.sizes();
  if (pictures.dim() != 4 || pictures.size(1) != o.channels) {
    throw Error("the pictures have shape " + shape.str() + "; the model takes [batch, " + std::to_string(o.channels) +
                ", height, width]");
  }
  if (!pictures.is_floating_point()) {
    throw Error(std::string("the pictures are ") + c10::toString(pictures.scalar_type()) +
                "; the model takes fractions, scaled and normalised as it was trained with");
  }
  const int64_t height = pictures.size(2), width = pictures.size(3), least = o.patch - 2 * o.padding;
  if (height < least || width < least || height < 1 || width < 1) {
    throw Error("the pictures have " + std::to_string(height) + " x " + std::to_string(width) +
                " pixels and a patch has " + std::to_string(o.patch) + " x " + std::to_string(o.patch) +
                "; give larger pictures");
  }
}

}  // namespace

PatchEmbedImpl::PatchEmbedImpl(PatchEmbedOptions given) : options(given) {
  auto& o = options;
  if (o.stride == 0) o.stride = o.patch;
  if (o.channels < 1 || o.hidden < 1 || o.patch < 1 || o.stride < 1 || o.padding < 0) {
    throw Error("PatchEmbed got channels " + std::to_string(o.channels) + ", hidden " + std::to_string(o.hidden) +
                ", patch " + std::to_string(o.patch) + ", stride " + std::to_string(o.stride) + " and padding " +
                std::to_string(o.padding) + "; each must be at least 1, padding at least 0");
  }
  reset();
}

void PatchEmbedImpl::reset() {
  const auto& o = options;
  projection = register_module(
      "projection",
      torch::nn::Conv2d(torch::nn::Conv2dOptions(o.channels, o.hidden, o.patch).stride(o.stride).padding(o.padding)));
}

Patches PatchEmbedImpl::forward(const Tensor& pictures) {
  check(pictures, options);
  const Tensor map = projection->forward(pictures);
  return {map.flatten(2).transpose(1, 2), map.size(2), map.size(3)};
}

Tensor map_of(const Patches& patches) {
  return patches.tokens.transpose(1, 2).unflatten(2, std::vector<int64_t>{patches.rows, patches.columns});
}

}  // namespace heed::nn
