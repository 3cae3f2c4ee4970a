// The fused loss and its gradient, in blocks of rows that fit the cache.
#include "libtorch/cross_entropy.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <heed/attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <sstream>
#include <vector>

namespace heed::nn {
namespace {

constexpr int64_t kBlockElements = 1 << 16;  // logits in one block, 256 KiB of float

struct Sums {
  double nll = 0, uniform = 0;  // over rows: -log p[target], and the mean over classes of -log p
};

// One block of rows: x [R, C] is read, and overwritten with the gradient of the mean over `rows` if that is wanted.
template <class T>
Sums block(at::Tensor x, const int64_t* targets, int64_t rows, double smoothing, bool gradient) {
  const int64_t n = x.size(0), classes = x.size(1);
  auto log_p = at::log_softmax(x, 1);
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

Sums run(const at::Tensor& logits, const at::Tensor& targets, double smoothing, bool gradient) {
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const int64_t height = std::max<int64_t>(1, kBlockElements / classes);
  const int64_t blocks = (rows + height - 1) / height;
  std::vector<Sums> parts(static_cast<size_t>(blocks));
  const int64_t* target = targets.data_ptr<int64_t>();
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView no_autograd;  // workers do not inherit NoGradGuard
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * height, n = std::min(height, rows - first);
      const auto x = logits.narrow(0, first, n);
      parts[static_cast<size_t>(b)] = logits.scalar_type() == at::kFloat
                                          ? block<float>(x, target + first, rows, smoothing, gradient)
                                          : block<double>(x, target + first, rows, smoothing, gradient);
    }
  });
  Sums sums;
  for (const Sums& part : parts) {  // in order: the same bits for any number of threads
    sums.nll += part.nll;
    sums.uniform += part.uniform;
  }
  return sums;
}

struct Fused : torch::autograd::Function<Fused> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& logits, const at::Tensor& targets,
                            double smoothing, double* nll) {
    // detach() shares the version counter: should another operation need the logits' values, autograd will say so.
    const auto gradient = logits.detach();
    const Sums sums = run(gradient, targets, smoothing, true);
    gradient.unsafeGetTensorImpl()->bump_version();
    ctx->saved_data["gradient"] = gradient;
    *nll = sums.nll;
    const double mean = ((1 - smoothing) * sums.nll + smoothing * sums.uniform) / static_cast<double>(logits.size(0));
    return at::full({}, mean, logits.options());
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

void check(const at::Tensor& logits, const at::Tensor& targets, double smoothing) {
  std::ostringstream text;
  if (logits.dim() != 2 || targets.dim() != 1 || logits.size(0) != targets.size(0) || logits.numel() == 0) {
    text << "logits are " << logits.sizes() << " and targets " << targets.sizes() << "; they must be [N, C] and [N]";
  } else if ((logits.scalar_type() != at::kFloat && logits.scalar_type() != at::kDouble) ||
             targets.scalar_type() != at::kLong) {
    text << "logits are " << logits.scalar_type() << " and targets " << targets.scalar_type()
         << "; they must be float or double, and int64";
  } else if (!(smoothing >= 0 && smoothing < 1)) {
    text << "label smoothing is " << smoothing << "; it must be at least 0 and below 1";
  } else {
    const int64_t low = targets.min().item<int64_t>(), high = targets.max().item<int64_t>();
    if (low >= 0 && high < logits.size(1)) return;
    text << "the target class " << (low < 0 ? low : high) << " is not one of the " << logits.size(1) << " classes";
  }
  throw Error(text.str());
}

}  // namespace

CrossEntropy cross_entropy(const torch::Tensor& logits, const torch::Tensor& targets, double smoothing) {
  check(logits, targets, smoothing);
  CrossEntropy result;
  const auto dense_targets = targets.contiguous();
  if (torch::GradMode::is_enabled() && logits.requires_grad()) {
    // A leaf's values are its owner's (and autograd forbids it): those are copied first.
    const auto own = logits.is_leaf() || !logits.is_contiguous() ? logits.clone(at::MemoryFormat::Contiguous) : logits;
    result.loss = Fused::apply(own, dense_targets, smoothing, &result.sum);
    return result;
  }
  const Sums sums = run(logits.detach().contiguous(), dense_targets, smoothing, false);
  result.sum = sums.nll;
  result.loss = torch::full({}, ((1 - smoothing) * sums.nll + smoothing * sums.uniform) / logits.size(0),
                            logits.options().requires_grad(false));
  return result;
}

}  // namespace heed::nn
