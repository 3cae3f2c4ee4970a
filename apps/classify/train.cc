// Training a classifier: the split, the task that the loop asks for batches, the folder.
#include "apps/classify/train.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <utility>

#include "apps/classify/measure.h"
#include "libtorch/cross_entropy.h"
#include "libtorch/require.h"
#include "libtorch/splitmix.h"

namespace heed::classify {
namespace {

using nlohmann::json;
using nn::require;
using torch::Tensor;

void check_options(const TrainOptions& o) {
  o.check();
  require(o.label_smoothing >= 0 && o.label_smoothing < 1, "label_smoothing", o.label_smoothing,
          "it must be at least 0 and below 1");
  require(o.augmentation.erase >= 0 && o.augmentation.erase <= 1, "erase", o.augmentation.erase,
          "it must be from 0 to 1");
}

TrainOptions completed(TrainOptions o, const PictureSet& set) {
  if (o.augmentation.crop < 0) o.augmentation.crop = std::min(set.height, set.width) / 8;
  o.complete();
  return o;
}

// ---- What must be equal for a checkpoint to go on ----

std::string checksum(const PictureSet& set) {
  uint64_t hash = app::hashed(set.bytes);
  for (const int64_t label : set.labels) hash = nn::splitmix(hash, static_cast<uint64_t>(label));
  for (const std::string& name : set.classes) hash = app::hashed(name + '\n', hash);
  return app::with_checksum(set.count(), hash);
}

json identity_of(const PictureSet& set, const TrainOptions& o) {
  json identity{{"task", "classify"},
                {"pictures", checksum(set)},
                {"height, width, channels", {set.height, set.width, set.channels}},
                {"arch", o.from.empty() ? o.network.arch : ""},
                {"width", o.network.width},
                {"depth", o.network.depth},
                {"patch", o.network.patch},
                {"dropout", o.network.dropout},
                {"crop", o.augmentation.crop},
                {"flip", o.augmentation.flip},
                {"erase", o.augmentation.erase},
                {"label_smoothing", o.label_smoothing}};
  o.add_to(identity);
  return identity;
}

// ---- The task ----

class Task : public nn::TrainingTask {
 public:
  Task(Model& model, const PictureSet& set, const Split& split, const TrainOptions& options)
      : model_(model),
        group_(options.processes),
        set_(set),
        options_(options),
        order_(split.train, options),
        validation_(pictures::share_of(split.held_out, group_)) {}

  int64_t start_epoch(int64_t epoch) override { return order_.start_epoch(epoch); }

  nn::StepLoss loss(int64_t index) override {
    const std::vector<int64_t> rows = order_.step(index);
    if (rows.empty()) return {};
    std::vector<int64_t> labels;
    for (const int64_t row : rows) labels.push_back(set_.labels[static_cast<size_t>(row)]);
    const Tensor logits = model_.forward(make_batch(set_, rows, options_.augmentation)).logits;
    const auto result = nn::cross_entropy(logits, torch::tensor(labels, torch::kInt64), options_.label_smoothing);
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
  pictures::Order order_;
  std::vector<int64_t> validation_;
  double accuracy_ = 0, accuracy_loss_ = std::numeric_limits<double>::infinity();
};

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

json to_json(const TrainResult& r) {
  json j = r.to_json();
  j["valid_accuracy"] = r.valid_accuracy;
  return j;
}

TrainResult result_from_json(const json& j) {
  TrainResult r;
  if (j.is_null()) return r;
  r.read(j);
  r.valid_accuracy = j.at("valid_accuracy").get<double>();
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
    hashes.push_back(nn::splitmix(app::hashed(set.picture(i))));  // FNV's high bits hardly know the last pixels
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
  app::Training training(options, identity_of(set, options));

  torch::manual_seed(options.seed);
  TrainResult result;
  const std::shared_ptr<Model> model = start_model(set, options, result);
  const Split rows = split(set, options.valid_pictures);
  result.train_pictures = static_cast<int64_t>(rows.train.size());
  result.validation_pictures = static_cast<int64_t>(rows.held_out.size());
  result.count(*model);
  if (const auto finished = training.begin()) return result_from_json(*finished);

  Task task(*model, set, rows, options);
  result.seen = training.run(
      *model, task,
      [&](const nn::TrainProgress& p) {
        const double accuracy = p.validated != nullptr ? task.take_accuracy() : 0;
        if (progress) progress({p, accuracy});
      },
      result);
  if (!result.interrupted) {
    torch::NoGradGuard no_grad;
    task.validate();  // of the weights that were kept, which may be of an earlier validation
    result.valid_accuracy = task.take_accuracy();
    if (training.leads()) {
      model->save(training.folder().finished());
      training.finish(to_json(result));
    }
  }
  training.end();
  return result;
}

}  // namespace heed::classify
