// Heed's operator as a LibTorch function: any strides without copies, gradients for every input.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <heed/attention.h>
#include <torch/types.h>

#include <optional>

namespace heed::nn {

struct AttentionOptions {
  Score score = Score::dot;          // see heed::Score
  std::optional<double> scale = {};  // dot: 1/sqrt(D); additive: 1
  torch::Tensor w = {};              // additive only: [D] or [Hq, D]
  torch::Tensor bias = {};           // broadcasts to [B, Hq, L, S], right-aligned as in NumPy
  Mask mask = {};                    //
};

struct AttentionResult {
  torch::Tensor out;  // [B, Hq, L, Dv]
  torch::Tensor lse;  // [B, Hq, L]
};

// q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], all float32 or all float64. Differentiable in q, k, v, w and
// bias, through out and through lse; an input that needs no gradient costs nothing. Memory is linear in L and S. Throws
// heed::Error for shapes or dtypes that do not fit.
AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const AttentionOptions& options = {});

// The weights [B, Hq, L, S] that `attention` used, dense, without gradient: for looking at, not for training through.
torch::Tensor attention_weights(const torch::Tensor& q, const torch::Tensor& k, const AttentionOptions& options = {});

// The same two with the heads packed in the last dimension, the way projections leave them and the next one takes them:
// q [B, L, Hq*D], k [B, S, Hkv*D], v [B, S, Hkv*Dv] -> out [B, L, Hq*Dv], lse [B, Hq, L]. No transposed copy is made,
// and no view is recorded for autograd. One query per batch, as in a decoder loop, may come as q [B, Hq*D] and goes as
// out [B, Hq*Dv]; its weights are still [B, Hq, 1, S].
AttentionResult packed_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, int64_t heads,
                                 int64_t kv_heads, const AttentionOptions& options = {});
torch::Tensor packed_attention_weights(const torch::Tensor& q, const torch::Tensor& k, int64_t heads, int64_t kv_heads,
                                       const AttentionOptions& options = {});

// LibTorch's own threads as an executor, so that Heed never adds a second pool beside OpenMP's.
Executor& torch_executor();

}  // namespace heed::nn
