// Dropout that costs little on CPU: LibTorch's draws every number from one serial generator and keeps the mask.
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace heed::nn {

// One number from torch's default CPU generator, taken under its lock: torch::manual_seed and a saved generator state
// reproduce it.
uint64_t draw_seed();

// x with each element set to 0 with probability p, the others multiplied by 1 / (1 - p); x itself when not training or
// p is 0. Differentiable. draw_seed() seeds the call, so it is reproducible, on any number of threads; the mask is
// computed again in the backward pass, not stored. Any floating-point dtype; p is kept to a multiple of 1/65536. Throws
// heed::Error unless 0 <= p < 1.
torch::Tensor dropout(const torch::Tensor& x, double p, bool training);

}  // namespace heed::nn
