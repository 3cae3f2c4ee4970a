// The three steps one after the other are the operator.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include "problems.h"

namespace heed {
namespace {

using heed::testing::Data;

TEST(Steps, AKnownAnswer) {
  // Two keys whose scores differ by log 3: weights 1/4 and 3/4.
  const float q[] = {1, 0}, k[] = {0, 5, std::log(3.0f), 7}, v[] = {8, 0, 0, 4};
  float s[2], o[2];
  const Attention a{.q = tensor(q, {1, 1, 1, 2}), .k = tensor(k, {1, 1, 2, 2}), .scale = 1.0};
  score(a, tensor(s, {1, 1, 1, 2}));
  EXPECT_FLOAT_EQ(s[0], 0);
  EXPECT_FLOAT_EQ(s[1], std::log(3.0f));
  weigh(tensor(const_cast<const float*>(s), {1, 1, 1, 2}), tensor(s, {1, 1, 1, 2}));
  EXPECT_FLOAT_EQ(s[0], 0.25f);
  EXPECT_FLOAT_EQ(s[1], 0.75f);
  gather(tensor(s, {1, 1, 1, 2}), tensor(v, {1, 1, 2, 2}), tensor(o, {1, 1, 1, 2}));
  EXPECT_FLOAT_EQ(o[0], 2);
  EXPECT_FLOAT_EQ(o[1], 3);
}

TEST(Steps, EqualTheFusedPass) {
  std::mt19937_64 random(5);
  for (const Score kind : {Score::dot, Score::additive}) {
    Data q({2, 4, 70, 16}, random, 2, "blhd"), k({2, 2, 90, 16}, random, 2), v({2, 2, 90, 24}, random, 1, "gaps");
    Data w({1, 4, 1, 16}, random), bias({2, 1, 70, 90}, random);
    Attention a{.q = q.read(),
                .k = k.read(),
                .v = v.read(),
                .score = kind,
                .bias = bias.read(),
                .mask = causal(5) & lengths({90, 40})};
    if (kind == Score::additive) a.w = w.read();
    Data s({2, 4, 70, 90}, random), out({2, 4, 70, 24}, random), fused = out;
    score(a, s.write());
    weigh(s.read(), s.write());
    gather(s.read(), v.read(), out.write());
    forward(a, {fused.write()});
    for (size_t i = 0; i < out.values().size(); ++i) ASSERT_NEAR(out.values()[i], fused.values()[i], 3e-6);
    for (int64_t i = 0; i < 70; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < 90; ++j) sum += s.at(1, 3, i, j);
      EXPECT_NEAR(sum, 1, 1e-6);
      EXPECT_EQ(s.at(1, 3, i, 40), 0.0f);
    }
  }
}

TEST(Steps, RowsThatSeeNothingWeighNothing) {
  float s[] = {-INFINITY, -INFINITY}, o[] = {9};
  const float v[] = {NAN, NAN};
  weigh(tensor(const_cast<const float*>(s), {1, 1, 1, 2}), tensor(s, {1, 1, 1, 2}));
  gather(tensor(s, {1, 1, 1, 2}), tensor(v, {1, 1, 2, 1}), tensor(o, {1, 1, 1, 1}));
  EXPECT_EQ(s[0], 0);
  EXPECT_EQ(o[0], 0);
}

}  // namespace
}  // namespace heed
