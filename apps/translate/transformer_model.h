// The Transformer translation model in Marian's form, with the tensor names of its checkpoints.
#pragma once

#include <memory>
#include <vector>

#include "apps/translate/model.h"
#include "libtorch/packed_linear.h"
#include "libtorch/transformer.h"

namespace heed::translate {

// Marian's architecture (Junczys-Dowmunt et al. 2018), as transformers' MarianMTModel computes it: one embedding for
// source, target and output, scaled by sqrt(dim); sinusoid positions (sin half, cos half); post-norm layers with swish;
// logits = E h + final_logits_bias. So the folder opens in transformers as it is. Models from elsewhere may have two or
// three matrices in place of the one, and other sizes in the decoder. The one difference is in training:
// final_logits_bias is learned here, as in Marian itself.
class TransformerModel : public Model {
 public:
  explicit TransformerModel(const ModelConfig& config);

  // How many numbers a model of this configuration has, from the configuration alone.
  static double parameters_of(const ModelConfig& config);

  torch::Tensor logits(const Batch& batch) override;
  std::unique_ptr<State> start(const torch::Tensor& source, const std::vector<int64_t>& lengths) override;
  torch::Tensor step(State& state, const torch::Tensor& tokens) override;
  void select(State& state, const torch::Tensor& rows) override;
  torch::Tensor alignment(State& state) override;

  // Where the decoder looked while it read the batch's targets: [B, heads, T, S] of each layer.
  std::vector<torch::Tensor> looks(const Batch& batch);

 private:
  struct Beams;

  torch::Tensor encode(const torch::Tensor& source, const Mask& mask);  // [B, S] -> [B, S, dim]
  // [rows, dim], [B, L], [L, dim] -> [B, L, dim]
  torch::Tensor embed(const torch::Tensor& matrix, const torch::Tensor& ids, const torch::Tensor& positions);
  torch::Tensor positions(int64_t begin, int64_t length) const;  // [length, dim]; throws beyond the last
  size_t aligner() const {                                       // the layer of config().alignment
    const int64_t layer = config_.alignment.layer;
    return layer < 0 ? decoder_.size() - 1 : static_cast<size_t>(layer);
  }
  torch::Tensor output(const torch::Tensor& x);  // [N, dim] -> [N, target_vocab]

  torch::Tensor source_, target_, output_;  // [vocab, dim], [target_vocab, dim] twice: two of them or all may be one
  torch::Tensor positions_;                 // [max_positions, dim]; not a parameter and not stored
  std::vector<nn::TransformerEncoderLayer> encoder_;
  std::vector<nn::TransformerDecoderLayer> decoder_;
  torch::Tensor final_logits_bias_;  // [1, target_vocab]
  nn::SharedWhileUsed<nn::PackedLinear> packed_output_;
};

}  // namespace heed::translate
