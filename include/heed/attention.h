// The attention operator: score, weigh, gather; fused forward and backward; memory linear in the lengths.
//
//   std::vector<float> out(B * H * L * Dv);
//   heed::Attention a{.q = heed::tensor(q, {B, H, L, D}),
//                     .k = heed::tensor(k, {B, H, S, D}),
//                     .v = heed::tensor(v, {B, H, S, Dv}),
//                     .mask = heed::causal()};
//   heed::forward(a, {.out = heed::tensor(out.data(), {B, H, L, Dv})});
//
// Notation: B batch, Hq query heads, Hkv key/value heads (Hq is a multiple of Hkv; query head h reads head h /
// (Hq/Hkv)), L queries, S keys, D head size of q and k, Dv head size of v. All functions may be called from several
// threads at once. Every function throws heed::Error, and writes nothing, when an argument does not fit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/mask.h"

namespace heed {

// Thrown for anything a caller can mend. what() is one sentence with the numbers in it.
struct Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What tensors hold. Arithmetic is f32 throughout for f32, f16 (IEEE binary16) and bf16; results are rounded once, to
// nearest even. f64 runs the double-precision reference: slow and exact, for gradient checks. i8 is for keys and values
// in pages alone (Pages).
enum class DType { f32, f64, f16, bf16, i8 };

using Shape = std::array<int64_t, 4>;

// A strided view that may be written: [batch, head, length, dim], strides in elements, the last dimension contiguous
// (stride 1, or size 1). It owns nothing. A view without data means "not given" or "not wanted".
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape{};
  Shape stride{};
};

// The same, read only.
struct ConstTensor {
  const void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape{};
  Shape stride{};

  ConstTensor() = default;
  ConstTensor(const void* data, DType dtype, Shape shape, Shape stride)
      : data(data), dtype(dtype), shape(shape), stride(stride) {}
  ConstTensor(const Tensor& t) : data(t.data), dtype(t.dtype), shape(t.shape), stride(t.stride) {}  // NOLINT: widening
};

// The strides of a dense row-major tensor of this shape.
inline Shape dense(const Shape& shape) { return {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1}; }

// Views over memory of yours. A layout [B, L, H, D] is shape {B, H, L, D} with stride {L*H*D, D, H*D, 1}.
inline Tensor tensor(float* data, Shape shape, Shape stride) { return {data, DType::f32, shape, stride}; }
inline Tensor tensor(double* data, Shape shape, Shape stride) { return {data, DType::f64, shape, stride}; }
inline ConstTensor tensor(const float* data, Shape shape, Shape stride) { return {data, DType::f32, shape, stride}; }
inline ConstTensor tensor(const double* data, Shape shape, Shape stride) { return {data, DType::f64, shape, stride}; }
template <class T>
auto tensor(T* data, Shape shape) {
  return tensor(data, shape, dense(shape));
}
// The same for a dtype named at run time; f16 and bf16 have no type of their own in C++20.
inline Tensor tensor(void* data, DType dtype, Shape shape, Shape stride) { return {data, dtype, shape, stride}; }
inline Tensor tensor(void* data, DType dtype, Shape shape) { return {data, dtype, shape, dense(shape)}; }
inline ConstTensor tensor(const void* data, DType dtype, Shape shape, Shape stride) {
  return {data, dtype, shape, stride};
}
inline ConstTensor tensor(const void* data, DType dtype, Shape shape) { return {data, dtype, shape, dense(shape)}; }

// Runs work in parallel. An embedder that has a thread pool hands it over here; without one Heed uses its own.
class Executor {
 public:
  virtual ~Executor() = default;
  // How many tasks can run at once; at least 1.
  virtual int concurrency() const = 0;
  // Calls task(context, i) once for each i in [0, tasks), in any order and on any threads, and returns when all are
  // done. tasks is at most concurrency(): each is a worker that takes pieces of the work until there are none left, so
  // running them one after the other is right, too. Must accept calls from several threads at once.
  virtual void run(int64_t tasks, void (*task)(void* context, int64_t index), void* context) = 0;
};

enum class Score {
  dot,       // s = scale * (q . k); scale defaults to 1/sqrt(D). Vaswani et al. 2017, Luong et al. 2015
  additive,  // s = scale * w . tanh(q + k); scale defaults to 1. Bahdanau et al. 2015; q and k come already projected
};

// How scores become weights.
enum class Weigh {
  softmax,  // exp(score) over the sum of the row's (and its sink's); a sink of 0 is "softmax off by one" (Miller 2023)
  sigmoid,  // 1 / (1 + exp(-score)), each pair by itself (Ramapuram et al. 2024, who add a bias of -log(keys))
};

// A row of scores on its way through a user's function: of keys [key, key + count).
struct ScoreRow {
  int64_t batch, head, query, key, count;
};

// A step of the user's own, behind scale, softcap, bias and ALiBi and before the mask: s[n] becomes f(s[n]), and
// slope[n], if it is not nullptr, df/ds. In place, from several threads; it must not throw. What a mask hides may be
// passed or not, and what comes of it is not used. The bits of a result are those of f, which must be the same for the
// same pair wherever in a row it stands. double is for f64.
class ScoreMod {
 public:
  virtual ~ScoreMod() = default;
  virtual void apply(const ScoreRow& row, float* s, float* slope) const = 0;
  virtual void apply(const ScoreRow& row, double* s, double* slope) const = 0;
  virtual bool has_slope() const { return true; }
};

// One made of functions f(s, batch, head, query, key) and, for the backward, df/ds of the same arguments; s is float or
// double. They are compiled into the loop over a row's keys, so that your compiler vectorises them:
//   const auto mod = heed::score_mod([](auto s, int64_t, int64_t h, int64_t i, int64_t j) { return s * gate[h]; },
//                                    [](auto, int64_t, int64_t h, int64_t, int64_t) { return gate[h]; });
//   a.score_mod = &mod;
template <class F, class Slope>
class ScoreModOf final : public ScoreMod {
 public:
  ScoreModOf(F f, Slope slope) : f_(std::move(f)), slope_(std::move(slope)) {}
  void apply(const ScoreRow& row, float* s, float* slope) const override { run(row, s, slope); }
  void apply(const ScoreRow& row, double* s, double* slope) const override { run(row, s, slope); }
  bool has_slope() const override { return !std::is_same_v<Slope, std::nullptr_t>; }

 private:
  template <class T>
  void run(const ScoreRow& row, T* s, T* slope) const {
    if constexpr (!std::is_same_v<Slope, std::nullptr_t>)
      for (int64_t n = 0; slope && n < row.count; ++n)
        slope[n] = static_cast<T>(slope_(s[n], row.batch, row.head, row.query, row.key + n));
    for (int64_t n = 0; n < row.count; ++n)
      s[n] = static_cast<T>(f_(s[n], row.batch, row.head, row.query, row.key + n));
  }

  F f_;
  Slope slope_;
};
template <class F, class Slope = std::nullptr_t>
ScoreModOf<F, Slope> score_mod(F f, Slope slope = nullptr) {
  return {std::move(f), std::move(slope)};
}

// What a call works out before it computes, which keys each tile of queries sees and how the work is shared, and its
// scratch memory. Every call makes one; whoever calls again and again with the same shapes and mask (layer after layer,
// step after step) keeps one and hands it over: then nothing is worked out twice and nothing is allocated. A call whose
// sizes, dtype, options, mask, threads or target differ from the last one's makes the plan anew, so handing over any
// plan is right. A plan serves one call at a time (heed::Error if it is in use).
class Plan {
 public:
  Plan();
  ~Plan();
  Plan(Plan&&) noexcept;
  Plan& operator=(Plan&&) noexcept;

  struct State;                       // defined in src/plan.h
  State& state() { return *state_; }  // for the engine

 private:
  std::unique_ptr<State> state_;
};

// Keys and values that lie in pages, as a cache's do. With a table, k and v are pools of pages, [pages, Hkv, P, D] and
// [pages, Hkv, P, Dv] with P keys a page: any multiple of 16, or any number if no sequence has more than one page. They
// share a dtype: q's, or i8, or, beside f32 queries, any. Each sequence of the batch has its own number of keys, and is
// masked as if it were alone: the default offset of causal() and window() and ALiBi's distances are those of its own S.
// A call's S, which masks and biases are checked against, is the largest. The bits are those of keys and values in one
// piece. forward() alone takes pages.
struct Pages {
  // Key j of sequence b is key j % P of the page table[b * table_stride + j / P]. Of a sequence's entries those from
  // the first to the last page that holds a key which the mask shows to a query are read; others may be anything.
  const int32_t* table = nullptr;
  int64_t table_stride = 0;        // entries from one sequence to the next
  int64_t table_columns = 0;       // entries of a sequence
  std::vector<int64_t> keys = {};  // [B]: S of each sequence
  // i8 alone, and needed there: what 1 is worth in each key and value, f32 [pages, Hkv, P, 1]. A score is the sum of
  // q * k with k as integers, times k_scale; values, as integers, are summed with weights times v_scale.
  ConstTensor k_scale = {};
  ConstTensor v_scale = {};
};

// One attention problem: the inputs and how they are scored and masked. q, k, v, w share a dtype; bias, alibi and sinks
// have the same, or are f32. A score is finished in this order: scale, softcap, bias, alibi, score_mod, mask.
struct Attention {
  ConstTensor q;                     // [B, Hq, L, D]
  ConstTensor k = {};                // [B, Hkv, S, D]
  ConstTensor v = {};                // [B, Hkv, S, Dv]
  Pages pages = {};                  // with a table: where k and v lie
  Score score = Score::dot;          //
  std::optional<double> scale = {};  // see Score; may be negative
  ConstTensor w = {};                // [1, Hq or 1, 1, D], needed by Score::additive and by nothing else
  double softcap = 0;                // c > 0: scores become c * tanh(score / c), before bias and mask; 0: off
  // added to the scores: [B or 1, Hq or 1, L or 1, S or 1], rows contiguous. Strides may be any, also -1 from query to
  // query: relative_bias() is a view of one number for each distance
  ConstTensor bias = {};
  ConstTensor alibi = {};               // slopes [1, Hq or 1, 1, 1]: adds slope * (j - (i + S - L)). Press et al. 2022
  Mask mask = {};                       // which keys a query sees
  const ScoreMod* score_mod = nullptr;  // nullptr: none; must live as long as the call
  Weigh weigh = Weigh::softmax;         //
  ConstTensor sinks = {};               // [1, Hq or 1, 1, 1]: a score without a key or value, in every row of the head
  double dropout = 0;            // in [0, 1): the share of weights set to 0; the others are divided by 1 - dropout
  uint64_t seed = 0;             // which ones: a function of (seed, b, h, i, j) alone; docs/numerics.md gives it
  Plan* plan = nullptr;          // nullptr: a plan for this call alone
  Executor* executor = nullptr;  // nullptr: Heed's own threads
};

struct Output {
  Tensor out;  // [B, Hq, L, Dv]
  // [B, Hq, L, 1], optional: log of the sum of exp(score) over the visible keys and the sink, natural logarithm. f32
  // for f16 and bf16 tensors, else their dtype. Sigmoid weights have none.
  Tensor lse = {};
};

// out = softmax(score) v over the visible keys. A row that sees no key gives 0 and lse = -inf (its sink's score, if it
// has one).
void forward(const Attention& a, const Output& result);

// What the backward pass needs from outside: the forward's results and the gradients that arrive at them.
struct Incoming {
  ConstTensor out;         // [B, Hq, L, Dv], from forward; not needed of sigmoid weights
  ConstTensor lse;         // [B, Hq, L, 1], from forward; not needed of sigmoid weights
  ConstTensor d_out;       // [B, Hq, L, Dv]
  ConstTensor d_lse = {};  // [B, Hq, L, 1], optional: the gradient of a loss that also uses lse; lse's dtype
};

// The gradients wanted; each has the shape of what it is the gradient of, summed over the axes that was broadcast on,
// and is overwritten. d_q, d_k, d_v have q's dtype; the others are f32 for f16 and bf16 tensors, else q's dtype. A view
// without data is not computed.
struct Gradients {
  Tensor d_q = {};
  Tensor d_k = {};
  Tensor d_v = {};
  Tensor d_w = {};
  Tensor d_bias = {};
  Tensor d_alibi = {};
  Tensor d_sinks = {};
};

// A bias of relative positions (Shaw et al. 2018; T5's, of buckets; Raffel et al. 2020): bias[h, i, j] is
// by_distance[h, j - i + L - 1], of which there are L + S - 1 for each of H heads, dense. As a bias and, of memory that
// is cleared and added to, as d_bias: the gradient of each distance. With a cache, i counts from 0 as in the tensor.
inline ConstTensor relative_bias(const float* by_distance, int64_t H, int64_t L, int64_t S) {
  return {by_distance + L - 1, DType::f32, {1, H, L, S}, {0, L + S - 1, -1, 1}};
}
inline Tensor relative_bias(float* by_distance, int64_t H, int64_t L, int64_t S) {
  return {by_distance + L - 1, DType::f32, {1, H, L, S}, {0, L + S - 1, -1, 1}};
}

// T5's bucket for a distance j - i: as many exact ones as half of what a direction has, then ones that grow as its
// logarithm up to max_distance. Two directions, or only back (a decoder). Throws heed::Error for fewer than 2 buckets
// (4 in two directions) or a max_distance that is not larger than the exact ones.
int64_t t5_bucket(int64_t distance, bool both_directions, int64_t buckets = 32, int64_t max_distance = 128);

// Row of Swin's table (Liu et al. 2021) for query i and key j of a window of `height` x `width` positions, row-major:
// (dy + height - 1) * (2 * width - 1) + dx + width - 1 with dy = y(i) - y(j), dx = x(i) - x(j).
inline int64_t swin_row(int64_t i, int64_t j, int64_t height, int64_t width) {
  return (i / width - j / width + height - 1) * (2 * width - 1) + i % width - j % width + width - 1;
}

// The gradients of forward. Weights are recomputed from lse, so memory stays linear in L and S. A row that saw no key
// gets and gives zero gradients.
void backward(const Attention& a, const Incoming& in, const Gradients& gradients);

// ---- Derivatives along a direction, and second derivatives: of dot scores, with any options. ----

// A direction in the space of the inputs. Each has the shape of the input it is named after; q, k and v have q's dtype,
// bias, alibi and sinks have it too or are f32. A view without data is zero and costs nothing.
struct Tangents {
  ConstTensor q = {};
  ConstTensor k = {};
  ConstTensor v = {};
  ConstTensor bias = {};
  ConstTensor alibi = {};
  ConstTensor sinks = {};
};

// How out and lse change while the inputs move along the tangents (the Jacobian times a vector, forward mode): d/dt of
// forward(a + t * tangents) at t = 0. lse: from forward. Each of `result` has the shape and dtype that forward gives
// it; either may be left out. A row that sees no key gets zeros. Memory is linear in L and S, time about four
// forwards'. heed::Error for additive scores.
void jvp(const Attention& a, const ConstTensor& lse, const Tangents& tangents, const Output& result);

// The gradients wanted of double_backward, each with the shape and dtype of what it is the gradient of, except that
// d_bias, d_alibi and d_sinks are f32 for f16 and bf16 tensors, as in Gradients. All are overwritten. A view without
// data is not computed.
struct SecondGradients {
  Tensor d_q = {};
  Tensor d_k = {};
  Tensor d_v = {};
  Tensor d_bias = {};
  Tensor d_alibi = {};
  Tensor d_sinks = {};
  Tensor d_d_out = {};  // [B, Hq, L, Dv]: of the gradient that arrived at out
  Tensor d_d_lse = {};  // [B, Hq, L, 1]: of the gradient that arrived at lse; wanted or not whether in.d_lse is given
};

// The gradients of backward, for gradient penalties and Hessian-vector products: `in` is what backward got, `dd` the
// gradients of a loss that arrive at backward's results (dd.q at d_q, and so on), and `wanted` what they make of the
// inputs and of what arrived at out and lse. out and lse are differentiated as functions of the inputs, not as numbers.
// A row that sees no key gets and gives zeros. Weights are recomputed from lse, so memory stays linear in L and S.
// About five times as slow as backward (2, 8, 1024, 1024, 64). heed::Error for additive scores, whose second derivative
// Heed does not have.
void double_backward(const Attention& a, const Incoming& in, const Tangents& dd, const SecondGradients& wanted);

// ---- The three steps on their own, dense, for looking inside: O(L*S) memory that you provide. ----

// Step 1. scores[b, h, i, j] = score of the pair, with bias; -inf where the mask excludes it. scores: [B, Hq, L, S].
// Reads q, k, w, bias and the options of `a`; a.v may be empty.
void score(const Attention& a, const Tensor& scores);

// Step 2. weights = softmax of each row; a row of -inf gives zeros. Both [B, H, L, S]; may be the same memory.
void weigh(const ConstTensor& scores, const Tensor& weights);

// Step 3. out[b, h, i, :] = sum over j of weights[b, h, i, j] * v[b, h / group, j, :]. A weight of 0 does not read its
// v.
void gather(const ConstTensor& weights, const ConstTensor& v, const Tensor& out);

// ---- The machine ----

// Number of threads Heed's own pool uses. Starts as HEED_THREADS, or the number of cores this process may use.
// set_threads throws heed::Error for n < 1.
int threads();
void set_threads(int n);

// Name of the SIMD target in use ("AVX2", "AVX3", ...) and those this machine can run, best first. Starts as
// HEED_TARGET, or the best. set_target throws heed::Error for a target that is unknown or that this machine cannot run.
std::string target();
std::vector<std::string> targets();
void set_target(const std::string& name);

// Heed's version, "major.minor.patch".
std::string version();

}  // namespace heed
