// Whose matrix product LibTorch gets when it asks for sgemm_.
#pragma once

#include <string>

namespace heed::nn {

// The BLAS that would answer if this program had no sgemm_ of its own (blas.cc): a function's address, nullptr if there
// is none.
void* blas_behind();

// "oneDNN 2.6.3", or empty where the program was built without it.
std::string onednn();

}  // namespace heed::nn
