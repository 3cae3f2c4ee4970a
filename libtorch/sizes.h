// What layers check of the sizes they are made with, and of the feature maps they are given.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <heed/attention.h>
#include <torch/types.h>

#include <cstdint>
#include <sstream>
#include <string>

namespace heed::nn {

// An option that counts something is at least 1.
inline void check_size(int64_t size, const char* layer, const char* name) {
  if (size < 1) {
    throw Error(std::string(layer) + " got " + name + " = " + std::to_string(size) + "; it must be at least 1");
  }
}

// The width of a bottleneck, channels / reduction, rounded down as in these papers' repositories.
inline int64_t reduced(int64_t channels, int64_t reduction, const char* layer) {
  check_size(channels, layer, "channels");
  check_size(reduction, layer, "reduction");
  if (reduction > channels) {
    throw Error(std::string(layer) + " got " + std::to_string(channels) + " channels and reduction " +
                std::to_string(reduction) + "; the reduction can be at most the channels");
  }
  return channels / reduction;
}

// For errors: what was given instead of a tensor that fits.
inline std::string shape_of(const torch::Tensor& x) {
  if (!x.defined()) return "an undefined tensor";
  std::ostringstream text;
  text << "a tensor of shape " << x.sizes();
  return text.str();
}

// x is a feature map [B, channels, H, W] with at least one position; channels 0: any number.
inline void check_feature_map(const torch::Tensor& x, int64_t channels, const char* layer) {
  if (x.defined() && x.dim() == 4 && (channels == 0 ? x.size(1) > 0 : x.size(1) == channels) && x.size(2) > 0 &&
      x.size(3) > 0) {
    return;
  }
  throw Error(std::string(layer) + " got " + shape_of(x) + "; it needs a feature map [batch, " +
              (channels == 0 ? "channels" : std::to_string(channels)) + ", height, width]");
}

// While training, a batch norm needs two values of each channel to have a variance.
inline void check_batch_norm(int64_t values, bool training, const char* layer) {
  if (training && values < 2) {
    throw Error(std::string(layer) + " got " + std::to_string(values) +
                " value of each channel for a batch norm in training, which needs 2 or more: give a larger batch, or "
                "call eval()");
  }
}

}  // namespace heed::nn
