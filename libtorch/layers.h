// Attention layers with the names of their papers, as LibTorch modules: additive, dot, multi-head, pooling, wrapper.
//
// Shapes: B batch, L queries, S keys (the memory's length), D widths. Everything is batch first. A layer's weights come
// back only when asked for and carry no gradient. Masks are heed::Mask values: heed::lengths({17, 23}) for a padded
// memory, heed::causal(), and what they compose to. Make a mask once per sentence, not once per step.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <heed/attention.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/rnn.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "libtorch/probe.h"

namespace heed::nn {

// How one call attends: ->forward(x, x, {.mask = heed::causal(), .want_weights = true}).
struct AttendOptions {
  Mask mask = {};             // which keys a query sees
  torch::Tensor bias = {};    // added to the scores; broadcasts to [B, H, L, S], right-aligned as in NumPy
  bool want_weights = false;  // also return the weights, dense
  bool want_look = false;     // also return what they are made of, to look at without making them; multi-head alone
};

struct Attended {
  torch::Tensor out;
  torch::Tensor weights;  // undefined unless asked for; no gradient
  Look look = {};         // its tensors are undefined unless asked for
};

// What the layers with one head are made of: query [B, L, D], keys [B, S, D], values [B, S, Dv] -> out [B, L, Dv],
// weights [B, L, S]; or query [B, D] -> out [B, Dv], weights [B, S].
struct AttentionOptions;  // libtorch/attention.h
Attended attend_one_head(const torch::Tensor& query, const torch::Tensor& keys, const torch::Tensor& values,
                         bool want_weights, const AttentionOptions& options);

// ---- Additive attention: Bahdanau, Cho, Bengio 2015 ----

struct AdditiveAttentionOptions {
  int64_t query_dim = 0;   // Dq
  int64_t memory_dim = 0;  // Dm
  int64_t units = 0;       // U, the width in which query and memory meet
  bool normalize = false;  // weight-normalised: g * v/|v| . tanh(query + keys + b), as in TF-Addons
};

// score = v . tanh(query_layer(query) + memory_layer(memory)), computed without an L x S x U tensor. Parameters:
// query_layer.weight [U, Dq], memory_layer.weight [U, Dm], v [U]; with normalize also g [] and b [U].
class AdditiveAttentionImpl : public torch::nn::Cloneable<AdditiveAttentionImpl> {
 public:
  explicit AdditiveAttentionImpl(AdditiveAttentionOptions options);
  void reset() override;

  // The keys of a memory: [B, S, Dm] -> [B, S, U]. Do it once per sentence; every step then uses the result.
  torch::Tensor project(const torch::Tensor& memory);

  // query [B, L, Dq] or, for one step, [B, Dq]; keys [B, S, U] from project; values [B, S, Dv], usually the memory.
  // out [B, L, Dv] or [B, Dv]; weights [B, L, S] or [B, S].
  Attended forward(const torch::Tensor& query, const torch::Tensor& keys, const torch::Tensor& values,
                   const AttendOptions& options = {});

  AdditiveAttentionOptions options;
  torch::nn::Linear query_layer = nullptr;
  torch::nn::Linear memory_layer = nullptr;
  torch::Tensor v;
  torch::Tensor g;  // normalize only
  torch::Tensor b;  // normalize only
};
TORCH_MODULE(AdditiveAttention);

// ---- Multiplicative attention: Luong, Pham, Manning 2015 ----

enum class LuongScore {
  dot,      // q . m; needs query_dim == memory_dim and has no parameters
  general,  // q . (W m)
  concat,   // v . tanh(W [q; m])
};

struct DotAttentionOptions {
  int64_t query_dim = 0;                   // Dq
  int64_t memory_dim = 0;                  // Dm
  LuongScore score = LuongScore::general;  //
  int64_t units = 0;                       // concat only: rows of W; 0: query_dim
};

// Luong's three content scores, unscaled as in the paper. Parameters: dot none; general memory_layer.weight [Dq, Dm];
// concat query_layer.weight [U, Dq] and memory_layer.weight [U, Dm] (together the paper's W, cut where [q; m] is
// joined) and v [U].
class DotAttentionImpl : public torch::nn::Cloneable<DotAttentionImpl> {
 public:
  explicit DotAttentionImpl(DotAttentionOptions options);
  void reset() override;

  // The keys of a memory: [B, S, Dm] -> [B, S, Dq] (dot: the memory itself) or, for concat, [B, S, U].
  torch::Tensor project(const torch::Tensor& memory);

  // query [B, L, Dq] or [B, Dq]; keys from project; values [B, S, Dv]. out [B, L, Dv] or [B, Dv]; weights [B, L, S] or
  // [B, S].
  Attended forward(const torch::Tensor& query, const torch::Tensor& keys, const torch::Tensor& values,
                   const AttendOptions& options = {});

  DotAttentionOptions options;
  torch::nn::Linear query_layer = nullptr;   // concat only
  torch::nn::Linear memory_layer = nullptr;  // general and concat
  torch::Tensor v;                           // concat only
};
TORCH_MODULE(DotAttention);

// ---- Multi-head attention: Vaswani et al. 2017; fewer key/value heads: Ainslie et al. 2023 (GQA) ----

// Projected keys and values of a memory, ready to be attended to: k [B, S, Hkv*D], v [B, S, Hkv*Dv].
struct KeyValue {
  torch::Tensor k;
  torch::Tensor v;

  // Batch rows rows[0], rows[1], ... in that order: rows [M] int64, may repeat or drop some.
  KeyValue select(const torch::Tensor& rows) const;
};

// Keys and values that grow while decoding. Without gradients the storage grows by half when full, so that n steps copy
// O(n) rows, and select copies what is filled from one storage to another, in turns; with gradients every append
// concatenates. Copies share storage: append to one of them only.
class KeyValueCache {
 public:
  void append(const KeyValue& next);          // [B, L, ...] after what is there
  KeyValue all() const;                       // views of everything appended; undefined tensors if nothing was
  int64_t length() const { return length_; }  // S so far
  void select(const torch::Tensor& rows);     // reorders the batch: see KeyValue::select
  void clear();

 private:
  KeyValue storage_;
  KeyValue spare_;  // the storage before the last select, to be used again
  int64_t length_ = 0;
};

struct MultiHeadAttentionOptions {
  int64_t embed_dim = 0;              // width of the queries' input
  int64_t heads = 1;                  // Hq
  int64_t kv_heads = 0;               // Hkv, a divisor of heads; 0: heads
  int64_t head_dim = 0;               // D of queries and keys; 0: embed_dim / heads
  int64_t value_dim = 0;              // Dv of values, per head; 0: head_dim
  int64_t memory_dim = 0;             // width of the keys' and values' input; 0: embed_dim
  int64_t out_dim = 0;                // 0: embed_dim
  bool bias = true;                   // of all four projections
  std::optional<bool> out_bias = {};  // of out_proj: bias
  std::optional<double> scale = {};   // 1/sqrt(head_dim)
  double dropout = 0;                 // of the weights; training only
};

// out = out_proj(heads of softmax(scale * q_proj(query) . k_proj(memory)) v_proj(memory)). Parameters have Hugging
// Face's names: {q,k,v,out}_proj.{weight,bias}, and start as torch.nn.MultiheadAttention's do: Glorot's uniform
// distribution, q, k and v at sqrt(1/2) of its range, biases 0. Weights come back as [B, H, L, S]. Dropout on the
// output is the caller's.
class MultiHeadAttentionImpl : public torch::nn::Cloneable<MultiHeadAttentionImpl> {
 public:
  explicit MultiHeadAttentionImpl(MultiHeadAttentionOptions options);
  void reset() override;

  // Self attention is forward(x, x). query [B, L, embed_dim], memory [B, S, memory_dim] -> out [B, L, out_dim].
  Attended forward(const torch::Tensor& query, const torch::Tensor& memory, const AttendOptions& options = {});

  // The memory's keys and values, to be used for many queries.
  KeyValue project_kv(const torch::Tensor& memory);

  // Attention to projected keys and values. query [B, L, embed_dim].
  Attended attend(const torch::Tensor& query, const KeyValue& memory, const AttendOptions& options = {});

  // The heads alone: q [B, L, Hq*D] is projected already, and out [B, L, Hq*Dv] is not yet.
  Attended attend_heads(const torch::Tensor& q, const KeyValue& memory, const AttendOptions& options = {});

  // Self attention of new positions x [B, L, embed_dim]: appends their keys and values to the cache, then attends to
  // all of it. With mask causal() the result equals the last L rows of forward over the whole sequence.
  Attended extend(const torch::Tensor& x, KeyValueCache& cache, const AttendOptions& options = {.mask = causal()});

  MultiHeadAttentionOptions options;  // with the zeros filled in
  torch::nn::Linear q_proj = nullptr;
  torch::nn::Linear k_proj = nullptr;
  torch::nn::Linear v_proj = nullptr;
  torch::nn::Linear out_proj = nullptr;
};
TORCH_MODULE(MultiHeadAttention);

// ---- Attention pooling: one vector for a sequence ----

// alpha = softmax(w . x_i), y = sum of alpha_i x_i: one learned query, unscaled. Parameter: query [D].
class AttentionPoolImpl : public torch::nn::Cloneable<AttentionPoolImpl> {
 public:
  explicit AttentionPoolImpl(int64_t dim);
  void reset() override;

  // x [B, S, D] -> out [B, D]; weights [B, S].
  Attended forward(const torch::Tensor& x, const AttendOptions& options = {});

  int64_t dim;
  torch::Tensor query;
};
TORCH_MODULE(AttentionPool);

// ---- A recurrent cell that attends at every step: TF-Addons' AttentionWrapper with Bahdanau's score ----

enum class Cell { lstm, gru };

struct AttentionWrapperOptions {
  int64_t input_dim = 0;          // Dx
  int64_t hidden = 0;             // H, units of the cell
  int64_t memory_dim = 0;         // Dm
  int64_t units = 0;              // U of the additive score
  int64_t attention_dim = 0;      // A, width of attention_layer; 0: no layer, the attention is the context (A = Dm)
  Cell cell = Cell::lstm;         //
  bool normalize = false;         // see AdditiveAttentionOptions
  bool reverse = false;           // run from the last valid step to the first; outputs stay in place
  bool output_attention = false;  // give out the attention (Luong's style) instead of the cell's h (Bahdanau's)
};

// Where a sequence stands. All [B, ...]; a state whose tensors are undefined is the zero state.
struct WrapperState {
  torch::Tensor h;          // [B, H]
  torch::Tensor c;          // [B, H], LSTM only
  torch::Tensor attention;  // [B, A]
};

struct WrapperOutput {
  torch::Tensor out;      // [B, T, H], or [B, T, A] with output_attention; 0 behind a sequence's length
  torch::Tensor weights;  // [B, T, S] if asked for; 0 behind a sequence's length
  WrapperState state;     // after each sequence's last valid step
};

// Step t: h = cell([x_t; attention]), context = additive(h, memory), attention = attention_layer([h; context]) or the
// context. Linear without bias, no tanh. Modules: cell (LibTorch's LSTMCell or GRUCell, input Dx + A), attention,
// attention_layer.
class AttentionWrapperImpl : public torch::nn::Cloneable<AttentionWrapperImpl> {
 public:
  explicit AttentionWrapperImpl(AttentionWrapperOptions options);
  void reset() override;

  // x [B, T, Dx], memory [B, S, Dm]; lengths [B] or empty for "all". Steps behind x_lengths leave the state as it is.
  WrapperOutput forward(const torch::Tensor& x, const torch::Tensor& memory, const std::vector<int64_t>& x_lengths = {},
                        const std::vector<int64_t>& memory_lengths = {}, bool want_weights = false,
                        WrapperState state = {});

  // One step, for a decoder loop: x [B, Dx], keys from attention->project(memory). Returns what forward puts in out
  // and replaces the state; weights [B, S] if wanted.
  Attended step(const torch::Tensor& x, const torch::Tensor& keys, const torch::Tensor& memory, WrapperState& state,
                const AttendOptions& options = {});

  AttentionWrapperOptions options;
  torch::nn::LSTMCell lstm = nullptr;  // registered as "cell"
  torch::nn::GRUCell gru = nullptr;    // registered as "cell"
  AdditiveAttention attention = nullptr;
  torch::nn::Linear attention_layer = nullptr;
};
TORCH_MODULE(AttentionWrapper);

}  // namespace heed::nn
