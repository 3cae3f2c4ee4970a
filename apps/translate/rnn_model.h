// The recurrent translation model of Bahdanau, Cho, Bengio 2015 ("Neural machine translation by jointly learning to
// align and translate"): bidirectional GRU encoder, additive attention, GRU decoder.
#pragma once

#include <memory>
#include <vector>

#include "apps/translate/gru.h"
#include "apps/translate/model.h"
#include "libtorch/layers.h"

namespace heed::translate {

// E embeddings shared by source and target, scaled by sqrt(dim); h_j = [forward_j; backward_j] annotations; s states.
//
//   s_0 = tanh(W_0 backward_1)                        backward_1 has read the whole sentence, as in the paper
//   c_i = sum_j a_ij h_j,  a_i = softmax_j(v . tanh(W s_{i-1} + U h_j))
//   s_i = GRU(s_{i-1}, [E y_{i-1}; c_i])
//   t_i = tanh(W_t [s_i; c_i; E y_{i-1}] + b_t)       the readout, tanh in place of the paper's maxout: half the work
//   logits_i = E t_i + b                              tied to the embedding, for which t has its width
//
// Dropout is on both embeddings, on the annotations and on the readout; never between one state and the next.
class RnnModel : public Model {
 public:
  explicit RnnModel(const ModelConfig& config);

  // How many numbers a model of this configuration has, from the configuration alone.
  static double parameters_of(const ModelConfig& config);

  torch::Tensor logits(const Batch& batch) override;
  std::unique_ptr<State> start(const torch::Tensor& source, const std::vector<int64_t>& lengths) override;
  torch::Tensor step(State& state, const torch::Tensor& tokens) override;
  void select(State& state, const torch::Tensor& rows) override;
  torch::Tensor alignment(State& state) override;

 private:
  struct Beams;

  // A source read once: its annotations [B, S, 2H], their keys [B, S, H] and s_0 [B, H].
  struct Memory {
    torch::Tensor annotations, keys, start;
  };
  Memory encode(const torch::Tensor& source, const std::vector<int64_t>& lengths);
  torch::Tensor embed(const torch::Tensor& ids);  // scaled, with dropout
  // From s, c, e of N positions, [N, H], [N, 2H], [N, dim] -> [N, vocab].
  torch::Tensor output(const torch::Tensor& s, const torch::Tensor& c, const torch::Tensor& e);
  // The GRU's input gates are linear in [e; c]: these are their two parts, [.., dim] and [.., 2H] -> [.., 3H].
  torch::Tensor embedding_gates(const torch::Tensor& e);
  torch::Tensor context_weights();

  torch::Tensor shared_;  // [vocab, dim]
  std::shared_ptr<Gru> forward_, backward_, decoder_;
  torch::nn::Linear start_ = nullptr, readout_ = nullptr;
  nn::AdditiveAttention attention_ = nullptr;
  torch::Tensor output_bias_;  // [vocab]
};

}  // namespace heed::translate
