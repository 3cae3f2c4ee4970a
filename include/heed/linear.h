// Linear attention: instead of weighing all keys, each token writes its key and value into a state of fixed size and
// reads it with its query. Time is linear in the length, and a state is all a decode has to keep.
//
//   heed::LinearAttention a{.q = heed::tensor(q, {B, H, T, dk}),
//                           .k = heed::tensor(k, {B, H, T, dk}),
//                           .v = heed::tensor(v, {B, H, T, dv}),
//                           .update = heed::Update::gated,
//                           .decay = heed::tensor(g, {B, H, T, dk})};
//   heed::forward(a, heed::LinearOutput{heed::tensor(out, {B, H, T, dv})});
//
// Notation as in attention.h; T tokens, dk the head size of q and k, dv that of v. The rules are those of ONNX
// LinearAttention (opset 27). Katharopoulos et al. 2020 (linear, whose feature map is the caller's to apply), Yang et
// al. 2024 (gated; Mamba-2 and RetNet decay per head), Schlag et al. 2021 (delta), Yang et al. 2025 (gated delta).
#pragma once

#include <optional>

#include "heed/attention.h"

namespace heed {

// How token t changes the state S [dk, dv]; k and v are columns. Keys of the delta rules should have length 1.
enum class Update {
  linear,       // S += k v'
  gated,        // S = diag(exp(g)) S + k v'
  delta,        // S += k u',  u = beta (v - S' k): what is stored under k moves towards v
  gated_delta,  // S = diag(exp(g)) S first, then the delta rule
};

// q, k, v share a dtype; decay and beta have it too, or are f32. States are f32, and f64 for f64.
struct LinearAttention {
  ConstTensor q;                     // [B, Hq, T, dk]
  ConstTensor k;                     // [B, Hkv, T, dk]
  ConstTensor v;                     // [B, Hkv, T, dv]
  Update update = Update::linear;    //
  ConstTensor decay = {};            // g, a logarithm: [B, Hkv, T, dk], or [B, Hkv, T, 1] for one of each head
  ConstTensor beta = {};             // [B, Hkv or 1, T, 1]
  ConstTensor state = {};            // [B, Hkv, dk, dv], before the first token; without data: zeros
  std::optional<double> scale = {};  // default 1/sqrt(dk)
  Executor* executor = nullptr;      // nullptr: Heed's own threads
};

struct LinearOutput {
  Tensor out;         // [B, Hq, T, dv]
  Tensor state = {};  // [B, Hkv, dk, dv], optional: after the last token; may be LinearAttention's own view
};

// out = scale * S' q, with the S that the token's own update has left. Arithmetic is f32 (double for f64), as in
// attention.h, and states are kept in f32.
//
// This is the recurrence, token after token, with 64 columns of the state at a time in the nearest cache, not the
// chunk-wise form that graphics processors want: it takes about as many operations, and it is why bits do not depend on
// how a sequence is cut. A token's output depends on the state before it and itself alone: a sequence computed in
// several calls, state handed on, has the bits of one call; threads, batch and place do not matter either. An exp(g)
// below 2^-125 counts as 0.
void forward(const LinearAttention& a, const LinearOutput& result);

struct LinearIncoming {
  ConstTensor d_out;         // [B, Hq, T, dv]
  ConstTensor d_state = {};  // [B, Hkv, dk, dv], optional: the gradient of a loss that also uses the last state
};

// The gradients wanted, each of the shape of its input and overwritten. d_q, d_k, d_v have q's dtype; d_decay, d_state
// and d_beta are f32, and f64 for f64. A view without data is not computed.
struct LinearGradients {
  Tensor d_q = {};
  Tensor d_k = {};
  Tensor d_v = {};
  Tensor d_decay = {};
  Tensor d_state = {};  // of the state before the first token, given or not
  Tensor d_beta = {};
};

// The gradients of forward. Nothing of the forward is kept: states are computed again, and no step of a recurrence is
// undone by a division, so that a decay of 0 is as good as any. For d_decay each worker keeps about 2 sqrt(T) states
// (of at most 64 of the dk channels), the others need one; a d_decay of one for each head sums T * dk numbers for each
// head of B * Hkv, and the delta rules keep 2 T * dv for each. (f64 keeps all T states.) Bits do not depend on the
// threads.
void backward(const LinearAttention& a, const LinearIncoming& in, const LinearGradients& gradients);

}  // namespace heed
