// What the files of linear attention share: the problem once it is checked, the passes, the reference.
#pragma once

#include "heed/linear.h"

namespace heed {

// A LinearAttention whose arguments have been checked, with its sizes read off. Lives as long as the call.
struct LinearProblem {
  const LinearAttention& a;
  int64_t B, Hq, Hkv, group, T, dk, dv;
  double scale;

  bool decays() const { return a.update == Update::gated || a.update == Update::gated_delta; }
  bool corrects() const { return a.update == Update::delta || a.update == Update::gated_delta; }
};

// f32, f16 and bf16, on the SIMD target in use; pass.cc.
void linear_forward_pass(const LinearProblem& p, const LinearOutput& result);
void linear_backward_pass(const LinearProblem& p, const LinearIncoming& in, const LinearGradients& gradients);

// Plain loops in double, for tensors of any dtype; reference.cc.
namespace reference {
void forward(const LinearProblem& p, const LinearOutput& result);
void backward(const LinearProblem& p, const LinearIncoming& in, const LinearGradients& gradients);
}  // namespace reference

// linear.cc
LinearProblem check_linear(const LinearAttention& a, const LinearOutput& result);
LinearProblem check_linear(const LinearAttention& a, const LinearIncoming& in, const LinearGradients& gradients);

}  // namespace heed
