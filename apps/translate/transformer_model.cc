// The Transformer: embedding, layers of libtorch/transformer.h, tied output.
#include "apps/translate/transformer_model.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <cmath>
#include <string>

#include "apps/translate/padding.h"
#include "libtorch/dropout.h"

namespace heed::translate {

using torch::Tensor;

namespace {

// LibTorch forbids dots in names, so "model.encoder.layers.0" is a module in a module in a module.
std::shared_ptr<torch::nn::Module> nested(torch::nn::Module& parent, const std::string& name) {
  return parent.register_module(name, std::make_shared<torch::nn::Module>(name));
}

}  // namespace

TransformerModel::TransformerModel(const ModelConfig& config) : Model(config) {
  const auto model = nested(*this, "model");
  {
    torch::NoGradGuard no_grad;
    // Times sqrt(dim) this gives inputs of variance 1, and logits of variance 1 from the last layer norm's output.
    shared_ = torch::randn({config.vocab, config.dim}).mul_(1 / std::sqrt(static_cast<double>(config.dim)));
    shared_[kPad].zero_();
  }
  shared_ = nested(*model, "shared")->register_parameter("weight", shared_);
  positions_ = nn::sinusoid_positions(config.max_positions, config.dim);
  const nn::TransformerLayerOptions layer{.dim = config.dim,
                                          .heads = config.heads,
                                          .ffn = config.ffn,
                                          .activation = nn::Activation::swish,
                                          .dropout = config.dropout};
  const auto encoder = nested(*nested(*model, "encoder"), "layers");
  const auto decoder = nested(*nested(*model, "decoder"), "layers");
  for (int64_t i = 0; i < config.layers; ++i) {
    encoder_.push_back(encoder->register_module(std::to_string(i), nn::TransformerEncoderLayer(layer)));
    decoder_.push_back(decoder->register_module(std::to_string(i), nn::TransformerDecoderLayer(layer)));
  }
  final_logits_bias_ = register_parameter("final_logits_bias", torch::zeros({1, config.vocab}));
}

double TransformerModel::parameters_of(const ModelConfig& config) {
  const auto v = static_cast<double>(config.vocab), d = static_cast<double>(config.dim);
  const auto f = static_cast<double>(config.ffn), n = static_cast<double>(config.layers);
  const double attention = 4 * d * (d + 1) + 2 * d;
  const double feed_forward = f * (d + 1) + d * (f + 1) + 2 * d;
  return v * d + v + n * (3 * attention + 2 * feed_forward);
}

Tensor TransformerModel::embed(const Tensor& ids, const Tensor& positions) {
  const Tensor e = torch::embedding(shared_, ids, kPad) * std::sqrt(static_cast<double>(config_.dim));
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
  Tensor x = embed(source, positions(0, source.size(1)));
  for (auto& layer : encoder_) x = layer->forward(x, {.mask = mask}).out;
  return x;
}

Tensor TransformerModel::output(const Tensor& x) { return torch::addmm(final_logits_bias_, x, shared_.t()); }

// Everything runs on the real tokens, one sequence after another in a batch of one: padding is neither computed nor
// masked.
Tensor TransformerModel::logits(const Batch& batch) {
  struct Packed {
    Tensor embedded;               // [1, tokens, dim]
    std::vector<int64_t> offsets;  // where sequences begin, and the end of the last
  };
  const auto pack = [this](const Tensor& ids, const std::vector<int64_t>& lengths) {
    Packed packed{{}, {0}};
    std::vector<int64_t> places;
    for (const int64_t length : lengths) {
      for (int64_t i = 0; i < length; ++i) places.push_back(i);
      packed.offsets.push_back(packed.offsets.back() + length);
    }
    const Tensor real = real_positions(lengths, /*stride_row=*/ids.size(1), /*stride_step=*/1);
    packed.embedded = embed(ids.flatten().index_select(0, real).unsqueeze(0),
                            positions(0, ids.size(1)).index_select(0, torch::tensor(places, torch::kInt64)));
    return packed;
  };
  const Packed source = pack(batch.source, batch.source_lengths);
  const Mask within_source = ragged(source.offsets, source.offsets);
  Tensor memory = source.embedded;
  for (auto& layer : encoder_) memory = layer->forward(memory, {.mask = within_source}).out;
  const Packed target = pack(batch.target_in, batch.target_lengths);
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
  Tensor last_input;  // [N, 1, dim]: the last layer's input in the last step, for alignment
};

std::unique_ptr<Model::State> TransformerModel::start(const Tensor& source, const std::vector<int64_t>& lengths) {
  const Tensor memory = encode(source, heed::lengths(lengths));
  auto state = std::make_unique<Beams>();
  for (auto& layer : decoder_) state->layers.push_back(layer->start(memory));
  state->lengths = lengths;
  return state;
}

Tensor TransformerModel::step(State& given, const Tensor& tokens) {
  auto& state = static_cast<Beams&>(given);
  const nn::AttendOptions attend{.mask = state.mask()};
  Tensor x = embed(tokens.unsqueeze(1), positions(state.position++, 1));
  for (size_t i = 0; i < decoder_.size(); ++i) {
    if (i + 1 == decoder_.size()) state.last_input = x;
    x = decoder_[i]->step(x, state.layers[i], attend).out;
  }
  return output(x.flatten(0, 1));
}

void TransformerModel::select(State& given, const Tensor& rows) {
  auto& state = static_cast<Beams&>(given);
  for (auto& layer : state.layers) layer.select(rows);
  if (state.last_input.defined()) state.last_input = state.last_input.index_select(0, rows);
}

Tensor TransformerModel::alignment(State& given) {
  auto& state = static_cast<Beams&>(given);
  if (!state.last_input.defined()) throw Error("alignment was asked for before the first step");
  // The first half of the last layer once more, with what its cache holds: cheaper than keeping weights that are
  // seldom wanted.
  nn::TransformerDecoderLayer& layer = decoder_.back();
  const nn::LayerCache& cache = state.layers.back();
  const Tensor& x = state.last_input;
  const Tensor self = layer->self_attn->attend(x, cache.self.all()).out;
  const Tensor query = layer->self_attn_layer_norm->forward(x + self);
  const nn::AttendOptions attend{.mask = state.mask(), .want_weights = true};
  const auto sentences = static_cast<int64_t>(cache.rows.size());
  const Tensor weights =  // [sentences, heads, hypotheses of each, S]
      layer->encoder_attn->attend(query.view({sentences, cache.group, config_.dim}), cache.cross, attend).weights;
  return weights.mean(1).flatten(0, 1);
}

}  // namespace heed::translate
