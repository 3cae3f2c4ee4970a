// `heed train translate`, `heed translate`, `heed convert` and `heed eval translate`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "apps/program.h"
#include "apps/progress.h"

namespace heed::translate {

struct TrainProgress;
struct TrainOptions;
struct TrainResult;
struct Translation;

// Adds the commands.
void add_commands(app::Program& program);

// A callback for train() that draws the bar and leaves a line for each validation.
std::function<void(const TrainProgress&)> show_training(app::Progress& bar);

// "trained 3,400 steps in 4 min 00 s, best validation loss 2.345", or that it was interrupted and how to go on.
std::string training_summary(const TrainResult& result, const TrainOptions& options);

}  // namespace heed::translate
