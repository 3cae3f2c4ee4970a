// The training loop every task shares: schedule, validation, early stop, checkpoints, resume to the same bits.
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "libtorch/adamw.h"

namespace heed::nn {

class Processes;

struct TrainerOptions {
  // When to stop: whichever comes first; at least one must be set.
  double minutes = 0;    // of training time over all resumed runs; 0: no limit
  int64_t epochs = 0;    // passes; 0: no limit
  int64_t steps = 0;     // 0: no limit
  int64_t patience = 0;  // validations in a row without a better loss; 0: never

  double learning_rate = 1e-3;  // the peak
  int64_t warmup = 400;         // steps; see learning_rate_at
  bool cosine = true;           // false: the inverse square root, even where there is a budget
  AdamWOptions optimizer = {};

  int64_t validate_every = 0;  // steps; 0: once an epoch. The last step always validates

  std::string checkpoint;          // folder of the work in progress, made if absent; empty: no checkpoints
  double checkpoint_seconds = 30;  // at least this often; seldomer when writing one takes long (at most a 20th of time)
  bool resume = true;              // go on from the checkpoint if there is one; false: start over
  nlohmann::json identity;         // a flat object: the options and data that must be the same to go on

  Processes* processes = nullptr;  // those that train together, see train(); null: this one alone
};

// The learning rate of a step, the first being 1. Linear warm-up over `warmup` steps, or over the first tenth of the
// budget if that is shorter; then, where there is a budget, half a cosine down to 0 over `fraction` (the part of it
// that is used, 0..1); where there is none (fraction is NaN), the inverse square root of step / warmup, as in the
// Transformer's paper and fairseq.
double learning_rate_at(double peak, int64_t warmup, int64_t step, double fraction);

// One point of the training curve.
struct TrainPoint {
  int64_t step = 0;
  double seconds = 0;     // training time up to here, over all resumed runs
  double train_loss = 0;  // mean per unit (token, picture) since the last point, as StepLoss::sum counts it
  double valid_loss = 0;  // of the weights or of their running mean, whichever is better
};

struct TrainProgress {
  int64_t step = 0;
  double epoch = 0;                       // 2.5: half way through the third pass
  double loss = 0;                        // recent mean per unit
  double units_per_second = 0;            // recent; tokens, pictures
  double seconds = 0;                     // training time so far, over all resumed runs
  double fraction = 0;                    // how much of the budget is used, 0..1; NaN if only patience ends it
  double seconds_left = 0;                // estimate; NaN if there is none
  const TrainPoint* validated = nullptr;  // set on a step that validated
};

struct TrainSummary {
  int64_t steps = 0;
  int64_t units = 0;  // trained on, all passes together
  double seconds = 0;
  double best_valid_loss = std::numeric_limits<double>::quiet_NaN();
  int64_t best_step = 0;
  bool resumed = false;      // went on from a checkpoint
  bool interrupted = false;  // by Ctrl-C; the checkpoint is saved
  std::vector<TrainPoint> curve;
};

struct StepLoss {
  torch::Tensor loss;  // one number, to differentiate; undefined if `units` is 0
  double sum = 0;      // what to report: the loss summed over `units`
  int64_t units = 0;   // tokens, pictures
};

// What the loop needs to know about a task.
class TrainingTask {
 public:
  virtual ~TrainingTask() = default;
  // Prepares pass `epoch` (0, 1, ...) and returns its number of steps, at least 1. Must depend on `epoch` alone, not on
  // the passes before: that is what makes resuming exact.
  virtual int64_t start_epoch(int64_t epoch) = 0;
  // Forward of step `index` of the pass. Randomness comes from torch's global generator only. Among several processes:
  // of this rank's share of the step, which may be empty; the loss is the mean over the share's units.
  virtual StepLoss loss(int64_t index) = 0;
  // Mean loss on held-out data; lower is better. Called in eval mode without gradients, twice if there is a running
  // mean. Among several processes every rank is asked and must give the same number; they may share the work.
  virtual double validate() = 0;
};

// Trains until a budget is spent; the module then holds the weights of the best validation, in eval mode. Interrupted
// by Ctrl-C (interrupt.h) it saves a checkpoint, returns with `interrupted` set and leaves the module as it was.
//
// Killed at any moment and called again with equal arguments, it ends with the same weights, bit for bit, as an
// uninterrupted run, provided that the stopping rule is not `minutes`, that the number of threads is the same, and that
// the module was initialised in the same way or will be overwritten: the checkpoint holds weights, buffers, optimiser,
// running mean, best weights, torch's global CPU generator, the position in the data, and the curve. For the same
// reason LibTorch's deterministic algorithms are on while this runs. The checkpoint folder is left to the caller, to be
// removed when the result is safe.
//
// Among several processes (processes.h) each rank calls this with the same options, and they take the steps of one: the
// gradients, weighted by the units of each share, are added up before they are clipped and applied, so that all ranks
// have the same weights, bit for bit. Rank 0 reads and writes the checkpoint, which does not know how many they were,
// and its clock counts; Ctrl-C of any rank stops all after the same step. Every rank's dropout draws numbers of its
// own, so with dropout a run on two processes is another sample of the run on one; without, their curves differ by
// rounding. Layers that look across a batch (BatchNorm) see their rank's share; their buffers are rank 0's.
//
// Throws heed::Error for options that do not fit, a checkpoint of other options or data (`identity`) or of another
// model, a checkpoint that cannot be written, a loss that stays infinite or NaN, and another process that is gone.
TrainSummary train(torch::nn::Module& module, TrainingTask& task, const TrainerOptions& options,
                   const std::function<void(const TrainProgress&)>& progress = {});

// Throws heed::Error, naming the value, for an option that does not fit; train() calls it first.
void check_options(const TrainerOptions& options);

// The checkpoint's file in a folder. What the two functions below read and write in one piece.
std::string checkpoint_path(const std::string& folder);

// Everything a training needs to go on: tensors by name and the loop's numbers. One safetensors file.
struct Checkpoint {
  NamedTensors tensors;
  nlohmann::json state;
};
void save_checkpoint(const std::string& folder, const Checkpoint& checkpoint);
Checkpoint load_checkpoint(const std::string& folder);

// Throws heed::Error, naming the first key whose value differs, unless both objects are equal.
void check_identity(const nlohmann::json& then, const nlohmann::json& now, const std::string& folder);

}  // namespace heed::nn
