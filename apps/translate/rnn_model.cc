// The recurrent model: in training, whatever does not depend on the recurrence is computed for all steps at once.
#include "apps/translate/rnn_model.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "apps/translate/padding.h"
#include "libtorch/beams.h"
#include "libtorch/dropout.h"

namespace heed::translate {

using torch::Tensor;

namespace {

torch::nn::Linear linear(int64_t in, int64_t out) {
  torch::nn::Linear layer(in, out);
  torch::nn::init::xavier_uniform_(layer->weight);
  torch::nn::init::zeros_(layer->bias);
  return layer;
}

}  // namespace

RnnModel::RnnModel(const ModelConfig& config) : Model(config) {
  const int64_t dim = config.dim, hidden = config.hidden;
  {
    torch::NoGradGuard no_grad;
    shared_ = torch::randn({config.vocab, dim}).mul_(1 / std::sqrt(static_cast<double>(dim)));
    shared_[kPad].zero_();
  }
  shared_ =
      register_module("shared", std::make_shared<torch::nn::Module>("shared"))->register_parameter("weight", shared_);
  forward_ = register_module("encoder_forward", std::make_shared<Gru>(dim, hidden));
  backward_ = register_module("encoder_backward", std::make_shared<Gru>(dim, hidden));
  start_ = register_module("start", linear(hidden, hidden));
  attention_ = register_module("attention", nn::AdditiveAttention(nn::AdditiveAttentionOptions{
                                                .query_dim = hidden, .memory_dim = 2 * hidden, .units = hidden}));
  decoder_ = register_module("decoder", std::make_shared<Gru>(dim + 2 * hidden, hidden));
  readout_ = register_module("readout", linear(hidden + 2 * hidden + dim, dim));
  output_bias_ = register_parameter("output_bias", torch::zeros({config.vocab}));
}

double RnnModel::parameters_of(const ModelConfig& config) {
  const auto v = static_cast<double>(config.vocab), d = static_cast<double>(config.dim);
  const auto h = static_cast<double>(config.hidden);
  const auto gru = [h](double in) { return 3 * h * (in + h + 2); };
  return v * d + v + 2 * gru(d) + gru(d + 2 * h) + h * (h + 1) + (h * h + 2 * h * h + h) + d * (3 * h + d + 1);
}

Tensor RnnModel::embed(const Tensor& ids) {
  const Tensor e = torch::embedding(shared_, ids, kPad) * std::sqrt(static_cast<double>(config_.dim));
  return nn::dropout(e, config_.dropout, is_training());
}

Tensor RnnModel::embedding_gates(const Tensor& e) {
  return torch::nn::functional::linear(e, decoder_->weight_ih.narrow(1, 0, config_.dim), decoder_->bias_ih);
}

Tensor RnnModel::context_weights() { return decoder_->weight_ih.narrow(1, config_.dim, 2 * config_.hidden).t(); }

RnnModel::Memory RnnModel::encode(const Tensor& source, const std::vector<int64_t>& lengths) {
  const Tensor e = embed(source.t());  // [S, B, dim]
  const Tensor right = forward_->run(forward_->gates(e), lengths, /*reverse=*/false);
  const Tensor left = backward_->run(backward_->gates(e), lengths, /*reverse=*/true);
  Memory memory;
  memory.start = torch::tanh(start_->forward(left[0]));
  // Batch first and dense, as the attention reads it at every step.
  memory.annotations = nn::dropout(torch::cat({right, left}, 2), config_.dropout, is_training()).transpose(0, 1);
  memory.annotations = memory.annotations.contiguous();
  memory.keys = attention_->project(memory.annotations);
  return memory;
}

Tensor RnnModel::output(const Tensor& s, const Tensor& c, const Tensor& e) {
  const Tensor t = torch::tanh(readout_->forward(torch::cat({s, c, e}, 1)));
  return torch::addmm(output_bias_, nn::dropout(t, config_.dropout, is_training()), shared_.t());
}

Tensor RnnModel::logits(const Batch& batch) {
  const Memory memory = encode(batch.source, batch.source_lengths);
  const nn::AttendOptions attend{.mask = lengths(batch.source_lengths)};
  const int64_t steps = batch.target_in.size(1);
  const Tensor e = embed(batch.target_in.t());  // [T, B, dim]
  const std::vector<Tensor> e_gates = embedding_gates(e).unbind(0);
  const Tensor w_context = context_weights();
  std::vector<Tensor> states, contexts;
  Tensor s = memory.start;
  for (int64_t i = 0; i < steps; ++i) {
    const Tensor c = attention_->forward(s, memory.keys, memory.annotations, attend).out;
    s = decoder_->step(torch::addmm(e_gates[static_cast<size_t>(i)], c, w_context), s);
    contexts.push_back(c);
    states.push_back(s);
  }
  // From here on only real positions, row after row.
  const Tensor real = real_positions(batch.target_lengths, /*stride_row=*/1,
                                     /*stride_step=*/static_cast<int64_t>(batch.target_lengths.size()));
  const auto pick = [&](const Tensor& x) { return x.flatten(0, 1).index_select(0, real); };
  return output(pick(torch::stack(states)), pick(torch::stack(contexts)), pick(e));
}

// Hypotheses of one source lie side by side as queries of one row of memory, so that beams do not copy it: hypothesis i
// reads row i / group. Where select() leaves no such order, rows are repeated and group is 1.
struct RnnModel::Beams : Model::State {
  Tensor annotations, keys;      // [M, S, ..]
  std::vector<int64_t> lengths;  // [M]
  int64_t group = 1;             //
  Tensor s;                      // [M * group, H]: the last step's state
  Tensor s_before;               // the state before it, which the attention asked with
  nn::AttendOptions attend() const { return {.mask = heed::lengths(lengths)}; }
};

std::unique_ptr<Model::State> RnnModel::start(const Tensor& source, const std::vector<int64_t>& lengths) {
  Memory memory = encode(source, lengths);
  auto state = std::make_unique<Beams>();
  state->annotations = memory.annotations;
  state->keys = memory.keys;
  state->lengths = lengths;
  state->s = memory.start;
  return state;
}

Tensor RnnModel::step(State& given, const Tensor& tokens) {
  auto& state = static_cast<Beams&>(given);
  const Tensor e = embed(tokens);
  const Tensor query = state.s.unflatten(0, {-1, state.group});  // [M, group, H]
  const Tensor c = attention_->forward(query, state.keys, state.annotations, state.attend()).out.flatten(0, 1);
  state.s_before = state.s;
  state.s = decoder_->step(torch::addmm(embedding_gates(e), c, context_weights()), state.s);
  return output(state.s, c, e);
}

void RnnModel::select(State& given, const Tensor& rows) {
  auto& state = static_cast<Beams&>(given);
  const auto at = rows.accessor<int64_t, 1>();
  const int64_t count = rows.size(0);
  std::vector<int64_t> sources(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) sources[static_cast<size_t>(i)] = at[i] / state.group;
  const nn::Layout layout = nn::layout_of(sources);
  std::vector<int64_t> same(state.lengths.size());
  std::iota(same.begin(), same.end(), int64_t{0});
  if (layout.sources != same) {
    const Tensor index = torch::tensor(layout.sources, torch::kInt64);
    state.annotations = state.annotations.index_select(0, index);
    state.keys = state.keys.index_select(0, index);
    std::vector<int64_t> lengths;
    for (const int64_t i : layout.sources) lengths.push_back(state.lengths[static_cast<size_t>(i)]);
    state.lengths = std::move(lengths);
  }
  state.group = layout.group;
  state.s = state.s.index_select(0, rows);
  if (state.s_before.defined()) state.s_before = state.s_before.index_select(0, rows);
}

Tensor RnnModel::alignment(State& given) {
  auto& state = static_cast<Beams&>(given);
  if (!state.s_before.defined()) throw Error("alignment was asked for before the first step");
  nn::AttendOptions attend = state.attend();
  attend.want_weights = true;
  const Tensor query = state.s_before.unflatten(0, {-1, state.group});
  return attention_->forward(query, state.keys, state.annotations, attend).weights.flatten(0, 1);
}

}  // namespace heed::translate
