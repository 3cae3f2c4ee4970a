// Training a classifier of pictures: what is held out, the loop of libtorch/trainer.h, the model folder at the end.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "apps/classify/data.h"
#include "apps/classify/model.h"
#include "libtorch/processes.h"
#include "libtorch/trainer.h"

namespace heed::classify {

struct TrainOptions {
  std::string out;               // the model folder; made if absent. A good model in it is replaced at the end
  NetworkOptions network = {};   // of a new model
  std::string from;              // or the folder of a model to go on from, with a new head if its classes are others
  bool freeze_backbone = false;  // with `from`: only the head learns
  // crop below 0: an eighth of the pictures' side, as for CIFAR (4 of 32).
  Augmentation augmentation = {.crop = -1, .flip = true, .erase = 0.25};
  double minutes = 0;        // stop after this much training time over all resumed runs; 0: no limit
  int64_t epochs = 0;        // stop after this many passes; 0: no limit (one of the four ends it)
  int64_t steps = 0;         // stop after this many steps; 0: no limit
  int64_t patience = 10;     // validations without a better loss before stopping; 0: never
  int64_t batch = 128;       // pictures in a batch, about: the batches of a pass are of one size, give or take one
  double learning_rate = 0;  // peak; 0: 2e-3, with `from` 2e-4, with a frozen backbone 2e-2
  int64_t warmup = 400;      // steps, at most a tenth of the budget; then as in translate/train.h
  double label_smoothing = 0.1;
  double weight_decay = 0.05;     // AdamW
  double clip = 1.0;              // gradient norm
  int64_t average = 10;           // the running mean of the weights: see nn::AdamWOptions
  int64_t validate_every = 0;     // steps; 0: once an epoch
  int64_t valid_pictures = 2000;  // held out to validate with, at most a tenth
  uint64_t seed = 1;
  double checkpoint_seconds = 30;
  bool resume = true;                  // go on from out/checkpoint if there is one; false: remove it and start over
  nn::Processes* processes = nullptr;  // those that train this model together; null: this one alone
};

// A report of nn::train, whose units are pictures.
struct TrainProgress {
  const nn::TrainProgress& loop;
  double valid_accuracy = 0;  // where it validated: of the better of the weights and their running mean
};

struct TrainResult {
  int64_t steps = 0;
  int64_t parameters = 0;           //
  int64_t learning = 0;             // of them, those that were trained
  int64_t train_pictures = 0;       //
  int64_t validation_pictures = 0;  //
  int64_t seen = 0;                 // pictures trained on, all passes together
  double seconds = 0;
  double best_valid_loss = 0;         // mean negative log-likelihood of a held-out picture, without smoothing
  double valid_accuracy = 0;          // of the same weights
  bool interrupted = false;           // by Ctrl-C: a checkpoint was saved and the same command goes on from it
  std::vector<std::string> notes;     // sentences the user should read
  std::vector<nn::TrainPoint> curve;  // also kept in out/training.json
};

// Which pictures train and which validate, by a hash of the pictures, so that equal ones are on one side. A class's
// first picture always trains. Throws heed::Error if that leaves none to validate with.
struct Split {
  std::vector<int64_t> train, held_out;
};
Split split(const PictureSet& set, int64_t valid_pictures);

// Trains on the pictures, which were prepared as the model wants them: for `from` as that folder says. Leaves in
// options.out a model folder and training.json, see app::TrainingFolder. Seeds torch's global generator. Ctrl-C saves a
// checkpoint and returns.
//
// Killed at any moment and started again with the same arguments, it ends with the same bytes as an uninterrupted run,
// when the stopping rule is steps, epochs or patience and the number of threads is the same. Throws heed::Error for
// options or data that do not fit, a checkpoint made with others, and files that cannot be written.
//
// Among several processes every rank calls this with the same pictures and options, as in translate/train.h. Batch
// norms see the rank's own share of a batch.
TrainResult train(PictureSet set, const TrainOptions& options,
                  const std::function<void(const TrainProgress&)>& progress = {});

}  // namespace heed::classify
