// Training a classifier of pictures: what is held out, the loop of libtorch/trainer.h, the model folder at the end.
#pragma once

#include <cstdint>
#include <functional>

#include "apps/classify/data.h"
#include "apps/classify/model.h"
#include "apps/pictures/training.h"

namespace heed::classify {

struct TrainOptions : pictures::TrainingOptions {
  NetworkOptions network = {};  // of a new model
  // crop below 0: an eighth of the pictures' side, as for CIFAR (4 of 32).
  Augmentation augmentation = {.crop = -1, .flip = true, .erase = 0.25};
  double label_smoothing = 0.1;

  TrainOptions() { patience = 10, batch = 128, warmup = 400, valid_pictures = 2000; }
};

// A report of nn::train, whose units are pictures.
struct TrainProgress {
  const nn::TrainProgress& loop;
  double valid_accuracy = 0;  // where it validated: of the better of the weights and their running mean
};

// best_valid_loss: mean negative log-likelihood of a held-out picture, without smoothing.
struct TrainResult : pictures::TrainingResult {
  double valid_accuracy = 0;  // of the same weights
};

// Which pictures train and which validate, by a hash of the pictures, so that equal ones are on one side. A class's
// first picture always trains. Throws heed::Error if that leaves none to validate with.
using pictures::Split;
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
