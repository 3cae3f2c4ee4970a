// What the `heed train` commands share: options, and what they say while they train and at the end.
#pragma once

#include <string>

#include "apps/program.h"
#include "apps/progress.h"
#include "apps/training.h"

namespace heed::app {

// --minutes, --epochs, --steps and --patience. units: what a pass goes over, "pairs" or "pictures".
void add_stop_options(CLI::App* command, TrainingOptions& options, const std::string& units);

// --schedule, --weight-decay, --average, --validate-every, --checkpoint-seconds, --seed and --fresh.
void add_loop_options(CLI::App* command, TrainingOptions& options, bool& fresh);

// Of a command's footer: how a training ends, and what becomes of one that is stopped.
inline constexpr const char* kTrainingHelp =
    "The learning rate falls to 0 towards the end that --minutes, --epochs or --steps set, so give one of them or\n"
    "choose --schedule inverse-sqrt; without one, --patience ends it. A run that is stopped, by Ctrl-C or a kill,\n"
    "goes on from its last checkpoint when the same command is given again. A good model in the folder stays\n"
    "until a whole new one takes its place.";

// A line for each validation, `measured` behind its losses, and the bar. units: "tokens" or "pictures".
void show(Progress& bar, const nn::TrainProgress& p, const std::string& measured, const std::string& units);

// "Trained 900 steps in 4 min 05 s: 1,234,567 parameters, DATA, best validation loss 1.234MEASURED. The model is in
// DIR.", or how it was interrupted.
std::string training_summary(const TrainingResult& result, const TrainingOptions& options, const std::string& data,
                             const std::string& measured);

}  // namespace heed::app
