// What this program runs on.
#include "apps/info.h"

#include <heed/attention.h>
#include <sched.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "apps/terminal.h"
#include "libtorch/runtime.h"

namespace heed::app {
namespace {

// The name in /proc/cpuinfo ("model name" on x86); some machines give none.
std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name") || line.starts_with("Model")) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return printable(line.substr(colon + 2));
    }
  }
  return "unknown";
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());
}

std::string with_path(const std::string& what, const std::string& path) {
  return path.empty() ? what : what + " (" + path + ")";
}

}  // namespace

Info info() {
  const nn::Runtime runtime = nn::runtime();
  Info i;
  i.version = heed::version();
  i.cpu = cpu_name();
  i.cores = usable_cores();
  i.target = heed::target();
  for (const std::string& name : heed::targets()) i.targets += (i.targets.empty() ? "" : " ") + name;
  i.threads = heed::threads();
  i.torch = runtime.torch_version + ", " + runtime.torch_parallel;
  i.torch_threads = runtime.threads;
  i.blas = with_path(runtime.blas, runtime.blas_path);
  i.allocator = with_path(runtime.allocator, runtime.allocator_path);
  i.two_pools = runtime.two_pools;
#if defined(__clang__)
  i.compiler = "Clang " __clang_version__;
#else
  i.compiler = "GCC " __VERSION__;
#endif
  return i;
}

std::string describe(const Info& i) {
  std::string out;
  const auto line = [&](const char* name, const std::string& value) { out += pad_right(name, 12) + value + "\n"; };
  line("heed", i.version);
  line("CPU", i.cpu + ", " + std::to_string(i.cores) + (i.cores == 1 ? " core" : " cores") + " for this process");
  line("target", i.target + " of " + i.targets + "; HEED_TARGET chooses");
  line("threads", std::to_string(i.threads) + " of Heed, " + std::to_string(i.torch_threads) +
                      " of LibTorch; HEED_THREADS chooses");
  line("LibTorch", i.torch);
  line("BLAS", i.blas);
  line("allocator", i.allocator);
  line("compiler", i.compiler);
  if (i.two_pools) {
    line("note",
         "BLAS and LibTorch each have threads of their own and take the cores from each other; a BLAS with OpenMP");
    line("", "(Debian: libopenblas0-openmp) trains faster");
  }
  return out;
}

std::string to_json(const Info& i) {
  const nlohmann::ordered_json json{{"heed", i.version},
                                    {"cpu", i.cpu},
                                    {"cores", i.cores},
                                    {"target", i.target},
                                    {"targets", heed::targets()},
                                    {"threads", i.threads},
                                    {"torch", i.torch},
                                    {"torch_threads", i.torch_threads},
                                    {"blas", i.blas},
                                    {"allocator", i.allocator},
                                    {"compiler", i.compiler},
                                    {"two_pools", i.two_pools}};
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace heed::app
