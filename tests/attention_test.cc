// The operator against the double-precision reference: forward and backward, on every SIMD target of this machine, over
// a lattice of shapes, layouts, masks, biases and scores.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <cstring>

#include "problems.h"

namespace heed {
namespace {

using heed::testing::Data;
using heed::testing::error;
using heed::testing::Exact;

// A value of the output is a mean of values of size 1 with weights of relative error below (D + 10) roundings of a
// score of size up to 4, plus a sum of rounding errors that are in order over S keys: 3e-6 covers the lattice with D <=
// 80, S <= 600. Gradients pass through one more product of the same length, and lse, at most 16, is stored in f32
// (1e-6).
constexpr double kForward = 3e-6, kBackward = 2e-5;

struct Case {
  std::string name;
  int64_t B, Hq, Hkv, L, S, D, Dv;
  std::string layout = "bhld";
  Mask mask = {};
  Shape bias = {};  // zeros: none
  Score score = Score::dot;
  bool w_per_head = false;
  std::optional<double> scale = {};
  double spread = 1.0;
};

std::vector<Case> lattice() {
  std::vector<Case> cases = {
      {"one", 1, 1, 1, 1, 1, 1, 1},
      {"odd_sizes", 2, 3, 3, 7, 13, 5, 3},
      {"whole_panels", 1, 2, 2, 48, 64, 32, 16},
      {"several_tiles", 1, 1, 1, 101, 70, 16, 16},
      {"several_blocks", 1, 1, 1, 33, 600, 16, 24},
      {"grouped", 2, 6, 2, 17, 40, 8, 8},
      {"multi_query", 1, 5, 1, 9, 21, 12, 20},
      {"wider_values", 1, 2, 1, 20, 30, 24, 40},
      {"narrower_values", 1, 2, 2, 20, 30, 80, 1},
      {"length_before_heads", 2, 4, 2, 19, 23, 16, 16, "blhd"},
      {"gaps", 2, 2, 1, 19, 23, 16, 32, "gaps"},
      {"decode", 2, 4, 2, 1, 300, 32, 32},
      {"causal_square", 1, 2, 2, 70, 70, 16, 16, "bhld", causal()},
      {"causal_more_keys", 1, 2, 2, 20, 90, 16, 16, "bhld", causal()},
      {"causal_top_left", 1, 2, 2, 20, 90, 16, 16, "bhld", causal(0)},
      {"causal_more_queries", 1, 2, 1, 90, 20, 16, 16, "bhld", causal()},  // leading rows see nothing
      {"causal_blocks", 1, 1, 1, 540, 540, 8, 8, "bhld", causal()},
      {"window", 1, 2, 2, 120, 120, 16, 16, "bhld", window(10, 3)},
      {"window_blocks", 1, 1, 1, 600, 600, 8, 8, "bhld", window(30, 0)},
      {"window_unbounded_right", 1, 1, 1, 60, 60, 8, 8, "bhld", window(2, -1)},
      {"window_beside", 1, 1, 1, 30, 10, 8, 8, "bhld", window(0, 0, 5)},
      {"lengths", 3, 2, 2, 20, 50, 16, 16, "bhld", lengths({50, 17, 0})},
      {"lengths_causal", 3, 4, 2, 40, 40, 16, 16, "blhd", causal() & lengths({40, 13, 1})},
      {"all_masks", 2, 2, 1, 300, 300, 16, 16, "bhld", causal() & window(100, 5) & lengths({300, 250})},
      {"bias_full", 2, 2, 2, 20, 37, 16, 16, "bhld", {}, {2, 2, 20, 37}},
      {"bias_heads", 2, 4, 2, 20, 37, 16, 16, "bhld", {}, {1, 4, 20, 37}},
      {"bias_batch", 2, 4, 2, 20, 37, 16, 16, "bhld", {}, {2, 1, 20, 37}},
      {"bias_shared_causal", 2, 4, 2, 70, 300, 16, 16, "bhld", causal(), {1, 1, 70, 300}},
      {"bias_keys", 2, 2, 2, 20, 37, 16, 16, "bhld", {}, {1, 1, 1, 37}},
      {"bias_rows", 1, 2, 2, 20, 37, 16, 16, "bhld", {}, {1, 2, 20, 1}},
      {"bias_one", 1, 2, 2, 5, 7, 16, 16, "bhld", {}, {1, 1, 1, 1}},
      {"bias_lengths_gaps", 2, 2, 2, 20, 37, 16, 16, "gaps", lengths({5, 37}), {2, 2, 20, 37}},
      {"scale", 1, 1, 1, 20, 30, 16, 16, "bhld", {}, {}, Score::dot, false, 0.05},
      {"scale_negative", 1, 1, 1, 20, 30, 16, 16, "bhld", {}, {}, Score::dot, false, -0.3},
      {"additive_one", 1, 1, 1, 1, 1, 1, 1, "bhld", {}, {}, Score::additive},
      {"additive", 2, 1, 1, 9, 37, 20, 12, "bhld", {}, {}, Score::additive},
      {"additive_heads", 2, 4, 2, 9, 37, 16, 16, "blhd", {}, {}, Score::additive, true},
      {"additive_shared_w", 2, 4, 4, 9, 37, 16, 16, "gaps", {}, {}, Score::additive, false},
      {"additive_decode", 5, 1, 1, 1, 40, 32, 48, "bhld", lengths({40, 3, 17, 0, 16}), {}, Score::additive},
      {"additive_causal_bias",
       1,
       2,
       2,
       300,
       300,
       8,
       8,
       "bhld",
       causal() & window(50, -1),
       {1, 2, 1, 300},
       Score::additive,
       true,
       1.5},
  };
  return cases;
}

struct Problems {
  Data q, k, v, w, bias, out, lse, d_out, d_lse;
  Attention a;

  Problems(const Case& c, uint64_t seed) {
    std::mt19937_64 random(seed);
    q = Data({c.B, c.Hq, c.L, c.D}, random, 2 * c.spread, c.layout);
    k = Data({c.B, c.Hkv, c.S, c.D}, random, 2 * c.spread, c.layout);
    v = Data({c.B, c.Hkv, c.S, c.Dv}, random, 1, c.layout);
    out = Data({c.B, c.Hq, c.L, c.Dv}, random, 1, c.layout);
    lse = Data({c.B, c.Hq, c.L, 1}, random, 1, c.layout);
    d_out = Data({c.B, c.Hq, c.L, c.Dv}, random, 1, c.layout);
    d_lse = Data({c.B, c.Hq, c.L, 1}, random, 1, c.layout);
    if (c.score == Score::additive) w = Data({1, c.w_per_head ? c.Hq : 1, 1, c.D}, random, 1, c.layout);
    if (c.bias[0]) bias = Data(c.bias, random, 2, c.layout);
    out = Data::empty_like(out);
    lse = Data::empty_like(lse);
    a = {.q = q.read(),
         .k = k.read(),
         .v = v.read(),
         .score = c.score,
         .scale = c.scale,
         .w = w.read(),
         .bias = bias.read(),
         .mask = c.mask};
  }
};

class Lattice : public ::testing::TestWithParam<std::tuple<std::string, Case>> {
 protected:
  void SetUp() override {
    set_target(std::get<0>(GetParam()));
    ASSERT_EQ(target(), std::get<0>(GetParam()));  // the code that answers is the code that runs
  }
  const Case& c() const { return std::get<1>(GetParam()); }
};

TEST_P(Lattice, Forward) {
  Problems p(c(), 1);
  forward(p.a, {p.out.write(), p.lse.write()});
  Exact out(p.out.shape()), lse(p.lse.shape());
  reference::forward(check_forward(p.a, {p.out.write(), p.lse.write()}), {out.write(), lse.write()});
  EXPECT_LT(error(p.out, out), kForward);
  EXPECT_LT(error(p.lse, lse), kForward);
}

TEST_P(Lattice, Backward) {
  Problems p(c(), 2);
  forward(p.a, {p.out.write(), p.lse.write()});
  Data d_q = Data::empty_like(p.q), d_k = Data::empty_like(p.k), d_v = Data::empty_like(p.v);
  Data d_w = Data::empty_like(p.w), d_bias = Data::empty_like(p.bias);
  const Incoming in{p.out.read(), p.lse.read(), p.d_out.read(), p.d_lse.read()};
  const Gradients got{d_q.write(), d_k.write(), d_v.write(), d_w.write(), d_bias.write()};
  backward(p.a, in, got);

  Exact q(p.q.shape()), k(p.k.shape()), v(p.v.shape()), w(p.w.shape()), bias(p.bias.shape());
  reference::backward(check_backward(p.a, in, got), in, {q.write(), k.write(), v.write(), w.write(), bias.write()});
  EXPECT_LT(error(d_q, q), kBackward);
  EXPECT_LT(error(d_k, k), kBackward);
  EXPECT_LT(error(d_v, v), kBackward);
  EXPECT_LT(error(d_w, w), kBackward);
  EXPECT_LT(error(d_bias, bias), kBackward);

  // Each gradient alone has the same bits as all together.
  for (Data* one : {&d_q, &d_k, &d_v, &d_w, &d_bias}) {
    if (one->empty()) continue;
    const std::vector<float> all = one->values();
    Gradients only;
    (one == &d_q   ? only.d_q
     : one == &d_k ? only.d_k
     : one == &d_v ? only.d_v
     : one == &d_w ? only.d_w
                   : only.d_bias) = one->write();
    backward(p.a, in, only);
    EXPECT_EQ(std::memcmp(all.data(), one->values().data(), all.size() * sizeof(float)), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Lattice,
                         ::testing::Combine(::testing::ValuesIn(targets()), ::testing::ValuesIn(lattice())),
                         [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param).name; });

// ---- What is promised beside the numbers ----

class EveryTarget : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    set_target(GetParam());
    ASSERT_EQ(target(), GetParam());
  }
};

TEST_P(EveryTarget, MaskedMeansUnread) {
  // NaN in every key and value that a mask hides: results and gradients stay finite and are those of zeros there.
  const Case c{"", 2, 2, 1, 40, 70, 16, 24, "bhld", causal(20) & window(25, -1) & lengths({50, 30})};
  for (const Score score : {Score::dot, Score::additive}) {
    Case with = c;
    with.score = score;
    std::vector<std::vector<float>> results[2];
    for (int poisoned = 0; poisoned < 2; ++poisoned) {
      Problems p(with, 3);
      for (int64_t b = 0; b < c.B; ++b)
        for (int64_t j = 0; j < c.S; ++j) {
          bool seen = false;
          for (int64_t i = 0; i < c.L; ++i) {
            const Span s = c.mask.row({c.B, c.Hq, c.L, c.S}, b, 0, i);
            seen |= s.begin <= j && j < s.end;
          }
          for (int64_t d = 0; d < c.D && !seen; ++d) p.k.at(b, 0, j, d) = poisoned ? NAN : 0;
          for (int64_t d = 0; d < c.Dv && !seen; ++d) p.v.at(b, 0, j, d) = poisoned ? NAN : 0;
        }
      // A key some rows see and others do not: the others must not notice it either.
      if (poisoned)
        for (int64_t d = 0; d < c.D; ++d) p.k.at(0, 0, 45, d) = NAN;
      forward(p.a, {p.out.write(), p.lse.write()});
      Data d_q = Data::empty_like(p.q);
      backward(p.a, {p.out.read(), p.lse.read(), p.d_out.read()}, {.d_q = d_q.write()});
      for (Data* x : {&p.out, &d_q}) {
        std::vector<float> rows;
        for (int64_t b = 0; b < c.B; ++b)
          for (int64_t i = 0; i < c.L; ++i) {
            const Span s = c.mask.row({c.B, c.Hq, c.L, c.S}, b, 0, i);
            if (b == 0 && s.begin <= 45 && 45 < s.end) continue;
            for (int64_t d = 0; d < x->shape()[3]; ++d) rows.push_back(x->at(b, 1, i, d));
          }
        for (const float f : rows) ASSERT_TRUE(std::isfinite(f));
        results[poisoned].push_back(rows);
      }
    }
    EXPECT_EQ(results[0], results[1]);
  }
}

TEST_P(EveryTarget, VisibleNanAndInfinityShow) {
  Problems p({"", 1, 1, 1, 3, 40, 16, 16}, 4);
  p.v.at(0, 0, 7, 3) = NAN;
  forward(p.a, {p.out.write(), p.lse.write()});
  EXPECT_TRUE(std::isnan(p.out.at(0, 0, 0, 3)));
  EXPECT_TRUE(std::isfinite(p.out.at(0, 0, 0, 4)));
  p.q.at(0, 0, 1, 0) = NAN;
  forward(p.a, {p.out.write(), p.lse.write()});
  EXPECT_TRUE(std::isnan(p.out.at(0, 0, 1, 4)));
  EXPECT_TRUE(std::isfinite(p.out.at(0, 0, 2, 4)));
  // Through a tanh, too, whatever the target's minimum and maximum make of NaN.
  p.a.softcap = 5;
  forward(p.a, {p.out.write(), p.lse.write()});
  EXPECT_TRUE(std::isnan(p.out.at(0, 0, 1, 4)));
  EXPECT_TRUE(std::isfinite(p.out.at(0, 0, 2, 4)));
}

TEST_P(EveryTarget, ARowThatSeesNothing) {
  Problems p({"", 1, 1, 1, 5, 5, 8, 8, "bhld", causal(-2)}, 5);
  forward(p.a, {p.out.write(), p.lse.write()});
  for (int64_t i = 0; i < 2; ++i) {
    EXPECT_EQ(p.lse.at(0, 0, i, 0), -INFINITY);
    for (int64_t d = 0; d < 8; ++d) EXPECT_EQ(p.out.at(0, 0, i, d), 0.0f);
  }
  // The same through a bias of -inf.
  Problems b({"", 1, 1, 1, 5, 5, 8, 8, "bhld", {}, {1, 1, 5, 5}}, 5);
  for (int64_t j = 0; j < 5; ++j) b.bias.at(0, 0, 1, j) = -INFINITY;
  b.bias.at(0, 0, 2, 3) = -INFINITY;
  forward(b.a, {b.out.write(), b.lse.write()});
  EXPECT_EQ(b.lse.at(0, 0, 1, 0), -INFINITY);
  EXPECT_EQ(b.out.at(0, 0, 1, 0), 0.0f);
  Data d_q = Data::empty_like(b.q), d_k = Data::empty_like(b.k), d_v = Data::empty_like(b.v);
  backward(b.a, {b.out.read(), b.lse.read(), b.d_out.read()},
           {.d_q = d_q.write(), .d_k = d_k.write(), .d_v = d_v.write()});
  for (int64_t d = 0; d < 8; ++d) EXPECT_EQ(d_q.at(0, 0, 1, d), 0.0f);
  for (const float x : d_k.values()) EXPECT_FALSE(std::isinf(x));
  Exact out(b.out.shape()), lse(b.lse.shape());
  reference::forward(check_forward(b.a, {b.out.write(), b.lse.write()}), {out.write(), lse.write()});
  EXPECT_LT(error(b.out, out), kForward);
}

TEST_P(EveryTarget, OneRowSeenManyTimes) {
  // Inputs that repeat one row (stride 0, what an expanded tensor has) give the bits of their copies.
  const int64_t L = 40, S = 300, D = 32;
  std::mt19937_64 random(9);
  Data q({1, 1, L, D}, random), k({1, 1, S, D}, random), v({1, 1, S, D}, random), d_out({1, 1, L, D}, random);
  const Data rows({1, 1, L, 1}, random);
  for (Data* x : {&q, &k, &v, &d_out})
    for (int64_t i = 1; i < x->shape()[2]; ++i)
      for (int64_t d = 0; d < D; ++d) x->at(0, 0, i, d) = x->at(0, 0, 0, d);
  std::vector<std::vector<float>> results[2];
  for (int repeated = 0; repeated < 2; ++repeated) {
    const auto view = [&](Data& x) {
      ConstTensor t = x.read();
      if (repeated) t.stride[2] = 0;
      return t;
    };
    Data out = Data::empty_like(q), lse = Data::empty_like(rows), d_q = Data::empty_like(q), d_k = Data::empty_like(k),
         d_v = Data::empty_like(v);
    const Attention a{.q = view(q), .k = view(k), .v = view(v), .mask = causal()};
    forward(a, {out.write(), lse.write()});
    backward(a, {out.read(), lse.read(), view(d_out)}, {d_q.write(), d_k.write(), d_v.write()});
    for (Data* x : {&out, &lse, &d_q, &d_k, &d_v}) results[repeated].push_back(x->values());
  }
  // Bytes, because what no pass writes is NaN.
  for (size_t x = 0; x < results[0].size(); ++x)
    EXPECT_EQ(std::memcmp(results[0][x].data(), results[1][x].data(), results[0][x].size() * sizeof(float)), 0) << x;
}

TEST_P(EveryTarget, HugeScoresStayFinite) {
  Problems p({"", 1, 1, 1, 20, 300, 16, 16, "bhld", causal(), {}, Score::dot, false, {}, 1e4}, 6);
  forward(p.a, {p.out.write(), p.lse.write()});
  for (int64_t i = 0; i < 20; ++i)
    for (int64_t d = 0; d < 16; ++d) EXPECT_TRUE(std::isfinite(p.out.at(0, 0, i, d)));
  // Scores of 1e8: the largest takes everything, exactly as in double.
  Exact out(p.out.shape());
  reference::forward(check_forward(p.a, {p.out.write()}), {out.write()});
  EXPECT_LT(error(p.out, out), kForward);
}

INSTANTIATE_TEST_SUITE_P(Targets, EveryTarget, ::testing::ValuesIn(targets()));

TEST(Float64, RunsTheReference) {
  std::mt19937_64 random(7);
  std::vector<double> q(2 * 3 * 4), k(2 * 5 * 4), v(2 * 5 * 6), out(2 * 3 * 6);
  for (auto* x : {&q, &k, &v})
    for (double& y : *x) y = std::uniform_real_distribution<double>(-1, 1)(random);
  forward(
      {.q = tensor(q.data(), {1, 2, 3, 4}), .k = tensor(k.data(), {1, 2, 5, 4}), .v = tensor(v.data(), {1, 2, 5, 6})},
      {tensor(out.data(), {1, 2, 3, 6})});
  double s[5], sum = 0, want = 0;
  for (int j = 0; j < 5; ++j) {
    s[j] = 0;
    for (int d = 0; d < 4; ++d) s[j] += q[(1 * 3 + 2) * 4 + d] * k[(1 * 5 + j) * 4 + d];
    sum += s[j] = std::exp(s[j] / 2);
  }
  for (int j = 0; j < 5; ++j) want += s[j] / sum * v[(1 * 5 + j) * 6 + 4];
  EXPECT_NEAR(out[(1 * 3 + 2) * 6 + 4], want, 1e-14);
}

}  // namespace
}  // namespace heed
