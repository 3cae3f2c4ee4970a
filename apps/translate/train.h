// Training a translation model from sentence pairs: batches, the loop, validation, checkpoints, resume.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "apps/translate/model.h"
#include "apps/translate/pairs.h"
#include "libtorch/processes.h"
#include "libtorch/trainer.h"

namespace heed::translate {

struct TrainOptions {
  std::string out;  // the model folder; made if absent. A good model in it is replaced at the end, by a whole one
  ModelConfig model = {};       // model.vocab is the size asked for; the trained vocabulary may come out smaller
  double minutes = 0;           // stop after this much training time over all resumed runs; 0: no limit
  int64_t epochs = 0;           // stop after this many passes; 0: no limit (one of minutes, epochs, patience ends it)
  int64_t steps = 0;            // stop after this many steps; 0: no limit
  int64_t batch_tokens = 2000;  // target tokens in a batch, padding included
  double learning_rate = 1e-3;  // peak
  int64_t warmup = 400;  // steps of linear warm-up, at most a tenth of the budget; then cosine to 0 over minutes,
                         // epochs or steps, inverse square root if none is given
  double label_smoothing = 0.1;
  double r_drop = 0;           // R-Drop's alpha (cross_entropy.h), needs dropout and twice the time; 0: none
  double weight_decay = 1e-4;  // AdamW
  double clip = 1.0;           // gradient norm
  // A running mean of the weights over about the last 1/average of the steps (adamw.h) is validated beside the weights,
  // and the better of the two is exported; 0: no mean.
  int64_t average = 10;
  int64_t validate_every = 0;              // steps; 0: once an epoch
  int64_t patience = 5;                    // validations without a better loss before stopping; 0: never
  int64_t valid_pairs = 500;               // held out of `pairs` for validation when no validation pairs are given
  double bpe_dropout = 0;                  // of the training text, anew in each pass: Vocab::sample; 0: none
  bool lowercase = false;                  // train on lower-cased text
  std::string normalization = "nmt_nfkc";  // of the vocabulary, see VocabOptions
  uint64_t seed = 1;
  double checkpoint_seconds = 30;  // at least this often, and after each validation
  bool resume = true;  // go on from out/checkpoint if there is one; it must have been made with the same options and
                       // data, but for minutes, epochs, steps and patience; false: remove it and start over
  nn::Processes* processes = nullptr;  // those that train this model together; null: this one alone
};

// One point of the training curve, also kept in out/training.json: mean negative log-likelihood per target token,
// without smoothing. valid_loss is that of the better of the weights and their running mean.
using nn::TrainPoint;

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
  int64_t validation_pairs = 0;
  int64_t target_tokens = 0;  // trained on, all passes together
  double seconds = 0;
  double best_valid_loss = 0;
  // transformer: how far the attention that is read as word alignment agrees with IBM Model 1 (choose_alignment.h),
  // 0..1
  double alignment_agreement = std::numeric_limits<double>::quiet_NaN();
  bool interrupted = false;        // by Ctrl-C: a checkpoint was saved and the same command goes on from it
  std::vector<std::string> notes;  // sentences the user should read: a smaller vocabulary, pairs left out
  std::vector<TrainPoint> curve;
};

// Trains, and leaves in options.out a model folder (see model.h) and training.json. Work in progress, the new
// vocabulary included, stays in out/checkpoint, which is removed when the model is complete; until then an older model
// in the folder stays as it is. A source.spm that lies in the folder without a model is taken as the vocabulary;
// otherwise one is trained. Seeds torch's global generator. Ctrl-C saves a checkpoint and returns.
//
// Killed at any moment and started again with the same arguments, it ends with the same bytes as an uninterrupted run,
// when the stopping rule is steps, epochs or patience and the number of threads is the same. Throws heed::Error for
// options or data that do not fit, a checkpoint made with others, and files that cannot be written.
//
// Among several processes (see nn::train) every rank calls this with the same pairs and options, which is checked. The
// batches are those of one process, each dealt out row by row; batch_tokens is the size of the whole. The folder is
// rank 0's affair: the others neither read nor write it, and their result has no notes.
TrainResult train(const std::vector<Pair>& pairs, const std::vector<Pair>& validation, const TrainOptions& options,
                  const std::function<void(const TrainProgress&)>& progress = {});

}  // namespace heed::translate
