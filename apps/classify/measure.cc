// Measuring a classifier: batch by batch, counting.
#include "apps/classify/measure.h"

#include <torch/torch.h>

#include <algorithm>
#include <numeric>

#include "libtorch/cross_entropy.h"

namespace heed::classify {
namespace {

using nlohmann::json;
using torch::Tensor;

// Pictures at a time: some 50 MB of numbers in a wide stage of 28 x 28, and less pictures where they are larger.
int64_t batch_of(const PictureSet& set) {
  return std::clamp<int64_t>(256 * 28 * 28 / (set.height * set.width), 1, 256);
}

}  // namespace

json Measured::to_json(const std::vector<std::string>& classes) const {
  const auto share = [](int64_t part, int64_t whole) {
    return whole > 0 ? json(static_cast<double>(part) / static_cast<double>(whole)) : json(nullptr);
  };
  json by_class = json::array();
  for (size_t i = 0; i < classes.size(); ++i) {
    const int64_t has = std::accumulate(answers[i].begin(), answers[i].end(), int64_t{0});
    int64_t answered = 0;
    for (const auto& row : answers) answered += row[i];
    by_class.push_back({{"class", classes[i]},
                        {"pictures", has},
                        {"recall", share(answers[i][i], has)},
                        {"precision", share(answers[i][i], answered)}});
  }
  return {{"pictures", pictures},
          {"accuracy", share(right, pictures)},
          {"top5_accuracy", share(among_five, pictures)},
          {"loss", loss / static_cast<double>(pictures)},
          {"classes", by_class},
          {"answers", answers}};
}

Measured measure(Model& model, const PictureSet& set, std::span<const int64_t> rows,
                 const std::function<void(int64_t)>& progress) {
  const torch::NoGradGuard no_grad;
  model.eval();
  const size_t classes = model.labels().size();
  Measured measured;
  measured.answers.assign(classes, std::vector<int64_t>(classes, 0));
  const auto most = static_cast<size_t>(batch_of(set));
  for (size_t begin = 0; begin < rows.size(); begin += most) {
    const std::span<const int64_t> part = rows.subspan(begin, std::min(most, rows.size() - begin));
    std::vector<int64_t> labels;
    for (const int64_t row : part) labels.push_back(set.labels[static_cast<size_t>(row)]);
    const Tensor logits = model.forward(make_batch(set, part)).logits;
    const Tensor best = std::get<1>(logits.topk(std::min<int64_t>(5, static_cast<int64_t>(classes)), 1));
    const auto answers = best.accessor<int64_t, 2>();
    for (size_t i = 0; i < labels.size(); ++i) {
      const auto row = static_cast<int64_t>(i);
      measured.right += answers[row][0] == labels[i];
      for (int64_t k = 0; k < best.size(1); ++k) measured.among_five += answers[row][k] == labels[i];
      measured.answers[static_cast<size_t>(labels[i])][static_cast<size_t>(answers[row][0])]++;
    }
    measured.loss += nn::cross_entropy(logits, torch::tensor(labels, torch::kInt64), 0).sum;
    measured.pictures += static_cast<int64_t>(labels.size());
    if (progress) progress(measured.pictures);
  }
  return measured;
}

Measured measure(Model& model, const PictureSet& set, const std::function<void(int64_t)>& progress) {
  std::vector<int64_t> rows(static_cast<size_t>(set.count()));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  return measure(model, set, rows, progress);
}

}  // namespace heed::classify
