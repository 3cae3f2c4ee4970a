// The Transformer: embeddings, layers of libtorch/transformer.h, output.
#include "apps/translate/transformer_model.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "apps/translate/padding.h"
#include "libtorch/dropout.h"
#include "libtorch/packed_linear.h"

namespace heed::translate {

using torch::Tensor;

namespace {

// LibTorch forbids dots in names, so "model.encoder.layers.0" is a module in a module in a module.
std::shared_ptr<torch::nn::Module> nested(torch::nn::Module& parent, const std::string& name) {
  return parent.register_module(name, std::make_shared<torch::nn::Module>(name));
}

}  // namespace

TransformerModel::TransformerModel(const ModelConfig& given) : Model(given) {
  const ModelConfig& config = config_;
  const auto model = nested(*this, "model");
  // Times sqrt(dim) this gives inputs of variance 1, and logits of variance 1 from the last layer norm's output.
  const auto matrix = [&config](int64_t rows) {
    torch::NoGradGuard no_grad;
    Tensor made = torch::randn({rows, config.dim}).mul_(1 / std::sqrt(static_cast<double>(config.dim)));
    made[config.tokens.pad].zero_();
    return made;
  };
  if (config.shared_embedding) {
    source_ = target_ = nested(*model, "shared")->register_parameter("weight", matrix(config.vocab));
  }
  positions_ = nn::sinusoid_positions(config.max_positions, config.dim);
  const auto encoder = nested(*model, "encoder"), decoder = nested(*model, "decoder");
  if (!config.shared_embedding) {
    source_ = nested(*encoder, "embed_tokens")->register_parameter("weight", matrix(config.vocab));
    target_ = nested(*decoder, "embed_tokens")->register_parameter("weight", matrix(config.target_vocab));
  }
  nn::TransformerLayerOptions layer{.dim = config.dim,
                                    .heads = config.heads,
                                    .ffn = config.ffn,
                                    .activation = nn::activation_from_name(config.activation),
                                    .dropout = config.dropout};
  const auto encoder_layers = nested(*encoder, "layers"), decoder_layers = nested(*decoder, "layers");
  // In turns, because the order is that of the random numbers they begin with.
  for (int64_t i = 0; i < std::max(config.layers, config.decoder_layers); ++i) {
    const std::string name = std::to_string(i);
    layer.heads = config.heads;
    layer.ffn = config.ffn;
    if (i < config.layers) {
      encoder_.push_back(encoder_layers->register_module(name, nn::TransformerEncoderLayer(layer)));
    }
    layer.heads = config.decoder_heads;
    layer.ffn = config.decoder_ffn;
    if (i < config.decoder_layers) {
      decoder_.push_back(decoder_layers->register_module(name, nn::TransformerDecoderLayer(layer)));
    }
  }
  output_ = config.tied_output ? target_
                               : nested(*this, "lm_head")->register_parameter("weight", matrix(config.target_vocab));
  final_logits_bias_ = register_parameter("final_logits_bias", torch::zeros({1, config.target_vocab}));
}

double TransformerModel::parameters_of(const ModelConfig& given) {
  const ModelConfig c = given.completed();
  const auto d = static_cast<double>(c.dim);
  const auto matrix = [d](int64_t rows) { return static_cast<double>(rows) * d; };
  const double attention = 4 * d * (d + 1) + 2 * d;
  const auto layers = [&](int64_t count, double attentions, int64_t ffn) {
    const auto f = static_cast<double>(ffn);
    return static_cast<double>(count) * (attentions * attention + f * (d + 1) + d * (f + 1) + 2 * d);
  };
  double embeddings = matrix(c.vocab);
  if (!c.shared_embedding) embeddings += matrix(c.target_vocab);
  if (!c.tied_output) embeddings += matrix(c.target_vocab);
  return embeddings + static_cast<double>(c.target_vocab) + layers(c.layers, 1, c.ffn) +
         layers(c.decoder_layers, 2, c.decoder_ffn);
}

Tensor TransformerModel::embed(const Tensor& matrix, const Tensor& ids, const Tensor& positions) {
  Tensor e = torch::embedding(matrix, ids, config_.tokens.pad);
  if (config_.scale_embedding) e = e * std::sqrt(static_cast<double>(config_.dim));
  return nn::dropout(e + positions, config_.dropout, is_training());
}

Tensor TransformerModel::positions(int64_t begin, int64_t length) const {
  const int64_t end = begin + length;
  if (end > config_.max_positions) {
    throw Error("a sentence of " + std::to_string(end) + " pieces does not fit a model of " +
                std::to_string(config_.max_positions) + " positions; split it into shorter ones");
  }
  return positions_.narrow(0, begin, length);
}

Tensor TransformerModel::encode(const Tensor& source, const Mask& mask) {
  Tensor x = embed(source_, source, positions(0, source.size(1)));
  for (auto& layer : encoder_) x = layer->forward(x, {.mask = mask}).out;
  return x;
}

Tensor TransformerModel::output(const Tensor& x) { return torch::addmm(final_logits_bias_, x, output_.t()); }

// Everything runs on the real tokens, one sequence after another in a batch of one: padding is neither computed nor
// masked.
Tensor TransformerModel::logits(const Batch& batch) {
  struct Packed {
    Tensor embedded;               // [1, tokens, dim]
    std::vector<int64_t> offsets;  // where sequences begin, and the end of the last
  };
  const auto pack = [this](const Tensor& matrix, const Tensor& ids, const std::vector<int64_t>& lengths) {
    Packed packed{{}, {0}};
    std::vector<int64_t> places;
    for (const int64_t length : lengths) {
      for (int64_t i = 0; i < length; ++i) places.push_back(i);
      packed.offsets.push_back(packed.offsets.back() + length);
    }
    const Tensor real = real_positions(lengths, /*stride_row=*/ids.size(1), /*stride_step=*/1);
    packed.embedded = embed(matrix, ids.flatten().index_select(0, real).unsqueeze(0),
                            positions(0, ids.size(1)).index_select(0, torch::tensor(places, torch::kInt64)));
    return packed;
  };
  const Packed source = pack(source_, batch.source, batch.source_lengths);
  const Mask within_source = ragged(source.offsets, source.offsets);
  Tensor memory = source.embedded;
  for (auto& layer : encoder_) memory = layer->forward(memory, {.mask = within_source}).out;
  const Packed target = pack(target_, batch.target_in, batch.target_lengths);
  const nn::AttendOptions across{.mask = ragged(target.offsets, source.offsets)};
  const Mask before = ragged(target.offsets, target.offsets, /*left=*/-1, /*right=*/0);
  Tensor x = target.embedded;
  for (auto& layer : decoder_) x = layer->forward(x, memory, across, before).out;
  return output(x.squeeze(0));
}

struct TransformerModel::Beams : Model::State {
  std::vector<nn::LayerCache> layers;
  std::vector<int64_t> lengths;  // of the sentences, as they came
  int64_t position = 0;          // tokens fed so far

  // What the decoder may see of the memory's rows its layers hold.
  Mask mask() const {
    std::vector<int64_t> of_rows;
    for (const int64_t row : layers.front().rows) of_rows.push_back(lengths[static_cast<size_t>(row)]);
    return heed::lengths(of_rows);
  }
  Tensor aligner_input;  // [N, 1, dim]: of the layer whose attention is the alignment, in the last step
  // [most hypotheses so far, vocabulary]: a place for every step's logits, because fresh megabytes come from the system
  // page by page, to be zeroed first.
  Tensor logits;
  std::shared_ptr<const nn::PackedLinear> output;
};

std::unique_ptr<Model::State> TransformerModel::start(const Tensor& source, const std::vector<int64_t>& lengths) {
  const Tensor memory = encode(source, heed::lengths(lengths));
  auto state = std::make_unique<Beams>();
  for (auto& layer : decoder_) state->layers.push_back(layer->start(memory));
  state->lengths = lengths;
  state->output = packed_output_.get(nn::stamp_of({output_, final_logits_bias_}),
                                     [this] { return nn::PackedLinear(output_, final_logits_bias_.squeeze(0)); });
  return state;
}

Tensor TransformerModel::step(State& given, const Tensor& tokens) {
  torch::NoGradGuard no_grad;
  auto& state = static_cast<Beams&>(given);
  const nn::AttendOptions attend{.mask = state.mask()};
  Tensor x = embed(target_, tokens.unsqueeze(1), positions(state.position++, 1));
  for (size_t i = 0; i < decoder_.size(); ++i) {
    if (i == aligner()) state.aligner_input = x;
    x = decoder_[i]->step(x, state.layers[i], attend).out;
  }
  x = x.flatten(0, 1);
  const int64_t rows = x.size(0);
  if (!state.logits.defined() || state.logits.size(0) < rows) {
    state.logits = torch::empty({rows, config_.target_vocab}, x.options());
  }
  return state.output->forward(x, state.logits.narrow(0, 0, rows));
}

void TransformerModel::select(State& given, const Tensor& rows) {
  auto& state = static_cast<Beams&>(given);
  for (auto& layer : state.layers) layer.select(rows);
  if (state.aligner_input.defined()) state.aligner_input = state.aligner_input.index_select(0, rows);
}

Tensor TransformerModel::alignment(State& given) {
  auto& state = static_cast<Beams&>(given);
  if (!state.aligner_input.defined()) throw Error("alignment was asked for before the first step");
  // The first half of the layer once more, with what its cache holds: cheaper than keeping weights that are seldom
  // wanted.
  nn::TransformerDecoderLayer& layer = decoder_[aligner()];
  const nn::LayerCache& cache = state.layers[aligner()];
  const Tensor& x = state.aligner_input;
  const Tensor self = layer->self_attn->attend(x, cache.self.all()).out;
  const Tensor query = layer->self_attn_layer_norm->forward(x + self);
  const nn::AttendOptions attend{.mask = state.mask(), .want_weights = true};
  const auto sentences = static_cast<int64_t>(cache.rows.size());
  const Tensor weights =  // [sentences, heads, hypotheses of each, S]
      layer->encoder_attn->attend(query.view({sentences, cache.group, config_.dim}), cache.cross, attend).weights;
  const int64_t head = config_.alignment.head;
  return (head < 0 ? weights.mean(1) : weights.select(1, head)).flatten(0, 1);
}

std::vector<Tensor> TransformerModel::looks(const Batch& batch) {
  const nn::AttendOptions attend{.mask = lengths(batch.source_lengths), .want_weights = true};
  const Tensor memory = encode(batch.source, attend.mask);
  Tensor x = embed(target_, batch.target_in, positions(0, batch.target_in.size(1)));
  std::vector<Tensor> found;
  for (auto& layer : decoder_) {
    nn::DecoderOutput output = layer->forward(x, memory, attend);
    x = output.out;
    found.push_back(std::move(output.cross_weights));
  }
  return found;
}

}  // namespace heed::translate
