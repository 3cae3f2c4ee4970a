// Training a network that gives pixels their classes: what is held out, the loop of libtorch/trainer.h, the model
// folder at the end.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "apps/segment/data.h"
#include "apps/segment/model.h"
#include "libtorch/processes.h"
#include "libtorch/trainer.h"

namespace heed::segment {

struct TrainOptions {
  std::string out;               // the model folder; made if absent. A good model in it is replaced at the end
  NetworkOptions network = {};   // of a new model
  std::string from;              // or the folder of a model to go on from, with a new head if its classes are others
  bool freeze_backbone = false;  // with `from`: only the classifier learns
  // A height or width of 0: that of the smallest picture, at most 512.
  Augmentation augmentation = {.scale = 0.5, .flip = true, .colour = 0.3};
  // A class's weight in the loss is its share of the pixels to the power of -balance, at most 10 times the smallest: 0
  // weighs all pixels alike, 1 all classes.
  double balance = 0.3;
  double minutes = 0;            // stop after this much training time over all resumed runs; 0: no limit
  int64_t epochs = 0;            // stop after this many passes; 0: no limit (one of the four ends it)
  int64_t steps = 0;             // stop after this many steps; 0: no limit
  int64_t patience = 20;         // validations without a better loss before stopping; 0: never
  int64_t batch = 8;             // pictures in a batch, about: the batches of a pass are of one size, give or take one
  double learning_rate = 0;      // peak; 0: 2e-3, with `from` 2e-4, with a frozen backbone 2e-2
  int64_t warmup = 200;          // steps, at most a tenth of the budget; then as in translate/train.h
  double weight_decay = 0.05;    // AdamW
  double clip = 1.0;             // gradient norm
  int64_t average = 10;          // the running mean of the weights: see nn::AdamWOptions
  int64_t validate_every = 0;    // steps; 0: once an epoch
  int64_t valid_pictures = 200;  // held out to validate with, at most a tenth
  uint64_t seed = 1;
  double checkpoint_seconds = 30;
  bool resume = true;                  // go on from out/checkpoint if there is one; false: remove it and start over
  nn::Processes* processes = nullptr;  // those that train this model together; null: this one alone
};

// A report of nn::train, whose units are pictures.
struct TrainProgress {
  const nn::TrainProgress& loop;
  double valid_mean_iou = 0;  // where it validated: of the better of the weights and their running mean
};

struct TrainResult {
  int64_t steps = 0;
  int64_t parameters = 0;           //
  int64_t learning = 0;             // of them, those that were trained
  int64_t train_pictures = 0;       //
  int64_t validation_pictures = 0;  //
  int64_t seen = 0;                 // pictures trained on, all passes together
  double seconds = 0;
  double best_valid_loss = 0;         // mean weighted negative log-likelihood of a held-out pixel
  double valid_mean_iou = 0;          // of the same weights
  bool interrupted = false;           // by Ctrl-C: a checkpoint was saved and the same command goes on from it
  std::vector<std::string> notes;     // sentences the user should read
  std::vector<nn::TrainPoint> curve;  // also kept in out/training.json
};

// Which pictures train and which validate, by a hash of the pictures, so that equal ones are on one side. Throws
// heed::Error if that leaves none for one of the two.
struct Split {
  std::vector<int64_t> train, held_out;
};
Split split(const MaskedSet& set, int64_t valid_pictures);

// The weights of the classes in the loss: see TrainOptions::balance. A class that no pixel has weighs as the rarest.
std::vector<double> weights_of(const std::vector<double>& shares, double balance);

// Trains on the pictures. Leaves in options.out a model folder and training.json, see app::TrainingFolder. Seeds
// torch's global generator. Ctrl-C saves a checkpoint and returns.
//
// Killed at any moment and started again with the same arguments, it ends with the same bytes as an uninterrupted run,
// when the stopping rule is steps, epochs or patience and the number of threads is the same. Throws heed::Error for
// options or data that do not fit, a checkpoint made with others, and files that cannot be written.
//
// Among several processes every rank calls this with the same pictures and options, as in translate/train.h. Batch
// norms see the rank's own share of a batch.
TrainResult train(MaskedSet set, const TrainOptions& options,
                  const std::function<void(const TrainProgress&)>& progress = {});

}  // namespace heed::segment
