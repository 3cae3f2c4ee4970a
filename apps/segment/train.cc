// Training a network that gives pixels their classes: the split, the task that the loop asks for batches, the folder.
#include "apps/segment/train.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "apps/pictures/tensors.h"
#include "apps/segment/infer.h"
#include "apps/segment/measure.h"
#include "libtorch/require.h"
#include "libtorch/splitmix.h"
#include "libtorch/vision/segformer.h"

namespace heed::segment {
namespace {

using nlohmann::json;
using nn::require;
using pictures::Labels;
using pictures::Picture;
using torch::Tensor;
namespace F = torch::nn::functional;

constexpr int64_t kLargestPart = 512;  // pixels, both ways, that are taken of a picture without being asked for

void check_options(const TrainOptions& o) {
  o.check();
  require(o.balance >= 0 && o.balance <= 1, "balance", o.balance, "it must be from 0 to 1");
  require(o.augmentation.scale >= 0 && o.augmentation.scale <= 4, "scale", o.augmentation.scale,
          "it must be from 0 to 4");
  require(o.augmentation.colour >= 0 && o.augmentation.colour < 1, "colour", o.augmentation.colour,
          "it must be at least 0 and below 1");
  require(o.augmentation.noise >= 0 && o.augmentation.noise <= 1, "noise", o.augmentation.noise,
          "it must be from 0 to 1");
}

TrainOptions completed(TrainOptions o, const MaskedSet& set) {
  if (set.count() < 2) {
    throw Error("there is " + std::to_string(set.count()) +
                " picture to train with; two are needed at least, one of "
                "them to validate with");
  }
  int64_t height = kLargestPart, width = kLargestPart;
  for (const Picture& picture : set.pictures) {
    height = std::min(height, picture.height);
    width = std::min(width, picture.width);
  }
  if (o.augmentation.height == 0) o.augmentation.height = height;
  if (o.augmentation.width == 0) o.augmentation.width = width;
  o.complete();
  return o;
}

// ---- What must be equal for a checkpoint to go on ----

std::string checksum(const MaskedSet& set) {
  uint64_t hash = app::hashed(pictures::classes_text(set.classes));
  for (const Picture& picture : set.pictures) hash = app::hashed(picture.bytes, hash);
  for (const Labels& mask : set.masks) {
    for (const uint16_t label : mask.values) hash = (hash ^ label) * app::kFnvPrime;
  }
  return app::with_checksum(set.count(), hash);
}

json identity_of(const MaskedSet& set, const TrainOptions& o) {
  json identity{{"task", "segment"},
                {"pictures", checksum(set)},
                {"arch", o.from.empty() ? o.network.arch : ""},
                {"width", o.network.width},
                {"depth", o.network.depth},
                {"stem", o.network.stem},
                {"dropout", o.network.dropout},
                {"height, width", {o.augmentation.height, o.augmentation.width}},
                {"scale", o.augmentation.scale},
                {"flip", {o.augmentation.flip, o.augmentation.flip_vertical}},
                {"colour", o.augmentation.colour},
                {"noise", o.augmentation.noise},
                {"balance", o.balance}};
  o.add_to(identity);
  return identity;
}

// ---- The task ----

class Task : public nn::TrainingTask {
 public:
  Task(Model& model, const MaskedSet& set, const Split& split, const TrainOptions& options)
      : model_(model),
        group_(options.processes),
        set_(set),
        options_(options),
        order_(split.train, options),
        validation_(pictures::share_of(split.held_out, group_)) {
    weights_ = torch::tensor(weights_of(shares_of(set), options.balance), torch::kFloat64).to(torch::kFloat32);
  }

  int64_t start_epoch(int64_t epoch) override { return order_.start_epoch(epoch); }

  nn::StepLoss loss(int64_t index) override {
    const std::vector<int64_t> rows = order_.step(index);
    if (rows.empty()) return {};
    const Batch batch = make_batch(set_, rows, model_.preprocess(), options_.augmentation);
    const Tensor loss = pixel_loss(model_.forward(batch.pictures).logits, batch.targets);
    const auto count = static_cast<int64_t>(rows.size());
    return {loss, loss.item<double>() * static_cast<double>(count), count};
  }

  double validate() override {
    const torch::NoGradGuard no_grad;
    model_.eval();
    Agreement agreement(model_.count());
    std::vector<double> sums = {0, 0};
    for (const int64_t row : validation_) {
      const auto at = static_cast<size_t>(row);
      const Picture& picture = set_.pictures[at];
      const Tensor logits = model_.forward(whole(picture, model_.preprocess())).logits;
      const double loss = pixel_loss(logits, pictures::to_tensor(set_.masks[at]).unsqueeze(0)).item<double>();
      agreement.add(labels_of(logits[0], picture.height, picture.width), set_.masks[at]);
      sums[0] += loss;
      sums[1] += 1;
    }
    if (group_ != nullptr) {
      group_->sum(sums);
      group_->sum(agreement.counts());
    }
    const double loss = sums[0] / sums[1];
    if (loss < best_loss_) {
      best_loss_ = loss;
      mean_iou_ = agreement.mean_iou();
    }
    return loss;
  }

  // Of the best of the validations since this was last asked.
  double take_mean_iou() {
    best_loss_ = std::numeric_limits<double>::infinity();
    return mean_iou_;
  }

 private:
  // 0 where no pixel counts: a mean over none is NaN.
  Tensor pixel_loss(const Tensor& logits, const Tensor& targets) const {
    const Tensor full = nn::resized(logits, targets.size(1), targets.size(2));
    const auto of = F::CrossEntropyFuncOptions().weight(weights_).ignore_index(pictures::kIgnoredTarget);
    if ((targets == pictures::kIgnoredTarget).all().item<bool>()) return full.sum() * 0;
    return F::cross_entropy(full, targets, of);
  }

  Model& model_;
  nn::Processes* group_;
  const MaskedSet& set_;
  const TrainOptions& options_;
  pictures::Order order_;
  std::vector<int64_t> validation_;
  Tensor weights_;
  double mean_iou_ = 0, best_loss_ = std::numeric_limits<double>::infinity();
};

// ---- The model ----

bool same_names(const pictures::Classes& a, const pictures::Classes& b) {
  return std::equal(a.classes.begin(), a.classes.end(), b.classes.begin(), b.classes.end(),
                    [](const pictures::Class& x, const pictures::Class& y) { return x.name == y.name; });
}

std::shared_ptr<Model> start_model(const MaskedSet& set, const TrainOptions& o, TrainResult& result) {
  const int64_t channels = set.pictures.front().channels;
  if (o.from.empty()) return make_model(o.network, channels, std::nullopt, set.classes);
  std::shared_ptr<Model> model = load_model(o.from);
  if (model->channels() != channels) {
    throw Error(o.from + " reads pictures of " + std::to_string(model->channels()) + " channels and these have " +
                std::to_string(channels) + "; read them as the model does");
  }
  if (!same_names(model->classes(), set.classes)) {
    result.notes.push_back(o.from + " knows " + std::to_string(model->count()) +
                           " classes and these are others: its head was replaced by a new one for " +
                           std::to_string(set.classes.classes.size()));
    model = model->with_classes(set.classes);
  }
  if (o.freeze_backbone) model->freeze_backbone();
  return model;
}

json to_json(const TrainResult& r) {
  json j = r.to_json();
  j["valid_mean_iou"] = r.valid_mean_iou;
  return j;
}

TrainResult result_from_json(const json& j) {
  TrainResult r;
  if (j.is_null()) return r;
  r.read(j);
  r.valid_mean_iou = j.at("valid_mean_iou").get<double>();
  return r;
}

}  // namespace

Split split(const MaskedSet& set, int64_t valid_pictures) {
  const double fraction = std::min(0.1, static_cast<double>(valid_pictures) / static_cast<double>(set.count()));
  std::vector<uint64_t> hashes;
  for (const Picture& picture : set.pictures) hashes.push_back(nn::splitmix(app::hashed(picture.bytes)));
  // Of few pictures perhaps none is below the fraction: then it is the one with the smallest hash.
  const uint64_t limit =
      std::max(static_cast<uint64_t>(fraction * 0x1p64), *std::min_element(hashes.begin(), hashes.end()));
  Split result;
  for (size_t i = 0; i < hashes.size(); ++i) {
    (hashes[i] <= limit ? result.held_out : result.train).push_back(static_cast<int64_t>(i));
  }
  if (result.train.empty()) {
    throw Error("the " + std::to_string(set.count()) +
                " pictures are all the same; training needs another one, to validate with");
  }
  return result;
}

std::vector<double> weights_of(const std::vector<double>& shares, double balance) {
  double largest = 0;
  for (const double share : shares) largest = std::max(largest, share);
  std::vector<double> weights;
  for (const double share : shares) weights.push_back(std::min(std::pow(share / largest, -balance), 10.0));
  return weights;
}

TrainResult train(MaskedSet set, const TrainOptions& given, const std::function<void(const TrainProgress&)>& progress) {
  const TrainOptions options = completed(given, set);
  check_options(options);
  app::Training training(options, identity_of(set, options));

  torch::manual_seed(options.seed);
  TrainResult result;
  const std::shared_ptr<Model> model = start_model(set, options, result);
  const Augmentation& part = options.augmentation;
  if (std::min(part.height, part.width) < model->least_side()) {
    throw Error("parts of " + std::to_string(part.width) + " x " + std::to_string(part.height) +
                " pixels are smaller than the network takes, " + std::to_string(model->least_side()) +
                " both ways; give larger pictures, a smaller depth or a smaller stem");
  }
  const Split rows = split(set, options.valid_pictures);
  result.train_pictures = static_cast<int64_t>(rows.train.size());
  result.validation_pictures = static_cast<int64_t>(rows.held_out.size());
  result.count(*model);
  if (const auto finished = training.begin()) return result_from_json(*finished);

  Task task(*model, set, rows, options);
  result.seen = training.run(
      *model, task,
      [&](const nn::TrainProgress& p) {
        const double mean_iou = p.validated != nullptr ? task.take_mean_iou() : 0;
        if (progress) progress({p, mean_iou});
      },
      result);
  if (!result.interrupted) {
    torch::NoGradGuard no_grad;
    task.validate();  // of the weights that were kept, which may be of an earlier validation
    result.valid_mean_iou = task.take_mean_iou();
    if (training.leads()) {
      model->save(training.folder().finished());
      training.finish(to_json(result));
    }
  }
  training.end();
  return result;
}

}  // namespace heed::segment
