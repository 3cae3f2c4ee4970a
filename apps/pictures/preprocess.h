// How a model's pictures are prepared before it sees them: preprocessor_config.json of Hugging Face's image processors
// for ViT, DeiT and SegFormer, as data.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/json_keys.h"
#include "apps/pictures/picture.h"

namespace heed::pictures {

// Pixel filters, with the numbers Pillow has for them. Pillow's resize is what the files mean: it widens the filter
// when a picture shrinks, and rounds to bytes.
enum class Resample { nearest = 0, lanczos = 1, bilinear = 2, bicubic = 3, box = 4, hamming = 5 };

// A size in pixels: height and width, or the shorter edge alone, where the other keeps the picture's shape.
struct Size {
  int64_t height = 0, width = 0;
  int64_t shortest_edge = 0;  // instead of the two
  bool operator==(const Size&) const = default;
};

// The steps, in order; what is not there is not done.
struct Preprocess {
  enum class Kind { vit, deit, segformer };

  Kind kind = Kind::vit;                    // whose defaults a file leaves out
  std::optional<Size> resize = {};          // first, to this size
  Resample resample = Resample::bilinear;   //
  std::optional<Size> crop = {};            // then the middle of it, height and width; 0 around it where it is smaller
  std::optional<double> rescale = {};       // then bytes times this, 1/255 as a rule
  std::vector<double> mean = {}, std = {};  // then (x - mean) / std, by channel; empty: not
  bool reduce_labels = false;               // masks of training: class 0 counts as none (255), the others are 1 less
  bool operator==(const Preprocess&) const = default;

  // What transformers does where a file says nothing more: ViT 224 x 224 bilinear, DeiT 256 x 256 bicubic and its
  // middle 224 x 224, both with mean and deviation 0.5; SegFormer 512 x 512 bilinear with ImageNet's.
  static Preprocess defaults(Kind kind);

  // Files of every release: sizes as {"height", "width"}, {"shortest_edge"} or one number, which means both; processors
  // by any of their names. Throws heed::Error for another model's processor and for values that mean nothing.
  static Preprocess from_json(const app::JsonKeys& file);
  nlohmann::json to_json() const;

  // A folder's preprocessor_config.json.
  static Preprocess load(const std::string& dir);
  void save(const std::string& dir) const;  // whole or not at all
};

// The steps that make a picture of a picture: resize, then crop. Throws heed::Error for a step that cannot be done.
Picture prepare(const Picture& picture, const Preprocess& preprocess);

// The steps after those, as what the bytes of each channel are to the network: rescale, then mean and deviation.
std::vector<std::array<float, 256>> numbers_of(const Preprocess& preprocess, int64_t channels);

}  // namespace heed::pictures
