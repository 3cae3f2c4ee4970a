// libtorch/runtime.cc: what it says is live must agree with the list of files this process has mapped.
#include "libtorch/runtime.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <stdlib.h>

#include <fstream>
#include <iterator>
#include <string>

namespace heed::nn {
namespace {

std::string mapped_files() {
  std::ifstream maps("/proc/self/maps");
  return {std::istreambuf_iterator<char>(maps), {}};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Runtime, NamesLibTorchAndItsThreads) {
  const Runtime r = runtime();
  EXPECT_TRUE(r.torch_version.find('.') != std::string::npos) << r.torch_version;
  EXPECT_EQ(r.threads, at::get_num_threads());
  EXPECT_TRUE(r.torch_parallel == "OpenMP" || r.torch_parallel == "native" || r.torch_parallel == "TBB");
}

TEST(Runtime, NamesTheBlasThatIsLive) {
  const Runtime r = runtime();
  const std::string maps = mapped_files();
  ASSERT_FALSE(r.blas.empty());
  EXPECT_TRUE(contains(maps, r.blas_path)) << r.blas_path;
  if (contains(r.blas, "OpenBLAS")) {
    EXPECT_TRUE(contains(maps, "openblas")) << r.blas;
    EXPECT_EQ(r.blas.rfind("OpenBLAS ", 0), 0u) << r.blas;
    EXPECT_GE(r.blas_threads, 1);
    EXPECT_TRUE(contains(r.blas, ", openmp") || contains(r.blas, ", pthread") || contains(r.blas, ", one thread"))
        << r.blas;
    EXPECT_EQ(r.two_pools, contains(r.blas, ", pthread") && r.threads > 1);
    // Debian keeps each build in a folder that says what it is.
    for (const std::string kind : {"openmp", "pthread"}) {
      EXPECT_TRUE(!contains(r.blas_path, "openblas-" + kind) || contains(r.blas, ", " + kind)) << r.blas;
    }
  }
}

TEST(Runtime, NamesTheAllocatorThatIsLive) {
  const Runtime r = runtime();
  const std::string maps = mapped_files();
  ASSERT_FALSE(r.allocator.empty());
  EXPECT_TRUE(contains(maps, r.allocator_path)) << r.allocator_path;
  // Linked first, as heed_program() in CMakeLists.txt does, it is the one in use and not just loaded.
  if (contains(maps, "libmimalloc")) {
    EXPECT_TRUE(contains(r.allocator, "mimalloc ")) << r.allocator << " from " << r.allocator_path;
  }
}

TEST(Runtime, ThreadsAreWhatWasAskedFor) {
  const int before = at::get_num_threads();
  use_threads(2);
  EXPECT_EQ(at::get_num_threads(), 2);
  EXPECT_EQ(runtime().threads, 2);
  ::unsetenv("OMP_NUM_THREADS");
  use_threads();
  EXPECT_EQ(at::get_num_threads(), heed::threads());
  EXPECT_THROW(use_threads(-1), Error);
  EXPECT_EQ(at::get_num_threads(), heed::threads());
  at::set_num_threads(before);
}

}  // namespace
}  // namespace heed::nn
