// Training a translation model from sentence pairs: batches, the loop, validation, checkpoints, resume.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "apps/training.h"
#include "apps/translate/model.h"
#include "apps/translate/pairs.h"

namespace heed::translate {

struct TrainOptions : app::TrainingOptions {
  // `from` may be a model of ours or one of Marian's as Hugging Face keeps them (load_model), and may be `out`. Its
  // vocabulary, shape and lower-casing are then taken, and of `model` the dropout alone.
  ModelConfig model = {};       // model.vocab is the size asked for; the trained vocabulary may come out smaller
  int64_t batch_tokens = 2000;  // target tokens in a batch, padding included
  double label_smoothing = 0.1;
  int64_t valid_pairs = 500;               // held out of `pairs` for validation when no validation pairs are given
  double bpe_dropout = 0;                  // of the training text, anew in each pass: Vocab::sample; 0: none
  bool lowercase = false;                  // train on lower-cased text
  std::string normalization = "nmt_nfkc";  // of the vocabulary, see VocabOptions

  TrainOptions() { patience = 5, warmup = 400, weight_decay = 1e-4; }
  void complete();  // the learning rate, if it is 0: 1e-3, with `from` 2e-4
};

// A report of nn::train, whose units are target tokens. Losses are mean negative log-likelihood per target token,
// without smoothing.
using nn::TrainProgress;

struct TrainResult : app::TrainingResult {
  int64_t train_pairs = 0;
  int64_t validation_pairs = 0;
  int64_t target_tokens = 0;  // trained on, all passes together
  // transformer: how far the attention that is read as word alignment agrees with IBM Model 1 (choose_alignment.h),
  // 0..1
  double alignment_agreement = std::numeric_limits<double>::quiet_NaN();
};

// Trains, and leaves in options.out a model folder (see model.h) and training.json. Work in progress, the new
// vocabulary included, stays in out/checkpoint, which is removed when the model is complete; until then an older model
// in the folder stays as it is. Without `from`, a source.spm that lies in the folder without a model is taken as the
// vocabulary; otherwise one is trained. Seeds torch's global generator. Ctrl-C saves a checkpoint and returns.
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
