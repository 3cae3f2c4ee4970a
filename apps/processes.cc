// Starting or meeting the processes, sharing out the threads, and ending together.
#include "apps/processes.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <filesystem>
#include <new>
#include <optional>

#include "libtorch/children.h"
#include "libtorch/interrupt.h"
#include "libtorch/processes.h"
#include "libtorch/runtime.h"

namespace heed::app {
namespace {

nn::Rendezvous parsed(const ProcessArguments& a) {
  nn::Rendezvous result;
  try {
    nn::parse_rendezvous(a.rendezvous, result);
  } catch (const Error& error) {
    throw UsageError(std::string("--rendezvous ") + error.what());
  }
  result.place = {a.rank, a.world, ""};
  return result;
}

// Each process of this machine gets its part of the threads, the first ones what is left over.
void share_threads(int rank, int world) {
  const int all = at::get_num_threads();
  const int mine = std::max(1, all / world + (rank < all % world ? 1 : 0));
  nn::use_threads(mine);
  set_threads(mine);
}

}  // namespace

void add_process_options(CLI::App* command, ProcessArguments& a) {
  const char* group = "Several processes";
  command->add_option("--nproc", a.nproc, "Train on this many processes of this machine")
      ->check(between(1, 1024))
      ->type_name("N")
      ->capture_default_str()
      ->group(group);
  command->add_option("--rendezvous", a.rendezvous, "Train across machines, which meet at tcp://HOST:PORT of rank 0")
      ->type_name("URL")
      ->group(group);
  command->add_option("--world", a.world, "with --rendezvous: how many processes there are")
      ->check(between(1, 1024))
      ->type_name("N")
      ->group(group);
  command->add_option("--rank", a.rank, "with --rendezvous: which of them this is, from 0")
      ->check(between(0, 1023))
      ->type_name("N")
      ->group(group);
  command
      ->add_option("--timeout", a.timeout,
                   "Seconds to wait until all have come; ten times as long for one that stops answering later")
      ->check(between(1, 1e6))
      ->type_name("N")
      ->capture_default_str()
      ->group(group);
}

void check(const ProcessArguments& a, const std::vector<std::string>& inputs) {
  if (!a.rendezvous.empty()) {
    if (a.nproc > 1) {
      throw UsageError(
          "--nproc starts processes on this machine alone; with --rendezvous give the command once for each process");
    }
    if (a.world == 0 || a.rank < 0) {
      throw UsageError(
          "--rendezvous needs --world (how many processes there are) and --rank (which of them this is, from 0)");
    }
    if (a.rank >= a.world) {
      throw UsageError("--rank is " + std::to_string(a.rank) + " and --world is " + std::to_string(a.world) +
                       "; ranks go from 0 to " + std::to_string(a.world - 1));
    }
    parsed(a);
  } else if (a.world != 0 || a.rank >= 0) {
    throw UsageError("--world and --rank are for --rendezvous; on one machine --nproc is enough");
  }
  if (a.nproc == 1) return;
  for (const std::string& path : inputs) {
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored)) {
      throw UsageError(path + " can be read only once, and --nproc reads it in every process; put it into a file");
    }
  }
}

int with_processes(const ProcessArguments& a, const std::function<int(nn::Processes*)>& work) {
  if (a.nproc == 1 && a.world <= 1) return work(nullptr);
  nn::Rendezvous rendezvous;
  std::optional<nn::Children> children;
  std::optional<nn::Interrupt> interrupt;
  const bool across = !a.rendezvous.empty();
  const auto place = across ? std::nullopt : nn::child_place();
  if (across) {
    rendezvous = parsed(a);
  } else if (place) {
    rendezvous.place = *place;
    interrupt.emplace();  // Ctrl-C reaches all: this one waits for what its parent makes of it
  } else {
    children.emplace(a.nproc);
    rendezvous.place = children->place();
  }
  rendezvous.seconds = a.timeout;
  if (!across) share_threads(rendezvous.place.rank, rendezvous.place.world);

  std::optional<nn::Processes> group;
  try {
    group.emplace(rendezvous, children ? &*children : nullptr);
    return work(&*group);
  } catch (const std::exception& error) {
    const bool memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
    if (group) group->last_words(memory ? "not enough memory; a smaller batch or model needs less" : error.what());
    if (group && place) return kFailed;  // the parent says why
    throw;
  }
}

}  // namespace heed::app
