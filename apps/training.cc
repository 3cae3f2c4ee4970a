// How a training begins and ends.
#include "apps/training.h"

#include <heed/attention.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "libtorch/require.h"

namespace heed::app {
namespace {

using nlohmann::json;

nn::TrainerOptions trainer_options(const TrainingOptions& o, const std::string& work, json identity) {
  identity.update({{"learning_rate", o.learning_rate},
                   {"warmup", o.warmup},
                   {"weight_decay", o.weight_decay},
                   {"clip", o.clip},
                   {"average", o.average},
                   {"validate_every", o.validate_every},
                   {"seed", o.seed}});
  const bool cosine = o.schedule == "cosine";
  nn::require(cosine || o.schedule == "inverse-sqrt", "schedule", o.schedule, "it must be cosine or inverse-sqrt");
  if (!cosine) identity["schedule"] = o.schedule;  // not otherwise: checkpoints older than the option go on
  nn::TrainerOptions t;
  t.minutes = o.minutes;
  t.epochs = o.epochs;
  t.steps = o.steps;
  t.patience = o.patience;
  t.learning_rate = o.learning_rate;
  t.warmup = o.warmup;
  t.cosine = cosine;
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

}  // namespace

json finite(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }
double number(const json& j) { return j.is_null() ? std::numeric_limits<double>::quiet_NaN() : j.get<double>(); }

std::string with_checksum(int64_t count, uint64_t hash) {
  char text[64];
  std::snprintf(text, sizeof text, "%lld (checksum %016llx)", static_cast<long long>(count),
                static_cast<unsigned long long>(hash));
  return text;
}

json TrainingResult::to_json() const {
  json points = json::array();
  for (const nn::TrainPoint& p : curve) {
    points.push_back({{"step", p.step},
                      {"seconds", p.seconds},
                      {"train_loss", finite(p.train_loss)},
                      {"valid_loss", finite(p.valid_loss)}});
  }
  return {{"steps", steps},     {"parameters", parameters},
          {"seconds", seconds}, {"best_valid_loss", finite(best_valid_loss)},
          {"notes", notes},     {"curve", points}};
}

void TrainingResult::read(const json& j) {
  steps = j.at("steps").get<int64_t>();
  parameters = j.at("parameters").get<int64_t>();
  seconds = j.at("seconds").get<double>();
  best_valid_loss = number(j.at("best_valid_loss"));
  notes = j.at("notes").get<std::vector<std::string>>();
  curve.clear();
  for (const json& p : j.at("curve")) {
    curve.push_back({p.at("step").get<int64_t>(), p.at("seconds").get<double>(), number(p.at("train_loss")),
                     number(p.at("valid_loss"))});
  }
}

Training::Training(const TrainingOptions& options, json identity)
    : options_(options),
      group_(options.processes),
      folder_(options.out),
      trainer_(trainer_options(options, folder_.work(), std::move(identity))) {
  nn::check_options(trainer_);
}

std::optional<json> Training::begin() {
  if (group_ != nullptr) {
    json all = trainer_.identity;
    all.update({{"minutes", options_.minutes},
                {"epochs", options_.epochs},
                {"steps", options_.steps},
                {"patience", options_.patience}});
    group_->agree(all);
  }
  std::optional<json> finished;
  if (leads()) finished = folder_.open(trainer_.identity, options_.resume);
  if (group_ != nullptr && group_->tell(finished ? "finished" : "") == "finished" && !leads()) return json();
  return finished;
}

int64_t Training::run(torch::nn::Module& model, nn::TrainingTask& task,
                      const std::function<void(const nn::TrainProgress&)>& progress, TrainingResult& result) {
  nn::TrainSummary summary = nn::train(model, task, trainer_, progress);
  result.steps = summary.steps;
  result.seconds = summary.seconds;
  result.best_valid_loss = summary.best_valid_loss;
  result.interrupted = summary.interrupted;
  result.curve = std::move(summary.curve);
  return summary.units;
}

void Training::end() const {
  if (group_ != nullptr) group_->tell("");
}

}  // namespace heed::app
