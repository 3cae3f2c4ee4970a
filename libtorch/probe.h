// Where a layer's attention went, without ever making its weights: heed::probe (include/heed/probe.h) on what the layer
// computed them from.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <heed/mask.h>
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace heed::nn {

// What the weights of one attention are made of. A layer gives it when AttendOptions::want_look asks for it: it shares
// the memory of what the layer computed anyway, and carries no gradient.
struct Look {
  torch::Tensor q;                   // [B, L, heads*D]
  torch::Tensor k;                   // [B, S, kv_heads*D]
  torch::Tensor lse;                 // [B, heads, L]
  int64_t heads = 1, kv_heads = 1;   //
  std::optional<double> scale = {};  // 1/sqrt(D)
  torch::Tensor bias = {};           // as in AttendOptions
  Mask mask = {};
};

// The weights below are those before dropout. Results are float32, or float64 for float64 tensors; memory is linear in
// L and S; what the engine refuses is a heed::Error.

// The row of one query: [B, heads, S].
torch::Tensor query_weights(const Look& look, int64_t query);

// How much weight each key received, as the mean over the queries: [B, heads, S], which adds up to 1 over S where every
// query sees a key.
torch::Tensor received_weights(const Look& look);

// Row `query` of the rollout over the layers of an encoder, the first layer first (Abnar & Zuidema 2020;
// include/heed/probe.h has the definition): [B, L], which adds up to 1. Every layer has L = S.
torch::Tensor rollout_row(const std::vector<Look>& layers, int64_t query);

}  // namespace heed::nn
