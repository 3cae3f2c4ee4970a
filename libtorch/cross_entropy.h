// Cross entropy over many classes in one walk through the logits.
#pragma once

#include <torch/types.h>

namespace heed::nn {

struct CrossEntropy {
  torch::Tensor loss;  // one number: the mean over rows, with label smoothing; differentiable in the logits
  double sum = 0;      // negative log-likelihood summed over rows, without smoothing, for reporting
};

// logits [N, C] float32 or float64, targets [N] int64 -> the mean over rows of
// (1 - smoothing) * -log p[target] + smoothing * mean over classes of -log p (Szegedy et al. 2016), as
// torch::nn::functional::cross_entropy defines it. The gradient is computed with the loss, in cache, and *takes the
// place of the logits*: for 2000 tokens and 8000 pieces that is one walk through 64 MB instead of about eight. So when
// the logits require a gradient their values are gone afterwards, and the loss can be differentiated once. Bits do not
// depend on the number of threads. Throws heed::Error for shapes, dtypes, targets or a smoothing that do not fit.
CrossEntropy cross_entropy(const torch::Tensor& logits, const torch::Tensor& targets, double smoothing);

}  // namespace heed::nn
