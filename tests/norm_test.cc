// Query and key normalisation against its definition in double, on every SIMD target; gradients by difference
// quotients.
#include <gtest/gtest.h>
#include <heed/norm.h>

#include <cstring>

#include "half.h"
#include "problems.h"

namespace heed {
namespace {

using heed::testing::Data;
using heed::testing::error;
using heed::testing::Exact;

// The norm is a sum of up to 130 squares over 16 lanes (9 + 4 roundings), a division and a root; a result takes two
// products more: 17 roundings of 2^-24 at most, of values below 4. Gradients have one such sum more, and d_gain sums
// 300 rows.
constexpr double kForward = 1e-6, kBackward = 1e-5;

struct Case {
  Shape shape;
  Norm norm;
  int64_t gains = 1;  // heads of the gain; 0: none
  std::string layout = "bhld";
  double epsilon = 1e-6;
};

std::vector<Case> lattice() {
  std::vector<Case> cases;
  for (const Norm norm : {Norm::rms, Norm::length})
    for (const int64_t D : {1, 3, 16, 37, 64, 130})
      for (const int64_t gains : {0, 1, 3})
        for (const char* layout : {"bhld", "blhd", "gaps"}) cases.push_back({{2, 3, 50, D}, norm, gains, layout});
  cases.push_back({{1, 2, 300, 24}, Norm::rms, 2, "bhld", 0.5});
  return cases;
}

double gain_of(Data& gain, int64_t h, int64_t d) {
  return gain.empty() ? 1.0 : gain.at(0, gain.shape()[1] == 1 ? 0 : h, 0, d);
}

struct Truth {
  Exact out, d_x, d_gain;
  Truth(Data& x, Data& d_out, Data& gain, const Case& c) : out(c.shape), d_x(c.shape), d_gain(gain.shape()) {
    const auto [B, H, L, D] = c.shape;
    const double n = c.norm == Norm::rms ? static_cast<double>(D) : 1;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t i = 0; i < L; ++i) {
          const int64_t at = ((b * H + h) * L + i) * D;
          double sum = 0, dot = 0;
          for (int64_t d = 0; d < D; ++d) sum += double{x.at(b, h, i, d)} * x.at(b, h, i, d);
          const double size = std::sqrt(sum / n + c.epsilon);
          for (int64_t d = 0; d < D; ++d) {
            out.values[at + d] = x.at(b, h, i, d) / size * gain_of(gain, h, d);
            dot += d_out.at(b, h, i, d) * gain_of(gain, h, d) * x.at(b, h, i, d);
            if (!gain.empty())
              d_gain.values[(gain.shape()[1] == 1 ? 0 : h * D) + d] += d_out.at(b, h, i, d) * x.at(b, h, i, d) / size;
          }
          for (int64_t d = 0; d < D; ++d)
            d_x.values[at + d] =
                d_out.at(b, h, i, d) * gain_of(gain, h, d) / size - x.at(b, h, i, d) * dot / (n * size * size * size);
        }
  }
};

class EveryTarget : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    set_target(GetParam());
    ASSERT_EQ(target(), GetParam());
  }
  std::mt19937_64 random{1};
};

TEST_P(EveryTarget, ForwardAndBackward) {
  for (const Case& c : lattice()) {
    const std::string name = std::to_string(c.shape[3]) + " " + std::to_string(c.gains) + " " + c.layout;
    Data x(c.shape, random, 2, c.layout), d_out(c.shape, random, 1, c.layout), gain;
    for (float& v : x.values()) v = std::copysign(0.1f + std::fabs(v), v);  // D = 1 is steep near 0
    if (c.gains) gain = Data({1, c.gains, 1, c.shape[3]}, random, 1, c.layout);
    const Normalization how{.norm = c.norm, .epsilon = c.epsilon, .gain = gain.read()};
    const Truth want(x, d_out, gain, c);
    Data out = Data::empty_like(x), d_x = Data::empty_like(x), d_gain = Data::empty_like(gain);
    normalize(x.read(), out.write(), how);
    EXPECT_LT(error(out, want.out), kForward) << name;
    normalize_backward(x.read(), d_out.read(), d_x.write(), d_gain.write(), how);
    EXPECT_LT(error(d_x, want.d_x), kBackward) << name;
    EXPECT_LT(error(d_gain, want.d_gain), kBackward) << name;
    // Alone, and in place.
    Data again = Data::empty_like(gain);
    normalize_backward(x.read(), d_out.read(), {}, again.write(), how);
    EXPECT_TRUE(again.empty() ||
                std::memcmp(again.values().data(), d_gain.values().data(), again.values().size() * sizeof(float)) == 0);
    normalize_backward(x.read(), d_out.read(), d_out.write(), {}, how);
    EXPECT_LT(error(d_out, want.d_x), kBackward) << name;
    normalize(x.read(), x.write(), how);
    EXPECT_LT(error(x, want.out), kForward) << name;
  }
}

TEST_P(EveryTarget, NarrowTypesRoundOnce) {
  for (const DType t : {DType::f16, DType::bf16}) {
    const auto narrow = [&](float v) { return t == DType::f16 ? half_of_float(v) : bfloat_of_float(v); };
    const auto wide = [&](uint16_t v) { return t == DType::f16 ? float_of_half(v) : float_of_bfloat(v); };
    Data x({1, 2, 19, 44}, random), d_out = x, gain({1, 2, 1, 44}, random), y = Data::empty_like(x), d_x = y;
    std::vector<std::vector<uint16_t>> bits;
    for (Data* from : {&x, &d_out, &gain}) {
      bits.emplace_back();
      for (float& v : from->values()) v = wide(bits.back().emplace_back(narrow(v)));
    }
    std::vector<uint16_t> got(bits[0].size()), got_d(bits[0].size());
    const Shape shape = x.shape();
    normalize(x.read(), y.write(), {.gain = gain.read()});
    normalize_backward(x.read(), d_out.read(), d_x.write(), {}, {.gain = gain.read()});
    const Normalization how{.gain = ConstTensor(bits[2].data(), t, gain.shape(), dense(gain.shape()))};
    const ConstTensor narrow_x(bits[0].data(), t, shape, dense(shape));
    normalize(narrow_x, tensor(got.data(), t, shape), how);
    normalize_backward(narrow_x, ConstTensor(bits[1].data(), t, shape, dense(shape)), tensor(got_d.data(), t, shape),
                       {}, how);
    for (size_t e = 0; e < 2 * 19 * 44; ++e) {
      ASSERT_EQ(got[e], narrow(y.values()[e])) << e;
      ASSERT_EQ(got_d[e], narrow(d_x.values()[e])) << e;
    }
  }
}

TEST_P(EveryTarget, ZerosStayZeros) {
  Data x({1, 1, 3, 20}, random), y = Data::empty_like(x);
  std::fill(x.values().begin(), x.values().end(), 0.0f);
  for (const Norm norm : {Norm::rms, Norm::length}) {
    normalize(x.read(), y.write(), {.norm = norm});
    for (int64_t d = 0; d < 20; ++d) EXPECT_EQ(y.at(0, 0, 1, d), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, EveryTarget, ::testing::ValuesIn(targets()));

TEST(Bits, DoNotDependOnThreadsTargetOrPlace) {
  std::mt19937_64 random(2);
  Data x({2, 3, 200, 40}, random), d_out({2, 3, 200, 40}, random), gain({1, 1, 1, 40}, random);
  const Normalization how{.gain = gain.read()};
  std::vector<Data> first;
  for (const std::string& name : targets()) {
    if (name == "SSE4" || name == "SCALAR") continue;  // without FMA: outside the contract
    set_target(name);
    for (const int n : {1, 2, 5}) {
      set_threads(n);
      std::vector<Data> now{Data::empty_like(x), Data::empty_like(x), Data::empty_like(gain)};
      normalize(x.read(), now[0].write(), how);
      normalize_backward(x.read(), d_out.read(), now[1].write(), now[2].write(), how);
      if (first.empty()) first = now;
      for (int k = 0; k < 3; ++k)
        EXPECT_EQ(
            std::memcmp(first[k].values().data(), now[k].values().data(), first[k].values().size() * sizeof(float)), 0)
            << name << " " << n << " " << k;
    }
  }
  set_threads(2);
  Data one({1, 1, 1, 40}, random), y = Data::empty_like(one);
  for (int64_t d = 0; d < 40; ++d) one.at(0, 0, 0, d) = x.at(1, 2, 150, d);
  normalize(one.read(), y.write(), how);
  for (int64_t d = 0; d < 40 && !first.empty(); ++d) EXPECT_EQ(y.at(0, 0, 0, d), first[0].at(1, 2, 150, d));
}

TEST(Float64, GradientsAreSlopes) {
  std::mt19937_64 random(3);
  const Shape shape{1, 2, 3, 5};
  const auto copy = [&](Shape s) {
    Exact e(s);
    for (double& v : e.values) v = std::uniform_real_distribution<double>(-1, 1)(random);
    return e;
  };
  for (const Norm norm : {Norm::rms, Norm::length}) {
    Exact x = copy(shape), d_out = copy(shape), gain = copy({1, 2, 1, 5}), out(shape), d_x(shape), d_gain({1, 2, 1, 5});
    const Normalization how{.norm = norm, .epsilon = 0.1, .gain = gain.write()};
    const auto loss = [&] {
      normalize(x.write(), out.write(), how);
      double sum = 0;
      for (size_t k = 0; k < out.values.size(); ++k) sum += out.values[k] * d_out.values[k];
      return sum;
    };
    normalize_backward(x.write(), d_out.write(), d_x.write(), d_gain.write(), how);
    for (auto [of, gradient] : {std::pair{&x, &d_x}, {&gain, &d_gain}})
      for (size_t k = 0; k < of->values.size(); ++k) {
        const double before = of->values[k];
        of->values[k] = before + 1e-5;
        const double above = loss();
        of->values[k] = before - 1e-5;
        const double below = loss();
        of->values[k] = before;
        EXPECT_NEAR((above - below) / 2e-5, gradient->values[k], 1e-8);
      }
  }
}

// ---- Bad arguments ----

TEST(Says, WhatDoesNotFit) {
  std::mt19937_64 random(4);
  Data x({2, 3, 5, 8}, random), y = x, d = x, gain({1, 3, 1, 8}, random), d_gain = gain;
  const auto said = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& e) {
      return e.what();
    }
    return "nothing";
  };
  const auto forward = [&](const ConstTensor& from, const Tensor& to, const Normalization& how = {}) {
    for (float& v : y.values()) v = 42;
    const std::string text = said([&] { normalize(from, to, how); });
    for (const float v : y.values()) EXPECT_TRUE(text == "nothing" || v == 42);
    return text;
  };
  EXPECT_EQ(forward(x.read(), y.write(), {.gain = gain.read()}), "nothing");
  EXPECT_EQ(forward({}, y.write()), "x has no data; give a tensor");
  EXPECT_EQ(forward(x.read(), {}), "out has no data; give a tensor");
  Tensor t = y.write();
  t.shape[1] = 2;
  EXPECT_EQ(forward(x.read(), t), "out has shape [2, 2, 5, 8] but x's shape is [2, 3, 5, 8]");
  t = y.write();
  t.dtype = DType::bf16;
  EXPECT_EQ(forward(x.read(), t), "out is bf16 but x is f32; all tensors of a call share one dtype");
  t = y.write();
  t.stride[2] = 0;
  EXPECT_EQ(forward(x.read(), t), "out is written but its axis 2 of size 5 has stride 0; give it memory of its own");
  EXPECT_EQ(forward(x.read(), y.write(), {.norm = static_cast<Norm>(5)}),
            "norm is number 5; it must be rms (0) or length (1)");
  EXPECT_EQ(forward(x.read(), y.write(), {.epsilon = -1}), "epsilon is -1.000000; it must be a number of at least 0");
  ConstTensor g = gain.read();
  g.shape[1] = 2;
  EXPECT_EQ(forward(x.read(), y.write(), {.gain = g}), "gain has shape [1, 2, 1, 8] but needs [1, 3 or 1, 1, 8]");
  g = gain.read();
  g.dtype = DType::f64;
  EXPECT_EQ(forward(x.read(), y.write(), {.gain = g}),
            "gain is f64 but x is f32; all tensors of a call share one dtype");

  const Normalization how{.gain = gain.read()};
  const auto backward = [&](const ConstTensor& d_out, const Tensor& d_x, const Tensor& to, const Normalization& by) {
    return said([&] { normalize_backward(x.read(), d_out, d_x, to, by); });
  };
  EXPECT_EQ(backward(y.read(), d.write(), d_gain.write(), how), "nothing");
  EXPECT_EQ(backward({}, d.write(), {}, how), "d_out has no data; give a tensor");
  t = d.write();
  t.shape[2] = 4;
  EXPECT_EQ(backward(y.read(), t, {}, how), "d_x has shape [2, 3, 4, 8] but x's shape is [2, 3, 5, 8]");
  EXPECT_EQ(backward(y.read(), {}, d_gain.write(), {}), "d_gain is asked for but there is no gain; leave it out");
  t = d_gain.write();
  t.shape[1] = 1;
  EXPECT_EQ(backward(y.read(), {}, t, how), "d_gain has shape [1, 1, 1, 8] but gain's shape is [1, 3, 1, 8]");
  t = d_gain.write();
  t.dtype = DType::f16;
  EXPECT_EQ(backward(y.read(), {}, t, how), "d_gain is f16 but for x of f32 it must be f32");
}

}  // namespace
}  // namespace heed
