// Heed's operator as a LibTorch function: any strides without copies, gradients for every input.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <heed/attention.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <optional>

namespace heed::nn {

// A score is finished in this order: scale, softcap, bias, alibi, mask; see heed::Attention.
struct AttentionOptions {
  Score score = Score::dot;                        // see heed::Score
  std::optional<double> scale = {};                // dot: 1/sqrt(D); additive: 1
  torch::Tensor w = {};                            // additive only: [D] or [Hq, D]
  double softcap = 0;                              // c > 0: scores become c * tanh(score / c); 0: off
  torch::Tensor bias = {};                         // broadcasts to [B, Hq, L, S], right-aligned as in NumPy
  torch::Tensor alibi = {};                        // slopes [] or [Hq]: adds slope * (j - (i + S - L))
  std::shared_ptr<const ScoreMod> score_mod = {};  // a function of yours between ALiBi and mask (heed::ScoreMod);
                                                   // what it captures gets no gradient
  Mask mask = {};                                  //
  Weigh weigh = Weigh::softmax;                    // or sigmoid, which has no lse and takes no sinks
  torch::Tensor sinks = {};           // [] or [Hq]: a score without a key or value, in every row of the head
  double dropout = 0;                 // in [0, 1): the share of weights set to 0; the others grow by 1 / (1 - dropout)
  std::optional<uint64_t> seed = {};  // which ones; by default a number from torch's default CPU generator, so that
                                      // torch::manual_seed and a saved generator state reproduce it
};

struct AttentionResult {
  torch::Tensor out;  // [B, Hq, L, Dv]
  torch::Tensor lse;  // [B, Hq, L]; float32 for float16 and bfloat16 tensors; undefined for sigmoid weights
};

// q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], all float32, float16 or bfloat16, or float64 for gradient
// checks (slow). w has their dtype; bias, alibi and sinks have it or are float32. Differentiable in all of these,
// through out and through lse; an input that needs no gradient gets no memory and no work of its own. Memory is linear
// in L and S. Under LibTorch's autocast on CPU, q, k, v and w are cast to its dtype, as for LibTorch's own products; a
// float32 bias, alibi or sinks stays as exact as it is. Throws heed::Error for shapes or dtypes that do not fit.
AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const AttentionOptions& options = {});

// The weights [B, Hq, L, S] that `attention` used, before dropout, dense, without gradient: for looking at, not for
// training through. float32 for float16 and bfloat16 tensors. With sinks a row adds up to less than 1.
torch::Tensor attention_weights(const torch::Tensor& q, const torch::Tensor& k, const AttentionOptions& options = {});

// The same two with the heads packed in the last dimension, the way projections leave them and the next one takes them:
// q [B, L, Hq*D], k [B, S, Hkv*D], v [B, S, Hkv*Dv] -> out [B, L, Hq*Dv], lse [B, Hq, L]. No transposed copy is made,
// and no view is recorded for autograd. One query per batch, as in a decoder loop, may come as q [B, Hq*D] and goes as
// out [B, Hq*Dv]; its weights are still [B, Hq, 1, S].
AttentionResult packed_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, int64_t heads,
                                 int64_t kv_heads, const AttentionOptions& options = {});
torch::Tensor packed_attention_weights(const torch::Tensor& q, const torch::Tensor& k, int64_t heads, int64_t kv_heads,
                                       const AttentionOptions& options = {});

// A bool tensor as a mask: true where a query sees a key. Broadcasts to [B, Hq, L, S], right-aligned as in NumPy.
// Copied, at one bit a pair: later changes of the tensor do not reach the mask. Throws heed::Error for another dtype or
// more than 4 axes.
Mask boolean_mask(const torch::Tensor& visible);

// LibTorch's own threads as an executor, so that Heed never adds a second pool beside OpenMP's. Takes any number of
// tasks, each thread the next when it is free, and passes on what a task throws; operators within a task run on its
// thread alone, unless it is the only one.
Executor& torch_executor();

}  // namespace heed::nn
