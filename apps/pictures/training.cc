// The order of the pictures, and what a training on them says of itself.
#include "apps/pictures/training.h"

#include <heed/attention.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <utility>

#include "libtorch/require.h"
#include "libtorch/splitmix.h"

namespace heed::pictures {

using nlohmann::json;

TrainingOptions::TrainingOptions() { weight_decay = 0.05; }

void TrainingOptions::complete() {
  if (learning_rate == 0) learning_rate = freeze_backbone ? 2e-2 : from.empty() ? 2e-3 : 2e-4;
}

void TrainingOptions::check() const {
  nn::require(batch >= 1, "batch", batch, "it must be 1 picture at least");
  nn::require(valid_pictures >= 1, "valid_pictures", valid_pictures,
              "at least 1 picture is needed to see whether training helps");
  if (freeze_backbone && from.empty()) {
    throw Error("a backbone that has learned nothing cannot be frozen; name a model to go on from");
  }
}

void TrainingOptions::add_to(json& identity) const {
  identity.update(
      {{"from", from}, {"freeze_backbone", freeze_backbone}, {"batch", batch}, {"valid_pictures", valid_pictures}});
}

json TrainingResult::to_json() const {
  json j = app::TrainingResult::to_json();
  j.update({{"learning", learning},
            {"train_pictures", train_pictures},
            {"validation_pictures", validation_pictures},
            {"seen", seen}});
  return j;
}

void TrainingResult::read(const json& j) {
  app::TrainingResult::read(j);
  learning = j.at("learning").get<int64_t>();
  train_pictures = j.at("train_pictures").get<int64_t>();
  validation_pictures = j.at("validation_pictures").get<int64_t>();
  seen = j.at("seen").get<int64_t>();
}

void TrainingResult::count(const torch::nn::Module& model) {
  for (const torch::Tensor& parameter : model.parameters()) {
    parameters += parameter.numel();
    if (parameter.requires_grad()) learning += parameter.numel();
  }
}

Order::Order(std::vector<int64_t> rows, const TrainingOptions& options)
    : rows_(std::move(rows)), batch_(options.batch), seed_(options.seed), group_(options.processes) {}

int64_t Order::start_epoch(int64_t epoch) {
  const uint64_t seed = nn::splitmix(seed_, static_cast<uint64_t>(epoch) + 1);
  std::vector<std::pair<uint64_t, int64_t>> keyed;
  for (const int64_t row : rows_) keyed.emplace_back(nn::splitmix(seed, static_cast<uint64_t>(row)), row);
  std::sort(keyed.begin(), keyed.end());
  std::transform(keyed.begin(), keyed.end(), rows_.begin(), [](const auto& pair) { return pair.second; });
  steps_ = (static_cast<int64_t>(rows_.size()) + batch_ - 1) / batch_;
  return steps_;
}

std::vector<int64_t> Order::step(int64_t index) const {
  const auto n = static_cast<int64_t>(rows_.size());
  const auto first = rows_.begin() + index * n / steps_, last = rows_.begin() + (index + 1) * n / steps_;
  return share_of({first, last}, group_);
}

std::vector<int64_t> share_of(const std::vector<int64_t>& rows, const nn::Processes* group) {
  if (group == nullptr) return rows;
  std::vector<int64_t> share;
  const auto world = static_cast<size_t>(group->world());
  for (auto i = static_cast<size_t>(group->rank()); i < rows.size(); i += world) share.push_back(rows[i]);
  return share;
}

}  // namespace heed::pictures
