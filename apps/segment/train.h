// Training a network that gives pixels their classes: what is held out, the loop of libtorch/trainer.h, the model
// folder at the end.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "apps/pictures/training.h"
#include "apps/segment/data.h"
#include "apps/segment/model.h"

namespace heed::segment {

struct TrainOptions : pictures::TrainingOptions {
  NetworkOptions network = {};  // of a new model
  // A height or width of 0: that of the smallest picture, at most 512.
  Augmentation augmentation = {.scale = 0.5, .flip = true, .colour = 0.3};
  // A class's weight in the loss is its share of the pixels to the power of -balance, at most 10 times the smallest: 0
  // weighs all pixels alike, 1 all classes.
  double balance = 0.3;

  TrainOptions() { patience = 20, batch = 8, warmup = 200, valid_pictures = 200; }
};

// A report of nn::train, whose units are pictures.
struct TrainProgress {
  const nn::TrainProgress& loop;
  double valid_mean_iou = 0;  // where it validated: of the better of the weights and their running mean
};

// best_valid_loss: mean weighted negative log-likelihood of a held-out pixel.
struct TrainResult : pictures::TrainingResult {
  double valid_mean_iou = 0;  // of the same weights
};

// Which pictures train and which validate, by a hash of the pictures, so that equal ones are on one side. Throws
// heed::Error if that leaves none for one of the two.
using pictures::Split;
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
