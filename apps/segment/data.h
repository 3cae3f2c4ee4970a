// Pictures with masks in memory, as bytes, and what of them goes into a network, changed at random where it is to
// train.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "apps/pictures/datasets.h"
#include "apps/pictures/picture.h"
#include "apps/pictures/preprocess.h"

namespace heed::segment {

// ---- Reading ----

struct MaskedSet {
  pictures::Classes classes = {};
  std::vector<pictures::Picture> pictures = {};
  std::vector<pictures::Labels> masks = {};  // places in the classes, of the picture's size
  std::vector<std::string> notes = {};       // sentences the user should read: files that were left out, and why

  int64_t count() const { return static_cast<int64_t>(pictures.size()); }
};

struct DataOptions {
  pictures::Classes classes = {};
  int64_t channels = 3;
  // Pictures are kept with this shorter side at most, so that thousands of photographs fit in memory.
  int64_t shorter_side = 512;
};

// Pairs the pictures of a folder with the masks of another (pictures::find_mask_pairs) and reads them. Pairs of which a
// file cannot be read are left out and told in the notes. Throws heed::Error as read_mask_pairs: for a mask of another
// size than its picture or with values that are no class.
MaskedSet read_data(const std::string& picture_folder, const std::string& mask_folder, const DataOptions& options);

// The share of each class among the pixels that count, as of all masks together; sums to 1.
std::vector<double> shares_of(const MaskedSet& set);

// ---- Batches ----

// What may happen to a picture before it is trained with; as it stands, nothing but the crop.
struct Augmentation {
  int64_t height = 0, width = 0;  // of the part that is taken, at a random place
  double scale = 0;               // enlarged by up to 1 + scale, or made smaller by as much; what comes in from outside
                                  // is the border's pixels repeated, and is ignored
  bool flip = false;              // every second one is mirrored, left to right
  bool flip_vertical = false;  // and as many top to bottom: where a picture has no up and down, as under a microscope
  double colour = 0;           // brightness, contrast and saturation times a factor from 1 - colour to 1 + colour each
  double noise = 0;            // every second one gets Gaussian noise in each number, of a standard deviation of up to
                               // this share of their range, as a camera has it in the dark
};

struct Batch {
  torch::Tensor pictures;  // [rows, channels, height, width], the network's numbers
  torch::Tensor targets;   // [rows, height, width] int64, pictures::kIgnoredTarget for pixels that do not count
};

// Parts of some of the pictures, bilinear between their pixels; labels are the nearest pixel's. Chance comes from
// torch's global generator.
Batch make_batch(const MaskedSet& set, std::span<const int64_t> rows, const pictures::Preprocess& preprocess,
                 const Augmentation& augmentation);

// A whole picture as the network's numbers, [1, channels, height, width].
torch::Tensor whole(const pictures::Picture& picture, const pictures::Preprocess& preprocess);

}  // namespace heed::segment
