// The table of who was taken for whom, and the numbers people make of it.
#include "apps/segment/measure.h"

#include <heed/attention.h>

#include <cmath>
#include <numeric>
#include <string>

namespace heed::segment {

using nlohmann::json;

Agreement::Agreement(int64_t classes) : classes_(classes), counts_(static_cast<size_t>(classes * classes), 0) {}

void Agreement::add(const pictures::Labels& answer, const pictures::Labels& mask) {
  if (answer.width != mask.width || answer.height != mask.height) {
    throw Error("an answer of " + std::to_string(answer.width) + " x " + std::to_string(answer.height) +
                " pixels cannot be compared with a mask of " + std::to_string(mask.width) + " x " +
                std::to_string(mask.height));
  }
  for (size_t i = 0; i < mask.values.size(); ++i) {
    if (mask.values[i] == pictures::kIgnoredLabel) continue;
    if (mask.values[i] >= classes_ || answer.values[i] >= classes_) {
      throw Error("a pixel has the label " + std::to_string(std::max(mask.values[i], answer.values[i])) +
                  ", and there are " + std::to_string(classes_) + " classes, numbered from 0");
    }
    counts_[static_cast<size_t>(mask.values[i] * classes_ + answer.values[i])] += 1;
  }
}

double Agreement::pixels() const { return std::accumulate(counts_.begin(), counts_.end(), 0.0); }

Agreement::Areas Agreement::areas(int64_t label) const {
  Areas a;
  for (int64_t other = 0; other < classes_; ++other) {
    a.mask += counts_[static_cast<size_t>(label * classes_ + other)];
    a.answer += counts_[static_cast<size_t>(other * classes_ + label)];
  }
  a.both = counts_[static_cast<size_t>(label * classes_ + label)];
  return a;
}

double Agreement::accuracy() const {
  double right = 0;
  for (int64_t label = 0; label < classes_; ++label) right += areas(label).both;
  return right / pixels();
}

double Agreement::iou(int64_t label) const {
  const Areas a = areas(label);
  return a.both / (a.mask + a.answer - a.both);  // 0 / 0 is NaN
}

double Agreement::dice(int64_t label) const {
  const Areas a = areas(label);
  return 2 * a.both / (a.mask + a.answer);
}

template <class Of>
double Agreement::mean(Of of) const {
  double sum = 0;
  int64_t met = 0;
  for (int64_t label = 0; label < classes_; ++label) {
    const double value = of(label);
    if (std::isnan(value)) continue;
    sum += value;
    ++met;
  }
  return sum / static_cast<double>(met);
}

double Agreement::mean_iou() const {
  return mean([&](int64_t label) { return iou(label); });
}

double Agreement::mean_dice() const {
  return mean([&](int64_t label) { return dice(label); });
}

json Agreement::to_json(const pictures::Classes& classes) const {
  const auto number = [](double x) { return std::isfinite(x) ? json(x) : json(nullptr); };
  json by_class = json::array();
  for (int64_t label = 0; label < classes_; ++label) {
    by_class.push_back({{"class", classes.classes[static_cast<size_t>(label)].name},
                        {"pixels", areas(label).mask},
                        {"iou", number(iou(label))},
                        {"dice", number(dice(label))}});
  }
  return {{"mean_iou", number(mean_iou())},
          {"mean_dice", number(mean_dice())},
          {"pixel_accuracy", number(accuracy())},
          {"pixels", pixels()},
          {"classes", by_class}};
}

}  // namespace heed::segment
