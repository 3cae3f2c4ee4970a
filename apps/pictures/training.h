// What trainings on pictures have in common beside apps/training.h: a model to go on from, what is held out, and the
// order in which a pass goes through the pictures.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/training.h"

namespace heed::pictures {

struct TrainingOptions : app::TrainingOptions {
  // Of the model in `from` the head is a new one if its classes are others.
  bool freeze_backbone = false;  // with `from`: only the head learns
  int64_t batch = 1;             // pictures in a batch, about: the batches of a pass are of one size, give or take one
  int64_t valid_pictures = 1;    // held out to validate with, at most a tenth

  TrainingOptions();
  // The learning rate, if it is 0: 2e-3, with `from` 2e-4, with a frozen backbone 2e-2.
  void complete();
  void check() const;  // throws heed::Error
  // What these options add to what must be equal for a checkpoint to go on.
  void add_to(nlohmann::json& identity) const;
};

struct TrainingResult : app::TrainingResult {
  int64_t learning = 0;  // of the parameters, those that were trained
  int64_t train_pictures = 0, validation_pictures = 0;
  int64_t seen = 0;  // pictures trained on, all passes together

  nlohmann::json to_json() const;
  void read(const nlohmann::json& j);
  void count(const torch::nn::Module& model);
};

// Which pictures train and which validate.
struct Split {
  std::vector<int64_t> train, held_out;
};

// The order of each pass over some pictures, and this rank's share of each step. Sorted by a hash of seed, pass and
// picture, so that a pass does not depend on those before.
class Order {
 public:
  Order(std::vector<int64_t> rows, const TrainingOptions& options);
  int64_t start_epoch(int64_t epoch);              // how many steps it has
  std::vector<int64_t> step(int64_t index) const;  // rows; perhaps none

 private:
  std::vector<int64_t> rows_;
  int64_t batch_, steps_ = 0;
  uint64_t seed_;
  nn::Processes* group_;
};

// Every world-th of some rows, from the rank's own on; all of them for one alone.
std::vector<int64_t> share_of(const std::vector<int64_t>& rows, const nn::Processes* group);

}  // namespace heed::pictures
