// What the commands of the `heed` program share: how they join it, check their arguments and fail.
#pragma once

#include <heed/attention.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>

namespace heed::app {

// Exit codes, the same for every command.
inline constexpr int kOk = 0;
inline constexpr int kFailed = 1;
inline constexpr int kUsage = 2;          // the arguments do not fit; nothing was done
inline constexpr int kInterrupted = 130;  // by Ctrl-C, after saving; what a shell reports for it

// Arguments that each parse but do not fit together: exit code 2.
struct UsageError : public Error {
  using Error::Error;
};

// The program under construction. A command adds itself with add_subcommand and, from its callback, sets `chosen`:
// what to do once all arguments are known to be good. A task (translate, classify, segment) adds one command to each of
// `heed` (use the model), `train` and `eval`, and what prepares its data to `data`.
struct Program {
  CLI::App& heed;
  CLI::App& train;
  CLI::App& eval;
  CLI::App& data;
  std::function<int()> chosen = {};  // returns the exit code
};

// Adds a command whose `run` works on the arguments kept in `arguments`, a shared_ptr that the caller has bound the
// options to.
template <class Arguments>
void run_with(Program& program, CLI::App* command, std::shared_ptr<Arguments> arguments, int (*run)(const Arguments&)) {
  command->callback([&program, arguments, run] { program.chosen = [arguments, run] { return run(*arguments); }; });
}

// A validator: a number from `low` to `high`, NaN excluded.
CLI::Validator between(double low, double high);

inline constexpr double kAnyCount = 1e15;  // an upper end for counts that have none of their own

}  // namespace heed::app
