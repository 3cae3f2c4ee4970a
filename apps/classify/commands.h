// `heed train classify`, `heed classify` and `heed eval classify`.
#pragma once

#include <functional>
#include <string>

#include "apps/classify/train.h"
#include "apps/program.h"
#include "apps/progress.h"

namespace heed::classify {

// For train(): draws its progress on a bar, with a line for each validation. The bar must outlive it.
std::function<void(const TrainProgress&)> show_training(app::Progress& bar);

// What the bar ends with.
std::string training_summary(const TrainResult& result, const TrainOptions& options);

// Adds the commands.
void add_commands(app::Program& program);

}  // namespace heed::classify
