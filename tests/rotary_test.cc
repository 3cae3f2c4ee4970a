// Rotary position embedding against its definition in double: styles, layouts, dtypes, tables, positions, the inverse.
#include <gtest/gtest.h>
#include <heed/rotary.h>

#include <cstring>
#include <functional>

#include "half.h"
#include "problems.h"

namespace heed {
namespace {

using heed::testing::Data;
using heed::testing::error;
using heed::testing::Exact;

// A result is a sum of two products of a value below 1 and a cosine or sine, each rounded once: 3 roundings of 2^-24.
constexpr double kExact = 2e-7;

// The definition, one element at a time: pair j of row i of batch b turns by `angle(b, i, j)`.
using Angles = std::function<double(int64_t b, int64_t i, int64_t j)>;
Exact turned(Data& x, const Rotary& how, const Angles& angle) {
  Exact y(x.shape());
  const auto [B, H, L, D] = x.shape();
  const int64_t R = how.channels ? how.channels : D;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < L; ++i) {
        double* row = &y.values[((b * H + h) * L + i) * D];
        for (int64_t d = R; d < D; ++d) row[d] = x.at(b, h, i, d);
        for (int64_t j = 0; j < R / 2; ++j) {
          const bool halves = how.pairs == Pairs::halves;
          const int64_t one = halves ? j : 2 * j, two = halves ? j + R / 2 : 2 * j + 1;
          const double a = x.at(b, h, i, one), c = x.at(b, h, i, two);
          const double t = (how.inverse ? -1 : 1) * angle(b, i, j);
          row[one] = a * std::cos(t) - c * std::sin(t);
          row[two] = a * std::sin(t) + c * std::cos(t);
        }
      }
  return y;
}

double frequency(const Rotary& how, int64_t R, int64_t j) { return std::pow(how.base, -2.0 * j / R); }

class EveryTarget : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    set_target(GetParam());
    ASSERT_EQ(target(), GetParam());
  }
  std::mt19937_64 random{1};
};

TEST_P(EveryTarget, BothStylesAnyWidthAndLayout) {
  for (const Pairs pairs : {Pairs::halves, Pairs::interleaved})
    for (const auto& [D, R] : {std::pair{2, 0}, {6, 0}, {8, 6}, {40, 0}, {64, 64}, {80, 50}, {128, 32}})
      for (const char* layout : {"bhld", "blhd", "gaps"}) {
        const int64_t turning = R ? R : D;
        Data x({2, 3, 37, D}, random, 1, layout), y = Data::empty_like(x);
        const Rotary how{.pairs = pairs, .channels = R, .offset = 5};
        rotate(x.read(), y.write(), how);
        const Exact want =
            turned(x, how, [&](int64_t, int64_t i, int64_t j) { return (i + 5) * frequency(how, turning, j); });
        EXPECT_LT(error(y, want), kExact) << D << " " << R << " " << layout;
        rotate(x.read(), x.write(), how);
        EXPECT_LT(error(x, want), kExact) << "in place";
      }
}

TEST_P(EveryTarget, PositionsAndBase) {
  Data x({2, 2, 5, 16}, random), y = Data::empty_like(x);
  const std::vector<int64_t> one{7, 0, -3, 1000000, 7}, each{7, 0, -3, 1000000, 7, 5, 6, 7, 8, 123456789};
  Rotary how{.positions = one.data(), .base = 500000};
  rotate(x.read(), y.write(), how);
  const auto angle = [&](const std::vector<int64_t>& p) {
    return [&](int64_t b, int64_t i, int64_t j) { return p[p.size() == 5 ? i : b * 5 + i] * frequency(how, 16, j); };
  };
  EXPECT_LT(error(y, turned(x, how, angle(one))), kExact);
  how.positions = each.data();
  how.position_batches = 2;
  rotate(x.read(), y.write(), how);
  EXPECT_LT(error(y, turned(x, how, angle(each))), kExact);
}

TEST_P(EveryTarget, Tables) {
  // Angles that no base gives.
  Data x({2, 2, 5, 12}, random), y = Data::empty_like(x), angles({1, 1, 9, 4}, random, 3), own({2, 1, 5, 4}, random, 3);
  const auto table = [](Data& from, double (*f)(double)) {
    Data t = from;
    for (float& v : t.values()) v = static_cast<float>(f(v));
    return t;
  };
  Data cos = table(angles, std::cos), sin = table(angles, std::sin);
  const std::vector<int64_t> positions{8, 0, 3, 3, 1};
  Rotary how{.channels = 8, .positions = positions.data(), .cos = cos.read(), .sin = sin.read()};
  rotate(x.read(), y.write(), how);
  EXPECT_LT(error(y, turned(x, how, [&](int64_t, int64_t i, int64_t j) { return angles.at(0, 0, positions[i], j); })),
            kExact);
  how.positions = nullptr;
  how.offset = 4;
  rotate(x.read(), y.write(), how);
  EXPECT_LT(error(y, turned(x, how, [&](int64_t, int64_t i, int64_t j) { return angles.at(0, 0, i + 4, j); })), kExact);
  how.offset = 0;
  Data own_cos = table(own, std::cos), own_sin = table(own, std::sin);
  how.cos = own_cos.read();
  how.sin = own_sin.read();
  rotate(x.read(), y.write(), how);
  EXPECT_LT(error(y, turned(x, how, [&](int64_t b, int64_t i, int64_t j) { return own.at(b, 0, i, j); })), kExact);
}

TEST_P(EveryTarget, KeptTablesGiveTheSameBits) {
  Data x({2, 3, 20, 40}, random), computed = Data::empty_like(x), kept = Data::empty_like(x);
  Data cos({1, 1, 64, 20}, random), sin({1, 1, 64, 20}, random);
  rotary_tables(cos.write(), sin.write(), 0, 12345);
  rotate(x.read(), computed.write(), {.offset = 44, .base = 12345});
  rotate(x.read(), kept.write(), {.offset = 44, .cos = cos.read(), .sin = sin.read()});
  EXPECT_EQ(std::memcmp(computed.values().data(), kept.values().data(), 2 * 3 * 20 * 40 * sizeof(float)), 0);
}

// bits of one narrow value
uint16_t narrow(DType t, float x) { return t == DType::f16 ? half_of_float(x) : bfloat_of_float(x); }
float wide(DType t, uint16_t x) { return t == DType::f16 ? float_of_half(x) : float_of_bfloat(x); }

TEST_P(EveryTarget, NarrowTypesRoundOnce) {
  // The f32 result of the same values, rounded, bit for bit.
  for (const DType t : {DType::f16, DType::bf16})
    for (const Pairs pairs : {Pairs::halves, Pairs::interleaved}) {
      Data x({1, 2, 19, 44}, random), y = Data::empty_like(x);
      std::vector<uint16_t> bits(x.values().size()), got(bits.size());
      for (size_t e = 0; e < 2 * 19 * 44; ++e) x.values()[e] = wide(t, bits[e] = narrow(t, x.values()[e]));
      const Rotary how{.pairs = pairs, .channels = 42};
      rotate(x.read(), y.write(), how);
      rotate(ConstTensor(bits.data(), t, x.shape(), dense(x.shape())), tensor(got.data(), t, x.shape()), how);
      for (size_t e = 0; e < 2 * 19 * 44; ++e) ASSERT_EQ(got[e], narrow(t, y.values()[e])) << e;
    }
}

TEST_P(EveryTarget, BitsDependOnTheRowAlone) {
  Data x({3, 2, 50, 24}, random), all = Data::empty_like(x);
  rotate(x.read(), all.write(), {});
  for (const int n : {1, 2, 5}) {
    set_threads(n);
    Data again = Data::empty_like(x);
    rotate(x.read(), again.write(), {});
    EXPECT_EQ(std::memcmp(all.values().data(), again.values().data(), 3 * 2 * 50 * 24 * sizeof(float)), 0);
  }
  Data one({1, 1, 1, 24}, random), got = Data::empty_like(one);
  for (int64_t d = 0; d < 24; ++d) one.at(0, 0, 0, d) = x.at(2, 1, 33, d);
  rotate(one.read(), got.write(), {.offset = 33});
  for (int64_t d = 0; d < 24; ++d) EXPECT_EQ(got.at(0, 0, 0, d), all.at(2, 1, 33, d));
}

TEST_P(EveryTarget, TheInverseIsTheGradientAndTheUndoing) {
  for (const Pairs pairs : {Pairs::halves, Pairs::interleaved}) {
    Data x({1, 2, 9, 20}, random), y = Data::empty_like(x), back = Data::empty_like(x);
    Rotary how{.pairs = pairs, .channels = 14, .offset = 100}, inverse = how;
    inverse.inverse = true;
    rotate(x.read(), y.write(), how);
    rotate(y.read(), back.write(), inverse);
    Exact same(x.shape());
    std::copy_n(x.values().begin(), same.values.size(), same.values.begin());
    EXPECT_LT(error(back, same), 2 * kExact);
    // sum(w . rotate(x)) has the gradient rotate^-1(w): a difference quotient of a linear function has no error of its
    // own.
    Data w({1, 2, 9, 20}, random), gradient = Data::empty_like(w);
    rotate(w.read(), gradient.write(), inverse);
    for (const int64_t e : {0, 6, 7, 13, 14, 19, 200, 359}) {
      Data moved = x, z = Data::empty_like(x);
      moved.values()[e] += 1;
      rotate(moved.read(), z.write(), how);
      double slope = 0;
      for (size_t k = 0; k < same.values.size(); ++k) slope += w.values()[k] * (double{z.values()[k]} - y.values()[k]);
      EXPECT_NEAR(slope, gradient.values()[e], 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, EveryTarget, ::testing::ValuesIn(targets()));

TEST(Rotary, Float64) {
  for (const Pairs pairs : {Pairs::halves, Pairs::interleaved}) {
    std::mt19937_64 random(2);
    Data x({2, 2, 7, 10}, random);
    Exact in(x.shape()), out(x.shape());
    std::copy_n(x.values().begin(), in.values.size(), in.values.begin());
    const Rotary how{.pairs = pairs, .channels = 6, .offset = 3, .inverse = true};
    rotate(in.write(), out.write(), how);
    const Exact want = turned(x, how, [&](int64_t, int64_t i, int64_t j) { return (i + 3) * frequency(how, 6, j); });
    for (size_t k = 0; k < want.values.size(); ++k) EXPECT_NEAR(out.values[k], want.values[k], 1e-14);
  }
}

TEST(Rotary, NothingToDo) {
  float one = 0;
  rotate(tensor(&one, {0, 2, 3, 4}), tensor(&one, {0, 2, 3, 4}));
  rotate(tensor(&one, {1, 2, 0, 4}), tensor(&one, {1, 2, 0, 4}));
}

// ---- Bad arguments ----

class Says : public ::testing::Test {
 protected:
  std::mt19937_64 random{3};
  Data x{{2, 3, 5, 8}, random}, y{{2, 3, 5, 8}, random}, cos{{1, 1, 6, 4}, random}, sin{{1, 1, 6, 4}, random};
  Rotary how;
  std::string says(const ConstTensor& from, const Tensor& to) {
    for (float& v : y.values()) v = 42;
    try {
      rotate(from, to, how);
    } catch (const Error& e) {
      for (const float v : y.values()) EXPECT_EQ(v, 42);
      return e.what();
    }
    return "nothing";
  }
  std::string says() { return says(x.read(), y.write()); }
  std::string tables(const Tensor& c, const Tensor& s, double base = 10000) {
    try {
      rotary_tables(c, s, 0, base);
    } catch (const Error& e) {
      return e.what();
    }
    return "nothing";
  }
};

TEST_F(Says, Views) {
  EXPECT_EQ(says(), "nothing");
  EXPECT_EQ(says({}, y.write()), "x has no data; give a tensor");
  EXPECT_EQ(says(x.read(), {}), "out has no data; give a tensor");
  Tensor t = y.write();
  t.shape[2] = 4;
  EXPECT_EQ(says(x.read(), t), "out has shape [2, 3, 4, 8] but x's shape is [2, 3, 5, 8]");
  t = y.write();
  t.dtype = DType::f16;
  EXPECT_EQ(says(x.read(), t), "out is f16 but x is f32; all tensors of a call share one dtype");
  t = y.write();
  t.stride[1] = 0;
  EXPECT_EQ(says(x.read(), t), "out is written but its axis 1 of size 3 has stride 0; give it memory of its own");
  t = y.write();
  t.stride[3] = 2;
  EXPECT_EQ(says(x.read(), t),
            "out's last dimension has stride 2; it must be contiguous (stride 1), so copy it or pass it transposed");
  EXPECT_EQ(says(ConstTensor(t), y.write()),
            "x's last dimension has stride 2; it must be contiguous (stride 1), so copy it or pass it transposed");
}

TEST_F(Says, Options) {
  how.channels = 10;
  EXPECT_EQ(says(), "channels is 10 and x has head size 8; an even number of channels can turn, at most the head size");
  how.channels = 3;
  EXPECT_EQ(says(), "channels is 3 and x has head size 8; an even number of channels can turn, at most the head size");
  how.channels = -2;
  EXPECT_EQ(says(), "channels is -2 and x has head size 8; an even number of channels can turn, at most the head size");
  how = {.pairs = static_cast<Pairs>(7)};
  EXPECT_EQ(says(), "pairs is number 7; it must be halves (0) or interleaved (1)");
  const int64_t p[15] = {};
  how = {.positions = p, .position_batches = 3};
  EXPECT_EQ(says(), "positions has 3 batches but x has batch 2; it must be 1 or 2");
  how = {.base = 0};
  EXPECT_EQ(says(), "base is 0.000000; it must be a positive number, 10000 in the paper");
}

TEST_F(Says, Tables) {
  how = {.cos = cos.read()};
  EXPECT_EQ(says(), "cos is given without sin; give both tables or neither");
  how = {.sin = sin.read()};
  EXPECT_EQ(says(), "sin is given without cos; give both tables or neither");
  how = {.cos = cos.read(), .sin = sin.read()};
  EXPECT_EQ(says(), "nothing");
  how.channels = 6;
  EXPECT_EQ(says(), "cos has shape [1, 1, 6, 4] but needs [1, 1, positions, 3] or [2, 1, 5, 3]");
  how.channels = 8;
  how.sin.shape[3] = 3;
  EXPECT_EQ(says(), "sin has shape [1, 1, 6, 3] but needs [1, 1, positions, 4] or [2, 1, 5, 4]");
  how.sin = sin.read();
  how.sin.shape[2] = 5;
  EXPECT_EQ(says(), "cos has shape [1, 1, 6, 4] but sin has shape [1, 1, 5, 4]; they must be equal");
  how.sin = sin.read();
  how.offset = 2;
  EXPECT_EQ(says(), "row 4 of batch 0 is at position 6 but cos has 6 positions, from 0 on; give a longer table");
  const int64_t p[5] = {0, 1, -1, 0, 0};
  how.offset = 0;
  how.positions = p;
  EXPECT_EQ(says(), "row 2 of batch 0 is at position -1 but cos has 6 positions, from 0 on; give a longer table");
  Data own({2, 1, 5, 4}, random);
  how.cos = how.sin = own.read();
  EXPECT_EQ(says(),
            "cos has a row for each row of x, as its shape [2, 1, 5, 4] says; leave out positions and offset, or give "
            "a table of shape [1, 1, positions, 4]");
  how.positions = nullptr;
  EXPECT_EQ(says(), "nothing");
  how.cos.stride[3] = 2;
  EXPECT_EQ(says(),
            "cos's last dimension has stride 2; it must be contiguous (stride 1), so copy it or pass it transposed");
}

TEST_F(Says, MakingTables) {
  EXPECT_EQ(tables(cos.write(), sin.write()), "nothing");
  EXPECT_EQ(tables({}, sin.write()), "cos has no data; give a tensor");
  EXPECT_EQ(tables(cos.write(), {}), "sin has no data; give a tensor");
  EXPECT_EQ(tables(y.write(), y.write()), "cos has shape [2, 3, 5, 8] but a table is [1, 1, positions, R/2]");
  Tensor t = sin.write();
  t.shape[2] = 5;
  EXPECT_EQ(tables(cos.write(), t), "sin has shape [1, 1, 5, 4] but cos's shape is [1, 1, 6, 4]");
  EXPECT_EQ(tables(cos.write(), sin.write(), -1),
            "base is -1.000000; it must be a positive number, 10000 in the paper");
}

}  // namespace
}  // namespace heed
