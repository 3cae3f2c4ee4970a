// How well label maps agree with masks.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "apps/pictures/datasets.h"
#include "apps/pictures/picture.h"

namespace heed::segment {

// Counts pixels. Ignored ones are left out.
class Agreement {
 public:
  explicit Agreement(int64_t classes);

  // Throws heed::Error when the sizes differ or a label is none of the classes.
  void add(const pictures::Labels& answer, const pictures::Labels& mask);

  // counts()[i * classes + j]: pixels of class i that were taken for class j; as numbers that processes can add up.
  std::vector<double>& counts() { return counts_; }

  double pixels() const;
  double accuracy() const;           // the share of pixels that were told rightly
  double iou(int64_t label) const;   // intersection over union (Jaccard index); NaN if the class is in neither
  double dice(int64_t label) const;  // twice the intersection over the sum of the areas; NaN likewise
  double mean_iou() const;           // over the classes that are in the masks or the answers
  double mean_dice() const;

  nlohmann::json to_json(const pictures::Classes& classes) const;

 private:
  struct Areas {
    double both = 0, mask = 0, answer = 0;
  };
  Areas areas(int64_t label) const;
  template <class Of>
  double mean(Of of) const;

  int64_t classes_;
  std::vector<double> counts_;
};

}  // namespace heed::segment
