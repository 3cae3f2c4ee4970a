// Query and key normalisation: what keeps scores in bounds whatever the weights do. With both at length 1 a score is
// the cosine of the angle between query and key, times Attention's scale ("cosine attention").
//
//   heed::normalize(q, q, {.gain = heed::tensor(gain, {1, 1, 1, D})});           // RMS norm in place: Qwen 3, Gemma 3
//   heed::normalize(k, k, {.norm = heed::Norm::length, .epsilon = 1e-12});       // unit length
//
// Henry et al. 2020, arXiv:2010.04245 (length); Zhang and Sennrich 2019, arXiv:1910.07467 (RMS).
#pragma once

#include "heed/attention.h"

namespace heed {

// What a row x of D channels is divided by.
enum class Norm {
  rms,     // sqrt(mean of x^2 + epsilon)
  length,  // sqrt(sum of x^2 + epsilon)
};

struct Normalization {
  Norm norm = Norm::rms;
  double epsilon = 1e-6;
  ConstTensor gain = {};         // [1, H or 1, 1, D], optional: multiplies the result; x's dtype or f32
  Executor* executor = nullptr;  // nullptr: Heed's own threads
};

// out = x / norm(x) * gain, row by row. x and out: [B, H, L, D], of one dtype, any strides; out may be x itself (the
// same data and strides) and must not overlap it otherwise. Arithmetic is f32 for f32, f16 and bf16, double for f64;
// results are rounded once. A row's bits depend on the row and the gain alone. A row of zeros gives zeros if epsilon >
// 0. Throws heed::Error for what does not fit; then nothing is written.
void normalize(const ConstTensor& x, const Tensor& out, const Normalization& how = {});

// The gradients of normalize, of d_out that arrived at out; each is overwritten, and not computed without data. d_x:
// like x, may be d_out itself. d_gain: like gain, summed over what it was shared by; f32, and f64 for f64. Bits do not
// depend on the threads.
void normalize_backward(const ConstTensor& x, const ConstTensor& d_out, const Tensor& d_x, const Tensor& d_gain,
                        const Normalization& how = {});

}  // namespace heed
