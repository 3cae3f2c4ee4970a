// Where the attention went: the strongest keys of each row, how much weight each key received, how spread out a row is,
// chosen rows of the weights, and rollout over layers. Never an L x S tensor: memory is linear in L and S.
//
//   heed::forward(a, {out, lse});
//   std::vector<int64_t> key(B * H * L * 3);
//   std::vector<float> weight(B * H * L * 3), mass(B * H * S);
//   heed::probe(a, lse, {.top_keys = heed::key_tensor(key.data(), {B, H, L, 3}),
//                        .top_weights = heed::tensor(weight.data(), {B, H, L, 3}),
//                        .mass = heed::tensor(mass.data(), {B, H, 1, S})});
//
// A weight is exp(score - lse), the softmax's, before dropout. With a sink the weights of a row add up to 1 less that
// of the sink, which no key receives.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "heed/attention.h"

namespace heed {

// A strided view of numbers of keys, as Tensor is of values. Without data: not wanted.
struct KeyTensor {
  int64_t* data = nullptr;
  Shape shape{};
  Shape stride{};
};
inline KeyTensor key_tensor(int64_t* data, Shape shape, Shape stride) { return {data, shape, stride}; }
inline KeyTensor key_tensor(int64_t* data, Shape shape) { return {data, shape, dense(shape)}; }

// One query of one head: a row of the weights.
struct WeightRow {
  int64_t batch = 0;
  int64_t head = 0;
  int64_t query = 0;
};
// Those of one head: what lists a head's whole matrix, or a stripe of it.
inline std::vector<WeightRow> rows_of_head(int64_t batch, int64_t head, Span queries) {
  std::vector<WeightRow> rows;
  for (int64_t i = queries.begin; i < queries.end; ++i) rows.push_back({batch, head, i});
  return rows;
}

// What is wanted: every view may be left out, and what is asked for comes from one walk over the scores. Values are f32
// for f16 and bf16 tensors, else q's dtype. A weight of 0 (below 2^-125) counts as not seen. A row that sees a NaN or
// +inf, whose lse is NaN, has NaN for every value and no keys (-1).
struct Probes {
  // The k strongest keys of each row, k being their last size, and their weights, descending; of equal weights the
  // smaller key comes first. Where a row sees fewer than k keys the rest is -1, with weight 0. Time grows with k.
  KeyTensor top_keys = {};     // [B, Hq, L, k]
  Tensor top_weights = {};     // [B, Hq, L, k]
  KeyTensor largest_key = {};  // [B, Hq, L, 1]: the strongest alone; -1 if there is none
  Tensor largest = {};         // [B, Hq, L, 1]: its weight
  // [B, Hq, L, 1]: -sum of w log w, in nats, over the keys and the sink, which is one more thing to look at: a row that
  // has nothing but its sink, or sees nothing, has entropy 0.
  Tensor entropy = {};
  // The weight each key received: the sum over queries i of mass_factor_i times the weight of (i, j).
  Tensor mass = {};                       // [B, Hq, 1, S]
  ConstTensor mass_factor = {};           // [B, Hq, L, 1]; left out: 1. Of rows with factor 0 nothing is looked at
  std::optional<Span> mass_queries = {};  // these queries alone; left out: all
  // Rows of the weights, dense: weights[0, 0, n, j] is that of key j in the row rows[n], 0 where it does not see it.
  std::vector<WeightRow> rows = {};
  Tensor weights = {};  // [1, 1, rows.size(), S]
};

// Looks again at a forward of `a`, whose lse it is given: [B, Hq, L, 1]. a.v may be left out. Any score, mask and
// option; keys and values in pages are not taken. The bits do not depend on the number of threads, the other batches or
// the SIMD target (targets with FMA), nor on what else is asked for. Memory beside the results: for each thread what
// about 400 rows of a KV head's queries hold (q, k strongest keys) and Hq / Hkv * S sums, and B * Hq * S sums if mass
// is wanted. Time: about two thirds of the forward's; a list of rows alone costs these rows. Throws heed::Error, and
// writes nothing, when an argument does not fit.
void probe(const Attention& a, const ConstTensor& lse, const Probes& wanted);

// ---- Rollout (Abnar & Zuidema 2020): attention followed through the layers of an encoder ----
// With A_l the mean over heads of layer l's weights, residual connections add the identity: M_l = A_l + I, each row
// divided by its sum (2, unless a sink took part of it or it sees nothing). The rollout is M_last ... M_1: row i tells
// how much of each position of the input is in position i of the output.

// One layer: its problem, where queries and keys are the same positions (L = S), and the lse of its forward.
struct RolloutLayer {
  Attention attention;
  ConstTensor lse;
};

// Row `query` of the rollout, without any matrix: out [B, 1, 1, L], a vector that goes through the layers from the last
// to the first (layers[0]), each of which it costs one probe. All layers share B, L and dtype; heads may differ. Values
// are f32 for f16 and bf16 tensors, else q's dtype. Throws heed::Error for what does not fit.
void rollout_row(const std::vector<RolloutLayer>& layers, int64_t query, const Tensor& out);

// The whole rollout of dense weights [layers, H, L, L], the first layer first: out [1, 1, L, L], f32 or f64. Sums are
// in double; O(L^2) memory. For short sequences, and to check the other against.
void rollout(const ConstTensor& weights, const Tensor& out);

}  // namespace heed
