// Labelled pictures in memory, as bytes: read from a folder per class or from IDX files, and made into batches, changed
// at random where they are to train with.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "apps/pictures/picture.h"
#include "apps/pictures/preprocess.h"

namespace heed::classify {

// ---- Reading ----

// Pictures of one size, prepared but for what is done to the numbers (rescale, mean, std): that is done batch by batch.
struct PictureSet {
  std::vector<std::string> classes = {};  // their names
  pictures::Preprocess preprocess = {};   // how the pictures were prepared
  int64_t channels = 1;                   //
  int64_t height = 0, width = 0;          //
  std::vector<uint8_t> bytes = {};        // [count, height, width, channels]
  std::vector<int64_t> labels = {};       // [count], places in the classes
  std::vector<std::string> notes = {};    // sentences the user should read: files that were left out, and why

  int64_t count() const { return static_cast<int64_t>(labels.size()); }
  std::span<const uint8_t> picture(int64_t i) const;
};

struct DataOptions {
  bool training = false;  // of IDX files: those called train-, otherwise those called t10k-
  // Those of a model, for its other data: labels are places in them, and other classes an error. Without them the
  // folders are the classes, or the numbers of the IDX files, which get `names`.
  std::vector<std::string> classes = {};
  std::vector<std::string> names = {};
  int64_t channels = 0;                                 // 0: 1 of IDX files, otherwise 3
  std::optional<pictures::Preprocess> preprocess = {};  // a model's; without it a square of `size` pixels, from -1 to 1
  int64_t size = 0;  // 0: IDX files' own; otherwise the shorter side of the smallest of some pictures, at most 128
};

// Whether a folder holds IDX files with the pictures of a split, "train" or "t10k".
bool holds_idx(const std::string& folder, const std::string& split);

// Reads all pictures of a folder (apps/pictures/datasets.h says what it looks like). Files that cannot be read are left
// out and told in the notes. Throws heed::Error when the folder does not fit, when a label is none of the classes, and
// without given classes when there are fewer than two or one has no picture.
PictureSet read_data(const std::string& folder, const DataOptions& options);

// ---- Batches ----

// What may happen to a picture before it is trained with; as it stands, nothing.
struct Augmentation {
  int64_t crop = 0;   // moved by up to so many pixels each way; black comes in
  bool flip = false;  // every second one is mirrored, left to right
  double erase = 0;   // the share in which a rectangle of 2% to 33% becomes 0, in the network's numbers (Zhong et al.
                      // 2020: random erasing)
};

// Some of the pictures as the network's numbers, float32 [rows, channels, height, width]. Chance comes from torch's
// global generator, whose numbers are taken only if something may happen.
torch::Tensor make_batch(const PictureSet& set, std::span<const int64_t> rows, const Augmentation& augmentation = {});

}  // namespace heed::classify
