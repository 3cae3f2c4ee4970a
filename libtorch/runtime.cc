// What is live in this process: asks the dynamic linker whose sgemm_ and malloc are in use, and those libraries what
// they are.
#include "libtorch/runtime.h"

#include <ATen/Config.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <heed/attention.h>
#include <torch/version.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "libtorch/blas.h"

namespace heed::nn {
namespace {

// The file a symbol comes from, links resolved; empty if nobody provides it or it is part of the program itself.
std::string provider(const void* symbol) {
  Dl_info info{};
  if (symbol == nullptr || dladdr(symbol, &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(info.dli_fname, error);
  return error ? std::string(info.dli_fname) : real.string();
}

std::string file_name(const std::string& path) { return std::filesystem::path(path).filename().string(); }

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

template <class Function>
Function* function(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

// A handle to a library that is loaded already, closed again at the end.
class Loaded {
 public:
  explicit Loaded(const std::string& path)
      : handle_(path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD)) {}
  ~Loaded() {
    if (handle_ != nullptr) dlclose(handle_);
  }
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;
  void* get() const { return handle_; }

 private:
  void* handle_;
};

// LibTorch's libraries ask for sgemm_ by that Fortran name; the first library that has it serves everyone. A LibTorch
// with a BLAS built in (the wheels' MKL) provides it itself.
void find_blas(Runtime& result) {
  void* sgemm = blas_behind();
  result.blas_path = provider(sgemm);
  if (sgemm == nullptr) {
    result.blas = "unknown";
    return;
  }
  // Debian splits OpenBLAS: libblas.so.3 may be a small file in front of libopenblas.so.0. RTLD_DEFAULT first: it also
  // sees what a library brought along. The library itself next, in case it was loaded out of sight.
  const Loaded library(result.blas_path);
  const auto find = [&library](const char* name) {
    void* symbol = dlsym(RTLD_DEFAULT, name);
    return symbol == nullptr && library.get() != nullptr ? dlsym(library.get(), name) : symbol;
  };
  if (void* config = find("openblas_get_config")) {
    // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH NO_AFFINITY USE_OPENMP Haswell MAX_THREADS=128"
    const std::string text = reinterpret_cast<char* (*)()>(config)();
    const size_t name_end = text.find(' ');
    result.blas = text.substr(0, name_end == std::string::npos ? name_end : text.find(' ', name_end + 1));
    if (void* threads = find("openblas_get_num_threads")) result.blas_threads = reinterpret_cast<int (*)()>(threads)();
    if (void* parallel = find("openblas_get_parallel")) {
      const int kind = reinterpret_cast<int (*)()>(parallel)();
      result.blas += kind == 2 ? ", openmp" : kind == 1 ? ", pthread" : ", one thread";
      result.two_pools = kind == 1 && result.threads > 1;
      // The OpenMP build asks OpenMP how many threads there are at every call, whatever number it was started with.
      if (kind == 2 && AT_PARALLEL_OPENMP) result.blas_threads = result.threads;
    }
    if (void* core = find("openblas_get_corename")) {
      result.blas += std::string(", ") + reinterpret_cast<char* (*)()>(core)();
    }
  } else if (find("mkl_get_max_threads") != nullptr || contains(result.blas_path, "mkl")) {
    result.blas = "MKL";
    if (void* threads = find("mkl_get_max_threads")) result.blas_threads = reinterpret_cast<int (*)()>(threads)();
  } else {
    result.blas = result.blas_path.empty() ? "unknown" : file_name(result.blas_path);
  }
}

void find_allocator(Runtime& result) {
  void* symbol = dlsym(RTLD_DEFAULT, "malloc");
  result.allocator_path = provider(symbol);
  const std::string name = file_name(result.allocator_path);
  if (contains(name, "mimalloc")) {
    result.allocator = "mimalloc";
    if (auto* version = function<int()>(RTLD_DEFAULT, "mi_version")) {
      const int number = version();  // 209 is 2.0.9; 3.x counts 30105 for 3.1.5 from five digits on
      const int major = number >= 10000 ? number / 10000 : number / 100;
      const int minor = number >= 10000 ? number / 100 % 100 : number / 10 % 10;
      const int patch = number >= 10000 ? number % 100 : number % 10;
      result.allocator += " " + std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
    }
  } else if (contains(name, "jemalloc")) {
    result.allocator = "jemalloc";
  } else if (contains(name, "tcmalloc")) {
    result.allocator = "tcmalloc";
  } else if (name == "libc.so.6" || contains(name, "libc-2.")) {
    result.allocator = "glibc";
  } else {
    result.allocator = name.empty() ? "unknown" : name;
  }
}

}  // namespace

Runtime runtime() {
  Runtime result;
  result.torch_version = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR) + "." +
                         std::to_string(TORCH_VERSION_PATCH);
  result.torch_parallel = AT_PARALLEL_OPENMP ? "OpenMP" : AT_PARALLEL_NATIVE ? "native" : "TBB";
  result.threads = at::get_num_threads();
  find_blas(result);
  // The wheels' LibTorch multiplies with what is built in.
  if (contains(result.blas, "BLAS") && !onednn().empty()) result.blas = onednn() + " before " + result.blas;
  find_allocator(result);
  return result;
}

void use_threads(int n) {
  if (n < 0) throw Error("use_threads got " + std::to_string(n) + " threads; give at least 1, or 0 for all cores");
  // LibTorch reads OMP_NUM_THREADS itself; heed::threads() knows HEED_THREADS and the process's cores.
  const bool torch_knows = std::getenv("HEED_THREADS") == nullptr && std::getenv("OMP_NUM_THREADS") != nullptr;
  if (n == 0) n = torch_knows ? at::get_num_threads() : heed::threads();
  at::set_num_threads(n);
}

void prepare_process(char** argv) {
  bool changed = false;
  const auto set = [&changed](const char* name, const std::string& value) {
    if (std::getenv(name) == nullptr) changed = setenv(name, value.c_str(), 0) == 0 || changed;
  };
  if (std::getenv("GOMP_SPINCOUNT") == nullptr) set("OMP_WAIT_POLICY", "passive");
  set("MIMALLOC_ALLOW_DECOMMIT", "0");
  const auto pages = static_cast<double>(sysconf(_SC_PHYS_PAGES)), page = static_cast<double>(sysconf(_SC_PAGESIZE));
  set("MIMALLOC_RESERVE_OS_MEMORY", std::to_string(static_cast<int64_t>(pages * page / 2 / 1024)) + "KiB");
  if (changed) execv("/proc/self/exe", argv);  // comes back only if it fails, and then all is as it was
}

}  // namespace heed::nn
