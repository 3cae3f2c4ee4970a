// Checks arguments before anything is written, and words the errors: one sentence, both numbers, what to do.
#pragma once

#include "plan.h"

namespace heed {

Problem check_forward(const Attention& a, const Output& result);
Problem check_backward(const Attention& a, const Incoming& in, const Gradients& gradients);
Problem check_jvp(const Attention& a, const ConstTensor& lse, const Tangents& tangents, const Output& result);
Problem check_double_backward(const Attention& a, const Incoming& in, const Tangents& dd,
                              const SecondGradients& wanted);

Problem check_scores(const Attention& a, const Tensor& scores);
void check_weigh(const ConstTensor& scores, const Tensor& weights);
int64_t check_gather(const ConstTensor& weights, const ConstTensor& v, const Tensor& out);  // returns Hq / Hkv

}  // namespace heed
