// Dropout that costs little on CPU: LibTorch's draws every number from one serial generator and keeps the mask.
#pragma once

#include <torch/types.h>

namespace heed::nn {

// x with each element set to 0 with probability p, the others multiplied by 1 / (1 - p); x itself when not training or
// p is 0. Differentiable. One number from torch's default generator seeds the call, so torch::manual_seed and a saved
// generator state reproduce it, on any number of threads; the mask is computed again in the backward pass, not stored.
// float32 and float64; p is kept to a multiple of 1/65536. Throws heed::Error unless 0 <= p < 1.
torch::Tensor dropout(const torch::Tensor& x, double p, bool training);

}  // namespace heed::nn
