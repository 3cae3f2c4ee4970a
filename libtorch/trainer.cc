// The training loop and its checkpoints.
#include "libtorch/trainer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <heed/attention.h>
#include <torch/version.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <numbers>
#include <optional>

#include "libtorch/files.h"
#include "libtorch/interrupt.h"
#include "libtorch/processes.h"
#include "libtorch/require.h"
#include "libtorch/safetensors.h"
#include "libtorch/shares.h"

namespace heed::nn {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kBadSteps = 20;  // this many steps in a row without a finite gradient end the training

// Without this the backward of indexing adds up with atomics on several threads, in an order that changes every time.
class Deterministic {
 public:
  Deterministic()
      : before_(context().deterministicAlgorithms()), warn_before_(context().deterministicAlgorithmsWarnOnly()) {
    context().setDeterministicAlgorithms(true, /*warn_only=*/true);
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 2)
    fill_before_ = context().deterministicFillUninitializedMemory();
    context().setDeterministicFillUninitializedMemory(false);  // costs a pass over every new tensor, and buys nothing
#endif
  }
  ~Deterministic() {
    context().setDeterministicAlgorithms(before_, warn_before_);
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 2)
    context().setDeterministicFillUninitializedMemory(fill_before_);
#endif
  }
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;

 private:
  static at::Context& context() { return at::globalContext(); }
  bool before_, warn_before_;
  [[maybe_unused]] bool fill_before_ = false;
};

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

NamedTensors prefixed(const std::string& prefix, const NamedTensors& tensors) {
  NamedTensors result;
  for (const auto& [name, tensor] : tensors) result.emplace_back(prefix + name, tensor);
  return result;
}

void append(NamedTensors& to, NamedTensors more) {
  to.insert(to.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

// JSON knows no NaN.
json number(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }
double number(const json& x) { return x.is_null() ? kNaN : x.get<double>(); }

json to_json(const std::vector<TrainPoint>& curve) {
  json result = json::array();
  for (const TrainPoint& p : curve) {
    result.push_back({p.step, number(p.seconds), number(p.train_loss), number(p.valid_loss)});
  }
  return result;
}

class Loop {
 public:
  Loop(torch::nn::Module& module, TrainingTask& task, const TrainerOptions& options,
       const std::function<void(const TrainProgress&)>& progress)
      : module_(module),
        task_(task),
        options_(options),
        progress_(progress),
        group_(options.processes),
        optimizer_(module, options.optimizer),
        weights_(weights(module)) {
    for (const auto& [name, tensor] : weights_) best_.emplace_back(name, tensor.detach().clone());
    if (group_ != nullptr) shares_.emplace(module, *group_);
  }

  TrainSummary run() {
    const Interrupt interrupt;
    const Deterministic deterministic;
    const torch::AutoGradMode grad(true);
    start();
    module_.train();
    for (bool done = spent(); !done;) {
      if (index_ == 0 || epoch_steps_ == 0) epoch_steps_ = task_.start_epoch(epoch_);
      if (epoch_steps_ < 1)
        throw Error("there is nothing to train on: pass " + std::to_string(epoch_) + " has no steps");
      if (group_ != nullptr ? stop_ : Interrupt::requested()) {
        save();
        summary_.interrupted = true;
        break;
      }
      done = step();
    }
    if (!summary_.interrupted) {
      if (validated_step_ != summary_.steps) validate();  // resumed with a smaller budget
      if (summary_.best_step == 0 && !std::isfinite(summary_.best_valid_loss)) {
        throw Error("the validation loss was never a finite number; a learning rate below " +
                    std::to_string(options_.learning_rate) + " usually mends it");
      }
      copy_into(weights_, best_, "the best weights");
      module_.eval();
    }
    summary_.seconds = seconds();
    return summary_;
  }

  // For the end of an error's sentence.
  std::string how_to_go_on() const {
    if (saved_step_ < 0) return "";
    return "; the checkpoint of step " + std::to_string(saved_step_) + " in " + options_.checkpoint +
           " is whole, and the same command goes on from it";
  }

 private:
  bool leader() const { return group_ == nullptr || group_->rank() == 0; }

  double own_seconds() const { return seconds_before_ + clock_.seconds(); }
  // What depends on the time must come out the same on every rank: among several, it is rank 0's in the last step.
  double seconds() const { return group_ != nullptr ? agreed_seconds_ : own_seconds(); }

  // How much of the budget is used; NaN if only patience ends the training.
  double fraction() const {
    double f = kNaN;
    const auto use = [&](double limit, double used) {
      if (limit > 0) f = std::fmax(f, std::fmin(1.0, used / limit));
    };
    use(options_.minutes * 60, seconds());
    use(static_cast<double>(options_.steps), static_cast<double>(summary_.steps));
    use(static_cast<double>(options_.epochs), epochs_done());
    return f;
  }

  double epochs_done() const {
    const double part = epoch_steps_ > 0 ? static_cast<double>(index_) / static_cast<double>(epoch_steps_) : 0;
    return static_cast<double>(epoch_) + part;
  }

  bool spent() const {
    return (options_.minutes > 0 && seconds() >= options_.minutes * 60) ||
           (options_.steps > 0 && summary_.steps >= options_.steps) ||
           (options_.epochs > 0 && epoch_ >= options_.epochs) ||
           (options_.patience > 0 && without_better_ >= options_.patience);
  }

  // One step and what is due after it; true when it was the last.
  bool step() {
    const double before = clock_.seconds();
    if (!leader()) seed_own();
    StepLoss step_loss = task_.loss(index_);
    if (step_loss.loss.defined()) step_loss.loss.backward();
    step_loss.loss.reset();  // frees the graph before the optimiser needs the cache
    if (group_ != nullptr) combine(step_loss);
    const double rate = learning_rate_at(options_.learning_rate, options_.warmup, summary_.steps + 1,
                                         options_.cosine ? fraction() : kNaN);
    const double norm = optimizer_.step(rate);
    ++summary_.steps;
    summary_.units += step_loss.units;
    if (std::isfinite(norm) && std::isfinite(step_loss.sum)) {
      bad_steps_ = 0;
      point_sum_ += step_loss.sum;
      point_units_ += step_loss.units;
      constexpr double kForget = 0.98;
      recent_sum_ = kForget * recent_sum_ + step_loss.sum;
      recent_units_ = kForget * recent_units_ + static_cast<double>(step_loss.units);
      recent_seconds_ = kForget * recent_seconds_ + clock_.seconds() - before;
    } else if (++bad_steps_ >= kBadSteps) {
      throw Error("the loss or its gradient was not a finite number for " + std::to_string(kBadSteps) +
                  " steps up to step " + std::to_string(summary_.steps) + "; a learning rate below " +
                  json(options_.learning_rate).dump() + " usually mends it");
    }

    bool due = options_.validate_every > 0 && summary_.steps % options_.validate_every == 0;
    if (++index_ == epoch_steps_) {
      index_ = 0;
      ++epoch_;
      due = due || options_.validate_every == 0;
    }
    const bool last = spent();  // asked once: a clock that strikes between two askings would skip the validation
    const bool validated = due || last;
    if (validated) validate();
    report(validated);
    if (!options_.checkpoint.empty() && (validated || clock_.seconds() >= next_save_)) save();
    return last || (options_.patience > 0 && without_better_ >= options_.patience);
  }

  // Makes the whole step of this rank's share.
  void combine(StepLoss& step_loss) {
    const auto whole = shares_->combine({step_loss.sum, step_loss.units, Interrupt::requested(), own_seconds()});
    step_loss.sum = whole.sum;
    step_loss.units = whole.units;
    stop_ = whole.stop;
    agreed_seconds_ = whole.seconds;
  }

  // A rank but 0 takes its random numbers from a seed of the step: so that of all generators rank 0's is the only one
  // to keep, and a checkpoint serves any number of ranks.
  void seed_own() {
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed_of(seed_, summary_.steps, group_->rank()));
  }

  // Measures the weights and their running mean. Which is better depends on the schedule: with a learning rate that
  // goes to 0 the mean lags behind, with one that stays high it is far ahead.
  void validate() {
    if (group_ != nullptr) shares_->align(tensors());
    module_.eval();
    double loss = kNaN;
    bool better = false;
    const auto measure = [&] {
      torch::NoGradGuard no_grad;
      const double measured = task_.validate();
      loss = std::fmin(loss, measured);
      if (!std::isfinite(measured) || measured >= summary_.best_valid_loss) return;
      copy_into(best_, weights_, "the model");
      summary_.best_valid_loss = measured;
      summary_.best_step = summary_.steps;
      better = true;
    };
    measure();
    if (options_.optimizer.average > 0) {
      optimizer_.exchange_average();
      measure();
      optimizer_.exchange_average();
    }
    module_.train();
    without_better_ = better ? 0 : without_better_ + 1;
    summary_.curve.push_back(
        {summary_.steps, seconds(), point_units_ > 0 ? point_sum_ / static_cast<double>(point_units_) : kNaN, loss});
    point_sum_ = 0;
    point_units_ = 0;
    validated_step_ = summary_.steps;
  }

  void report(bool validated) {
    if (!progress_) return;
    TrainProgress p;
    p.step = summary_.steps;
    p.epoch = epochs_done();
    p.loss = recent_units_ > 0 ? recent_sum_ / recent_units_ : kNaN;
    p.units_per_second = recent_seconds_ > 0 ? recent_units_ / recent_seconds_ : 0;
    p.seconds = seconds();
    p.fraction = fraction();
    const double gained = p.fraction - fraction_at_start_;
    p.seconds_left = gained > 0 ? clock_.seconds() * (1 - p.fraction) / gained : kNaN;
    p.validated = validated ? &summary_.curve.back() : nullptr;
    progress_(p);
  }

  void start() {
    const std::string& folder = options_.checkpoint;
    if (!folder.empty() && leader()) {
      make_folder(folder);
      const std::string path = checkpoint_path(folder);
      if (!options_.resume) {
        std::error_code ignored;
        fs::remove(path, ignored);
      } else if (fs::exists(path)) {
        restore(load_checkpoint(folder));
      }
      // At once: a folder that cannot be written should be told before hours of work, not after them.
      if (!summary_.resumed) save();
    }
    if (group_ != nullptr) share_start();
    clock_ = Clock();
    next_save_ = options_.checkpoint_seconds;
    fraction_at_start_ = std::fmax(0, fraction());
  }

  NamedTensors tensors() const {
    NamedTensors result = prefixed("model.", weights_);
    append(result, optimizer_.state());
    append(result, prefixed("best.", best_));
    return result;
  }

  // Every rank begins where rank 0 does.
  void share_start() {
    json start;
    auto generator = at::detail::getDefaultCPUGenerator();
    if (leader()) start = {{"state", state()}, {"seed", generator.current_seed()}, {"resumed", summary_.resumed}};
    start = json::parse(group_->tell(start.dump()));
    if (!leader()) {
      set_state(start.at("state"));
      summary_.resumed = start.at("resumed").get<bool>();
    }
    seed_ = start.at("seed").get<uint64_t>();
    agreed_seconds_ = start.at("state").at("seconds").get<double>();
    shares_->broadcast(tensors());
  }

  json state() const {
    return {{"epoch", epoch_},
            {"index", index_},
            {"epoch_steps", epoch_steps_},
            {"steps", summary_.steps},
            {"updates", optimizer_.steps()},
            {"units", summary_.units},
            {"seconds", own_seconds()},
            {"best_valid_loss", number(summary_.best_valid_loss)},
            {"best_step", summary_.best_step},
            {"without_better", without_better_},
            {"validated_step", validated_step_},
            {"bad_steps", bad_steps_},
            {"point", {number(point_sum_), point_units_}},
            {"recent", {number(recent_sum_), number(recent_units_), number(recent_seconds_)}},
            {"curve", to_json(summary_.curve)}};
  }

  // Throws json::exception if it is not a state, heed::Error if it is one of other data.
  void set_state(const json& s) {
    epoch_ = s.at("epoch").get<int64_t>();
    index_ = s.at("index").get<int64_t>();
    const auto epoch_steps = s.at("epoch_steps").get<int64_t>();
    summary_.steps = s.at("steps").get<int64_t>();
    optimizer_.set_steps(s.at("updates").get<int64_t>());
    summary_.units = s.at("units").get<int64_t>();
    seconds_before_ = s.at("seconds").get<double>();
    summary_.best_valid_loss = number(s.at("best_valid_loss"));
    summary_.best_step = s.at("best_step").get<int64_t>();
    without_better_ = s.at("without_better").get<int64_t>();
    validated_step_ = s.at("validated_step").get<int64_t>();
    bad_steps_ = s.at("bad_steps").get<int64_t>();
    point_sum_ = number(s.at("point").at(0));
    point_units_ = s.at("point").at(1).get<int64_t>();
    recent_sum_ = number(s.at("recent").at(0));
    recent_units_ = number(s.at("recent").at(1));
    recent_seconds_ = number(s.at("recent").at(2));
    for (const json& p : s.at("curve")) {
      summary_.curve.push_back({p.at(0).get<int64_t>(), number(p.at(1)), number(p.at(2)), number(p.at(3))});
    }
    if (index_ == 0) return;
    epoch_steps_ = task_.start_epoch(epoch_);
    if (epoch_steps_ == epoch_steps) return;
    throw Error("the checkpoint was made when pass " + std::to_string(epoch_) + " had " + std::to_string(epoch_steps) +
                " steps, and now it has " + std::to_string(epoch_steps_) + "; delete " + options_.checkpoint +
                " to start over");
  }

  void save() {
    if (options_.checkpoint.empty() || !leader()) return;
    const double before = clock_.seconds();
    Checkpoint checkpoint{tensors(), {}};
    auto generator = at::detail::getDefaultCPUGenerator();
    checkpoint.tensors.emplace_back("generator", generator.get_state());
    checkpoint.state = state();
    checkpoint.state["identity"] = options_.identity;
    save_checkpoint(options_.checkpoint, checkpoint);
    saved_step_ = summary_.steps;
    const double took = clock_.seconds() - before;
    next_save_ = clock_.seconds() + std::fmax(options_.checkpoint_seconds, 20 * took);
  }

  void restore(const Checkpoint& checkpoint) {
    const std::string path = checkpoint_path(options_.checkpoint);
    try {
      check_identity(checkpoint.state.at("identity"), options_.identity, options_.checkpoint);
      set_state(checkpoint.state);
    } catch (const json::exception& error) {
      throw Error(path + " is not a checkpoint of this program (" + error.what() + "); delete " + options_.checkpoint +
                  " to start over");
    }
    copy_into(tensors(), checkpoint.tensors, path);
    for (const auto& [name, tensor] : checkpoint.tensors) {
      if (name != "generator") continue;
      auto generator = at::detail::getDefaultCPUGenerator();
      generator.set_state(tensor);
    }
    summary_.resumed = true;
    saved_step_ = summary_.steps;
  }

  torch::nn::Module& module_;
  TrainingTask& task_;
  const TrainerOptions& options_;
  const std::function<void(const TrainProgress&)>& progress_;
  Processes* group_;
  std::optional<Shares> shares_;  // if there is a group
  AdamW optimizer_;
  NamedTensors weights_;  // the module's own tensors
  NamedTensors best_;     // copies
  TrainSummary summary_;
  int64_t epoch_ = 0;        // passes that are complete
  int64_t index_ = 0;        // steps of this pass that are done
  int64_t epoch_steps_ = 0;  // of this pass
  int64_t without_better_ = 0;
  int64_t validated_step_ = -1;
  int64_t bad_steps_ = 0;
  double point_sum_ = 0;  // since the last point of the curve
  int64_t point_units_ = 0;
  double recent_sum_ = 0, recent_units_ = 0, recent_seconds_ = 0;  // fading sums, for display
  Clock clock_;
  double seconds_before_ = 0;  // of the runs before this one
  double next_save_ = 0;
  double fraction_at_start_ = 0;
  int64_t saved_step_ = -1;  // of the checkpoint; -1: there is none
  double agreed_seconds_ = 0;
  bool stop_ = false;  // some rank was told to
  uint64_t seed_ = 0;
};

}  // namespace

void check_options(const TrainerOptions& o) {
  require(o.minutes >= 0, "minutes", o.minutes, "it must be 0 (no limit) or more");
  require(o.epochs >= 0, "epochs", o.epochs, "it must be 0 (no limit) or more");
  require(o.steps >= 0, "steps", o.steps, "it must be 0 (no limit) or more");
  require(o.patience >= 0, "patience", o.patience, "it must be 0 (never stop early) or more");
  if (o.minutes == 0 && o.epochs == 0 && o.steps == 0 && o.patience == 0) {
    throw Error("training would never end: minutes, epochs, steps and patience are all 0; set one of them");
  }
  require(o.learning_rate > 0 && std::isfinite(o.learning_rate), "learning_rate", o.learning_rate,
          "it must be above 0");
  require(o.warmup >= 0, "warmup", o.warmup, "it must be 0 or more steps");
  require(o.optimizer.weight_decay >= 0, "weight_decay", o.optimizer.weight_decay, "it must be 0 or more");
  require(o.optimizer.clip >= 0, "clip", o.optimizer.clip, "it must be 0 (no limit) or more");
  require(o.optimizer.average >= 0, "average", o.optimizer.average, "it must be 0 (none) or more");
  require(o.validate_every >= 0, "validate_every", o.validate_every, "it must be 0 (once an epoch) or more");
  require(o.checkpoint_seconds >= 0, "checkpoint_seconds", o.checkpoint_seconds, "it must be 0 or more");
}

double learning_rate_at(double peak, int64_t warmup, int64_t step, double fraction) {
  const double w = static_cast<double>(std::max<int64_t>(warmup, 1));
  const double t = static_cast<double>(step);
  if (std::isnan(fraction)) return peak * std::min(t / w, std::sqrt(w / t));
  const double up = std::min(1.0, std::max(t / w, fraction / 0.1));
  return peak * up * 0.5 * (1 + std::cos(std::numbers::pi * std::clamp(fraction, 0.0, 1.0)));
}

std::string checkpoint_path(const std::string& folder) {
  return (fs::path(folder) / "checkpoint.safetensors").string();
}

void save_checkpoint(const std::string& folder, const Checkpoint& checkpoint) {
  save_safetensors(checkpoint_path(folder), checkpoint.tensors,
                   {{"format", "heed checkpoint 1"}, {"state", checkpoint.state.dump()}});
}

Checkpoint load_checkpoint(const std::string& folder) {
  const std::string path = checkpoint_path(folder);
  SafeTensors file = load_safetensors(path);
  const auto format = file.metadata.find("format");
  if (format == file.metadata.end() || format->second != "heed checkpoint 1") {
    throw Error(path + " is not a checkpoint of this version of Heed; delete " + folder + " to start over");
  }
  try {
    return {std::move(file.tensors), json::parse(file.metadata.at("state"))};
  } catch (const std::exception& error) {
    throw Error(path + " has no readable state (" + error.what() + "); delete " + folder + " to start over");
  }
}

void check_identity(const json& then, const json& now, const std::string& folder) {
  if (then == now) return;
  const auto value = [](const json& object, const std::string& key) {
    return object.is_object() && object.contains(key) ? object[key].dump() : std::string("not set");
  };
  json keys = now.is_object() ? now : json::object();
  if (then.is_object()) keys.update(then);
  for (const auto& item : keys.items()) {
    const std::string before = value(then, item.key()), after = value(now, item.key());
    if (before == after) continue;
    throw Error("the training in " + folder + " was begun with " + item.key() + " " + before + ", and now it is " +
                after + "; ask for the same to go on, or delete that folder to start over");
  }
  throw Error("the training in " + folder + " was begun with other options; delete that folder to start over");
}

TrainSummary train(torch::nn::Module& module, TrainingTask& task, const TrainerOptions& options,
                   const std::function<void(const TrainProgress&)>& progress) {
  check_options(options);
  Loop loop(module, task, options, progress);
  try {
    return loop.run();
  } catch (const ProcessLost& error) {
    throw ProcessLost(error.what() + loop.how_to_go_on());
  }
}

}  // namespace heed::nn
