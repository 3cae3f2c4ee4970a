// `heed info`: what this program runs on, with what.
#pragma once

#include <string>

namespace heed::app {

struct Info {
  std::string version, cpu, target, targets, torch, blas, allocator, compiler;
  int cores = 0;    // that this process may use
  int threads = 0;  // of Heed's own pool
  int torch_threads = 0;
  bool two_pools = false;  // BLAS and LibTorch each have threads of their own
};

Info info();
std::string describe(const Info& info);  // lines of "name  value"
std::string to_json(const Info& info);

}  // namespace heed::app
