// `heed train segment`, `heed segment` and `heed eval segment`.
#pragma once

#include <functional>
#include <string>

#include "apps/program.h"
#include "apps/progress.h"
#include "apps/segment/train.h"

namespace heed::segment {

// For train(): draws its progress on a bar, with a line for each validation. The bar must outlive it.
std::function<void(const TrainProgress&)> show_training(app::Progress& bar);

// What the bar ends with.
std::string training_summary(const TrainResult& result, const TrainOptions& options);

// Adds the commands.
void add_commands(app::Program& program);

}  // namespace heed::segment
