// libtorch/runtime.cc: what it says is live must agree with the list of files this process has mapped.
#include "libtorch/runtime.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <stdlib.h>
#include <torch/torch.h>

#include <atomic>
#include <cmath>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>

#include "libtorch/blas.h"
#include "libtorch/packed_linear.h"

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

// Of every size of the pieces that packed_linear.cc cuts rows into, and what is left over.
TEST(PackedLinear, IsTheLayer) {
  torch::manual_seed(1);
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{192, 6000}, {192, 192}, {7, 5}, {1, 1}, {448, 192}}) {
    for (const bool biased : {false, true}) {
      torch::nn::Linear layer(torch::nn::LinearOptions(in, out).bias(biased));
      const PackedLinear packed(layer->weight, layer->bias);
      const torch::Tensor x = torch::randn({343, in});
      const torch::Tensor all = packed.forward(x);
      EXPECT_FALSE(all.requires_grad());
      const torch::Tensor want = torch::linear(x.to(torch::kFloat64), layer->weight.to(torch::kFloat64),
                                               biased ? layer->bias.to(torch::kFloat64) : torch::Tensor());
      const double bound = 2e-6 * std::sqrt(static_cast<double>(in));
      EXPECT_LT((all - want).abs().max().item<double>(), bound) << in << " " << out;
      for (const int64_t rows : {0, 1, 2, 5, 16, 63, 85, 300}) {
        const torch::Tensor some = packed.forward(x.narrow(0, 3, rows));
        ASSERT_EQ(some.sizes(), torch::IntArrayRef({rows, out}));
        EXPECT_TRUE(torch::allclose(some, want.narrow(0, 3, rows).to(torch::kFloat32), 0, bound)) << rows << " rows";
      }
      EXPECT_TRUE(torch::equal(packed.forward(x.view({7, 49, in})), all.view({7, 49, out})));
      const torch::Tensor place = torch::full({343, out}, 7.0f);
      EXPECT_TRUE(torch::equal(packed.forward(x.t().contiguous().t(), place), all));
      EXPECT_TRUE(torch::equal(place, all));
    }
  }
}

TEST(PackedLinear, ServesManyThreadsAtOnce) {
  torch::manual_seed(2);
  torch::nn::Linear layer(64, 300);
  const PackedLinear outside(layer->weight, layer->bias);
  const torch::Tensor x = torch::randn({90, 64}), want = outside.forward(x);
  std::atomic<int> right = 0;
  at::parallel_for(0, 16, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      torch::NoGradGuard no_grad;
      right += torch::allclose(outside.forward(x), want, 0, 1e-5) ? 1 : 0;
      right += torch::allclose(PackedLinear(layer->weight, layer->bias).forward(x), want, 0, 1e-5) ? 1 : 0;
    }
  });
  EXPECT_EQ(right, 32);
}

TEST(PackedLinear, KeepsTheWeightsItWasGiven) {
  torch::NoGradGuard no_grad;
  torch::nn::Linear layer(8, 3);
  const PackedLinear packed(layer->weight, layer->bias);
  const torch::Tensor x = torch::randn({4, 8}), before = packed.forward(x);
  layer->weight.add_(1);
  layer->bias.add_(1);
  EXPECT_TRUE(torch::equal(packed.forward(x), before));
  // LibTorch's part: what is not float32.
  const torch::Tensor w = torch::randn({3, 8}, torch::kFloat64), y = torch::randn({2, 8}, torch::kFloat64);
  const PackedLinear doubles(w);
  const torch::Tensor want = torch::linear(y, w);
  w.add_(1);
  EXPECT_TRUE(torch::allclose(doubles.forward(y), want));
}

TEST(PackedLinear, SaysWhichShapesItTakes) {
  EXPECT_THROW(PackedLinear(torch::zeros({3})), Error);
  EXPECT_THROW(PackedLinear(torch::zeros({3, 2}), torch::zeros({2})), Error);
  const PackedLinear packed(torch::zeros({3, 2}));
  EXPECT_THROW(packed.forward(torch::zeros({4, 3})), Error);
  EXPECT_THROW(packed.forward(torch::zeros({})), Error);
  EXPECT_THROW(packed.forward(torch::zeros({4, 2}), torch::zeros({4, 2})), Error);
  EXPECT_THROW(packed.forward(torch::zeros({4, 2}), torch::zeros({3, 4}).t()), Error);
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
