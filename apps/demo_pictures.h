// What the demo does with pictures: a classifier of clothes, trained and looked at.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

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

}  // namespace heed::app
