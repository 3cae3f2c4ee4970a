// What the demo does with pictures: a classifier of clothes and a network that finds them in scenes, trained and looked
// at, and pictures to try the models in the box on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/page.h"

namespace heed::app {

struct PicturesDemo {
  std::string data;    // the folder of Fashion-MNIST's IDX files
  std::string work;    // the models go here
  double minutes = 1;  // of training
  uint64_t seed = 1;
};

// Debian's package dataset-fashion-mnist: where it is installed, or downloaded into `work`. Throws heed::Error.
std::string fashion_folder(const std::string& work);

// Trains a small convolutional network with CBAM on Fashion-MNIST, measures it and the model in the box on pictures
// neither has seen, and shows where it looks. Prints its progress. Nothing if Ctrl-C stopped it.
std::optional<PagePictures> demo_classify(const PicturesDemo& demo);

// Trains a small U-Net with attention gates on scenes composed of these clothes, measures it on others, and shows what
// it found and what its finest gate let through.
std::optional<PagePictures> demo_segment(const PicturesDemo& demo);

// Writes pictures to try `heed classify` and `heed segment` on to this folder, made if it is not there: clothes, and
// drawn cells as a fluorescence microscope shows them. Returns their paths, by command.
struct SamplePictures {
  std::vector<std::string> clothes, cells;
};
SamplePictures write_samples(const std::string& data, const std::string& folder);

}  // namespace heed::app
