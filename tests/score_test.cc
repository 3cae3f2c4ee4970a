// What happens to a score on its way to a weight: sigmoid weights, sinks of 0, the user's own function, biases of
// relative positions.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace heed {
namespace {

// A problem of its own memory.
struct Small {
  int64_t B, H, L, S, D = 16;
  std::vector<float> q, k, v, out, lse;

  Small(int64_t B, int64_t H, int64_t L, int64_t S)
      : B(B), H(H), L(L), S(S), q(B * H * L * D), k(B * H * S * D), v(B * H * S * D), out(q.size()), lse(B * H * L) {
    std::mt19937 random(3);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (std::vector<float>* x : {&q, &k, &v})
      for (float& y : *x) y = 2 * uniform(random);
  }
  Attention problem() {
    return {
        .q = tensor(q.data(), {B, H, L, D}), .k = tensor(k.data(), {B, H, S, D}), .v = tensor(v.data(), {B, H, S, D})};
  }
  Tensor out_view() { return tensor(out.data(), {B, H, L, D}); }
  Output result() { return {out_view(), tensor(lse.data(), {B, H, L, 1})}; }
};

TEST(Sigmoid, EachPairByItself) {
  // Scores 0 and log 3: weights 1/2 and 3/4, whatever else the row sees.
  const float q[] = {1}, k[] = {0, std::log(3.0f), 100}, v[] = {1, 10, 1000};
  float out = 0;
  Attention a{.q = tensor(q, {1, 1, 1, 1}),
              .k = tensor(k, {1, 1, 3, 1}),
              .v = tensor(v, {1, 1, 3, 1}),
              .mask = lengths({2}),
              .weigh = Weigh::sigmoid};
  forward(a, {tensor(&out, {1, 1, 1, 1})});
  EXPECT_FLOAT_EQ(out, 0.5f + 7.5f);
  a.mask = lengths({0});  // sees nothing
  forward(a, {tensor(&out, {1, 1, 1, 1})});
  EXPECT_EQ(out, 0);
  a.mask = {};  // a score of 100 weighs 1
  forward(a, {tensor(&out, {1, 1, 1, 1})});
  EXPECT_FLOAT_EQ(out, 1008);
}

TEST(Sigmoid, SameBitsInAnyWayOfSharing) {
  Small c(1, 2, 40, 700);
  Attention a = c.problem();
  a.mask = causal() & window(500, -1);
  a.weigh = Weigh::sigmoid;
  std::vector<float> first, one(c.D);
  for (const int threads : {1, 2, 3, 8}) {
    set_threads(threads);
    forward(a, {c.out_view()});
    if (first.empty()) first = c.out;
    EXPECT_EQ(std::memcmp(first.data(), c.out.data(), first.size() * sizeof(float)), 0) << threads;
  }
  set_threads(2);
  for (int64_t i = 0; i < c.L; ++i) {  // each row alone, split by keys
    a.q = tensor(&c.q[i * c.D], {1, 1, 1, c.D});
    a.k = tensor(c.k.data(), {1, 1, i + c.S - c.L + 1, c.D});
    a.v = tensor(c.v.data(), {1, 1, i + c.S - c.L + 1, c.D});
    forward(a, {tensor(one.data(), {1, 1, 1, c.D})});
    EXPECT_EQ(std::memcmp(one.data(), &first[i * c.D], c.D * sizeof(float)), 0) << i;
  }
}

// softmax1: exp(s) / (1 + sum exp(s)).
TEST(Sinks, OfZeroIsSoftmaxOffByOne) {
  Small c(1, 1, 3, 5);
  const float zero = 0;
  Attention a = c.problem();
  forward(a, c.result());
  const std::vector<float> plain = c.out, lse = c.lse;
  a.sinks = tensor(&zero, {1, 1, 1, 1});
  forward(a, c.result());
  for (int64_t i = 0; i < c.L; ++i)
    for (int64_t d = 0; d < c.D; ++d) {
      const double sum = std::exp(static_cast<double>(lse[i]));
      EXPECT_NEAR(c.out[i * c.D + d], plain[i * c.D + d] * sum / (1 + sum), 1e-6);
    }
}

// Written as a function, softcap and ALiBi are what they are as options.
TEST(ScoreMod, IsASoftcapAndALiBi) {
  Small c(2, 2, 50, 300);
  const std::vector<float> slopes{0.25f, 0.0625f};
  Attention a = c.problem();
  a.softcap = 5;
  a.alibi = tensor(slopes.data(), {1, 2, 1, 1});
  a.mask = causal();
  std::vector<float> d_out(c.out.size()), options(2 * c.q.size() + 2 * c.k.size()), function(options.size());
  std::mt19937 random(5);
  for (float& x : d_out) x = std::uniform_real_distribution<float>(-1, 1)(random);
  const auto run = [&](std::vector<float>& to) {
    const Output r = c.result();
    forward(a, r);
    float* d_q = to.data() + c.q.size();
    backward(a, {r.out, r.lse, tensor(d_out.data(), r.out.shape)},
             {.d_q = tensor(d_q, a.q.shape),
              .d_k = tensor(d_q + c.q.size(), a.k.shape),
              .d_v = tensor(d_q + c.q.size() + c.k.size(), a.v.shape)});
    std::copy(c.out.begin(), c.out.end(), to.begin());
  };
  run(options);
  a.softcap = 0;
  a.alibi = {};
  const auto mod =
      score_mod([&](auto s, int64_t, int64_t h, int64_t i,
                    int64_t j) { return 5 * std::tanh(s / 5) + slopes[h] * static_cast<float>(j - (i + 250)); },
                [](auto s, int64_t, int64_t, int64_t, int64_t) { return 1 - std::tanh(s / 5) * std::tanh(s / 5); });
  a.score_mod = &mod;
  run(function);
  for (size_t x = 0; x < options.size(); ++x) ASSERT_NEAR(options[x], function[x], 2e-5) << x;
}

TEST(ScoreMod, WithoutASlopeHasNoBackward) {
  Small c(1, 1, 4, 4);
  const auto mod = score_mod([](auto s, int64_t, int64_t, int64_t, int64_t) { return s; });
  Attention a = c.problem();
  a.score_mod = &mod;
  const Output r = c.result();
  forward(a, r);
  std::vector<float> d_q(c.q.size(), 7);
  EXPECT_THROW(backward(a, {r.out, r.lse, r.out}, {.d_q = tensor(d_q.data(), a.q.shape)}), Error);
  EXPECT_EQ(d_q[0], 7);
}

// A bias of distances is the dense one, bit for bit; its gradient is the dense one's along diagonals, and the same bits
// at any number of threads, with heads that share it and heads that do not.
TEST(Relative, BiasAndItsGradient) {
  for (const int64_t heads : {1, 3})
    for (const int64_t group : {1, 3}) {
      Small c(3, 3, 300, 600);
      const int64_t n = c.L + c.S - 1;
      std::vector<float> by_distance(heads * n), dense(heads * c.L * c.S), d_dense(dense.size()), d_out(c.out.size());
      std::mt19937 random(5);
      for (std::vector<float>* x : {&by_distance, &d_out})
        for (float& y : *x) y = std::uniform_real_distribution<float>(-1, 1)(random);
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < c.L; ++i)
          for (int64_t j = 0; j < c.S; ++j) dense[(h * c.L + i) * c.S + j] = by_distance[h * n + j - i + c.L - 1];
      Attention a = c.problem();
      a.k.shape[1] = a.v.shape[1] = 3 / group;
      a.mask = causal();
      const auto run = [&](const ConstTensor& bias, const Tensor& d_bias) {
        a.bias = bias;
        const Output r = c.result();
        forward(a, r);
        backward(a, {r.out, r.lse, tensor(d_out.data(), r.out.shape)}, {.d_bias = d_bias});
        return c.out;
      };
      const std::vector<float> want = run(tensor(static_cast<const float*>(dense.data()), {1, heads, c.L, c.S}),
                                          tensor(d_dense.data(), {1, heads, c.L, c.S}));
      std::vector<float> first, d_by_distance(heads * n, NAN);
      for (const int threads : {1, 2, 3, 8}) {
        set_threads(threads);
        const std::vector<float> got =
            run(relative_bias(static_cast<const float*>(by_distance.data()), heads, c.L, c.S),
                relative_bias(d_by_distance.data(), heads, c.L, c.S));
        EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0);
        if (first.empty()) first = d_by_distance;
        EXPECT_EQ(std::memcmp(first.data(), d_by_distance.data(), first.size() * sizeof(float)), 0) << threads;
      }
      set_threads(2);
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t x = 0; x < n; ++x) {
          double sum = 0, size = 1;
          for (int64_t i = 0; i < c.L; ++i)
            if (const int64_t j = x - (c.L - 1) + i; 0 <= j && j < c.S) {
              sum += d_dense[(h * c.L + i) * c.S + j];
              size += std::fabs(d_dense[(h * c.L + i) * c.S + j]);
            }
          ASSERT_NEAR(first[h * n + x], sum, 1e-6 * size) << "head " << h << " distance " << x - (c.L - 1);
        }
    }
}

// As transformers' T5Attention._relative_position_bucket gives them (tests/data/t5_buckets.py).
TEST(Relative, BucketsOfT5) {
  const int64_t distances[] = {-1000, -129, -128, -127, -91, -90, -64, -32, -17, -16, -15, -9,  -8, -7,
                               -1,    0,    1,    7,    8,   9,   11,  12,  15,  16,  17,  22,  23, 31,
                               32,    33,   45,   46,   63,  64,  90,  91,  127, 128, 129, 1000};
  const int64_t both[] = {15, 15, 15, 15, 15, 14, 14, 12, 10, 10, 9,  8,  8,  7,  1,  0,  17, 23, 24, 24,
                          24, 25, 25, 26, 26, 26, 27, 27, 28, 28, 28, 29, 29, 30, 30, 31, 31, 31, 31, 31};
  const int64_t back[] = {31, 31, 31, 31, 29, 29, 26, 21, 16, 16, 15, 9, 8, 7, 1, 0, 0, 0, 0, 0,
                          0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0, 0, 0, 0, 0, 0, 0, 0, 0};
  const int64_t few[] = {
      3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 1, 0, 5, 7, 7, 7,
      7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7};  // 8 buckets up to 20, both directions
  for (size_t x = 0; x < std::size(distances); ++x) {
    EXPECT_EQ(t5_bucket(distances[x], true), both[x]) << distances[x];
    EXPECT_EQ(t5_bucket(distances[x], false), back[x]) << distances[x];
    EXPECT_EQ(t5_bucket(distances[x], true, 8, 20), few[x]) << distances[x];
  }
  EXPECT_THROW(t5_bucket(1, true, 3), Error);
  EXPECT_THROW(t5_bucket(1, false, 1), Error);
  EXPECT_THROW(t5_bucket(1, true, 32, 8), Error);
}

// The index of Swin's table, as its authors compute it: differences of coordinates, shifted to begin with 0, the first
// times 2 * width - 1.
TEST(Relative, RowsOfSwin) {
  EXPECT_EQ(swin_row(0, 0, 7, 7), 6 * 13 + 6);
  EXPECT_EQ(swin_row(0, 48, 7, 7), 0);
  EXPECT_EQ(swin_row(48, 0, 7, 7), 12 * 13 + 12);
  EXPECT_EQ(swin_row(1, 0, 2, 3), 1 * 5 + 3);
  EXPECT_EQ(swin_row(3, 2, 2, 3), 2 * 5 + 0);
}

}  // namespace
}  // namespace heed
