// Training a network that gives pixels their classes: the split, the task that the loop asks for batches, the folder.
#include "apps/segment/train.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <utility>

#include "apps/pictures/tensors.h"
#include "apps/segment/infer.h"
#include "apps/segment/measure.h"
#include "apps/training_folder.h"
#include "libtorch/splitmix.h"
#include "libtorch/vision/segformer.h"

namespace heed::segment {
namespace {

using nlohmann::json;
using pictures::Labels;
using pictures::Picture;
using torch::Tensor;
namespace F = torch::nn::functional;

constexpr int64_t kLargestPart = 512;  // pixels, both ways, that are taken of a picture without being asked for

template <class T>
void require(bool good, const char* what, T value, const char* rule) {
  if (good) return;
  std::ostringstream text;
  text << what << " is " << value << "; " << rule;
  throw Error(text.str());
}

void check_options(const TrainOptions& o) {
  require(o.batch >= 1, "batch", o.batch, "it must be 1 picture at least");
  require(o.valid_pictures >= 1, "valid_pictures", o.valid_pictures,
          "at least 1 picture is needed to see whether training helps");
  require(o.balance >= 0 && o.balance <= 1, "balance", o.balance, "it must be from 0 to 1");
  require(o.augmentation.scale >= 0 && o.augmentation.scale <= 4, "scale", o.augmentation.scale,
          "it must be from 0 to 4");
  require(o.augmentation.colour >= 0 && o.augmentation.colour < 1, "colour", o.augmentation.colour,
          "it must be at least 0 and below 1");
  require(o.augmentation.noise >= 0 && o.augmentation.noise <= 1, "noise", o.augmentation.noise,
          "it must be from 0 to 1");
  if (o.freeze_backbone && o.from.empty()) {
    throw Error("a backbone that has learned nothing cannot be frozen; name a model to go on from");
  }
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
  if (o.learning_rate == 0) o.learning_rate = o.freeze_backbone ? 2e-2 : o.from.empty() ? 2e-3 : 2e-4;
  return o;
}

// ---- What must be equal for a checkpoint to go on ----

// FNV-1a: notices other data and spreads pictures; it need not resist an attacker.
constexpr uint64_t kFnv = 0xCBF29CE484222325u;
template <class Bytes>
uint64_t hashed(const Bytes& bytes, uint64_t hash = kFnv) {
  for (const auto byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001B3u;
  return hash;
}

std::string checksum(const MaskedSet& set) {
  uint64_t hash = hashed(pictures::classes_text(set.classes));
  for (const Picture& picture : set.pictures) hash = hashed(picture.bytes, hash);
  for (const Labels& mask : set.masks) {
    for (const uint16_t label : mask.values) hash = (hash ^ label) * 0x100000001B3u;
  }
  char text[64];
  std::snprintf(text, sizeof text, "%lld (checksum %016llx)", static_cast<long long>(set.count()),
                static_cast<unsigned long long>(hash));
  return text;
}

json identity_of(const MaskedSet& set, const TrainOptions& o) {
  return {{"task", "segment"},
          {"pictures", checksum(set)},
          {"arch", o.from.empty() ? o.network.arch : ""},
          {"width", o.network.width},
          {"depth", o.network.depth},
          {"stem", o.network.stem},
          {"dropout", o.network.dropout},
          {"from", o.from},
          {"freeze_backbone", o.freeze_backbone},
          {"height, width", {o.augmentation.height, o.augmentation.width}},
          {"scale", o.augmentation.scale},
          {"flip", {o.augmentation.flip, o.augmentation.flip_vertical}},
          {"colour", o.augmentation.colour},
          {"noise", o.augmentation.noise},
          {"balance", o.balance},
          {"batch", o.batch},
          {"learning_rate", o.learning_rate},
          {"warmup", o.warmup},
          {"weight_decay", o.weight_decay},
          {"clip", o.clip},
          {"average", o.average},
          {"validate_every", o.validate_every},
          {"valid_pictures", o.valid_pictures},
          {"seed", o.seed}};
}

// What the processes that train together must have in common: beside that, when to stop.
json common_to_all(json identity, const TrainOptions& o) {
  identity.update({{"minutes", o.minutes}, {"epochs", o.epochs}, {"steps", o.steps}, {"patience", o.patience}});
  return identity;
}

// ---- The task ----

class Task : public nn::TrainingTask {
 public:
  Task(Model& model, const MaskedSet& set, const Split& split, const TrainOptions& options)
      : model_(model), group_(options.processes), set_(set), options_(options), order_(split.train) {
    const auto rank = static_cast<size_t>(group_ != nullptr ? group_->rank() : 0);
    const auto world = static_cast<size_t>(group_ != nullptr ? group_->world() : 1);
    for (size_t i = rank; i < split.held_out.size(); i += world) validation_.push_back(split.held_out[i]);
    weights_ = torch::tensor(weights_of(shares_of(set), options.balance), torch::kFloat64).to(torch::kFloat32);
  }

  // Sorted by a hash of seed, pass and picture, so that a pass does not depend on those before.
  int64_t start_epoch(int64_t epoch) override {
    const uint64_t seed = nn::splitmix(options_.seed, static_cast<uint64_t>(epoch) + 1);
    std::vector<std::pair<uint64_t, int64_t>> keyed;
    for (const int64_t row : order_) keyed.emplace_back(nn::splitmix(seed, static_cast<uint64_t>(row)), row);
    std::sort(keyed.begin(), keyed.end());
    std::transform(keyed.begin(), keyed.end(), order_.begin(), [](const auto& pair) { return pair.second; });
    const auto n = static_cast<int64_t>(order_.size());
    steps_ = (n + options_.batch - 1) / options_.batch;
    return steps_;
  }

  nn::StepLoss loss(int64_t index) override {
    const auto n = static_cast<int64_t>(order_.size());
    const int64_t rank = group_ != nullptr ? group_->rank() : 0, world = group_ != nullptr ? group_->world() : 1;
    std::vector<int64_t> rows;
    for (int64_t i = index * n / steps_ + rank; i < (index + 1) * n / steps_; i += world) {
      rows.push_back(order_[static_cast<size_t>(i)]);
    }
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
  std::vector<int64_t> order_, validation_;
  Tensor weights_;
  int64_t steps_ = 0;
  double mean_iou_ = 0, best_loss_ = std::numeric_limits<double>::infinity();
};

nn::TrainerOptions trainer_options(const TrainOptions& o, const std::string& work, json identity) {
  nn::TrainerOptions t;
  t.minutes = o.minutes;
  t.epochs = o.epochs;
  t.steps = o.steps;
  t.patience = o.patience;
  t.learning_rate = o.learning_rate;
  t.warmup = o.warmup;
  t.optimizer.weight_decay = o.weight_decay;
  t.optimizer.clip = o.clip;
  t.optimizer.average = o.average;
  t.validate_every = o.validate_every;
  t.checkpoint = work;
  t.checkpoint_seconds = o.checkpoint_seconds;
  t.resume = o.resume;
  t.identity = std::move(identity);
  t.processes = o.processes;
  return t;
}

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

json finite(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }

json to_json(const TrainResult& r) {
  json curve = json::array();
  for (const nn::TrainPoint& p : r.curve) {
    curve.push_back({{"step", p.step},
                     {"seconds", p.seconds},
                     {"train_loss", finite(p.train_loss)},
                     {"valid_loss", finite(p.valid_loss)}});
  }
  return {{"steps", r.steps},
          {"parameters", r.parameters},
          {"learning", r.learning},
          {"train_pictures", r.train_pictures},
          {"validation_pictures", r.validation_pictures},
          {"seen", r.seen},
          {"seconds", r.seconds},
          {"best_valid_loss", r.best_valid_loss},
          {"valid_mean_iou", r.valid_mean_iou},
          {"notes", r.notes},
          {"curve", curve}};
}

// Without the curve, which stays in training.json.
TrainResult result_from_json(const json& j) {
  TrainResult r;
  r.steps = j.at("steps").get<int64_t>();
  r.parameters = j.at("parameters").get<int64_t>();
  r.learning = j.at("learning").get<int64_t>();
  r.train_pictures = j.at("train_pictures").get<int64_t>();
  r.validation_pictures = j.at("validation_pictures").get<int64_t>();
  r.seen = j.at("seen").get<int64_t>();
  r.seconds = j.at("seconds").get<double>();
  r.best_valid_loss = j.at("best_valid_loss").get<double>();
  r.valid_mean_iou = j.at("valid_mean_iou").get<double>();
  r.notes = j.at("notes").get<std::vector<std::string>>();
  return r;
}

}  // namespace

Split split(const MaskedSet& set, int64_t valid_pictures) {
  const double fraction = std::min(0.1, static_cast<double>(valid_pictures) / static_cast<double>(set.count()));
  std::vector<uint64_t> hashes;
  for (const Picture& picture : set.pictures) hashes.push_back(nn::splitmix(hashed(picture.bytes)));
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
  const app::TrainingFolder folder(options.out);
  const json identity = identity_of(set, options);
  const nn::TrainerOptions trainer = trainer_options(options, folder.work(), identity);
  nn::check_options(trainer);

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
  for (const Tensor& parameter : model->parameters()) {
    result.parameters += parameter.numel();
    if (parameter.requires_grad()) result.learning += parameter.numel();
  }

  nn::Processes* const group = options.processes;
  const bool leader = group == nullptr || group->rank() == 0;
  if (group != nullptr) group->agree(common_to_all(identity, options));
  std::optional<json> finished;
  if (leader) finished = folder.open(identity, options.resume);
  if (group != nullptr && group->tell(finished ? "finished" : "") == "finished" && !leader) return {};
  if (finished) return result_from_json(*finished);

  Task task(*model, set, rows, options);
  const nn::TrainSummary summary = nn::train(*model, task, trainer, [&](const nn::TrainProgress& p) {
    const double mean_iou = p.validated != nullptr ? task.take_mean_iou() : 0;
    if (progress) progress({p, mean_iou});
  });
  result.steps = summary.steps;
  result.seen = summary.units;
  result.seconds = summary.seconds;
  result.best_valid_loss = summary.best_valid_loss;
  result.interrupted = summary.interrupted;
  result.curve = summary.curve;
  if (!result.interrupted) {
    torch::NoGradGuard no_grad;
    task.validate();  // of the weights that were kept, which may be of an earlier validation
    result.valid_mean_iou = task.take_mean_iou();
    if (leader) {
      model->save(folder.finished());
      folder.finish(to_json(result), identity);
    }
  }
  if (group != nullptr) group->tell("");  // nobody ends well before the model is safe
  return result;
}

}  // namespace heed::segment
