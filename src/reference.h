// Plain loops in double: read this first. The truth that every test compares with, and what f64 tensors run on.
//
// Written from the definitions, sharing nothing with the fast passes but the mask's rows. Tensors may be f32 or f64 in
// any mixture, so that a test can ask for exact results of f32 inputs.
#pragma once

#include "plan.h"

namespace heed::reference {

// Reads and writes one element in double; an axis of size 1 is broadcast.
double at(const ConstTensor& t, int64_t b, int64_t h, int64_t i, int64_t d);
void put(const Tensor& t, int64_t b, int64_t h, int64_t i, int64_t d, double value);

// The score of one pair, with scale, softcap and bias, before any mask.
double pair_score(const Problem& p, int64_t b, int64_t h, int64_t i, int64_t j);

void forward(const Problem& p, const Output& result);

// Needs d_out and d_lse only: it computes weights, out and lse again.
void backward(const Problem& p, const Incoming& in, const Gradients& gradients);

// Both compute weights and lse again; double_backward needs d_out and d_lse only.
void jvp(const Problem& p, const Tangents& tangents, const Output& result);
void double_backward(const Problem& p, const Incoming& in, const Tangents& dd, const SecondGradients& wanted);

}  // namespace heed::reference
