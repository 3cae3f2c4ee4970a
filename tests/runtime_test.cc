// libtorch/runtime.cc: what it says is live must agree with the list of files this process has mapped.
#include "libtorch/runtime.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <stdlib.h>
#include <torch/torch.h>

#include <fstream>
#include <iterator>
#include <string>

#include "libtorch/blas.h"

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
    EXPECT_TRUE(r.blas.starts_with("OpenBLAS ") || r.blas.starts_with("oneDNN ")) << r.blas;
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

// C = alpha op(A) op(B) + beta C of matrices in columns, element by element in double.
TEST(Runtime, ItsProductIsThatOfTheBlasBehind) {
  struct Case {
    int m, n, k;
    float alpha, beta;
  };
  // What LibTorch would find under that name.
  const auto product =
      reinterpret_cast<void (*)(const char*, const char*, const int*, const int*, const int*, const float*,
                                const float*, const int*, const float*, const int*, const float*, float*, const int*)>(
          dlsym(RTLD_DEFAULT, "sgemm_"));
  ASSERT_NE(product, nullptr);
  EXPECT_EQ(reinterpret_cast<void*>(product) == blas_behind(), onednn().empty());
  const Case cases[] = {{1, 1, 1, 1, 0},    {5, 3, 0, 1, 0.5f},    {192, 1, 192, 1, 0},     {40, 33, 65, 1, 1},
                        {64, 64, 64, 2, 0}, {130, 70, 257, -1, 1}, {256, 31, 1024, 1, 0.5f}};
  for (const Case& c : cases) {
    for (const char ta : {'N', 'T', 't'}) {
      for (const char tb : {'N', 'n', 'T'}) {
        SCOPED_TRACE(std::to_string(c.m) + " x " + std::to_string(c.n) + " x " + std::to_string(c.k) + " " + ta + tb);
        const bool turned_a = ta != 'N', turned_b = tb == 'T';
        const int lda = (turned_a ? c.k : c.m) + 3, ldb = (turned_b ? c.n : c.k) + 2, ldc = c.m + 1;
        const at::Tensor a = torch::randn({turned_a ? c.m : std::max(1, c.k), lda}),
                         b = torch::randn({turned_b ? std::max(1, c.k) : c.n, ldb}), before = torch::randn({c.n, ldc});
        at::Tensor after = before.clone();
        product(&ta, &tb, &c.m, &c.n, &c.k, &c.alpha, a.data_ptr<float>(), &lda, b.data_ptr<float>(), &ldb, &c.beta,
                after.data_ptr<float>(), &ldc);
        const auto x = a.accessor<float, 2>(), y = b.accessor<float, 2>(), was = before.accessor<float, 2>(),
                   is = after.accessor<float, 2>();
        for (int j = 0; j < c.n; ++j) {
          for (int i = 0; i < c.m; ++i) {
            double sum = 0;
            for (int p = 0; p < c.k; ++p) {
              sum += static_cast<double>(turned_a ? x[i][p] : x[p][i]) * (turned_b ? y[p][j] : y[j][p]);
            }
            ASSERT_NEAR(is[j][i], c.alpha * sum + c.beta * static_cast<double>(was[j][i]), 2e-6 * (c.k + 8));
          }
          EXPECT_EQ(is[j][c.m], was[j][c.m]);  // what lies between the columns
        }
      }
    }
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
