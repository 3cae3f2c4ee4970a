// What the trainings of all tasks have in common: options, what comes of them, and how they begin and end, alone or
// among several processes.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/training_folder.h"
#include "libtorch/processes.h"
#include "libtorch/trainer.h"

namespace heed::app {

// A task's own options come on top of these, and its defaults.
struct TrainingOptions {
  std::string from;      // the folder of a model to go on from; empty: a new one
  std::string out;       // the model folder; made if absent. A good model in it is replaced at the end, by a whole one
  double minutes = 0;    // stop after this much training time over all resumed runs; 0: no limit
  int64_t epochs = 0;    // stop after this many passes; 0: no limit (one of the four ends it)
  int64_t steps = 0;     // stop after this many steps; 0: no limit
  int64_t patience = 0;  // validations without a better loss before stopping; 0: never
  double learning_rate = 0;  // peak
  int64_t warmup = 0;        // steps of linear warm-up
  // What comes then. "cosine": to 0 over minutes, epochs or steps, with a tenth of them for warm-up at most, and
  // "inverse-sqrt" if none is given. "inverse-sqrt": the inverse square root of step / warmup.
  std::string schedule = "cosine";
  double weight_decay = 0;  // AdamW
  double clip = 1.0;        // gradient norm
  // A running mean of the weights over about the last 1/average of the steps (adamw.h) is validated beside the weights,
  // and the better of the two is exported; 0: no mean.
  int64_t average = 10;
  int64_t validate_every = 0;  // steps; 0: once an epoch
  uint64_t seed = 1;
  double checkpoint_seconds = 30;  // at least this often, and after each validation
  bool resume = true;  // go on from out/checkpoint if there is one; it must have been made with the same options and
                       // data, but for minutes, epochs, steps and patience; false: remove it and start over
  nn::Processes* processes = nullptr;  // those that train this model together; null: this one alone
};

struct TrainingResult {
  int64_t steps = 0;
  int64_t parameters = 0;
  double seconds = 0;
  double best_valid_loss = 0;
  bool interrupted = false;           // by Ctrl-C: a checkpoint was saved and the same command goes on from it
  std::vector<std::string> notes;     // sentences the user should read
  std::vector<nn::TrainPoint> curve;  // also kept in out/training.json

  // All but `interrupted`. A number that is not finite is null.
  nlohmann::json to_json() const;
  void read(const nlohmann::json& j);
};

nlohmann::json finite(double x);       // x, or null
double number(const nlohmann::json&);  // and back: NaN for null

// FNV-1a over bytes: notices other data and spreads pictures; it need not resist an attacker.
inline constexpr uint64_t kFnv = 0xCBF29CE484222325u, kFnvPrime = 0x100000001B3u;
template <class Bytes>
uint64_t hashed(const Bytes& bytes, uint64_t hash = kFnv) {
  for (const auto byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * kFnvPrime;
  return hash;
}
std::string with_checksum(int64_t count, uint64_t hash);  // "29000 (checksum 0123456789abcdef)"

// One training, from its options to the finished folder. Each rank makes one and calls begin, run and end in turn.
class Training {
 public:
  // `identity`: what must be equal for a checkpoint to go on; the options above are added. Throws heed::Error for
  // options that do not fit. Makes nothing yet.
  Training(const TrainingOptions& options, nlohmann::json identity);

  bool leads() const { return group_ == nullptr || group_->rank() == 0; }  // to this rank the folder belongs
  const TrainingFolder& folder() const { return folder_; }

  // Before anything slow: sees that all ranks were called alike, and opens the folder. If such a training had ended and
  // only its model was not yet in its place: what finish() was given, or null on other ranks than 0, and nothing is
  // left to do.
  std::optional<nlohmann::json> begin();

  // nn::train; the result gets what the loop knows. Returns how many units were trained on.
  int64_t run(torch::nn::Module& model, nn::TrainingTask& task,
              const std::function<void(const nn::TrainProgress&)>& progress, TrainingResult& result);

  // On rank 0, when the model is in folder().finished(): puts it into its place.
  void finish(const nlohmann::json& result) const { folder_.finish(result, trainer_.identity); }

  // No rank ends well before the model is safe.
  void end() const;

 private:
  const TrainingOptions& options_;
  nn::Processes* group_;
  TrainingFolder folder_;
  nn::TrainerOptions trainer_;
};

}  // namespace heed::app
