// Probes: the engine against plain loops in double over the generated lattice on every SIMD target, the loops against
// the dense steps, rollout against the matrices it stands for, and what is promised beside the numbers.
#include "probe/probe.h"

#include <gtest/gtest.h>
#include <heed/probe.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "check.h"
#include "lattice.h"
#include "reference.h"

namespace heed {
namespace {

using heed::testing::Drawn;
using heed::testing::Given;
using heed::testing::lattice;
using heed::testing::Numbers;

// Everything that can be asked for, of all rows, with memory of its own. F: what values are.
template <class F>
struct Answers {
  Shape top, row, masses;
  std::vector<int64_t> top_keys, largest_key;
  std::vector<F> top_weights, largest, entropy, mass, weights;
  std::vector<WeightRow> rows;

  Answers(int64_t B, int64_t H, int64_t L, int64_t S, int64_t k)
      : top{B, H, L, k},
        row{B, H, L, 1},
        masses{B, H, 1, S},
        top_keys(B * H * L * k + 1, -7),
        largest_key(B * H * L + 1, -7),
        top_weights(B * H * L * k + 1, NAN),
        largest(B * H * L + 1, NAN),
        entropy(B * H * L + 1, NAN),
        mass(B * H * S + 1, NAN) {}
  void list_all() {
    for (int64_t x = 0; x < row[0] * row[1] * row[2]; ++x)
      rows.push_back({x / row[2] / row[1], x / row[2] % row[1], x % row[2]});
  }
  Probes ask() {
    const int64_t n = static_cast<int64_t>(rows.size());
    weights.assign(n * masses[3] + 1, NAN);
    return {.top_keys = key_tensor(top_keys.data(), top),
            .top_weights = tensor(top_weights.data(), top),
            .largest_key = key_tensor(largest_key.data(), row),
            .largest = tensor(largest.data(), row),
            .entropy = tensor(entropy.data(), row),
            .mass = tensor(mass.data(), masses),
            .rows = rows,
            .weights = tensor(weights.data(), {1, 1, n, masses[3]})};
  }
};

template <class X>
bool same(const std::vector<X>& a, const std::vector<X>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(X)) == 0;
}
template <class F>
bool same(const Answers<F>& a, const Answers<F>& b) {
  return same(a.top_keys, b.top_keys) && same(a.largest_key, b.largest_key) && same(a.top_weights, b.top_weights) &&
         same(a.largest, b.largest) && same(a.entropy, b.entropy) && same(a.mass, b.mass) && same(a.weights, b.weights);
}

// The k strongest of a row of weights by sorting all of them.
template <class F>
std::vector<int64_t> sorted(const F* w, int64_t S, int64_t k) {
  std::vector<int64_t> keys;
  for (int64_t j = 0; j < S; ++j)
    if (w[j] > 0) keys.push_back(j);
  std::stable_sort(keys.begin(), keys.end(), [&](int64_t x, int64_t y) { return w[x] > w[y]; });
  keys.resize(k, -1);
  return keys;
}

// Largest |got - exact| / (1 + |exact|).
template <class F>
double error(const std::vector<F>& got, const std::vector<double>& exact) {
  double worst = 0;
  for (size_t x = 0; x + 1 < exact.size(); ++x) {
    const double e = std::fabs(got[x] - exact[x]) / (1 + std::fabs(exact[x]));
    worst = std::isnan(e) ? INFINITY : std::fmax(worst, e);
  }
  return worst;
}

// A weight of at most 1 errs by what its score and its lse err by, 3e-6 each as in the forward; what is summed of
// weights by as much of its size, an entropy by log w times as much where w is small.
constexpr double kWeight = 1e-5;

class EveryTarget : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    set_target(GetParam());
    ASSERT_EQ(target(), GetParam());  // the code that answers is the code that runs
  }
  void TearDown() override {
    set_target(targets()[0]);
    set_threads(2);
  }
};
INSTANTIATE_TEST_SUITE_P(Targets, EveryTarget, ::testing::ValuesIn(targets()),
                         [](const auto& info) { return info.param; });

// ---- The engine against the reference ----

TEST_P(EveryTarget, AgainstTheReference) {
  int index = 0;
  double most = 0;
  for (Drawn c : lattice(20261125)) {
    c.additive = index % 4 == 1;
    c.sigmoid = false;  // which has no lse to start from
    SCOPED_TRACE(c.name + (c.additive ? " additive" : ""));
    std::mt19937 random(++index);
    Given x(c, random);
    Attention a = x.problem(c);
    const Shape rows{c.B, c.Hq, c.L, 1}, so{c.B, c.Hq, c.L, c.Dv};
    Numbers out(so, c.dtype, random, 1), lse(rows, DType::f32, random, 1);
    forward(a, {out.write(), lse.write()});
    if (index % 3 == 0) a.v = {};
    std::vector<double> exact_out(c.B * c.Hq * c.L * c.Dv + 1), exact_lse(c.B * c.Hq * c.L + 1);
    const Tensor l = tensor(exact_lse.data(), rows);
    Attention with_v = a;
    with_v.v = x.v.write();
    reference::forward(check_backward(with_v, {out.write(), lse.write(), out.write()}, {}),
                       {tensor(exact_out.data(), so), l});

    const int64_t k = std::array<int64_t, 5>{1, 3, 8, 17, 40}[index % 5];
    Answers<float> got(c.B, c.Hq, c.L, c.S, k);
    Answers<double> exact(c.B, c.Hq, c.L, c.S, k);
    got.list_all(), exact.list_all();
    Probes ask = got.ask(), want = exact.ask();
    Numbers factor(rows, DType::f32, random, 1);
    for (float& f : factor.f32) f = f < -0.6f ? 0 : std::fabs(f);
    if (index % 2) ask.mass_factor = want.mass_factor = factor.write();
    if (index % 5 < 2) ask.mass_queries = want.mass_queries = Span{c.L / 4, c.L - c.L / 5};
    probe(a, lse.write(), ask);
    reference::probe(check_weights(a, lse.write()), l, want);

    EXPECT_LT(error(got.weights, exact.weights), kWeight);
    EXPECT_LT(error(got.entropy, exact.entropy), kWeight);
    EXPECT_LT(error(got.mass, exact.mass), kWeight);
    most = std::fmax(most, error(got.weights, exact.weights));
    most = std::fmax(most, error(got.entropy, exact.entropy));
    most = std::fmax(most, error(got.mass, exact.mass));
    // The strongest keys are exactly those of the rows as they came out.
    for (int64_t r = 0; r < c.B * c.Hq * c.L; ++r) {
      const float* w = got.weights.data() + r * c.S;
      const std::vector<int64_t> keys = sorted(w, c.S, k);
      for (int64_t n = 0; n < k; ++n) {
        ASSERT_EQ(got.top_keys[r * k + n], keys[n]) << "row " << r << " place " << n;
        ASSERT_EQ(got.top_weights[r * k + n], keys[n] < 0 ? 0 : w[keys[n]]) << "row " << r << " place " << n;
      }
      ASSERT_EQ(got.largest_key[r], keys[0]);
      ASSERT_EQ(got.largest[r], keys[0] < 0 ? 0 : w[keys[0]]);
    }

    // What is asked for alone comes out the same; and so do a few rows, one of them twice.
    Answers<float> alone(c.B, c.Hq, c.L, c.S, k);
    for (int64_t n = 0; n < 5 && !got.rows.empty(); ++n) alone.rows.push_back(got.rows[random() % got.rows.size()]);
    if (!alone.rows.empty()) alone.rows.push_back(alone.rows[0]);
    const Probes each = alone.ask();
    probe(a, lse.write(), {.top_keys = each.top_keys});
    probe(a, lse.write(), {.top_weights = each.top_weights});
    probe(a, lse.write(), {.largest_key = each.largest_key});
    probe(a, lse.write(), {.largest = each.largest});
    probe(a, lse.write(), {.entropy = each.entropy});
    probe(a, lse.write(), {.mass = each.mass, .mass_factor = ask.mass_factor, .mass_queries = ask.mass_queries});
    probe(a, lse.write(), {.rows = alone.rows, .weights = each.weights});
    for (size_t n = 0; n < alone.rows.size(); ++n) {
      const WeightRow& row = alone.rows[n];
      const int64_t r = (row.batch * c.Hq + row.head) * c.L + row.query;
      ASSERT_TRUE(std::equal(alone.weights.begin() + n * c.S, alone.weights.begin() + (n + 1) * c.S,
                             got.weights.begin() + r * c.S));
    }
    alone.weights = got.weights;
    ASSERT_TRUE(same(alone, got));
  }
  RecordProperty("largest_error", std::to_string(most));
}

// ---- The loops in double, which f64 tensors run on, against the dense steps ----

TEST(Reference, IsWhatTheDenseStepsGive) {
  const int64_t B = 2, H = 2, L = 5, S = 7, D = 3, k = 3;
  std::mt19937 random(4);
  std::uniform_real_distribution<double> uniform(-2, 2);
  std::vector<double> q(B * H * L * D), key(B * S * D), v(B * S), out(B * H * L), lse(B * H * L), w(B * H * L * S);
  std::vector<double> factor(B * H * L);
  for (auto* t : {&q, &key, &v, &factor})
    for (double& x : *t) x = uniform(random);
  const Attention a{.q = tensor(q.data(), {B, H, L, D}),
                    .k = tensor(key.data(), {B, 1, S, D}),
                    .v = tensor(v.data(), {B, 1, S, 1}),
                    .mask = causal(1) & !window(0, 0, 2)};
  const Tensor l = tensor(lse.data(), {B, H, L, 1}), dense_w = tensor(w.data(), {B, H, L, S});
  forward(a, {tensor(out.data(), {B, H, L, 1}), l});
  score(a, dense_w);
  weigh(dense_w, dense_w);
  Answers<double> got(B, H, L, S, k);
  got.list_all();
  Probes ask = got.ask();
  ask.mass_factor = tensor(factor.data(), {B, H, L, 1});
  ask.mass_queries = Span{1, 4};
  probe(a, l, ask);
  for (int64_t r = 0; r < B * H * L; ++r) {
    double entropy = 0;
    for (int64_t j = 0; j < S; ++j) {
      const double x = w[r * S + j];
      EXPECT_NEAR(got.weights[r * S + j], x, 1e-14);
      if (x > 0) entropy -= x * std::log(x);
    }
    EXPECT_NEAR(got.entropy[r], entropy, 1e-13);
    const std::vector<int64_t> keys = sorted(w.data() + r * S, S, k);
    for (int64_t n = 0; n < k; ++n) {
      EXPECT_EQ(got.top_keys[r * k + n], keys[n]);
      EXPECT_NEAR(got.top_weights[r * k + n], keys[n] < 0 ? 0 : w[r * S + keys[n]], 1e-14);
    }
    EXPECT_EQ(got.largest_key[r], keys[0]);
  }
  for (int64_t h = 0; h < B * H; ++h)
    for (int64_t j = 0; j < S; ++j) {
      double mass = 0;
      for (int64_t i = 1; i < 4; ++i) mass += factor[h * L + i] * w[(h * L + i) * S + j];
      EXPECT_NEAR(got.mass[h * S + j], mass, 1e-13);
    }
}

// A sink is one more thing to look at: the entropy is that of a row with one more key whose score it is.
TEST_P(EveryTarget, ASinkIsAPartOfTheEntropy) {
  float q = 1, k[3] = {0.5f, -1, 2}, sink = 0.25f, lse, entropy, mass[3], out;
  const Attention a{.q = tensor(&q, {1, 1, 1, 1}),
                    .k = tensor(k, {1, 1, 3, 1}),
                    .v = tensor(k, {1, 1, 3, 1}),
                    .sinks = tensor(&sink, {1, 1, 1, 1})};
  const Tensor l = tensor(&lse, {1, 1, 1, 1});
  forward(a, {tensor(&out, {1, 1, 1, 1}), l});
  probe(a, l, {.entropy = tensor(&entropy, {1, 1, 1, 1}), .mass = tensor(mass, {1, 1, 1, 3})});
  double sum = 0, want = 0;
  for (const double s : {0.5, -1.0, 2.0, 0.25}) sum += std::exp(s);
  for (const double s : {0.5, -1.0, 2.0, 0.25}) want -= std::exp(s) / sum * std::log(std::exp(s) / sum);
  EXPECT_NEAR(entropy, want, 1e-6);
  EXPECT_NEAR(mass[0] + mass[1] + mass[2], 1 - std::exp(0.25) / sum, 1e-6);
  Attention hidden = a;  // the sink is all there is
  hidden.mask = lengths({0});
  forward(hidden, {tensor(&out, {1, 1, 1, 1}), l});
  probe(hidden, l, {.entropy = tensor(&entropy, {1, 1, 1, 1})});
  EXPECT_EQ(entropy, 0);
}

// ---- What is promised beside the numbers ----

// Several pieces, tiles and blocks, with everything at once.
struct Long {
  static constexpr int64_t B = 3, Hq = 4, Hkv = 2, L = 500, S = 700, D = 24, k = 6;
  std::vector<float> q, key, bias, alibi, sinks, lse, factor;
  Mask mask = causal() & window(400, -1) & lengths({700, 0, 650});
  Plan* plan = nullptr;

  Long() : q(B * Hq * L * D), key(B * Hkv * S * D), bias(L * S), alibi(Hq), sinks(Hq), lse(B * Hq * L), factor(lse) {
    std::mt19937 random(8);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (auto* t : {&q, &key, &bias, &alibi, &sinks, &factor})
      for (float& x : *t) x = uniform(random) * (t == &alibi ? 0.02f : 2);
  }
  // Of all batches, or of one.
  Attention problem(int64_t b0 = 0, int64_t n = B) {
    return {.q = tensor(q.data() + b0 * Hq * L * D, {n, Hq, L, D}),
            .k = tensor(key.data() + b0 * Hkv * S * D, {n, Hkv, S, D}),
            .v = tensor(key.data() + b0 * Hkv * S * D, {n, Hkv, S, D}),
            .softcap = 4,
            .bias = tensor(bias.data(), {1, 1, L, S}),
            .alibi = tensor(alibi.data(), {1, Hq, 1, 1}),
            .mask = mask,
            .sinks = tensor(sinks.data(), {1, Hq, 1, 1}),
            .plan = plan};
  }
  Answers<float> run(int64_t b0 = 0, int64_t n = B) {
    const Attention a = problem(b0, n);
    const Tensor l = tensor(lse.data(), {n, Hq, L, 1});
    std::vector<float> out(n * Hq * L * D);
    forward(a, {tensor(out.data(), a.q.shape), l});
    Answers<float> got(n, Hq, L, S, k);
    for (int64_t x = 0; x < n * Hq * L; x += 37) got.rows.push_back({x / L / Hq, x / L % Hq, x % L});
    Probes ask = got.ask();
    ask.mass_factor = tensor(factor.data() + b0 * Hq * L, {n, Hq, L, 1});
    probe(a, l, ask);
    return got;
  }
};

TEST_P(EveryTarget, SameBitsForAnyThreadCountAndPlan) {
  Long x;
  Plan plan;
  for (const bool holes : {false, true}) {
    if (holes) x.mask = x.mask & dilated(300, 3);
    set_threads(1);
    x.plan = nullptr;
    const Answers<float> one = x.run();
    x.plan = &plan;
    for (const int n : {2, 3, 8}) {
      set_threads(n);
      EXPECT_TRUE(same(x.run(), one)) << n << " threads";
      EXPECT_TRUE(same(x.run(), one)) << "with a plan that was used before";
    }
  }
}

TEST_P(EveryTarget, SameBitsAloneAndInABatch) {
  Long x;
  x.mask = causal() & window(400, -1);
  const Answers<float> all = x.run();
  for (int64_t b = 0; b < Long::B; ++b) {
    const Answers<float> one = x.run(b, 1);
    const auto part = [&](const auto& whole, const auto& alone) {
      const size_t n = alone.size() - 1;
      return std::equal(alone.begin(), alone.end() - 1, whole.begin() + b * n);
    };
    EXPECT_TRUE(part(all.top_keys, one.top_keys));
    EXPECT_TRUE(part(all.top_weights, one.top_weights));
    EXPECT_TRUE(part(all.entropy, one.entropy));
    EXPECT_TRUE(part(all.mass, one.mass));
  }
}

// What several pieces of rows add up to, against the reference.
TEST_P(EveryTarget, ManyRowsAgainstTheReference) {
  Long x;
  x.mask = causal() & window(400, -1) & !dilated(300, 7);
  const Answers<float> got = x.run(2, 1);
  const Attention a = x.problem(2, 1);
  std::vector<double> exact_lse(Long::Hq * Long::L), exact_out(Long::Hq * Long::L * Long::D);
  std::vector<float> out(exact_out.size());
  const Tensor l = tensor(x.lse.data(), {1, Long::Hq, Long::L, 1}), exact_l = tensor(exact_lse.data(), l.shape);
  const Tensor o = tensor(out.data(), a.q.shape);
  reference::forward(check_backward(a, {o, l, o}, {}), {tensor(exact_out.data(), a.q.shape), exact_l});
  Answers<double> exact(1, Long::Hq, Long::L, Long::S, Long::k);
  exact.rows = got.rows;
  Probes want = exact.ask();
  want.mass_factor = tensor(x.factor.data() + 2 * Long::Hq * Long::L, l.shape);
  reference::probe(check_weights(a, l), exact_l, want);
  EXPECT_LT(error(got.weights, exact.weights), kWeight);
  EXPECT_LT(error(got.entropy, exact.entropy), kWeight);
  EXPECT_LT(error(got.top_weights, exact.top_weights), kWeight);
  EXPECT_LT(error(got.mass, exact.mass), kWeight);  // 500 queries with factors of size 1, of either sign
}

TEST(Bits, SameOnEveryTargetWithFma) {
  std::vector<std::string> fma;
  for (const std::string& t : targets())
    if (t != "SSE4" && t != "SCALAR") fma.push_back(t);
  if (fma.size() < 2) GTEST_SKIP() << "this machine has " << fma.size() << " targets with FMA; two are needed";
  Long x;
  set_target(fma[0]);
  const Answers<float> first = x.run();
  for (const std::string& t : fma) {
    set_target(t);
    EXPECT_TRUE(same(x.run(), first)) << t << " against " << fma[0];
  }
  set_target(targets()[0]);
}

// Equal weights: the first keys. Weights that ascend, or descend, from key to key.
TEST_P(EveryTarget, TiesAndOrder) {
  const int64_t L = 3, S = 900, k = 20;
  std::vector<float> q(L, 0.0f), keys(S, 1.0f), out(L), lse(L), bias(S);
  for (const float slope : {0.0f, 0.01f, -0.01f}) {
    for (int64_t j = 0; j < S; ++j) bias[j] = slope * static_cast<float>(j / 2);  // two of each
    const Attention a{.q = tensor(q.data(), {1, 1, L, 1}),
                      .k = tensor(keys.data(), {1, 1, S, 1}),
                      .v = tensor(keys.data(), {1, 1, S, 1}),
                      .bias = tensor(bias.data(), {1, 1, 1, S}),
                      .mask = causal(850)};
    const Tensor l = tensor(lse.data(), {1, 1, L, 1});
    forward(a, {tensor(out.data(), {1, 1, L, 1}), l});
    for (const int64_t n : {k, int64_t{8}}) {
      Answers<float> got(1, 1, L, S, n);
      probe(a, l, got.ask());
      for (int64_t i = 0; i < L; ++i)
        for (int64_t x = 0; x < n; ++x) {
          const int64_t last = 850 + i;  // alone in its pair where that is even
          int64_t want = x;
          if (slope > 0)
            want = last % 2 == 0 ? (x == 0 ? last : last - 2 - (x - 1) / 2 * 2 + (x - 1) % 2)
                                 : last - 1 - x / 2 * 2 + x % 2;
          EXPECT_EQ(got.top_keys[i * n + x], want) << slope << " row " << i << " place " << x;
        }
    }
  }
}

// NaN in keys that nobody sees, or some rows do not see, changes no bit of theirs; the rows that see it say so.
TEST_P(EveryTarget, ANanStaysWhereItIsSeen) {
  Long x;
  x.mask = causal(100) & lengths({700, 700, 80});
  const Answers<float> want = x.run();
  // Seen by the rows from 150 on of batch 0, and by nobody in batch 2.
  for (int64_t d = 0; d < Long::D; ++d)
    x.key[250 * Long::D + d] = x.key[(2 * Long::Hkv * Long::S + 90) * Long::D + d] = NAN;
  const Answers<float> got = x.run();
  for (int64_t r = 0; r < Long::B * Long::Hq * Long::L; ++r) {
    const int64_t b = r / Long::L / Long::Hq, h = r / Long::L % Long::Hq, i = r % Long::L;
    const bool nan = b == 0 && h < 2 && i >= 150;
    EXPECT_EQ(std::isnan(got.entropy[r]), nan);
    EXPECT_EQ(std::isnan(got.largest[r]), nan);
    EXPECT_EQ(std::isnan(got.top_weights[r * Long::k + 2]), nan);
    if (nan) {
      EXPECT_EQ(got.largest_key[r], -1);
      EXPECT_EQ(got.top_keys[r * Long::k + 2], -1);
    } else {
      EXPECT_EQ(got.entropy[r], want.entropy[r]);
      EXPECT_EQ(got.top_keys[r * Long::k + 2], want.top_keys[r * Long::k + 2]);
    }
  }
  for (int64_t n = 0; n < Long::B * Long::Hq * Long::S; ++n) {
    const int64_t head = n / Long::S, j = n % Long::S;
    const bool nan = head < 2 && j < 600;  // the last row sees keys up to 599
    EXPECT_EQ(std::isnan(got.mass[n]), nan) << head << " " << j;
    if (!nan) {
      EXPECT_EQ(got.mass[n], want.mass[n]);
    }
  }
}

// Strides of any kind are written, and nothing beside them.
TEST(Layout, AnyStrides) {
  Long x;
  const Answers<float> want = x.run();
  const int64_t B = Long::B, H = Long::Hq, L = Long::L, S = Long::S, k = Long::k;
  std::vector<int64_t> keys(B * L * H * (k + 1), -9);
  std::vector<float> entropy(B * L * H, NAN), mass(B * H * (S + 2), -9);
  probe(x.problem(), tensor(x.lse.data(), {B, H, L, 1}),
        {.top_keys = key_tensor(keys.data(), {B, H, L, k}, {L * H * (k + 1), k + 1, H * (k + 1), 1}),
         .entropy = tensor(entropy.data(), {B, H, L, 1}, {L * H, 1, H, 7}),
         .mass = tensor(mass.data(), {B, H, 1, S}, {H * (S + 2), S + 2, 0, 1}),
         .mass_factor = tensor(x.factor.data(), {B, H, L, 1})});
  for (int64_t r = 0; r < B * H * L; ++r) {
    const int64_t at = (r / L / H * L + r % L) * H + r / L % H;
    ASSERT_EQ(entropy[at], want.entropy[r]);
    for (int64_t n = 0; n < k; ++n) ASSERT_EQ(keys[at * (k + 1) + n], want.top_keys[r * k + n]);
    ASSERT_EQ(keys[at * (k + 1) + k], -9);
  }
  for (int64_t h = 0; h < B * H; ++h) {
    for (int64_t j = 0; j < S; ++j) ASSERT_EQ(mass[h * (S + 2) + j], want.mass[h * S + j]);
    ASSERT_EQ(mass[h * (S + 2) + S], -9);
  }
}

// A mask of the user's that throws ends the call, on any number of threads.
TEST(Threads, AnExceptionComesThrough) {
  Long x;
  x.run();
  const auto calls = std::make_shared<std::atomic<int64_t>>(0);
  Plan plan;
  x.plan = &plan;
  x.mask = where([calls](int64_t, int64_t, int64_t i, int64_t j) {
    if (++*calls < 0) throw std::runtime_error("enough");
    return (i + j) % 3 != 0;
  });
  Answers<float> got(Long::B, Long::Hq, Long::L, Long::S, 1);
  set_threads(8);
  probe(x.problem(), tensor(x.lse.data(), {Long::B, Long::Hq, Long::L, 1}), got.ask());  // the plan is made
  *calls = -100000;
  EXPECT_THROW(probe(x.problem(), tensor(x.lse.data(), {Long::B, Long::Hq, Long::L, 1}), got.ask()),
               std::runtime_error);
  set_threads(2);
}

// ---- Rollout ----

TEST(Rollout, ByHand) {
  // Two layers of two positions; (A + I) / 2 is {0.75 0.25; 0.5 0.5}, then {0.5 0.5; 0 1}.
  const std::vector<float> w = {0.5f, 0.5f, 1, 0, 0, 1, 0, 1};
  std::vector<double> out(4);
  rollout(tensor(w.data(), {2, 1, 2, 2}), tensor(out.data(), {1, 1, 2, 2}));
  const std::vector<double> want = {0.625, 0.375, 0.5, 0.5};
  for (int x = 0; x < 4; ++x) EXPECT_NEAR(out[x], want[x], 1e-15);
}

// F: what tensors hold.
template <class F>
void check_rollout(double bound) {
  const int64_t B = 2, L = 130, D = 8;
  std::mt19937 random(3);
  std::uniform_real_distribution<F> uniform(-2, 2);
  struct Layer {
    int64_t H;
    std::vector<F> q, k, lse, sinks, weights;
  };
  std::vector<Layer> all;
  std::vector<RolloutLayer> layers;
  for (const int64_t H : {2, 4, 2}) {
    Layer& x = all.emplace_back(Layer{H,
                                      std::vector<F>(B * H * L * D),
                                      std::vector<F>(B * H * L * D),
                                      std::vector<F>(B * H * L),
                                      std::vector<F>(H),
                                      {}});
    for (auto* t : {&x.q, &x.k, &x.sinks})
      for (F& y : *t) y = uniform(random);
  }
  for (size_t n = 0; n < all.size(); ++n) {
    Layer& x = all[n];
    Attention a{.q = tensor(x.q.data(), {B, x.H, L, D}),
                .k = tensor(x.k.data(), {B, x.H, L, D}),
                .v = tensor(x.k.data(), {B, x.H, L, D})};
    if (n == 1) a.sinks = tensor(x.sinks.data(), {1, x.H, 1, 1});
    if (n == 2) a.mask = causal(-1);  // the first row sees nothing
    std::vector<F> out(B * x.H * L * D);
    const Tensor l = tensor(x.lse.data(), {B, x.H, L, 1});
    forward(a, {tensor(out.data(), {B, x.H, L, D}), l});
    layers.push_back({a, l});
  }
  for (int64_t b = 0; b < B; ++b) {
    std::vector<F> dense(3 * 4 * L * L), want(L * L);
    for (size_t n = 0; n < 3; ++n) {
      std::vector<WeightRow> rows;
      for (int64_t h = 0; h < all[n].H; ++h)
        for (const WeightRow& row : rows_of_head(b, h, {0, L})) rows.push_back(row);
      std::vector<F> w(all[n].H * L * L);
      probe(layers[n].attention, layers[n].lse, {.rows = rows, .weights = tensor(w.data(), {1, 1, all[n].H * L, L})});
      for (int64_t h = 0; h < 4; ++h)  // each of two heads twice has the same mean
        std::copy_n(w.data() + h % all[n].H * L * L, L * L, dense.data() + (n * 4 + h) * L * L);
    }
    rollout(tensor(dense.data(), {3, 4, L, L}), tensor(want.data(), {1, 1, L, L}));
    for (const int64_t i : {0, 1, 77, 129}) {
      std::vector<F> row(B * L, NAN);
      rollout_row(layers, i, tensor(row.data(), {B, 1, 1, L}));
      double sum = 0;
      for (int64_t j = 0; j < L; ++j) {
        EXPECT_NEAR(row[b * L + j], want[i * L + j], bound) << b << " " << i << " " << j;
        sum += row[b * L + j];
      }
      EXPECT_NEAR(sum, 1, 100 * bound);
    }
  }
}
TEST(Rollout, ARowIsARowOfTheMatrixInDouble) { check_rollout<double>(1e-14); }
TEST(Rollout, ARowIsARowOfTheMatrix) { check_rollout<float>(2e-7); }

// ---- Errors: one sentence, both numbers, nothing written ----

template <class F>
void expect_error(const std::string& part, F&& f) {
  try {
    f();
    ADD_FAILURE() << "no error; expected: " << part;
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
}

TEST(Errors, Sentences) {
  const int64_t B = 1, H = 2, L = 3, S = 4, D = 2;
  std::vector<float> x(64), out(64, 42);
  std::vector<int64_t> keys(64, 42);
  const Attention a{.q = tensor(x.data(), {B, H, L, D}), .k = tensor(x.data(), {B, H, S, D})};
  const Tensor l = tensor(x.data(), {B, H, L, 1});
  const auto with = [&](const Probes& w) { return [&a, &l, w] { probe(a, l, w); }; };
  expect_error("lse has no data", [&] { probe(a, {}, {}); });
  expect_error("lse has shape [1, 2, 4, 1] but [B, Hq, L, 1] is [1, 2, 3, 1]", [&] {
    probe(a, tensor(x.data(), {B, H, 4, 1}), {});
  });
  expect_error("entropy has shape [1, 2, 3, 2]", with({.entropy = tensor(out.data(), {B, H, L, 2})}));
  expect_error("entropy is f16 but for q of f32 it must be f32",
               with({.entropy = tensor(out.data(), DType::f16, {B, H, L, 1})}));
  expect_error("mass has shape [1, 2, 1, 3]", with({.mass = tensor(out.data(), {B, H, 1, 3})}));
  expect_error("stride 0", with({.mass = tensor(out.data(), {B, H, 1, S}, {0, 0, 0, 1})}));
  expect_error(
      "top_weights has shape [1, 2, 3, 2] but [B, Hq, L, k] is [1, 2, 3, 3]",
      with({.top_keys = key_tensor(keys.data(), {B, H, L, 3}), .top_weights = tensor(out.data(), {B, H, L, 2})}));
  expect_error("top_keys", with({.top_keys = key_tensor(keys.data(), {B, H, L, 3}, {18, 9, 3, 2})}));
  expect_error("mass_queries is [2, 4) but there are 3 queries",
               with({.mass = tensor(out.data(), {B, H, 1, S}), .mass_queries = Span{2, 4}}));
  expect_error("no mass is asked for", with({.mass_queries = Span{0, 1}}));
  expect_error("mass_factor has shape",
               with({.mass = tensor(out.data(), {B, H, 1, S}), .mass_factor = tensor(out.data(), {B, 1, L, 1})}));
  expect_error("row 1 of the list is batch 0, head 2, query 1 but there are 1, 2 and 3",
               with({.entropy = tensor(out.data(), {B, H, L, 1}),
                     .rows = {{0, 0, 0}, {0, 2, 1}},
                     .weights = tensor(out.data(), {1, 1, 2, S})}));
  expect_error("1 rows are listed but weights has no data", with({.rows = {{0, 0, 0}}}));
  expect_error("weights has shape [1, 1, 2, 4] but [1, 1, rows, S] is [1, 1, 1, 4]",
               with({.rows = {{0, 0, 0}}, .weights = tensor(out.data(), {1, 1, 2, S})}));
  Attention paged = a;
  const int32_t table = 0;
  paged.pages = {&table, 1, 1, {4}};
  expect_error("forward alone takes", [&] { probe(paged, l, {}); });
  Plan plan;
  Attention busy = a;
  busy.plan = &plan;
  busy.mask = where([&](int64_t, int64_t, int64_t, int64_t) {
    expect_error("in use", [&] { probe(busy, l, {}); });
    return true;
  });
  probe(busy, l, {});

  const auto roll = [&](std::vector<RolloutLayer> layers, int64_t i, Tensor t) {
    return [=] { rollout_row(layers, i, t); };
  };
  const Attention square{.q = tensor(x.data(), {B, H, L, D}), .k = tensor(x.data(), {B, H, L, D})};
  const Tensor row = tensor(out.data(), {B, 1, 1, L});
  expect_error("0 layers", roll({}, 0, row));
  expect_error("layer 0 has 3 queries and 4 keys", roll({{a, l}}, 0, row));
  expect_error("the query is 3 but there are 3", roll({{square, l}}, 3, row));
  expect_error("out has shape [1, 1, 1, 4]", roll({{square, l}}, 0, tensor(out.data(), {B, 1, 1, 4})));
  expect_error("weights has shape [1, 1, 2, 3]", [&] {
    rollout(tensor(x.data(), {1, 1, 2, 3}), tensor(out.data(), {1, 1, 2, 2}));
  });
  EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float y) { return y == 42; }));
  EXPECT_TRUE(std::all_of(keys.begin(), keys.end(), [](int64_t y) { return y == 42; }));
}

}  // namespace
}  // namespace heed
