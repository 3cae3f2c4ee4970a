// sgemm_, under the name by which LibTorch calls it: a program's own symbols go before a library's. oneDNN answers
// where it is faster than OpenBLAS, which is nearly everywhere (bench/SPEED.md has the table): a sixth in a model's
// layers, four to six times where a matrix is one row, as in translating a sentence without a beam. OpenBLAS answers
// for the products of gradients with inputs, in which oneDNN 2.6 halves its speed at some widths, and for the smallest.
//
// A LibTorch with a BLAS inside (the wheels') does not ask by that name, and nothing changes for it.
#include "libtorch/blas.h"

#include <dlfcn.h>

#include <cstdint>

#ifdef HEED_ONEDNN
#include <dnnl.h>
#endif

namespace heed::nn {

#ifdef HEED_ONEDNN

void* blas_behind() {
  static void* const found = dlsym(RTLD_NEXT, "sgemm_");
  return found;
}

std::string onednn() {
  const dnnl_version_t& version = *dnnl_version();
  return "oneDNN " + std::to_string(version.major) + "." + std::to_string(version.minor) + "." +
         std::to_string(version.patch);
}

#else

void* blas_behind() { return dlsym(RTLD_DEFAULT, "sgemm_"); }

std::string onednn() { return {}; }

#endif

}  // namespace heed::nn

#ifdef HEED_ONEDNN

// C [m, n] = alpha op(A) op(B) + beta C, matrices in columns. LibTorch, whose matrices are rows, exchanges A and B: a
// layer's x W' comes as trans_a = 'T', trans_b = 'N', the gradient of its input as 'N', 'N', that of W as 'N', 'T'.
extern "C" void sgemm_(const char* trans_a, const char* trans_b, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc) {
  constexpr int64_t kSmall = 16384;  // products below are done before oneDNN has begun
  const auto behind = reinterpret_cast<decltype(&sgemm_)>(heed::nn::blas_behind());
  const bool plain = *trans_b == 'N' || *trans_b == 'n';
  if (behind == nullptr || (plain && int64_t{*m} * *n * *k >= kSmall)) {
    // What is C in columns is C' in rows, and C' = op(B)' op(A)'.
    const auto done = dnnl_sgemm(*trans_b, *trans_a, *n, *m, *k, *alpha, b, *ldb, a, *lda, *beta, c, *ldc);
    if (done == dnnl_success || behind == nullptr) return;
  }
  behind(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

#endif
