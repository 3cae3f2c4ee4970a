// How well a classifier does on labelled pictures.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "apps/classify/data.h"
#include "apps/classify/model.h"

namespace heed::classify {

struct Measured {
  int64_t pictures = 0;
  int64_t right = 0;                               // whose class got the highest probability
  int64_t among_five = 0;                          // one of the five highest
  double loss = 0;                                 // negative log-likelihood, summed over the pictures
  std::vector<std::vector<int64_t>> answers = {};  // [class][class that was answered]: how often

  double accuracy() const { return static_cast<double>(right) / static_cast<double>(pictures); }

  // The numbers as shares and means, and for each class how many pictures it has, how many of them were told (recall),
  // and how many of those answered so are (precision; null if none was).
  nlohmann::json to_json(const std::vector<std::string>& classes) const;
};

// Measures on these rows of the set, whose classes are the model's. The model is put into eval mode; no gradient.
// progress, if given, is called with the number of pictures done.
Measured measure(Model& model, const PictureSet& set, std::span<const int64_t> rows,
                 const std::function<void(int64_t)>& progress = {});

// The same on all.
Measured measure(Model& model, const PictureSet& set, const std::function<void(int64_t)>& progress = {});

}  // namespace heed::classify
