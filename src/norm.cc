// Query and key normalisation: each worker takes some rows of one head.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "norm.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "heed/norm.h"
#include "hwy/highway.h"
#include "passes.h"
#include "reference.h"
#include "softmax-inl.h"
#include "threads.h"

#ifndef HEED_NORM_ONCE
#define HEED_NORM_ONCE
namespace heed {

// What is the same for all rows of a call.
struct NormRow {
  int64_t D;
  double divisor;  // what the sum of squares is divided by: D, or 1
  double epsilon;
  const float* gain;  // [D rounded up to kLanes], zeros behind; ones if none is given
};

}  // namespace heed
#endif

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

inline float InverseNorm(const NormRow& how, const float* x, int64_t padded) {
  const float sum = DotRow(x, x, padded);
  return 1.0f / std::sqrt(sum / static_cast<float>(how.divisor) + static_cast<float>(how.epsilon));
}

// scratch: [padded].
template <class T>
inline void NormalizeRow(const NormRow& how, const T* x, T* out, float* scratch) {
  const F d;
  const int64_t padded = round_up(how.D, kLanes);
  WidenRow(x, how.D, padded, 1.0f, scratch);
  const VF r = hn::Set(d, InverseNorm(how, scratch, padded));
  for (int64_t k = 0; k < padded; k += kVector) {
    const VF unit = hn::Mul(hn::LoadU(d, scratch + k), r);
    hn::StoreU(hn::Mul(unit, hn::LoadU(d, how.gain + k)), d, scratch + k);
  }
  NarrowRow(scratch, how.D, 1.0f, out);
}

// With h = x / norm and g = d_out * gain: d_x = (g - h (g . h) / divisor) / norm, and d_gain += d_out * h. d_x may be
// nullptr; d_gain: [padded], or nullptr. scratch: [2, padded].
template <class T>
inline void NormalizeRowBack(const NormRow& how, const T* x, const T* d_out, T* d_x, float* d_gain, float* scratch) {
  const F d;
  const int64_t padded = round_up(how.D, kLanes);
  float *const h = scratch, *const g = scratch + padded;
  WidenRow(x, how.D, padded, 1.0f, h);
  WidenRow(d_out, how.D, padded, 1.0f, g);
  const float inverse = InverseNorm(how, h, padded);
  const VF r = hn::Set(d, inverse);
  for (int64_t k = 0; k < padded; k += kVector) {
    const VF unit = hn::Mul(hn::LoadU(d, h + k), r), arrived = hn::LoadU(d, g + k);
    if (d_gain) hn::StoreU(hn::MulAdd(arrived, unit, hn::LoadU(d, d_gain + k)), d, d_gain + k);
    hn::StoreU(unit, d, h + k);
    hn::StoreU(hn::Mul(arrived, hn::LoadU(d, how.gain + k)), d, g + k);
  }
  if (!d_x) return;
  const VF along = hn::Set(d, DotRow(g, h, padded) / static_cast<float>(how.divisor));
  for (int64_t k = 0; k < padded; k += kVector)
    hn::StoreU(hn::NegMulAdd(along, hn::LoadU(d, h + k), hn::LoadU(d, g + k)), d, g + k);
  NarrowRow(g, how.D, inverse, d_x);
}

#define HEED_NORM(name, T)                                                                                        \
  void Norm##name(const NormRow& how, const T* x, T* out, float* scratch) { NormalizeRow(how, x, out, scratch); } \
  void NormBack##name(const NormRow& how, const T* x, const T* d_out, T* d_x, float* d_gain, float* scratch) {    \
    NormalizeRowBack(how, x, d_out, d_x, d_gain, scratch);                                                        \
  }
HEED_NORM(F32, float)
HEED_NORM(F16, hwy::float16_t)
HEED_NORM(BF16, hwy::bfloat16_t)
#undef HEED_NORM

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(NormF32);
HWY_EXPORT(NormF16);
HWY_EXPORT(NormBF16);
HWY_EXPORT(NormBackF32);
HWY_EXPORT(NormBackF16);
HWY_EXPORT(NormBackBF16);

namespace {

auto row_of(const float*) { return HWY_DYNAMIC_DISPATCH(NormF32); }
auto row_of(const hwy::float16_t*) { return HWY_DYNAMIC_DISPATCH(NormF16); }
auto row_of(const hwy::bfloat16_t*) { return HWY_DYNAMIC_DISPATCH(NormBF16); }
auto row_back_of(const float*) { return HWY_DYNAMIC_DISPATCH(NormBackF32); }
auto row_back_of(const hwy::float16_t*) { return HWY_DYNAMIC_DISPATCH(NormBackF16); }
auto row_back_of(const hwy::bfloat16_t*) { return HWY_DYNAMIC_DISPATCH(NormBackBF16); }

constexpr int64_t kRows = 64;  // of one piece of work; d_gain is summed piece by piece

// The same in double. d_gain: [D] or nullptr.
struct DoubleRow {
  NormRow how;
  const double* gain;
  double inverse(const double* x) const {
    double sum = 0;
    for (int64_t k = 0; k < how.D; ++k) sum += x[k] * x[k];
    return 1 / std::sqrt(sum / how.divisor + how.epsilon);
  }
  void forward(const double* x, double* out) const {
    const double r = inverse(x);
    for (int64_t k = 0; k < how.D; ++k) out[k] = x[k] * r * gain[k];
  }
  void backward(const double* x, const double* d_out, double* d_x, double* d_gain) const {
    const double r = inverse(x);
    double along = 0;
    for (int64_t k = 0; k < how.D; ++k) {
      along += d_out[k] * gain[k] * x[k] * r;
      if (d_gain) d_gain[k] += d_out[k] * x[k] * r;
    }
    for (int64_t k = 0; k < how.D && d_x; ++k) d_x[k] = r * (d_out[k] * gain[k] - x[k] * r * along / how.divisor);
  }
};

// Row i of head h of batch b of a tensor that may not be there.
template <class T, class View>
T* row(const View& t, int64_t b, int64_t h, int64_t i) {
  return t.data ? static_cast<T*>(t.data) + b * t.stride[0] + h * t.stride[1] + i * t.stride[2] : nullptr;
}

// The gains of every head, [H or 1, padded], in the type of the arithmetic; ones if none are given.
template <class Real>
std::vector<Real> gains(const ConstTensor& gain, int64_t D) {
  const int64_t padded = round_up(D, kLanes), heads = gain.data ? gain.shape[1] : 1;
  std::vector<Real> all(heads * padded);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t d = 0; d < D; ++d)
      all[h * padded + d] = gain.data ? static_cast<Real>(reference::at(gain, 0, h, 0, d)) : Real{1};
  return all;
}

// Calls f(worker, head's number, b, h, first row, behind the last one, piece) for pieces of all rows.
template <class Piece>
void pieces(const ConstTensor& x, Executor* executor, int most, Piece&& f) {
  const int64_t H = x.shape[1], L = x.shape[2], blocks = (L + kRows - 1) / kRows;
  parallel(executor, most, x.shape[0] * H * blocks, [&](int worker, int64_t piece) {
    const int64_t head = piece / blocks, first = piece % blocks * kRows;
    f(worker, head / H, head % H, first, std::min(first + kRows, L), piece);
  });
}

NormRow row_for(const ConstTensor& x, const Normalization& how) {
  const int64_t D = x.shape[3];
  return {D, how.norm == Norm::rms ? static_cast<double>(D) : 1.0, how.epsilon, nullptr};
}

template <class T>
void forward(const ConstTensor& x, const Tensor& out, const Normalization& how) {
  using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t padded = round_up(x.shape[3], kLanes);
  const std::vector<Real> gain = gains<Real>(how.gain, x.shape[3]);
  const int most = workers(how.executor);
  std::vector<float> scratch(most * 2 * padded);
  pieces(x, how.executor, most, [&](int worker, int64_t b, int64_t h, int64_t first, int64_t end, int64_t) {
    NormRow one = row_for(x, how);
    const Real* mine = gain.data() + (how.gain.data && how.gain.shape[1] > 1 ? h * padded : 0);
    for (int64_t i = first; i < end; ++i) {
      const T* from = row<const T>(x, b, h, i);
      T* to = row<T>(out, b, h, i);
      if constexpr (std::is_same_v<T, double>) {
        DoubleRow{one, mine}.forward(from, to);
      } else {
        one.gain = mine;
        row_of(from)(one, from, to, scratch.data() + worker * 2 * padded);
      }
    }
  });
}

template <class T>
void backward(const ConstTensor& x, const ConstTensor& d_out, const Tensor& d_x, const Tensor& d_gain,
              const Normalization& how) {
  using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t D = x.shape[3], padded = round_up(D, kLanes), blocks = (x.shape[2] + kRows - 1) / kRows;
  const std::vector<Real> gain = gains<Real>(how.gain, D);
  const int most = workers(how.executor);
  std::vector<float> scratch(most * 2 * padded);
  std::vector<Real> sums(d_gain.data ? x.shape[0] * x.shape[1] * blocks * padded : 0);  // of each piece
  pieces(x, how.executor, most, [&](int worker, int64_t b, int64_t h, int64_t first, int64_t end, int64_t piece) {
    NormRow one = row_for(x, how);
    const Real* mine = gain.data() + (how.gain.data && how.gain.shape[1] > 1 ? h * padded : 0);
    Real* const sum = d_gain.data ? sums.data() + piece * padded : nullptr;
    for (int64_t i = first; i < end; ++i) {
      const T *from = row<const T>(x, b, h, i), *arrived = row<const T>(d_out, b, h, i);
      T* to = row<T>(d_x, b, h, i);
      if constexpr (std::is_same_v<T, double>) {
        DoubleRow{one, mine}.backward(from, arrived, to, sum);
      } else {
        one.gain = mine;
        row_back_of(from)(one, from, arrived, to, sum, scratch.data() + worker * 2 * padded);
      }
    }
  });
  if (!d_gain.data) return;
  // Piece by piece, in order: what each is the sum of does not depend on the threads.
  const int64_t heads = d_gain.shape[1], all = x.shape[0] * x.shape[1] * blocks;
  std::vector<double> total(heads * D, 0.0);
  for (int64_t piece = 0; piece < all; ++piece) {
    const int64_t h = heads == 1 ? 0 : piece / blocks % x.shape[1];
    for (int64_t d = 0; d < D; ++d) total[h * D + d] += sums[piece * padded + d];
  }
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t d = 0; d < D; ++d) reference::put(d_gain, 0, h, 0, d, total[h * D + d]);
}

// ---- Arguments ----

void check_normalization(const ConstTensor& x, const Normalization& how) {
  check_view("x", x);
  check_rows("x", x);
  if (how.norm != Norm::rms && how.norm != Norm::length)
    throw Error("norm is number " + text(static_cast<int64_t>(how.norm)) + "; it must be rms (0) or length (1)");
  if (!(how.epsilon >= 0) || !std::isfinite(how.epsilon))
    throw Error("epsilon is " + std::to_string(how.epsilon) + "; it must be a number of at least 0");
  if (!how.gain.data) return;
  check_view("gain", how.gain);
  check_rows("gain", how.gain);
  const Shape shared{1, 1, 1, x.shape[3]}, each{1, x.shape[1], 1, x.shape[3]};
  if (how.gain.shape != shared && how.gain.shape != each)
    throw Error("gain has shape " + text(how.gain.shape) + " but needs [1, " + text(x.shape[1]) + " or 1, 1, " +
                text(x.shape[3]) + "]");
  if (how.gain.dtype != DType::f32 || exact(x.dtype) != DType::f32) check_dtype("gain", how.gain, x.dtype, "x");
}

// Calls f.operator()<T>() for the dtype's type.
template <class Call>
void with_type(DType t, Call&& f) {
  settle_target();
  switch (t) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::f64:
      return f.template operator()<double>();
    case DType::f16:
      return f.template operator()<hwy::float16_t>();
    case DType::bf16:
      return f.template operator()<hwy::bfloat16_t>();
    case DType::i8:  // check_view has refused it
      return;
  }
}

}  // namespace

void normalize(const ConstTensor& x, const Tensor& out, const Normalization& how) {
  check_normalization(x, how);
  check_written("out", out, x.shape, "x's shape", x.dtype, "x");
  with_type(x.dtype, [&]<class T>() { forward<T>(x, out, how); });
}

void normalize_backward(const ConstTensor& x, const ConstTensor& d_out, const Tensor& d_x, const Tensor& d_gain,
                        const Normalization& how) {
  check_normalization(x, how);
  check_read("d_out", d_out, x.shape, "x's shape", x.dtype, "x");
  if (d_x.data) check_written("d_x", d_x, x.shape, "x's shape", x.dtype, "x");
  if (d_gain.data) {
    if (!how.gain.data) throw Error("d_gain is asked for but there is no gain; leave it out");
    check_shape("d_gain", d_gain, how.gain.shape, "gain's shape");
    check_rows("d_gain", d_gain);
    check_writable("d_gain", d_gain);
    check_exact("d_gain", d_gain, x.dtype, "x");
  }
  if (x.shape[3] == 0) return;
  with_type(x.dtype, [&]<class T>() { backward<T>(x, d_out, d_x, d_gain, how); });
}

}  // namespace heed
#endif
