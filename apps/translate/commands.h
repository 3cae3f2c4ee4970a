// `heed train translate`, `heed translate`, `heed convert` and `heed eval translate`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "apps/program.h"
#include "apps/progress.h"

namespace heed::nn {
struct TrainProgress;
}

namespace heed::translate {

struct TrainOptions;
struct TrainResult;
struct Translation;

// Adds the commands.
void add_commands(app::Program& program);

// A callback for train() that draws the bar and leaves a line for each validation.
std::function<void(const nn::TrainProgress&)> show_training(app::Progress& bar);

// What app::training_summary says of it.
std::string training_summary(const TrainResult& result, const TrainOptions& options);

}  // namespace heed::translate
