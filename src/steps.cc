// The three steps on their own, dense: score, weigh, gather. Plain loops that follow the definitions; for looking
// inside.
#include <cmath>
#include <limits>

#include "check.h"
#include "reference.h"
#include "threads.h"

namespace heed {
namespace {

// Calls row(b, h, i) for every row of `shape`, in parallel.
template <class F>
void each_row(Executor* executor, const Shape& shape, F&& row) {
  const int64_t heads = shape[0] * shape[1];
  const auto head = [&](int64_t x) {
    for (int64_t i = 0; i < shape[2]; ++i) row(x / shape[1], x % shape[1], i);
  };
  if (static_cast<double>(heads) * shape[2] * shape[3] < 1e4)
    for (int64_t x = 0; x < heads; ++x) head(x);
  else
    parallel(executor, heads, head);
}

}  // namespace

void score(const Attention& a, const Tensor& scores) {
  const Problem p = check_scores(a, scores);
  each_row(a.executor, scores.shape, [&](int64_t b, int64_t h, int64_t i) {
    for (int64_t j = 0; j < p.S; ++j)
      reference::put(scores, b, h, i, j,
                     a.mask.sees(p.mask_shape(), b, h, i, j) ? reference::pair_score(p, b, h, i, j)
                                                             : -std::numeric_limits<double>::infinity());
  });
}

void weigh(const ConstTensor& scores, const Tensor& weights) {
  check_weigh(scores, weights);
  each_row(nullptr, scores.shape, [&](int64_t b, int64_t h, int64_t i) {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    bool sees = false;
    for (int64_t j = 0; j < scores.shape[3]; ++j) {
      const double s = reference::at(scores, b, h, i, j);
      largest = std::fmax(largest, s);
      sees |= s != -std::numeric_limits<double>::infinity();
    }
    for (int64_t j = 0; sees && j < scores.shape[3]; ++j) sum += std::exp(reference::at(scores, b, h, i, j) - largest);
    for (int64_t j = 0; j < scores.shape[3]; ++j)
      reference::put(weights, b, h, i, j, sees ? std::exp(reference::at(scores, b, h, i, j) - largest) / sum : 0.0);
  });
}

void gather(const ConstTensor& weights, const ConstTensor& v, const Tensor& out) {
  const int64_t group = check_gather(weights, v, out);
  each_row(nullptr, out.shape, [&](int64_t b, int64_t h, int64_t i) {
    for (int64_t d = 0; d < out.shape[3]; ++d) {
      double sum = 0;
      for (int64_t j = 0; j < weights.shape[3]; ++j)
        if (const double w = reference::at(weights, b, h, i, j); w != 0)
          sum += w * reference::at(v, b, h / group, j, d);
      reference::put(out, b, h, i, d, sum);
    }
  });
}

}  // namespace heed
