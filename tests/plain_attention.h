// Attention written out in LibTorch's own operators, from the definitions: what the layers' values and gradients are
// compared with. It makes every L x S tensor that Heed avoids.
#pragma once

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace heed::plain {

using torch::Tensor;

// How far apart two results may lie, relative to the largest magnitude of the exact one (at least 1). The tests' sums
// have at most 200 terms in a chain (D, then S, then L in the gradients), and a chain of n roundings errs by at most
// n * eps; a factor 4 allows for the functions (exp, tanh) and for both sides' errors. eps is 2^-53 or 2^-24.
inline double tolerance(torch::ScalarType dtype) {
  const double eps = dtype == torch::kFloat64 ? std::pow(2.0, -53) : std::pow(2.0, -24);
  return 4 * 200 * eps;
}

inline void expect_near(const Tensor& actual, const Tensor& exact, double tolerance, const std::string& what) {
  ASSERT_TRUE(actual.defined() && exact.defined()) << what;
  ASSERT_EQ(actual.sizes(), exact.sizes()) << what;
  if (exact.numel() == 0) return;
  const Tensor a = actual.detach().to(torch::kFloat64), e = exact.detach().to(torch::kFloat64);
  const Tensor same = a == e;  // also infinities
  const double bound = tolerance * std::max(1.0, e.masked_fill(e.isinf(), 0).abs().max().item<double>());
  const Tensor off = (a - e).abs().masked_fill(same, 0);
  const double worst =
      off.isnan().any().item<bool>() ? std::numeric_limits<double>::infinity() : off.max().item<double>();
  EXPECT_LE(worst, bound) << what;
}

// The pairs a mask lets through, [B, H, L, S] bool.
inline Tensor visible(const Mask& mask, int64_t batch, int64_t heads, int64_t queries, int64_t keys) {
  Tensor result = torch::zeros({batch, heads, queries, keys}, torch::kBool);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < queries; ++i) {
        bool* row = result[b][h][i].data_ptr<bool>();
        for (int64_t j = 0; j < keys; ++j) row[j] = mask.sees({batch, heads, queries, keys}, b, h, i, j);
      }
    }
  }
  return result;
}

struct Options {
  Score score = Score::dot;
  std::optional<double> scale = {};
  Tensor w = {};
  Tensor bias = {};
  Mask mask = {};
  double softcap = 0;
  Tensor alibi = {};    // [] or [Hq]
  Tensor sinks = {};    // [] or [Hq]
  Tensor factors = {};  // what dropout multiplies the weights by; undefined: 1
};

struct Result {
  Tensor out;      // [B, Hq, L, Dv]
  Tensor lse;      // [B, Hq, L]
  Tensor weights;  // [B, Hq, L, S]
};

// q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv].
inline Result attention(const Tensor& q, const Tensor& k, const Tensor& v, const Options& options = {}) {
  const int64_t group = q.size(1) / k.size(1);
  const Tensor keys = k.repeat_interleave(group, 1), values = v.repeat_interleave(group, 1);
  Tensor scores;
  if (options.score == Score::dot) {
    const double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
    scores = scale * torch::matmul(q, keys.transpose(2, 3));
  } else {
    Tensor w = options.w.dim() == 2 ? options.w.unsqueeze(1).unsqueeze(1) : options.w;  // [Hq, 1, 1, D] or [D]
    scores = options.scale.value_or(1.0) * (w * torch::tanh(q.unsqueeze(3) + keys.unsqueeze(2))).sum(-1);
  }
  if (options.softcap > 0) scores = options.softcap * torch::tanh(scores / options.softcap);
  if (options.bias.defined()) scores = scores + options.bias;
  const int64_t queries = scores.size(2), columns = scores.size(3);
  if (options.alibi.defined()) {
    const Tensor i = torch::arange(queries, scores.options()).unsqueeze(1);
    const Tensor j = torch::arange(columns, scores.options());
    scores = scores + options.alibi.reshape({-1, 1, 1}) * (j - (i + (columns - queries)));
  }
  const Tensor seen = visible(options.mask, scores.size(0), scores.size(1), scores.size(2), scores.size(3));
  const double inf = std::numeric_limits<double>::infinity();
  scores = scores.masked_fill(seen.logical_not(), -inf);
  Tensor blind = seen.any(-1, /*keepdim=*/true).logical_not();
  if (options.sinks.defined()) {  // one more column, whose value is 0
    scores =
        torch::cat({scores, options.sinks.reshape({-1, 1, 1}).expand({scores.size(0), scores.size(1), queries, 1})}, 3);
    blind = torch::zeros_like(blind);
  }
  scores = scores.masked_fill(blind, 0);
  Result result;
  result.weights = torch::softmax(scores, -1).masked_fill(blind, 0).narrow(3, 0, columns);
  // Selecting visible values, not multiplying by 0, is what keeps a NaN behind the mask out.
  result.out = torch::matmul(options.factors.defined() ? result.weights * options.factors : result.weights, values);
  result.lse = torch::logsumexp(scores, -1).masked_fill(blind.squeeze(-1), -inf);
  return result;
}

// The packed forms: [B, L, H*D] as [B, H, L, D], and back.
inline Tensor split(const Tensor& x, int64_t heads) {
  return x.unflatten(-1, std::vector<int64_t>{heads, -1}).transpose(1, 2);
}
inline Tensor join(const Tensor& x) { return x.transpose(1, 2).flatten(2); }

// The gradients of `loss` with respect to each of `inputs`; an input that is not used gets zeros.
inline std::vector<Tensor> gradients(const Tensor& loss, const std::vector<Tensor>& inputs) {
  std::vector<Tensor> result =
      torch::autograd::grad({loss}, inputs, {}, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!result[i].defined()) result[i] = torch::zeros_like(inputs[i]);
  }
  return result;
}

// A number that depends on every element of x, each with another factor. The same for equal shapes.
inline Tensor mixed(const Tensor& x) {
  const Tensor factors = torch::sin(torch::arange(1, x.numel() + 1, torch::kFloat64) * 1.7).reshape(x.sizes());
  return (x * factors.to(x.scalar_type())).sum();
}

}  // namespace heed::plain
