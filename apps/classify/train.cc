// Training a classifier: the split, the task that the loop asks for batches, the folder.
#include "apps/classify/train.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "apps/classify/measure.h"
#include "apps/training_folder.h"
#include "libtorch/cross_entropy.h"
#include "libtorch/splitmix.h"

namespace heed::classify {
namespace {

using nlohmann::json;
using torch::Tensor;

template <class T>
void require(bool good, const char* what, T value, const char* rule) {
  if (good) return;
  std::ostringstream text;
  text << what << " is " << value << "; " << rule;
  throw Error(text.str());
}

void check_options(const TrainOptions& o) {
  require(o.batch >= 1, "batch", o.batch, "it must be 1 picture at least");
  require(o.label_smoothing >= 0 && o.label_smoothing < 1, "label_smoothing", o.label_smoothing,
          "it must be at least 0 and below 1");
  require(o.valid_pictures >= 1, "valid_pictures", o.valid_pictures,
          "at least 1 picture is needed to see whether training helps");
  require(o.augmentation.erase >= 0 && o.augmentation.erase <= 1, "erase", o.augmentation.erase,
          "it must be from 0 to 1");
  if (o.freeze_backbone && o.from.empty()) {
    throw Error("a backbone that has learned nothing cannot be frozen; name a model to go on from");
  }
}

TrainOptions completed(TrainOptions o, const PictureSet& set) {
  if (o.augmentation.crop < 0) o.augmentation.crop = std::min(set.height, set.width) / 8;
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

std::string checksum(const PictureSet& set) {
  uint64_t hash = hashed(set.bytes);
  for (const int64_t label : set.labels) hash = nn::splitmix(hash, static_cast<uint64_t>(label));
  for (const std::string& name : set.classes) hash = hashed(name + '\n', hash);
  char text[64];
  std::snprintf(text, sizeof text, "%lld (checksum %016llx)", static_cast<long long>(set.count()),
                static_cast<unsigned long long>(hash));
  return text;
}

json identity_of(const PictureSet& set, const TrainOptions& o) {
  return {{"task", "classify"},
          {"pictures", checksum(set)},
          {"height, width, channels", {set.height, set.width, set.channels}},
          {"arch", o.from.empty() ? o.network.arch : ""},
          {"width", o.network.width},
          {"depth", o.network.depth},
          {"patch", o.network.patch},
          {"dropout", o.network.dropout},
          {"from", o.from},
          {"freeze_backbone", o.freeze_backbone},
          {"crop", o.augmentation.crop},
          {"flip", o.augmentation.flip},
          {"erase", o.augmentation.erase},
          {"batch", o.batch},
          {"learning_rate", o.learning_rate},
          {"warmup", o.warmup},
          {"label_smoothing", o.label_smoothing},
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
  Task(Model& model, const PictureSet& set, const Split& split, const TrainOptions& options)
      : model_(model), group_(options.processes), set_(set), options_(options), order_(split.train) {
    const auto rank = static_cast<size_t>(group_ != nullptr ? group_->rank() : 0);
    const auto world = static_cast<size_t>(group_ != nullptr ? group_->world() : 1);
    for (size_t i = rank; i < split.held_out.size(); i += world) validation_.push_back(split.held_out[i]);
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
    std::vector<int64_t> rows, labels;
    for (int64_t i = index * n / steps_ + rank; i < (index + 1) * n / steps_; i += world) {
      rows.push_back(order_[static_cast<size_t>(i)]);
      labels.push_back(set_.labels[static_cast<size_t>(rows.back())]);
    }
    if (rows.empty()) return {};
    const Tensor logits = model_.forward(make_batch(set_, rows, options_.augmentation)).logits;
    const auto result =
        nn::cross_entropy(logits, torch::tensor(labels, torch::kInt64), {.smoothing = options_.label_smoothing});
    return {result.loss, result.sum, static_cast<int64_t>(rows.size())};
  }

  double validate() override {
    const Measured measured = measure(model_, set_, validation_);
    double sums[] = {measured.loss, static_cast<double>(measured.right), static_cast<double>(measured.pictures)};
    if (group_ != nullptr) group_->sum(sums);
    const double loss = sums[0] / sums[2];
    if (loss < accuracy_loss_) {
      accuracy_loss_ = loss;
      accuracy_ = sums[1] / sums[2];
    }
    return loss;
  }

  // Of the best of the validations since this was last asked.
  double take_accuracy() {
    accuracy_loss_ = std::numeric_limits<double>::infinity();
    return accuracy_;
  }

 private:
  Model& model_;
  nn::Processes* group_;
  const PictureSet& set_;
  const TrainOptions& options_;
  std::vector<int64_t> order_, validation_;
  int64_t steps_ = 0;
  double accuracy_ = 0, accuracy_loss_ = std::numeric_limits<double>::infinity();
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

// The classes in a model's order, if they are the same ones.
void take_order(PictureSet& set, const std::vector<std::string>& labels) {
  if (set.classes == labels ||
      !std::is_permutation(set.classes.begin(), set.classes.end(), labels.begin(), labels.end()))
    return;
  for (int64_t& label : set.labels) {
    const auto place = std::find(labels.begin(), labels.end(), set.classes[static_cast<size_t>(label)]);
    label = place - labels.begin();
  }
  set.classes = labels;
}

std::shared_ptr<Model> start_model(PictureSet& set, const TrainOptions& o, TrainResult& result) {
  if (o.from.empty()) return make_model(o.network, set.channels, set.preprocess, set.classes);
  std::shared_ptr<Model> model = load_model(o.from);
  if (model->channels() != set.channels || !(model->preprocess() == set.preprocess)) {
    throw Error("the pictures were not prepared as " + o.from + " wants them; read them with its preprocess");
  }
  take_order(set, model->labels());
  if (model->labels() != set.classes) {
    result.notes.push_back(o.from + " knows " + std::to_string(model->labels().size()) +
                           " classes and these are others: its head was replaced by a new one for " +
                           std::to_string(set.classes.size()));
    model = model->with_labels(set.classes);
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
          {"valid_accuracy", r.valid_accuracy},
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
  r.valid_accuracy = j.at("valid_accuracy").get<double>();
  r.notes = j.at("notes").get<std::vector<std::string>>();
  return r;
}

}  // namespace

Split split(const PictureSet& set, int64_t valid_pictures) {
  const auto n = static_cast<double>(set.count());
  const double fraction = std::min(0.1, static_cast<double>(valid_pictures) / n);
  std::vector<uint64_t> hashes;
  std::set<int64_t> known;
  std::set<uint64_t> firsts;  // of the classes
  for (int64_t i = 0; i < set.count(); ++i) {
    hashes.push_back(nn::splitmix(hashed(set.picture(i))));  // FNV's high bits hardly know the last pixels
    if (known.insert(set.labels[static_cast<size_t>(i)]).second) firsts.insert(hashes.back());
  }
  // Of few pictures perhaps none is below the fraction: then it is the one with the smallest hash.
  auto limit = static_cast<uint64_t>(fraction * 0x1p64);
  uint64_t smallest = std::numeric_limits<uint64_t>::max();
  for (const uint64_t hash : hashes) {
    if (firsts.count(hash) == 0) smallest = std::min(smallest, hash);
  }
  limit = std::max(limit, smallest);
  Split result;
  for (int64_t i = 0; i < set.count(); ++i) {
    const uint64_t hash = hashes[static_cast<size_t>(i)];
    (hash <= limit && firsts.count(hash) == 0 ? result.held_out : result.train).push_back(i);
  }
  if (result.held_out.empty()) {
    throw Error("there are " + std::to_string(set.count()) + " pictures, no two different ones in any of the " +
                std::to_string(known.size()) + " classes; training needs one more at least, to validate with");
  }
  return result;
}

TrainResult train(PictureSet set, const TrainOptions& given,
                  const std::function<void(const TrainProgress&)>& progress) {
  const TrainOptions options = completed(given, set);
  check_options(options);
  const app::TrainingFolder folder(options.out);
  const json identity = identity_of(set, options);
  const nn::TrainerOptions trainer = trainer_options(options, folder.work(), identity);
  nn::check_options(trainer);

  torch::manual_seed(options.seed);
  TrainResult result;
  const std::shared_ptr<Model> model = start_model(set, options, result);
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
    const double accuracy = p.validated != nullptr ? task.take_accuracy() : 0;
    if (progress) progress({p, accuracy});
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
    result.valid_accuracy = task.take_accuracy();
    if (leader) {
      model->save(folder.finished());
      folder.finish(to_json(result), identity);
    }
  }
  if (group != nullptr) group->tell("");  // nobody ends well before the model is safe
  return result;
}

}  // namespace heed::classify
