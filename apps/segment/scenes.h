// Scenes to learn segmentation from, on a machine that has no masks: the small pictures of an IDX data set
// (Fashion-MNIST) on cluttered grounds, with a label for every pixel. Needs no LibTorch.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "apps/pictures/datasets.h"
#include "apps/pictures/picture.h"

namespace heed::segment {

struct Scene {
  pictures::Picture picture;  // in colour, size x size
  pictures::Labels labels;    // 0: ground; k + 1: an item whose label is k
};

// A scene of 2 to 5 items drawn from `items`, pictures that are light on black, with these labels. The ground has a
// gradient, striped and shaded blobs, and noise lies over everything. An item has a colour of its own, is scaled so
// that its longer side is 7/30 to 7/15 of the scene's (of Fashion-MNIST's 28 pixels, 0.8 to 1.6 times on 96), may reach
// over the scene's edge by a sixth, and hides what was placed before, but never more than half of another item; one
// that finds no such place is left out. A pixel belongs to an item where that is brighter than a tenth: its holes are
// holes. All arithmetic is in integers, so that the same arguments give the same bytes everywhere. Throws heed::Error
// unless there are items, grey ones, with labels from 0 to 254, and the size is from 32 to 1024.
Scene compose_scene(const pictures::LabelledPictures& items, int64_t size, uint64_t seed);

// Debian's package dataset-fashion-mnist, and what its labels mean.
inline constexpr const char* kFashionMnist = "/usr/share/datasets/fashion-mnist";
inline constexpr const char* kFashionClasses[] = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                                                  "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};

struct ScenesOptions {
  std::string out;                        // a folder that is not there yet, or empty
  std::string from = kFashionMnist;       // a folder of IDX files, train and (for `test`) t10k
  std::vector<std::string> classes = {};  // names of the IDX files' labels; none: Fashion-MNIST's
  int64_t count = 2000;                   // scenes to train with, of items in train
  int64_t test = 0;                       // and to measure with, of items in t10k
  int64_t size = 96;                      // pixels, both ways
  uint64_t seed = 1;
};

// Writes out/images and out/masks, with `test` out/test-images and out/test-masks, and out/classes.txt: what
// pictures::find_mask_pairs and read_classes read. Masks are numbered, with a palette for the eye. Everything is made
// in out/.unfinished and moved up at the end, so that a failure leaves nothing and a kill only that folder, which the
// next call removes. Throws heed::Error for a folder that is not empty, options that do not fit, and labels without a
// name.
void write_scenes(const ScenesOptions& options, const std::function<void(int64_t done)>& progress = {});

}  // namespace heed::segment
