// The two translation models behind one interface: what training and search need to know about a model.
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace heed::translate {

// Token ids every vocabulary of ours fixes (see vocab.h). Models from elsewhere number their own: TokenIds.
inline constexpr int64_t kPad = 0, kUnk = 1, kBos = 2, kEos = 3;

// The tokens with a meaning of their own, by the model's numbering.
struct TokenIds {
  int64_t pad = kPad, unk = kUnk, eos = kEos;
  int64_t start = kBos;                        // what a decoder is fed first; Marian's models take pad
  std::vector<int64_t> banned = {kPad, kBos};  // never produced
};

// What config.json says. dim is the width of the Transformer and of the RNN's embeddings.
struct ModelConfig {
  std::string arch = "rnn";     // "rnn": bidirectional GRU + additive attention + GRU. "transformer": Marian's layout
  int64_t vocab = 8000;         // source and target share one vocabulary and its embedding
  int64_t dim = 256;            //
  int64_t hidden = 256;         // rnn: units of each GRU and of the attention
  int64_t heads = 4;            // transformer
  int64_t layers = 3;           // transformer: in the encoder and in the decoder. rnn: 1
  int64_t ffn = 1024;           // transformer
  double dropout = 0.1;         //
  int64_t max_positions = 512;  // transformer
  bool lowercase = false;       // the model knows lower-cased text only; its input is lower-cased for it
  TokenIds tokens = {};         //
  static ModelConfig from_json(
      const nlohmann::json& json);  // throws heed::Error naming the key that is missing or wrong
  nlohmann::json to_json() const;   // Hugging Face's keys (model_type "marian" for transformer)
};

// Padded sentences. Source rows are `pieces </s>`; target_in rows start with kBos; target_out rows end with kEos.
struct Batch {
  torch::Tensor source;                 // [B, S] int64, kPad behind the end
  std::vector<int64_t> source_lengths;  // [B]
  torch::Tensor target_in;              // [B, T] int64
  torch::Tensor target_out;             // [B, T] int64
  std::vector<int64_t> target_lengths;  // [B]
  int64_t target_tokens() const;        // sum of target_lengths
};

class Model : public torch::nn::Module {
 public:
  // Training: logits [N, vocab] of the N = target_tokens() real target positions, row after row; padding is not
  // computed.
  virtual torch::Tensor logits(const Batch& batch) = 0;

  // Search. A State holds N hypotheses, each attending to its own source row.
  struct State {
    virtual ~State() = default;
  };
  // Encodes source [B, S]; the state starts with B hypotheses, one for each row.
  virtual std::unique_ptr<State> start(const torch::Tensor& source, const std::vector<int64_t>& lengths) = 0;
  // Feeds one token to each hypothesis (kBos first): tokens [N] int64 -> logits [N, vocab].
  virtual torch::Tensor step(State& state, const torch::Tensor& tokens) = 0;
  // Keeps hypotheses rows[0], rows[1], ... in that order; rows may repeat or drop some. rows: [M] int64.
  virtual void select(State& state, const torch::Tensor& rows) = 0;
  // Where the last step looked: [N, S], rows sum to 1. rnn: the additive weights; transformer: the last layer's cross
  // attention, mean over heads. Computed only when asked.
  virtual torch::Tensor alignment(State& state) = 0;

  const ModelConfig& config() const { return config_; }

 protected:
  explicit Model(ModelConfig config) : config_(std::move(config)) {}
  ModelConfig config_;
};

// A freshly initialised model (from torch's global generator). Throws heed::Error for an unknown arch or sizes that do
// not fit
// ("dim 250 is not divisible by 4 heads; ...").
std::shared_ptr<Model> make_model(const ModelConfig& config);

// A model folder: config.json, model.safetensors, source.spm, target.spm.
void save_model(const Model& model,
                const std::string& dir);  // config.json and model.safetensors, each whole or not at all
std::shared_ptr<Model> load_model(const std::string& dir);  // eval mode; heed::Error for a folder of another task etc.

}  // namespace heed::translate
