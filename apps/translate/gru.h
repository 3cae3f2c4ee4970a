// A GRU for padded batches that trains fast on CPU: the same numbers as torch::nn::GRU, fewer and larger operations.
//
// Equations (Cho et al. 2014, in the form torch and cuDNN use): r = sigmoid(i_r + h_r), z = sigmoid(i_z + h_z),
// n = tanh(i_n + r * h_n), h' = (1 - z) * n + z * h, where [i_r i_z i_n] = x W_ih^T + b_ih is the gates' input part and
// [h_r h_z h_n] = h W_hh^T + b_hh their recurrent part.
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace heed::translate {

// One step as one differentiable operation: input [B, 3H] and recurrent [B, 3H] as above, h [B, H] -> h' [B, H].
torch::Tensor gru_step(const torch::Tensor& input, const torch::Tensor& recurrent, const torch::Tensor& h);

// A whole layer as one differentiable operation: input [S, B, 3H] (from Gru::gates), w_hh [3H, H], b_hh [3H] -> states
// [S, B, H], starting from zeros. Row b takes part in its first lengths[b] steps; its states behind them are 0, and
// with `reverse` (from the last step to the first) its sequence starts at its own last step. So padding influences
// nothing.
torch::Tensor gru_layer(const torch::Tensor& input, const torch::Tensor& w_hh, const torch::Tensor& b_hh,
                        const std::vector<int64_t>& lengths, bool reverse);

// The parameters, with torch::nn::GRUCell's names and layout: weight_ih [3H, D], weight_hh [3H, H], bias_ih, bias_hh
// [3H]. Xavier-uniform per gate for the inputs, orthogonal per gate for the recurrence, zero biases.
class Gru : public torch::nn::Module {
 public:
  Gru(int64_t input, int64_t hidden);

  // The part of the gates that does not depend on the state: x [..., D] -> [..., 3H].
  torch::Tensor gates(const torch::Tensor& x) const;
  // [S, B, 3H] from gates -> [S, B, H], see gru_layer.
  torch::Tensor run(const torch::Tensor& gates, const std::vector<int64_t>& lengths, bool reverse) const;
  // [B, 3H] from gates and h [B, H] -> h' [B, H].
  torch::Tensor step(const torch::Tensor& gates, const torch::Tensor& h) const;

  torch::Tensor weight_ih, weight_hh, bias_ih, bias_hh;
};

}  // namespace heed::translate
