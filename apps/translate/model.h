// The two translation models behind one interface: what training and search need to know about a model.
#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/json_keys.h"

namespace heed::translate {

// Token ids every vocabulary of ours fixes (see vocab.h). Models from elsewhere number their own: TokenIds.
inline constexpr int64_t kPad = 0, kUnk = 1, kBos = 2, kEos = 3;

// The tokens with a meaning of their own, by the model's numbering.
struct TokenIds {
  int64_t pad = kPad, unk = kUnk, eos = kEos;
  int64_t start = kBos;                        // what a decoder is fed first; Marian's models take pad
  std::vector<int64_t> banned = {kPad, kBos};  // never produced
  // Whether the probability of what is banned goes to the others. Hugging Face's renormalize_logits.
  bool renormalize = true;
  // The token that whatever reaches its greatest length ends with, at no cost; -1: it ends as it is. Hugging Face's
  // forced_eos_token_id.
  int64_t forced_end = -1;
  bool operator==(const TokenIds&) const = default;
};

// How the maker of a model means it to be searched, for those who say nothing else.
struct Generation {
  int beam = 4;
  double length_penalty = 1.0;
  int max_length = 0;  // in pieces, with </s>; 0: nothing is said of it
  bool operator==(const Generation&) const = default;
};

// Which of a Transformer's attentions to the source tells what a token translates (choose_alignment.h).
struct AlignmentFrom {
  int64_t layer = -1;  // of the decoder; -1: the last
  int64_t head = -1;   // -1: the mean over the heads
  bool next = false;   // the attention of the step that reads the token, not of the one that produces it
  bool operator==(const AlignmentFrom&) const = default;
};

// What config.json says. dim is the width of the Transformer and of the RNN's embeddings.
struct ModelConfig {
  std::string arch = "rnn";     // "rnn": bidirectional GRU + additive attention + GRU. "transformer": Marian's layout
  int64_t vocab = 8000;         // of the source and, unless target_vocab says otherwise, of the target
  int64_t dim = 256;            //
  int64_t hidden = 256;         // rnn: units of each GRU and of the attention
  int64_t heads = 4;            // transformer
  int64_t layers = 3;           // transformer: in the encoder and in the decoder. rnn: 1
  int64_t ffn = 1024;           // transformer
  double dropout = 0.1;         //
  int64_t max_positions = 512;  // transformer
  bool lowercase = false;       // the model knows lower-cased text only; its input is lower-cased for it

  // What only models from elsewhere have otherwise; transformer alone.
  int64_t decoder_heads = 0, decoder_layers = 0, decoder_ffn = 0;  // 0: as in the encoder
  std::string activation = "swish";                                // or relu, silu, gelu
  bool scale_embedding = true;                                     // by sqrt(dim)
  int64_t target_vocab = 0;                                        // 0: vocab
  // One embedding for source and target, and one for the target and the output. The first is never without the second.
  bool shared_embedding = true, tied_output = true;

  TokenIds tokens = {};           // rnn: always these
  Generation generation = {};     //
  AlignmentFrom alignment = {};   // transformer
  ModelConfig completed() const;  // with numbers in place of the zeros that stand for others

  static ModelConfig from_json(const app::JsonKeys& j);  // throws heed::Error naming the key that is missing or wrong
  nlohmann::json to_json() const;                        // Hugging Face's keys (model_type "marian" for transformer)
  nlohmann::json generation_json() const;                // transformer: those of them that generation_config.json has
};

// Padded sentences. Source rows are `pieces </s>`; target_in rows begin with TokenIds::start; target_out rows end with
// TokenIds::eos.
struct Batch {
  torch::Tensor source;                 // [B, S] int64, TokenIds::pad behind the end
  std::vector<int64_t> source_lengths;  // [B]
  torch::Tensor target_in;              // [B, T] int64
  torch::Tensor target_out;             // [B, T] int64
  std::vector<int64_t> target_lengths;  // [B]
  int64_t target_tokens() const;        // sum of target_lengths
};

class Model : public torch::nn::Module {
 public:
  // Training: logits [N, target_vocab] of the N = target_tokens() real target positions, row after row; padding is not
  // computed.
  virtual torch::Tensor logits(const Batch& batch) = 0;

  // Search. A State holds N hypotheses, each attending to its own source row.
  struct State {
    virtual ~State() = default;
  };
  // Encodes source [B, S]; the state starts with B hypotheses, one for each row.
  virtual std::unique_ptr<State> start(const torch::Tensor& source, const std::vector<int64_t>& lengths) = 0;
  // Feeds one token to each hypothesis (TokenIds::start first): tokens [N] int64 -> logits [N, target_vocab], the
  // caller's to change until the next step.
  virtual torch::Tensor step(State& state, const torch::Tensor& tokens) = 0;
  // Keeps hypotheses rows[0], rows[1], ... in that order; rows may repeat or drop some. rows: [M] int64.
  virtual void select(State& state, const torch::Tensor& rows) = 0;
  // Where the last step looked: [N, S], rows sum to 1. rnn: the additive weights; transformer: what config().alignment
  // says. Computed only when asked.
  virtual torch::Tensor alignment(State& state) = 0;

  const ModelConfig& config() const { return config_; }  // completed
  void set_alignment(const AlignmentFrom& from) { config_.alignment = from; }

 protected:
  explicit Model(const ModelConfig& config) : config_(config.completed()) {}
  ModelConfig config_;
};

// A freshly initialised model (from torch's global generator). Throws heed::Error for an unknown arch or sizes that do
// not fit
// ("dim 250 is not divisible by 4 heads; ...").
std::shared_ptr<Model> make_model(const ModelConfig& config);

// A model folder: config.json, model.safetensors, source.spm, target.spm, and of a Transformer what marian.h adds.
void save_model(const Model& model,
                const std::string& dir);  // config.json and model.safetensors, each whole or not at all

// Reads such a folder, of ours or of Marian's models as Hugging Face keeps them: names with and without "model.", tied
// tensors in any number of copies, final_logits_bias or none, F32, F16, BF16; what generation_config.json says of
// searching goes before what config.json says. `dropout` takes the place of config.json's. eval mode; heed::Error for a
// folder of another task etc.
std::shared_ptr<Model> load_model(const std::string& dir, std::optional<double> dropout = {});

}  // namespace heed::translate
