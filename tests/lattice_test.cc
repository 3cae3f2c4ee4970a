// Forward and backward against the double-precision reference over a generated lattice: sizes around every edge of a
// tile, block and vector, 0 and 1 among them; scores, masks, biases, softcap, ALiBi, sinks, dropout, groups and dtypes
// drawn for each; on every SIMD target. The forward's error is no larger than that of a plain three-pass softmax in
// f32.
#include "lattice.h"

#include <gtest/gtest.h>
#include <heed/attention.h>

#include <cstring>
#include <random>

#include "check.h"
#include "dropout.h"
#include "reference.h"

namespace heed {
namespace {

using heed::testing::Arriving;
using heed::testing::Asked;
using heed::testing::Drawn;
using heed::testing::Given;
using heed::testing::lattice;
using heed::testing::Numbers;
using heed::testing::rounding;
using heed::testing::Wanted;
using heed::testing::widened;

// Plain f32: scores, then the largest, then exp and sum, then the weighted sum; what most programs do.
void three_pass(const Problem& p, const Tensor& out) {
  std::vector<float> w(p.S);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hq; ++h)
      for (int64_t i = 0; i < p.L; ++i) {
        const Span keys = p.a.mask.row(p.mask_shape(), b, h, i);
        float largest = -INFINITY, sum = 0;
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          if (!p.a.mask.sees(p.mask_shape(), b, h, i, j)) {
            w[j] = -INFINITY;
            continue;
          }
          float s = 0;
          for (int64_t d = 0; d < p.D; ++d)
            s += static_cast<float>(reference::at(p.a.q, b, h, i, d)) *
                 static_cast<float>(reference::at(p.a.k, b, h / p.group, j, d));
          s *= static_cast<float>(p.scale);
          if (p.a.softcap > 0) s = static_cast<float>(p.a.softcap) * std::tanh(s / static_cast<float>(p.a.softcap));
          if (p.a.bias.data) s += static_cast<float>(reference::at(p.a.bias, b, h, i, j));
          if (p.a.alibi.data)
            s += static_cast<float>(reference::at(p.a.alibi, 0, h, 0, 0)) * static_cast<float>(j - (i + p.S - p.L));
          if (p.a.score_mod) p.a.score_mod->apply({b, h, i, j, 1}, &s, nullptr);
          w[j] = s;
          largest = std::fmax(largest, s);
        }
        if (p.a.sinks.data) {
          const float sink = static_cast<float>(reference::at(p.a.sinks, 0, h, 0, 0));
          largest = std::fmax(largest, sink);
          sum = std::exp(sink - largest);
        }
        const bool sigmoid = p.a.weigh == Weigh::sigmoid;
        for (int64_t j = keys.begin; j < keys.end; ++j)
          sum += w[j] = sigmoid ? 1 / (1 + std::exp(-w[j])) : std::exp(w[j] - largest);
        if (sigmoid) sum = 1;
        for (int64_t j = keys.begin; p.a.dropout > 0 && j < keys.end; ++j)
          w[j] *= dropout_bits(dropout_row(p.a.seed, b * p.Hq + h, i), j) < dropout_threshold(p.a.dropout)
                      ? 0.0f
                      : static_cast<float>(1 / (1 - p.a.dropout));
        for (int64_t d = 0; d < p.Dv; ++d) {
          float o = 0;
          for (int64_t j = keys.begin; j < keys.end; ++j)
            o += w[j] / sum * static_cast<float>(reference::at(p.a.v, b, h / p.group, j, d));
          reference::put(out, b, h, i, d, o);
        }
      }
}

TEST(Lattice, ForwardAgainstTheReference) {
  double ours_squared = 0, theirs_squared = 0;
  for (const Drawn& c : lattice(20261125)) {
    SCOPED_TRACE(c.name);
    std::mt19937 random(7);
    Given given(c, random);
    const Attention a = given.problem(c);
    Numbers out({c.B, c.Hq, c.L, c.Dv}, c.dtype, random, 1);
    const int64_t n = c.B * c.Hq * c.L * c.Dv;
    std::vector<float> lse(c.B * c.Hq * c.L), plain(n);
    std::vector<double> exact(n), exact_lse(lse.size());
    const Shape rows{c.B, c.Hq, c.L, 1};
    const Output result{out.write(), c.sigmoid ? Tensor() : tensor(lse.data(), rows)};
    const Problem p = check_forward(a, result);
    reference::forward(p, {tensor(exact.data(), out.shape), c.sigmoid ? Tensor() : tensor(exact_lse.data(), rows)});
    three_pass(p, tensor(plain.data(), out.shape));
    double theirs = 0;
    for (int64_t x = 0; x < n; ++x) {
      if (!std::isfinite(plain[x])) plain[x] = static_cast<float>(exact[x]);  // a row that sees nothing
      theirs = std::fmax(theirs, std::fabs(plain[x] - exact[x]));
      theirs_squared += std::pow(plain[x] - exact[x], 2) * (c.dtype == DType::f32);
    }

    for (const std::string& t : targets()) {
      SCOPED_TRACE(t);
      set_target(t);
      for (int again = 0; again < 2; ++again) {  // the second time with the plan of the first
        std::fill(out.f32.begin(), out.f32.end(), NAN);
        std::fill(out.narrow.begin(), out.narrow.end(), 0xFFFF);
        std::fill(lse.begin(), lse.end(), NAN);
        forward(a, result);
        double worst = 0, worst_lse = 0;
        for (int64_t x = 0; x < n; ++x) {
          const double got = widened(out, x);
          const double off = std::fmax(0, std::fabs(got - exact[x]) - rounding(c.dtype, exact[x]));
          worst = std::isnan(off) ? INFINITY : std::fmax(worst, off);
          if (c.dtype == DType::f32 && again == 0 && t == targets()[0]) ours_squared += std::pow(got - exact[x], 2);
        }
        for (size_t x = 0; x < lse.size() && !c.sigmoid; ++x) {
          const double off =
              lse[x] == exact_lse[x] ? 0 : std::fabs(lse[x] - exact_lse[x]) / (1 + std::fabs(exact_lse[x]));
          worst_lse = std::isnan(off) ? INFINITY : std::fmax(worst_lse, off);
        }
        // One rounding of a score of 16 to 32 moves its weight by 2e-6; which of the two rounds luckier differs.
        EXPECT_LE(worst, 2 * theirs + 2e-6);
        EXPECT_LT(worst_lse, 2e-6);
      }
    }
    set_target(targets()[0]);
  }
  EXPECT_LE(ours_squared, theirs_squared);  // over all of the lattice luck evens out
  RecordProperty("error_over_three_pass", std::to_string(std::sqrt(ours_squared / theirs_squared)));
}

// ---- Backward ----

TEST(Lattice, BackwardAgainstTheReference) {
  for (Drawn& c : [] {
         std::vector<Drawn> all = lattice(4);
         for (size_t x = 0; x < all.size(); ++x) all[x].additive = x % 5 == 4 && all[x].D <= 64;
         return all;
       }()) {
    SCOPED_TRACE(c.name + (c.additive ? " additive" : ""));
    std::mt19937 random(8);
    Given given(c, random);
    const Attention a = given.problem(c);
    Arriving x(c, random);
    const Incoming in = x.in();
    const Problem p = check_forward(a, x.result());
    forward(a, x.result());

    // Every gradient of a score has the row's out . d_out - d_lse in it, and out came rounded to its dtype. What that
    // rounding does to the product is no error of the backward: the reference is told of it as a part of d_lse.
    std::vector<double> exact_out(x.out.f32.size() + 1), told(x.lse.f32.size() + 1);
    reference::forward(p, {tensor(exact_out.data(), x.so), {}});
    for (size_t row = 0; row < x.lse.f32.size() && !c.sigmoid; ++row) {
      told[row] = x.d_lse.given() ? x.d_lse.f32[row] : 0;
      for (int64_t i = static_cast<int64_t>(row) * c.Dv; i < static_cast<int64_t>(row + 1) * c.Dv; ++i)
        told[row] -= (widened(x.out, i) - exact_out[i]) * widened(x.d_out, i);
    }
    Incoming exact_in = in;
    if (!c.sigmoid) exact_in.d_lse = tensor(told.data(), x.sl);

    Asked<Gradients> asked;
    asked.want("d_q", &Gradients::d_q, given.q, c.dtype, random);
    asked.want("d_k", &Gradients::d_k, given.k, c.dtype, random);
    asked.want("d_v", &Gradients::d_v, given.v, c.dtype, random);
    asked.want("d_w", &Gradients::d_w, given.w, c.dtype, random, true);
    asked.want("d_bias", &Gradients::d_bias, given.bias, c.dtype, random, true);
    asked.want("d_alibi", &Gradients::d_alibi, given.alibi, c.dtype, random, true);
    asked.want("d_sinks", &Gradients::d_sinks, given.sinks, c.dtype, random, true);
    reference::backward(p, exact_in, asked.exact);

    for (const std::string& t : targets()) {
      SCOPED_TRACE(t);
      set_target(t);
      asked.poison();
      backward(a, in, asked.g);
      for (size_t i = 0; i < asked.all.size(); ++i) {
        const Wanted& one = asked.all[i];
        // Some tens of roundings of 6e-8, of scores up to 30. A slope's gradient multiplies them by the keys' distance,
        // while the rest of it nearly cancels. So does the gradient of a bias that is one for all keys: it adds up
        // whole rows, each of which is 0 but for its roundings.
        const int64_t rows = c.bias[3] == 1 ? c.B * c.Hq * c.L / (c.bias[0] * c.bias[1] * c.bias[2]) : 0;
        const int64_t cancels = asked.members[i] == &Gradients::d_alibi  ? c.S
                                : asked.members[i] == &Gradients::d_bias ? rows
                                                                         : 0;
        EXPECT_LT(one.error(), 2e-5 * (1 + static_cast<double>(cancels) / 16)) << one.name;
      }
      // What is wanted has the same bits without the rest.
      for (size_t i = 0; i < asked.all.size(); ++i) {
        Numbers alone(asked.all[i].got.shape, asked.all[i].dtype, random, 1);
        Gradients one;
        one.*asked.members[i] = alone.write();
        backward(a, in, one);
        EXPECT_TRUE(asked.all[i].same(alone)) << asked.all[i].name << " alone";
      }
    }
    set_target(targets()[0]);
  }
}

// ---- Extreme values ----

class Extreme : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_target(GetParam()); }
  void TearDown() override { set_target(targets()[0]); }
};

TEST_P(Extreme, ScoresOfTenThousandAndAllEqual) {
  // One head, D 1: scores are q * k, so they can be set by hand.
  const int64_t S = 600;
  std::vector<float> k(S), v(S), out(1);
  const float one = 1;
  for (const float size : {1e4f, -1e4f, 0.0f, 3e7f}) {
    for (int64_t j = 0; j < S; ++j) {
      k[j] = size == 0 ? 0.25f : size * static_cast<float>(j % 7) / 6;
      v[j] = static_cast<float>(j % 11);
    }
    double sum = 0, want = 0, largest = -1e30;
    for (int64_t j = 0; j < S; ++j) largest = std::max<double>(largest, k[j]);
    for (int64_t j = 0; j < S; ++j) {
      sum += std::exp(k[j] - largest);
      want += std::exp(k[j] - largest) * v[j];
    }
    forward({.q = tensor(&one, {1, 1, 1, 1}),
             .k = tensor(k.data(), {1, 1, S, 1}),
             .v = tensor(v.data(), {1, 1, S, 1}),
             .scale = 1.0},
            {tensor(out.data(), {1, 1, 1, 1})});
    EXPECT_NEAR(out[0], want / sum, 1e-5) << size;
  }
}

TEST_P(Extreme, WeightsThatVanishAreZeroAndNotNoise) {
  // The second block of keys lies 200 powers of two below the first, then above it.
  const int64_t S = 512;
  std::vector<float> k(S), v(S, 1.0f), out(1);
  const float one = 1;
  for (const bool rising : {false, true}) {
    for (int64_t j = 0; j < S; ++j) {
      const bool high = (j >= 256) == rising;
      k[j] = high ? 100.0f : -100.0f;
      v[j] = high ? 1.0f : 1e30f;
    }
    float lse = 0;
    forward({.q = tensor(&one, {1, 1, 1, 1}),
             .k = tensor(k.data(), {1, 1, S, 1}),
             .v = tensor(v.data(), {1, 1, S, 1}),
             .scale = 1.0},
            {tensor(out.data(), {1, 1, 1, 1}), tensor(&lse, {1, 1, 1, 1})});
    EXPECT_NEAR(out[0], 1, 2e-5);  // 256 equal values summed in order: each sum rounds, all the same way
    EXPECT_NEAR(lse, 100 + std::log(256.0), 1e-4);
  }
}

TEST_P(Extreme, HalvesRoundAsTheirDefinitionsSay) {
  // Values pass through one key of weight 1: what comes out is what went in, rounded to the dtype.
  std::mt19937 random(3);
  for (const DType t : {DType::f16, DType::bf16}) {
    std::vector<uint16_t> v, out;
    for (uint32_t x = 0; x < 0x10000; x += 7) v.push_back(static_cast<uint16_t>(x));
    out.resize(v.size());
    const uint16_t zero = 0;
    const int64_t n = static_cast<int64_t>(v.size());
    forward({.q = tensor(&zero, t, {1, 1, 1, 1}),
             .k = tensor(&zero, t, {1, 1, 1, 1}),
             .v = tensor(v.data(), t, {1, 1, 1, n})},
            {tensor(out.data(), t, {1, 1, 1, n})});
    for (int64_t x = 0; x < n; ++x) {
      const float want = t == DType::f16 ? float_of_half(v[x]) : float_of_bfloat(v[x]);
      const float got = t == DType::f16 ? float_of_half(out[x]) : float_of_bfloat(out[x]);
      if (std::isnan(want)) {
        EXPECT_TRUE(std::isnan(got)) << v[x];
      } else if (std::fabs(want) > 0x1p-126f) {
        EXPECT_EQ(got, want) << v[x];
      }
    }
  }
  EXPECT_EQ(half_of_float(1.0f + 0x1p-11f), 0x3C00);  // a tie goes to even
  EXPECT_EQ(half_of_float(1.0f + 0x1p-11f + 0x1p-20f), 0x3C01);
  EXPECT_EQ(half_of_float(65519.0f), 0x7BFF);
  EXPECT_EQ(half_of_float(65520.0f), 0x7C00);
  EXPECT_EQ(half_of_float(0x1p-25f), 0);
  EXPECT_EQ(half_of_float(0x1.8p-25f), 1);
  EXPECT_EQ(bfloat_of_float(1.0f + 0x1p-8f), 0x3F80);
}

INSTANTIATE_TEST_SUITE_P(Targets, Extreme, ::testing::ValuesIn(targets()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace heed
