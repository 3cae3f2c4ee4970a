// The fused loss and its gradient, in blocks of rows that fit the cache.
#include "libtorch/cross_entropy.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <heed/attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <vector>

namespace heed::nn {
namespace {

constexpr int64_t kBlockElements = 1 << 16;  // logits in one block, 256 KiB of float

struct Sums {
  double nll = 0, uniform = 0;  // over rows: -log p[target], and the mean over classes of -log p
  double divergence = 0;        // over pairs of rows: (KL(p||q) + KL(q||p)) / 2

  void add(const Sums& o) { nll += o.nll, uniform += o.uniform, divergence += o.divergence; }

  // The loss of `rows` rows, two passes over each half of them if r_drop is not 0.
  double mean(int64_t rows, const CrossEntropyOptions& options) const {
    return ((1 - options.smoothing) * nll + options.smoothing * uniform + options.r_drop * divergence) /
           static_cast<double>(rows);
  }
};

// One block of rows: x [R, C] is read, and overwritten with the gradient of the mean over `rows` if that is wanted;
// log_p [R, C] is written.
template <class T>
Sums block(at::Tensor x, at::Tensor& log_p, const int64_t* targets, int64_t rows, double smoothing, bool gradient) {
  const int64_t n = x.size(0), classes = x.size(1);
  log_p = at::log_softmax(x, 1);
  const T* at = log_p.data_ptr<T>();
  Sums sums;
  for (int64_t r = 0; r < n; ++r) sums.nll -= static_cast<double>(at[r * classes + targets[r]]);
  if (smoothing > 0) {
    const auto row_sums = log_p.sum(1);
    for (int64_t r = 0; r < n; ++r) {
      sums.uniform -= static_cast<double>(row_sums.template data_ptr<T>()[r]) / static_cast<double>(classes);
    }
  }
  if (gradient) {
    const double scale = 1 / static_cast<double>(rows);
    at::exp_out(x, log_p);
    if (smoothing > 0) x.sub_(smoothing / static_cast<double>(classes));
    x.mul_(scale);
    T* out = x.data_ptr<T>();
    for (int64_t r = 0; r < n; ++r) out[r * classes + targets[r]] -= static_cast<T>((1 - smoothing) * scale);
  }
  return sums;
}

// What R-Drop adds to a block: with J = (KL(p||q) + KL(q||p)) / 2 of a row of x and its second pass y, dJ/dx is
// (p (log p - log q - KL(p||q)) + p - q) / 2, and dJ/dy the same with p and q exchanged.
void add_r_drop(at::Tensor x, at::Tensor y, const at::Tensor& log_p, const at::Tensor& log_q, double scale,
                bool gradient, Sums& sums) {
  const auto p = log_p.exp(), q = log_q.exp(), d = log_p - log_q;
  const auto p_d = p * d, q_d = q * d;
  const auto kl_pq = p_d.sum(1, true), kl_qp = -q_d.sum(1, true);
  sums.divergence += 0.5 * (kl_pq.sum(at::kDouble) + kl_qp.sum(at::kDouble)).item<double>();
  if (!gradient) return;
  const auto difference = p - q;
  x.add_(p_d.addcmul_(p, kl_pq, -1).add_(difference), 0.5 * scale);
  y.sub_(q_d.addcmul_(q, kl_qp).add_(difference), 0.5 * scale);
}

Sums run(const at::Tensor& logits, const at::Tensor& targets, const CrossEntropyOptions& options, bool gradient) {
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const bool twice = options.r_drop > 0;
  const int64_t half = twice ? rows / 2 : rows;
  const int64_t height = std::max<int64_t>(1, kBlockElements / classes / (twice ? 2 : 1));
  const int64_t blocks = (half + height - 1) / height;
  std::vector<Sums> parts(static_cast<size_t>(blocks));
  const int64_t* target = targets.data_ptr<int64_t>();
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView no_autograd;  // workers do not inherit NoGradGuard
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * height, n = std::min(height, half - first);
      Sums& sums = parts[static_cast<size_t>(b)];
      const auto part = [&](int64_t from, at::Tensor& x, at::Tensor& log_p) {
        x = logits.narrow(0, from, n);
        const auto one = logits.scalar_type() == at::kFloat ? block<float> : block<double>;
        sums.add(one(x, log_p, target + from, rows, options.smoothing, gradient));
      };
      at::Tensor x, y, log_p, log_q;
      part(first, x, log_p);
      if (!twice) continue;
      part(half + first, y, log_q);
      add_r_drop(x, y, log_p, log_q, options.r_drop / static_cast<double>(rows), gradient, sums);
    }
  });
  Sums sums;
  for (const Sums& part : parts) sums.add(part);  // in order: the same bits for any number of threads
  return sums;
}

struct Fused : torch::autograd::Function<Fused> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& logits, const at::Tensor& targets,
                            const CrossEntropyOptions& options, double* nll) {
    // detach() shares the version counter: should another operation need the logits' values, autograd will say so.
    const auto gradient = logits.detach();
    const Sums sums = run(gradient, targets, options, true);
    gradient.unsafeGetTensorImpl()->bump_version();
    ctx->saved_data["gradient"] = gradient;
    *nll = sums.nll;
    return at::full({}, sums.mean(logits.size(0), options), logits.options());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list d_loss) {
    const auto saved = ctx->saved_data.find("gradient");
    if (saved == ctx->saved_data.end()) throw Error("heed::nn::cross_entropy can be differentiated once only");
    auto gradient = saved->second.toTensor();
    ctx->saved_data.erase(saved);
    if (d_loss[0].item<double>() != 1) gradient.mul_(d_loss[0]);
    return {gradient, {}, {}, {}};
  }
};

bool second_pass(const at::Tensor& targets) {
  const int64_t half = targets.size(0) / 2;
  return targets.size(0) % 2 == 0 && at::equal(targets.narrow(0, 0, half), targets.narrow(0, half, half));
}

void check(const at::Tensor& logits, const at::Tensor& targets, const CrossEntropyOptions& options) {
  std::ostringstream text;
  if (logits.dim() != 2 || targets.dim() != 1 || logits.size(0) != targets.size(0) || logits.numel() == 0) {
    text << "logits are " << logits.sizes() << " and targets " << targets.sizes() << "; they must be [N, C] and [N]";
  } else if ((logits.scalar_type() != at::kFloat && logits.scalar_type() != at::kDouble) ||
             targets.scalar_type() != at::kLong) {
    text << "logits are " << logits.scalar_type() << " and targets " << targets.scalar_type()
         << "; they must be float or double, and int64";
  } else if (!(options.smoothing >= 0 && options.smoothing < 1)) {
    text << "label smoothing is " << options.smoothing << "; it must be at least 0 and below 1";
  } else if (!(options.r_drop >= 0 && std::isfinite(options.r_drop))) {
    text << "r_drop is " << options.r_drop << "; it must be finite and at least 0";
  } else if (options.r_drop > 0 && !second_pass(targets)) {
    text << "with r_drop the " << targets.size(0) << " targets must be the same twice, one half after the other";
  } else {
    const int64_t low = targets.min().item<int64_t>(), high = targets.max().item<int64_t>();
    if (low >= 0 && high < logits.size(1)) return;
    text << "the target class " << (low < 0 ? low : high) << " is not one of the " << logits.size(1) << " classes";
  }
  throw Error(text.str());
}

}  // namespace

CrossEntropy cross_entropy(const torch::Tensor& logits, const torch::Tensor& targets,
                           const CrossEntropyOptions& options) {
  check(logits, targets, options);
  CrossEntropy result;
  const auto dense_targets = targets.contiguous();
  if (torch::GradMode::is_enabled() && logits.requires_grad()) {
    // A leaf's values are its owner's (and autograd forbids it): those are copied first.
    const auto own = logits.is_leaf() || !logits.is_contiguous() ? logits.clone(at::MemoryFormat::Contiguous) : logits;
    result.loss = Fused::apply(own, dense_targets, options, &result.sum);
    return result;
  }
  const Sums sums = run(logits.detach().contiguous(), dense_targets, options, false);
  result.sum = sums.nll;
  result.loss = torch::full({}, sums.mean(logits.size(0), options), logits.options().requires_grad(false));
  return result;
}

}  // namespace heed::nn
