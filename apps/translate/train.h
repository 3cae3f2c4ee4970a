// Training a translation model from sentence pairs: batches, the loop, validation, checkpoints, resume.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "apps/translate/model.h"
#include "apps/translate/pairs.h"

namespace heed::translate {

struct TrainOptions {
  std::string out;  // the model folder; made if absent. A good model in it is replaced only by a better whole one
  ModelConfig model = {};       // model.vocab is the size asked for; the trained vocabulary may come out smaller
  double minutes = 0;           // stop after this much training time over all resumed runs; 0: no limit
  int64_t epochs = 0;           // stop after this many passes; 0: no limit (one of minutes, epochs, patience ends it)
  int64_t steps = 0;            // stop after this many steps; 0: no limit
  int64_t batch_tokens = 2000;  // target tokens in a batch, padding included
  double learning_rate = 1e-3;  // peak
  int64_t warmup = 400;  // steps of linear warm-up; then inverse square root, or cosine to 0 over `minutes` / `steps`
  double label_smoothing = 0.1;
  double weight_decay = 1e-4;  // AdamW
  double clip = 1.0;           // gradient norm
  int64_t average = 5;  // the exported model is the mean of the best and last `average` validations' weights; 1: none
  int64_t validate_every = 0;  // steps; 0: once an epoch
  int64_t patience = 5;        // validations without a better loss before stopping; 0: never
  int64_t valid_pairs = 500;   // held out of `pairs` for validation when no validation pairs are given
  bool lowercase = false;      // train on lower-cased text
  uint64_t seed = 1;
  bool resume = true;  // go on from out/checkpoint when there is one made with the same options and data
};

// One point of the training curve, also kept in out/training.json.
struct TrainPoint {
  int64_t step = 0;
  double seconds = 0;     // training time up to here, over all resumed runs
  double train_loss = 0;  // mean negative log-likelihood per target token since the last point, without smoothing
  double valid_loss = 0;  // NaN between validations
};

struct TrainProgress {
  int64_t step = 0;
  double epoch = 0;                       // 2.5: half way through the third pass
  double loss = 0;                        // running mean, per target token
  double tokens_per_second = 0;           // target tokens
  double seconds = 0;                     // training time so far, over all resumed runs
  double fraction = 0;                    // how much of the budget is used, 0..1
  double seconds_left = 0;                // estimate; NaN if there is none
  const TrainPoint* validated = nullptr;  // set on the step that validated
};

struct TrainResult {
  int64_t steps = 0;
  int64_t parameters = 0;
  int64_t train_pairs = 0;
  int64_t target_tokens = 0;  // trained on, all passes together
  double seconds = 0;
  double best_valid_loss = 0;
  bool interrupted = false;  // by Ctrl-C: a checkpoint was saved and the same command goes on from it
  std::vector<TrainPoint> curve;
};

// Trains, and leaves in options.out a model folder (see model.h), training.json and, until it is complete, a
// checkpoint. Killed at any moment and started again with the same arguments it ends with the same bytes as an
// uninterrupted run, when the stopping rule is steps or epochs. Throws heed::Error for options or data that do not fit.
TrainResult train(const std::vector<Pair>& pairs, const std::vector<Pair>& validation, const TrainOptions& options,
                  const std::function<void(const TrainProgress&)>& progress = {});

}  // namespace heed::translate
