// The options and words of the `heed train` commands.
#include "apps/training_command.h"

#include <cmath>

#include "apps/terminal.h"

namespace heed::app {
namespace {

template <class T>
void number(CLI::App* command, const char* group, const char* name, T& value, double low, double high,
            const std::string& what) {
  command->add_option(name, value, what)
      ->type_name("N")
      ->check(between(low, high))
      ->capture_default_str()
      ->group(group);
}

}  // namespace

void add_stop_options(CLI::App* command, TrainingOptions& o, const std::string& units) {
  const char* group = "When to stop";
  number(command, group, "--minutes", o.minutes, 0, 1e6, "Stop after this many minutes of training; 0: no limit");
  number(command, group, "--epochs", o.epochs, 0, kAnyCount,
         "Stop after this many passes over the " + units + "; 0: no limit");
  number(command, group, "--steps", o.steps, 0, kAnyCount, "Stop after this many steps; 0: no limit");
  number(command, group, "--patience", o.patience, 0, kAnyCount,
         "Stop after this many validations without a better loss; 0: never");
}

void add_loop_options(CLI::App* command, TrainingOptions& o, bool& fresh) {
  const char* group = "Training";
  command
      ->add_option("--schedule", o.schedule,
                   "How the learning rate falls: cosine, to 0 at the end of --minutes, --epochs or --steps; "
                   "inverse-sqrt, as 1/sqrt(step) wherever the end")
      ->check(CLI::IsMember({"cosine", "inverse-sqrt"}))
      ->type_name("NAME")
      ->capture_default_str()
      ->group(group);
  number(command, group, "--weight-decay", o.weight_decay, 0, 100, "AdamW's weight decay");
  number(command, group, "--average", o.average, 0, 1000,
         "The model is a running mean of the weights over the last 1/N of the steps; 0: off");
  number(command, group, "--validate-every", o.validate_every, 0, kAnyCount,
         "Steps between validations; 0: once an epoch");
  number(command, group, "--checkpoint-seconds", o.checkpoint_seconds, 1, 86400, "Longest time between checkpoints");
  number(command, group, "--seed", o.seed, 0, 1.8e19, "Seed of everything random: the same seed gives the same model");
  command->add_flag("--fresh", fresh, "Start anew, even if the folder holds a checkpoint to go on from")->group(group);
}

void show(Progress& bar, const nn::TrainProgress& p, const std::string& measured, const std::string& units) {
  if (p.validated != nullptr) {
    bar.note("step " + thousands(p.validated->step) + "  training loss " + fixed(p.validated->train_loss, 3) +
             "  validation loss " + fixed(p.validated->valid_loss, 3) + measured + "  after " + duration(p.seconds));
  }
  bar.update([&] {
    const double rate = p.units_per_second;
    return ProgressState{p.fraction,
                         {"step " + thousands(p.step), "loss " + fixed(p.loss, 3),
                          (rate < 99.95 ? fixed(rate, 1) : thousands(std::llround(rate))) + " " + units + "/s",
                          "epoch " + fixed(p.epoch, 1)},
                         p.seconds_left};
  });
}

std::string training_summary(const TrainingResult& result, const TrainingOptions& options, const std::string& data,
                             const std::string& measured) {
  const std::string steps = thousands(result.steps) + " steps";
  if (result.interrupted) {
    return "Interrupted after " + steps + "; the same command goes on from the checkpoint in " + options.out + ".";
  }
  return "Trained " + steps + " in " + duration(result.seconds) + ": " + thousands(result.parameters) +
         " parameters, " + data + ", best validation loss " + fixed(result.best_valid_loss, 3) + measured +
         ". The model is in " + options.out + ".";
}

}  // namespace heed::app
