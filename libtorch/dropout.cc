// Dropout whose mask is a function of (seed, place), so that it needs no memory and no order.
#include "libtorch/dropout.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <heed/attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <string>

#include "libtorch/splitmix.h"

// at::parallel_for is a template: without OpenMP switched on in this file it would run everything on one thread.
#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile libtorch/dropout.cc with -fopenmp: this LibTorch runs its threads through OpenMP"
#endif

namespace heed::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Elements that share one random stream. Fixed, so that the mask does not depend on how threads cut the tensor.
constexpr int64_t kBlock = 4096;
constexpr int kLanes = 16;  // independent generators side by side: vector registers of any width have work

// 16 xorshift32 generators (Marsaglia 2003); shifts and xors are in every vector unit, multiplications are not. Each
// draw gives two 16-bit numbers per lane, and an element is kept if its number is at least the threshold.
// 16-bit types are multiplied as float.
template <class T, class Wide = at::opmath_type<T>>
void drop_block(uint64_t seed, int64_t n, uint32_t threshold, Wide scale, const T* x, T* out) {
  uint32_t state[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    const uint64_t bits = splitmix(seed + static_cast<uint64_t>(i));
    state[i] = static_cast<uint32_t>(bits) | 1;  // xorshift must not start at 0
    state[i + 1] = static_cast<uint32_t>(bits >> 32) | 1;
  }
  Wide keep[2 * kLanes];
  for (int64_t at = 0; at < n; at += 2 * kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      uint32_t s = state[i];
      s ^= s << 13;
      s ^= s >> 17;
      s ^= s << 5;
      state[i] = s;
      keep[i] = static_cast<int32_t>(s & 0xffff) >= static_cast<int32_t>(threshold) ? scale : Wide(0);
      keep[kLanes + i] = static_cast<int32_t>(s >> 16) >= static_cast<int32_t>(threshold) ? scale : Wide(0);
    }
    const int64_t m = std::min<int64_t>(2 * kLanes, n - at);
    if (m == 2 * kLanes) {
      for (int i = 0; i < 2 * kLanes; ++i) out[at + i] = static_cast<T>(x[at + i] * keep[i]);
    } else {
      for (int64_t i = 0; i < m; ++i) out[at + i] = static_cast<T>(x[at + i] * keep[i]);
    }
  }
}

Tensor drop(const Tensor& given, uint64_t seed, uint32_t threshold) {
  const Tensor x = given.contiguous();
  Tensor out = torch::empty(x.sizes(), x.options());
  const int64_t n = x.numel();
  const double scale = 65536.0 / (65536.0 - threshold);
  AT_DISPATCH_FLOATING_TYPES_AND2(torch::kHalf, torch::kBFloat16, x.scalar_type(), "dropout", [&] {
    const scalar_t* from = x.data_ptr<scalar_t>();
    scalar_t* to = out.data_ptr<scalar_t>();
    at::parallel_for(0, (n + kBlock - 1) / kBlock, 4, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t at = block * kBlock;
        drop_block<scalar_t>(splitmix(seed ^ splitmix(static_cast<uint64_t>(block))), std::min(kBlock, n - at),
                             threshold, static_cast<at::opmath_type<scalar_t>>(scale), from + at, to + at);
      }
    });
  });
  return out;
}

class DropoutFunction : public torch::autograd::Function<DropoutFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t seed, int64_t threshold) {
    ctx->saved_data["seed"] = seed;
    ctx->saved_data["threshold"] = threshold;
    return drop(x, static_cast<uint64_t>(seed), static_cast<uint32_t>(threshold));
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    // Dropout is linear, so its gradient is itself; recorded in turn where a second derivative is wanted.
    return {apply(grads[0], ctx->saved_data["seed"].toInt(), ctx->saved_data["threshold"].toInt()), Tensor(), Tensor()};
  }
};

}  // namespace

uint64_t draw_seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

Tensor dropout(const Tensor& x, double p, bool training) {
  if (!(p >= 0 && p < 1)) throw Error("dropout is " + std::to_string(p) + "; it must be at least 0 and below 1");
  const auto threshold = std::min<int64_t>(65535, std::llround(p * 65536));
  if (!training || threshold == 0) return x;
  if (!at::isFloatingType(x.scalar_type())) {
    throw Error(std::string("dropout takes a floating-point tensor, not ") + c10::toString(x.scalar_type()));
  }
  return DropoutFunction::apply(x, static_cast<int64_t>(draw_seed()), threshold);
}

}  // namespace heed::nn
