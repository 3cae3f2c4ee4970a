// Rotary position embedding: each worker takes some rows, finds their cosines and sines, and turns all heads by them.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "rotary.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "heed/rotary.h"
#include "hwy/highway.h"
#include "pack-inl.h"
#include "passes.h"
#include "reference.h"
#include "threads.h"

#ifndef HEED_ROTARY_ONCE
#define HEED_ROTARY_ONCE
namespace heed {

// One row of one head: `half` pairs, cosines and sines of each; sign is -1 for the inverse.
template <class T, class Angle>
struct Turn {
  const T* x;
  T* out;
  int64_t half;
  Pairs pairs;
  const Angle *cos, *sin;
  Angle sign;
};

}  // namespace heed
#endif

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

// A vector of pairs.
HWY_INLINE void TurnVector(VF& a, VF& b, VF c, VF s) {
  const VF turned = hn::NegMulAdd(s, b, hn::Mul(c, a));
  b = hn::MulAdd(s, a, hn::Mul(c, b));
  a = turned;
}

// n pairs, at most a vector of them; lanes behind them are zeros. Halves: a and b are `apart` elements apart.
template <class T>
inline void TurnFew(const Turn<T, float>& t, int64_t j, int64_t n) {
  const F d;
  HWY_ALIGN float a[kVector] = {}, b[kVector] = {}, c[kVector] = {}, s[kVector] = {};
  const bool halves = t.pairs == Pairs::halves;
  const int64_t first = halves ? j : 2 * j, step = halves ? 1 : 2, apart = halves ? t.half : 1;
  for (int64_t x = 0; x < n; ++x) {
    a[x] = WidenOne(t.x + first + step * x);
    b[x] = WidenOne(t.x + first + step * x + apart);
    c[x] = t.cos[j + x];
    s[x] = t.sign * t.sin[j + x];
  }
  VF va = hn::Load(d, a), vb = hn::Load(d, b);
  TurnVector(va, vb, hn::Load(d, c), hn::Load(d, s));
  hn::Store(va, d, a);
  hn::Store(vb, d, b);
  for (int64_t x = 0; x < n; ++x) {
    NarrowOne(a[x], t.out + first + step * x);
    NarrowOne(b[x], t.out + first + step * x + apart);
  }
}

// Reads a vector of pairs before it writes it, so out may be x.
template <class T>
inline void TurnRow(const Turn<T, float>& t) {
  const F d;
  const VF sign = hn::Set(d, t.sign);
  HWY_ALIGN float pair[2 * kVector];
  int64_t j = 0;
  for (; j + kVector <= t.half; j += kVector) {
    const VF c = hn::LoadU(d, t.cos + j), s = hn::Mul(sign, hn::LoadU(d, t.sin + j));
    VF a, b;
    if (t.pairs == Pairs::halves) {
      a = Widen(d, t.x + j);
      b = Widen(d, t.x + t.half + j);
      TurnVector(a, b, c, s);
      Narrow(a, d, t.out + j);
      Narrow(b, d, t.out + t.half + j);
    } else {
      hn::Store(Widen(d, t.x + 2 * j), d, pair);
      hn::Store(Widen(d, t.x + 2 * j + kVector), d, pair + kVector);
      hn::LoadInterleaved2(d, pair, a, b);
      TurnVector(a, b, c, s);
      hn::StoreInterleaved2(a, b, d, pair);
      Narrow(hn::Load(d, pair), d, t.out + 2 * j);
      Narrow(hn::Load(d, pair + kVector), d, t.out + 2 * j + kVector);
    }
  }
  if (j < t.half) TurnFew(t, j, t.half - j);
}

void TurnF32(const Turn<float, float>& t) { TurnRow(t); }
void TurnF16(const Turn<hwy::float16_t, float>& t) { TurnRow(t); }
void TurnBF16(const Turn<hwy::bfloat16_t, float>& t) { TurnRow(t); }

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(TurnF32);
HWY_EXPORT(TurnF16);
HWY_EXPORT(TurnBF16);

namespace {

void turn(const Turn<float, float>& t) { HWY_DYNAMIC_DISPATCH(TurnF32)(t); }
void turn(const Turn<hwy::float16_t, float>& t) { HWY_DYNAMIC_DISPATCH(TurnF16)(t); }
void turn(const Turn<hwy::bfloat16_t, float>& t) { HWY_DYNAMIC_DISPATCH(TurnBF16)(t); }

void turn(const Turn<double, double>& t) {
  const bool halves = t.pairs == Pairs::halves;
  for (int64_t j = 0; j < t.half; ++j) {
    const int64_t first = halves ? j : 2 * j, second = halves ? j + t.half : 2 * j + 1;
    const double a = t.x[first], b = t.x[second], c = t.cos[j], s = t.sign * t.sin[j];
    t.out[first] = c * a - s * b;
    t.out[second] = s * a + c * b;
  }
}

constexpr int64_t kRows = 16;  // of one piece of work; their cosines and sines are found once for all heads

std::vector<double> frequencies(int64_t half, double base) {
  std::vector<double> f(half);
  for (int64_t j = 0; j < half; ++j) f[j] = std::pow(base, -static_cast<double>(j) / static_cast<double>(half));
  return f;
}

int64_t position(const Rotary& how, int64_t L, int64_t b, int64_t i) {
  if (!how.positions) return how.offset + i;
  return how.positions[(how.position_batches == 1 ? 0 : b * L) + i];
}

template <class T, class Angle>
void rotate_rows(const ConstTensor& x, const Tensor& out, const Rotary& how, int64_t channels) {
  const int64_t B = x.shape[0], H = x.shape[1], L = x.shape[2], D = x.shape[3], half = channels / 2;
  const std::vector<double> f = how.cos.data ? std::vector<double>() : frequencies(half, how.base);
  const int64_t blocks = (L + kRows - 1) / kRows;
  const int most = workers(how.executor);
  std::vector<Angle> angles(most * 2 * half);
  parallel(how.executor, most, B * blocks, [&](int worker, int64_t piece) {
    const int64_t b = piece / blocks, begin = piece % blocks * kRows, end = std::min(begin + kRows, L);
    Angle *cos = angles.data() + worker * 2 * half, *sin = cos + half;
    for (int64_t i = begin; i < end; ++i) {
      const bool own = how.cos.data && how.cos.shape[0] > 1;  // a row of the tables for each row of x
      const int64_t p = own ? i : position(how, L, b, i);
      for (int64_t j = 0; j < half; ++j) {
        cos[j] = static_cast<Angle>(how.cos.data ? reference::at(how.cos, b, 0, p, j) : std::cos(f[j] * p));
        sin[j] = static_cast<Angle>(how.sin.data ? reference::at(how.sin, b, 0, p, j) : std::sin(f[j] * p));
      }
      for (int64_t h = 0; h < H; ++h) {
        const T* from = static_cast<const T*>(x.data) + b * x.stride[0] + h * x.stride[1] + i * x.stride[2];
        T* to = static_cast<T*>(out.data) + b * out.stride[0] + h * out.stride[1] + i * out.stride[2];
        turn(Turn<T, Angle>{from, to, half, how.pairs, cos, sin, static_cast<Angle>(how.inverse ? -1 : 1)});
        if (from != to) std::copy(from + channels, from + D, to + channels);
      }
    }
  });
}

void check_table(const char* name, const ConstTensor& t, const ConstTensor& x, const Rotary& how, int64_t half) {
  const int64_t B = x.shape[0], L = x.shape[2];
  check_view(name, t);
  check_rows(name, t);
  const bool shared = t.shape[0] == 1 && t.shape[1] == 1 && t.shape[3] == half;
  if (!shared && t.shape != Shape{B, 1, L, half})
    throw Error(std::string(name) + " has shape " + text(t.shape) + " but needs [1, 1, positions, " + text(half) +
                "] or " + text(Shape{B, 1, L, half}));
  if (!shared && (how.positions || how.offset != 0))
    throw Error(std::string(name) + " has a row for each row of x, as its shape " + text(t.shape) +
                " says; leave out positions and offset, or give a table of shape [1, 1, positions, " + text(half) +
                "]");
  if (!shared) return;
  for (int64_t b = 0; b < (how.positions ? how.position_batches : 1); ++b)
    for (int64_t i = 0; i < L; ++i)
      if (const int64_t p = position(how, L, b, i); p < 0 || p >= t.shape[2])
        throw Error("row " + text(i) + " of batch " + text(b) + " is at position " + text(p) + " but " + name +
                    " has " + text(t.shape[2]) + " positions, from 0 on; give a longer table");
}

void check_base(double base) {
  if (!(base > 0) || !std::isfinite(base))
    throw Error("base is " + std::to_string(base) + "; it must be a positive number, 10000 in the paper");
}

// Returns R.
int64_t check_rotate(const ConstTensor& x, const Tensor& out, const Rotary& how) {
  check_view("x", x);
  check_rows("x", x);
  check_written("out", out, x.shape, "x's shape", x.dtype, "x");
  const int64_t D = x.shape[3], R = how.channels == 0 ? D : how.channels;
  if (R < 0 || R > D || R % 2 != 0)
    throw Error("channels is " + text(R) + " and x has head size " + text(D) +
                "; an even number of channels can turn, at most the head size");
  if (how.pairs != Pairs::halves && how.pairs != Pairs::interleaved)
    throw Error("pairs is number " + text(static_cast<int64_t>(how.pairs)) +
                "; it must be halves (0) or interleaved (1)");
  if (how.positions && how.position_batches != 1 && how.position_batches != x.shape[0])
    throw Error("positions has " + text(how.position_batches) + " batches but x has batch " + text(x.shape[0]) +
                "; it must be 1 or " + text(x.shape[0]));
  if ((how.cos.data == nullptr) != (how.sin.data == nullptr))
    throw Error(std::string(how.cos.data ? "cos" : "sin") + " is given without " + (how.cos.data ? "sin" : "cos") +
                "; give both tables or neither");
  if (how.cos.data) {
    check_table("cos", how.cos, x, how, R / 2);
    check_table("sin", how.sin, x, how, R / 2);
    if (how.cos.shape != how.sin.shape)
      throw Error("cos has shape " + text(how.cos.shape) + " but sin has shape " + text(how.sin.shape) +
                  "; they must be equal");
  }
  check_base(how.base);
  return R;
}

}  // namespace

void rotate(const ConstTensor& x, const Tensor& out, const Rotary& how) {
  const int64_t channels = check_rotate(x, out, how);
  settle_target();
  switch (x.dtype) {
    case DType::f32:
      return rotate_rows<float, float>(x, out, how, channels);
    case DType::f64:
      return rotate_rows<double, double>(x, out, how, channels);
    case DType::f16:
      return rotate_rows<hwy::float16_t, float>(x, out, how, channels);
    case DType::bf16:
      return rotate_rows<hwy::bfloat16_t, float>(x, out, how, channels);
    case DType::i8:  // check_view has refused it
      return;
  }
}

void rotary_tables(const Tensor& cos, const Tensor& sin, int64_t first, double base) {
  for (const auto& [name, t] : {std::pair{"cos", cos}, {"sin", sin}}) {
    check_view(name, t);
    if (t.shape[0] != 1 || t.shape[1] != 1)
      throw Error(std::string(name) + " has shape " + text(t.shape) + " but a table is [1, 1, positions, R/2]");
    check_shape(name, t, cos.shape, "cos's shape");
    check_rows(name, t);
    check_writable(name, t);
  }
  check_base(base);
  const std::vector<double> f = frequencies(cos.shape[3], base);
  for (int64_t i = 0; i < cos.shape[2]; ++i)
    for (int64_t j = 0; j < cos.shape[3]; ++j) {
      reference::put(cos, 0, 0, i, j, std::cos(f[j] * (first + i)));
      reference::put(sin, 0, 0, i, j, std::sin(f[j] * (first + i)));
    }
}

}  // namespace heed
#endif
