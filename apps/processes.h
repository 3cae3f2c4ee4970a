// Training on several processes, as every task's command offers it: the options, and the life of the processes.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "apps/program.h"

namespace heed::nn {
class Processes;
}

namespace heed::app {

struct ProcessArguments {
  int nproc = 1;
  std::string rendezvous;
  int world = 0, rank = -1;  // as given
  double timeout = 60;
};

// Adds --nproc, --rendezvous, --world, --rank and --timeout.
void add_process_options(CLI::App* command, ProcessArguments& arguments);
inline constexpr const char* kProcessHelp =
    "On several processes the batches stay those of one process, each dealt out among them, so that more processes\n"
    "only make the same training faster. --nproc shares out this machine's threads (HEED_THREADS, or its cores).\n"
    "Across machines give the same command on each, with the same data and the address of rank 0's machine, and with\n"
    "a --rank of its own; rank 0 shows the progress and writes the model. Nothing between them is encrypted: use a\n"
    "network you trust. When a process dies, all end, and the same commands go on from the last checkpoint.";

// Throws UsageError for options that do not fit together, and for inputs that can be read only once (a pipe) when
// several processes of this machine would read them.
void check(const ProcessArguments& arguments, const std::vector<std::string>& inputs);

// Runs `work` in each of the processes, which are started or awaited first, with the group it belongs to, or null if it
// is alone, and returns its exit code. When it fails in one of them, all end and rank 0 says why.
int with_processes(const ProcessArguments& arguments, const std::function<int(nn::Processes*)>& work);

}  // namespace heed::app
