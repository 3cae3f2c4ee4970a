// The passes: what attention.cc calls once a problem is checked and planned. Each is compiled for every SIMD target and
// picks the one in use.
#pragma once

#include "plan.h"

namespace heed {

// out and lse of forward() when the plan shares heads or tiles; forward.cc.
void forward_pass(const Problem& p, Plan::State& plan, const Output& result);

// The same when it shares blocks of keys; decode.cc.
void decode_pass(const Problem& p, Plan::State& plan, const Output& result);

// Gradients of backward(). backward.cc.
void backward_pass(const Problem& p, Plan::State& plan, const Incoming& in, const Gradients& gradients);

// double_backward(), and jvp(), which is its d_d_out and d_d_lse: then `in` has lse alone. second.cc.
void second_pass(const Problem& p, Plan::State& plan, const Incoming& in, const Tangents& along,
                 const SecondGradients& wanted);

// Makes HEED_TARGET hold on first use; heed::Error if it names no target of this machine. targets.cc.
void settle_target();

}  // namespace heed
