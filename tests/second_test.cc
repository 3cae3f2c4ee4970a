// jvp and double_backward: the reference against difference quotients of its own forward and backward, the engine
// against the reference over the generated lattice on every SIMD target, and what is promised beside the numbers.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <cstring>
#include <functional>

#include "check.h"
#include "lattice.h"
#include "problems.h"
#include "reference.h"

namespace heed {
namespace {

using heed::testing::Arriving;
using heed::testing::Asked;
using heed::testing::Data;
using heed::testing::Drawn;
using heed::testing::Given;
using heed::testing::lattice;
using heed::testing::Numbers;
using heed::testing::Wanted;

// ---- The reference, in f64, against difference quotients ----

// A dense tensor of doubles; without a shape it is not given.
struct Doubles {
  Shape shape{};
  std::vector<double> x;

  Doubles() = default;
  Doubles(Shape s, std::mt19937& random, double spread) : shape(s), x(s[0] * s[1] * s[2] * s[3]) {
    std::uniform_real_distribution<double> uniform(-spread, spread);
    for (double& y : x) y = uniform(random);
  }
  Tensor view() { return x.empty() ? Tensor{} : tensor(x.data(), shape); }
};

double dot(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (size_t i = 0; i < a.x.size(); ++i) sum += a.x[i] * b.x[i];
  return sum;
}

// All that a derivative can be taken of, in the order of SecondGradients.
enum Which { kQ, kK, kV, kBias, kAlibi, kSinks, kDOut, kDLse, kAll };
const char* const kNames[kAll] = {"q", "k", "v", "bias", "alibi", "sinks", "d_out", "d_lse"};
constexpr int kInputs = kDOut;  // those of forward

using Point = std::array<Doubles, kAll>;

struct SmallProblem {
  Drawn c;
  Point x;  // where the derivatives are taken

  // Every option is on in about half of them, and so is each of the inputs that may be left out.
  explicit SmallProblem(uint32_t seed) {
    std::mt19937 random(seed);
    const auto some = [&](int64_t from, int64_t to) { return from + static_cast<int64_t>(random() % (to - from + 1)); };
    c = {};
    c.B = some(1, 2), c.Hkv = some(1, 2), c.Hq = c.Hkv * some(1, 2), c.L = some(1, 4), c.S = some(1, 6);
    c.D = some(1, 3), c.Dv = some(1, 3);
    const Mask masks[] = {{}, causal(), causal(0), causal() & window(2, -1), lengths(std::vector<int64_t>(c.B, 2))};
    c.mask = masks[random() % 5];
    if (random() % 2) c.softcap = 1.5;
    if (random() % 2) c.dropout = 0.3;
    x[kQ] = {{c.B, c.Hq, c.L, c.D}, random, 2};
    x[kK] = {{c.B, c.Hkv, c.S, c.D}, random, 2};
    x[kV] = {{c.B, c.Hkv, c.S, c.Dv}, random, 1};
    const auto one_or = [&](int64_t n) { return random() % 2 ? 1 : n; };
    if (random() % 2) x[kBias] = {{one_or(c.B), one_or(c.Hq), one_or(c.L), one_or(c.S)}, random, 2};
    if (random() % 2) x[kAlibi] = {{1, one_or(c.Hq), 1, 1}, random, 1};
    if (random() % 2) x[kSinks] = {{1, one_or(c.Hq), 1, 1}, random, 2};
    x[kDOut] = {{c.B, c.Hq, c.L, c.Dv}, random, 1};
    if (random() % 2) x[kDLse] = {{c.B, c.Hq, c.L, 1}, random, 1};
  }

  Attention at(Point& y) const {
    return {.q = y[kQ].view(),
            .k = y[kK].view(),
            .v = y[kV].view(),
            .scale = 0.8,
            .softcap = c.softcap,
            .bias = y[kBias].view(),
            .alibi = y[kAlibi].view(),
            .mask = c.mask,
            .sinks = y[kSinks].view(),
            .dropout = c.dropout,
            .seed = 3};
  }

  // A random direction in the inputs' space, or of one of them.
  Point direction(std::mt19937& random, int of = kAll) const {
    Point u;
    for (int i = 0; i < kAll; ++i)
      if (!x[i].x.empty() && (of == kAll || of == i)) u[i] = {x[i].shape, random, 1};
    return u;
  }
  Point moved(const Point& u, double t) const {
    Point y = x;
    for (int i = 0; i < kAll; ++i)
      for (size_t n = 0; n < u[i].x.size(); ++n) y[i].x[n] += t * u[i].x[n];
    return y;
  }
};

Tangents tangents(Point& u) {
  return {u[kQ].view(), u[kK].view(), u[kV].view(), u[kBias].view(), u[kAlibi].view(), u[kSinks].view()};
}

// out, then lse, with -inf, which no difference can be taken of, as 0.
std::vector<double> forward_at(const SmallProblem& p, Point y) {
  std::vector<double> all(y[kDOut].x.size() + p.c.B * p.c.Hq * p.c.L);
  forward(p.at(y),
          {tensor(all.data(), y[kDOut].shape), tensor(all.data() + y[kDOut].x.size(), {p.c.B, p.c.Hq, p.c.L, 1})});
  for (double& v : all)
    if (std::isinf(v)) v = 0;
  return all;
}

// The sum of what backward gives times dd.
double backward_times(const SmallProblem& p, Point y, const Point& dd) {
  std::vector<double> lse(p.c.B * p.c.Hq * p.c.L);
  Doubles out = y[kDOut];
  const Tensor l = tensor(lse.data(), {p.c.B, p.c.Hq, p.c.L, 1});
  forward(p.at(y), {out.view(), l});
  Point d = dd;  // the same shapes
  backward(p.at(y), {out.view(), l, y[kDOut].view(), y[kDLse].view()},
           {d[kQ].view(), d[kK].view(), d[kV].view(), {}, d[kBias].view(), d[kAlibi].view(), d[kSinks].view()});
  double sum = 0;
  for (int i = 0; i < kInputs; ++i) sum += dot(d[i], dd[i]);
  return sum;
}

// f' by central differences at two steps, extrapolated: their errors are those of the fourth power of a step and of
// rounding, both below 1e-10 of the values here.
double difference(const std::function<double(double)>& f) {
  const double e = 1e-3;
  const double wide = (f(e) - f(-e)) / (2 * e), narrow = (f(e / 2) - f(-e / 2)) / e;
  return (4 * narrow - wide) / 3;
}
constexpr double kDifference = 1e-8;

TEST(Reference, JvpIsADifferenceQuotient) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    const SmallProblem p(seed);
    std::mt19937 random(seed);
    // Along one input, or all at once.
    Point u = p.direction(random, seed % 2 ? kAll : static_cast<int>(seed / 2 % kInputs)), here = p.x;
    const int64_t n = p.x[kDOut].x.size(), rows = p.c.B * p.c.Hq * p.c.L;
    std::vector<double> got(n + rows, NAN), lse(rows);
    Doubles out = p.x[kDOut];
    const Shape row{p.c.B, p.c.Hq, p.c.L, 1};
    forward(p.at(here), {out.view(), tensor(lse.data(), row)});
    jvp(p.at(here), tensor(lse.data(), row), tangents(u), {tensor(got.data(), out.shape), tensor(got.data() + n, row)});
    for (int64_t i = 0; i < n + rows; ++i)
      EXPECT_NEAR(got[i], difference([&](double t) { return forward_at(p, p.moved(u, t))[i]; }), kDifference) << i;
  }
}

TEST(Reference, DoubleBackwardIsADifferenceQuotient) {
  for (uint32_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    const SmallProblem p(seed);
    std::mt19937 random(seed + 1);
    // dd at one gradient of the first order, or at all; an odd problem has no dd for some.
    Point dd = p.direction(random, seed % 3 ? kAll : static_cast<int>(seed / 3 % kInputs)), here = p.x, d = p.x;
    dd[kDOut] = dd[kDLse] = {};
    d[kDLse] = {{p.c.B, p.c.Hq, p.c.L, 1}, random, 1};  // wanted whether or not there was a gradient of lse
    for (Doubles& x : d) std::fill(x.x.begin(), x.x.end(), NAN);
    std::vector<double> lse(p.c.B * p.c.Hq * p.c.L);
    Doubles out = p.x[kDOut];
    const Tensor l = tensor(lse.data(), {p.c.B, p.c.Hq, p.c.L, 1});
    forward(p.at(here), {out.view(), l});
    double_backward(p.at(here), {out.view(), l, here[kDOut].view(), here[kDLse].view()}, tangents(dd),
                    {d[kQ].view(), d[kK].view(), d[kV].view(), d[kBias].view(), d[kAlibi].view(), d[kSinks].view(),
                     d[kDOut].view(), d[kDLse].view()});
    SmallProblem with = p;
    if (with.x[kDLse].x.empty()) {
      with.x[kDLse] = d[kDLse];
      std::fill(with.x[kDLse].x.begin(), with.x[kDLse].x.end(), 0.0);
    }
    for (int i = 0; i < kAll; ++i) {
      if (with.x[i].x.empty()) continue;
      for (int round = 0; round < 2; ++round) {
        const Point u = with.direction(random, i);
        const double want = difference([&](double t) { return backward_times(with, with.moved(u, t), dd); });
        EXPECT_NEAR(dot(d[i], u[i]), want, kDifference * (1 + std::fabs(want))) << kNames[i];
      }
    }
  }
}

// ---- The engine against the reference ----

// Rounding adds up over more steps than in the backward: scores, weights and their tangents each enter twice. Every
// dtype has the same bound: out, which comes in rounded, is only where the sums over a row begin.
constexpr double kSecond = 3e-5;
constexpr double kSlope = 1e-5;  // of a slope's, relative to the sum of what it is the sum of

TEST(Engine, AgainstTheReference) {
  int index = 0;
  double most = 0;
  for (Drawn c : lattice(20261127)) {
    c.mod = c.sigmoid = false;  // of which there are no second derivatives
    SCOPED_TRACE(c.name);
    std::mt19937 random(index);
    Given x(c, random);
    const Attention a = x.problem(c);
    Arriving arriving(c, random);
    // A tangent of most inputs that are there.
    Numbers along[6];
    const Numbers* of[6] = {&x.q, &x.k, &x.v, &x.bias, &x.alibi, &x.sinks};
    for (int i = 0; i < 6; ++i) {
      const DType dtype = i >= kBias && random() % 2 ? DType::f32 : c.dtype;
      if (of[i]->given() && random() % 4) along[i] = Numbers(of[i]->shape, dtype, random, i == kAlibi ? 0.1f : 1);
    }
    const Incoming in = arriving.in();
    const Tangents dd{along[kQ].write(),    along[kK].write(),     along[kV].write(),
                      along[kBias].write(), along[kAlibi].write(), along[kSinks].write()};

    Asked<SecondGradients> asked;
    asked.want("d_q", &SecondGradients::d_q, x.q, c.dtype, random);
    asked.want("d_k", &SecondGradients::d_k, x.k, c.dtype, random);
    asked.want("d_v", &SecondGradients::d_v, x.v, c.dtype, random);
    asked.want("d_bias", &SecondGradients::d_bias, x.bias, c.dtype, random, true);
    asked.want("d_alibi", &SecondGradients::d_alibi, x.alibi, c.dtype, random, true);
    asked.want("d_sinks", &SecondGradients::d_sinks, x.sinks, c.dtype, random, true);
    asked.want("d_d_out", &SecondGradients::d_d_out, arriving.d_out, c.dtype, random);
    asked.want("d_d_lse", &SecondGradients::d_d_lse, arriving.lse, c.dtype, random, true);
    std::vector<Wanted>& wanted = asked.all;
    const Problem p = check_double_backward(a, in, dd, asked.g);
    reference::double_backward(p, in, dd, asked.exact);
    // A slope's gradient is a sum over pairs of (gradient of the score) * distance that nearly cancels: its error is
    // relative to what it would be if nothing did. As the gradient of a bias of every pair's own, that of each score.
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (asked.members[i] != &SecondGradients::d_alibi) continue;
      const Shape pairs{c.B, c.Hq, c.L, c.S};
      std::vector<double> bias(c.B * c.Hq * c.L * c.S + 1), of_scores(bias.size());
      Attention with = a;
      with.bias = tensor(bias.data(), pairs);
      int64_t n = 0;
      for (int64_t b = 0; b < c.B; ++b)
        for (int64_t h = 0; h < c.Hq; ++h)
          for (int64_t y = 0; y < c.L; ++y)
            for (int64_t j = 0; j < c.S; ++j, ++n)
              if (p.a.bias.data) bias[n] = reference::at(p.a.bias, b, h, y, j);
      SecondGradients one;
      one.d_bias = tensor(of_scores.data(), pairs);
      reference::double_backward({with, p.B, p.Hq, p.Hkv, p.group, p.L, p.S, p.D, p.Dv, p.scale}, in, dd, one);
      n = 0;
      for (int64_t row = 0; row < c.B * c.Hq * c.L; ++row)
        for (int64_t j = 0; j < c.S; ++j, ++n)
          wanted[i].scale += std::fabs(of_scores[n] * static_cast<double>(j - (row % c.L + c.S - c.L)));
    }

    for (const std::string& t : targets()) {
      SCOPED_TRACE(t);
      set_target(t);
      ASSERT_EQ(target(), t);  // the code that answers is the code that runs
      forward(a, arriving.result());
      asked.poison();
      double_backward(a, in, dd, asked.g);
      for (const Wanted& one : wanted) {
        // What a slope's tangent makes of scores has the keys' distance as a factor.
        const double far = static_cast<double>(std::max(c.L, c.S));
        const bool slope = asked.members[&one - wanted.data()] == &SecondGradients::d_alibi;
        EXPECT_LT(one.error(), slope ? kSlope : kSecond * (along[kAlibi].given() ? 1 + far / 64 : 1)) << one.name;
        most = std::fmax(most, one.error());
      }
      // jvp is d_out's and lse's part of it.
      Numbers t_out(arriving.so, c.dtype, random, 1), t_lse(arriving.sl, DType::f32, random, 1);
      jvp(a, arriving.lse.write(), dd, {t_out.write(), t_lse.write()});
      EXPECT_TRUE(wanted[wanted.size() - 2].same(t_out));
      EXPECT_TRUE(wanted.back().same(t_lse));
      // What is not wanted is not written, and what is comes out the same without the rest.
      for (size_t i = index % 3; i < wanted.size(); i += 3) {
        Numbers alone(wanted[i].got.shape, wanted[i].dtype, random, 1);
        SecondGradients one;
        one.*asked.members[i] = alone.write();
        double_backward(a, in, dd, one);
        EXPECT_TRUE(wanted[i].same(alone)) << wanted[i].name << " alone";
      }
    }
    ++index;
  }
  set_target(targets()[0]);
  RecordProperty("largest_error", std::to_string(most));
}

// ---- What is promised beside the numbers ----

struct Results {
  std::vector<Data> d;  // in the order of SecondGradients
  bool operator==(const Results& o) const {
    for (size_t i = 0; i < d.size(); ++i) {
      const auto &x = const_cast<Data&>(d[i]).values(), &y = const_cast<Data&>(o.d[i]).values();
      if (x.size() != y.size() || (!x.empty() && std::memcmp(x.data(), y.data(), 4 * x.size()) != 0)) return false;
    }
    return true;
  }
};

// Everything at once, in f32, over several tiles and blocks of keys.
struct Full {
  int64_t B = 3, Hq = 4, Hkv = 2, L = 130, S = 300, D = 24, Dv = 40;
  Data q, k, v, bias, alibi, sinks, d_out, d_lse, t_q, t_k, t_v, t_bias, t_alibi, t_sinks, out, lse;
  double softcap = 4, dropout = 0.2;
  Mask mask;
  Plan* plan = nullptr;

  explicit Full(Shape bias_shape, const std::string& layout = "bhld") {
    mask = causal() & window(200, -1) & lengths({300, 250, 170});
    uint64_t seed = 0;  // each tensor from a seed of its own: the same numbers in any layout
    const auto make = [&](Shape shape, double spread) {
      std::mt19937_64 random(++seed);
      Data dense(shape, random, spread), laid(shape, random, spread, layout);
      for (int64_t b = 0; b < shape[0]; ++b)
        for (int64_t h = 0; h < shape[1]; ++h)
          for (int64_t i = 0; i < shape[2]; ++i)
            for (int64_t x = 0; x < shape[3]; ++x) laid.at(b, h, i, x) = dense.at(b, h, i, x);
      return laid;
    };
    const Shape sq{B, Hq, L, D}, sk{B, Hkv, S, D}, sv{B, Hkv, S, Dv}, so{B, Hq, L, Dv}, sl{B, Hq, L, 1};
    const Shape heads{1, Hq, 1, 1}, one{1, 1, 1, 1};
    q = make(sq, 3), k = make(sk, 3), v = make(sv, 1), d_out = make(so, 1), d_lse = make(sl, 1);
    bias = make(bias_shape, 1), alibi = make(heads, 0.1), sinks = make(one, 1);
    t_q = make(sq, 1), t_k = make(sk, 1), t_v = make(sv, 1);
    t_bias = make(bias_shape, 1), t_alibi = make(heads, 0.1), t_sinks = make(one, 1);
    out = Data::empty_like(d_out), lse = Data::empty_like(d_lse);
  }
  Attention problem() {
    return {.q = q.read(),
            .k = k.read(),
            .v = v.read(),
            .softcap = softcap,
            .bias = bias.read(),
            .alibi = alibi.read(),
            .mask = mask,
            .sinks = sinks.read(),
            .dropout = dropout,
            .plan = plan};
  }
  Tangents along() { return {t_q.read(), t_k.read(), t_v.read(), t_bias.read(), t_alibi.read(), t_sinks.read()}; }
  Results run() {
    forward(problem(), {out.write(), lse.write()});
    Results r;
    for (Data* x : {&q, &k, &v, &bias, &alibi, &sinks, &d_out, &d_lse}) r.d.push_back(Data::empty_like(*x));
    double_backward(problem(), {out.read(), lse.read(), d_out.read(), d_lse.read()}, along(),
                    {r.d[0].write(), r.d[1].write(), r.d[2].write(), r.d[3].write(), r.d[4].write(), r.d[5].write(),
                     r.d[6].write(), r.d[7].write()});
    return r;
  }
};

const Shape kBiases[] = {{1, 4, 130, 300}, {1, 1, 130, 300}, {3, 1, 1, 300},
                         {1, 4, 130, 1},   {1, 1, 1, 300},   {1, 1, 1, 1}};

TEST(Bits, SameForAnyThreadCount) {
  for (const Shape& bias : kBiases) {
    Full s(bias);
    for (const std::string& t : targets()) {
      set_target(t);
      set_threads(1);
      const Results one = s.run();
      for (int n = 2; n <= 8; ++n) {
        set_threads(n);
        EXPECT_TRUE(s.run() == one) << t << " with " << n << " threads";
      }
    }
  }
  set_threads(2);
  set_target(targets()[0]);
}

TEST(Bits, SameOnEveryTargetWithFma) {
  std::vector<std::string> fma;
  for (const std::string& t : targets())
    if (t != "SSE4" && t != "SCALAR") fma.push_back(t);
  if (fma.size() < 2) GTEST_SKIP() << "this machine has " << fma.size() << " targets with FMA; two are needed";
  Full s(kBiases[0]);
  set_target(fma[0]);
  const Results first = s.run();
  for (const std::string& t : fma) {
    set_target(t);
    EXPECT_TRUE(s.run() == first) << t << " against " << fma[0];
  }
  set_target(targets()[0]);
}

TEST(Bits, SameInAnyLayoutAndWithAnyPlan) {
  Plan plan;
  for (const Shape& bias : {kBiases[0], kBiases[4]}) {
    Full dense(bias);
    Results want = dense.run();
    for (const char* layout : {"blhd", "gaps"}) {
      Full s(bias, layout);
      s.plan = &plan;
      for (int again = 0; again < 2; ++again) {
        Results got = s.run();
        for (size_t x = 0; x < got.d.size(); ++x) {
          const Shape n = got.d[x].shape();
          for (int64_t b = 0; b < n[0]; ++b)
            for (int64_t h = 0; h < n[1]; ++h)
              for (int64_t i = 0; i < n[2]; ++i)
                for (int64_t e = 0; e < n[3]; ++e)
                  ASSERT_EQ(got.d[x].at(b, h, i, e), want.d[x].at(b, h, i, e)) << layout << " " << kNames[x];
        }
        // The plan's memory has another use meanwhile.
        Data d_q = Data::empty_like(s.q), d_k = Data::empty_like(s.k);
        backward(s.problem(), {s.out.read(), s.lse.read(), s.d_out.read()}, {.d_q = d_q.write(), .d_k = d_k.write()});
      }
    }
  }
}

class EveryTarget : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_target(GetParam()); }
  void TearDown() override { set_target(targets()[0]); }
};

// NaN in what a mask hides, keys nobody sees and rows that see nothing, changes no bit.
TEST_P(EveryTarget, MaskedMeansUnread) {
  const auto with = [](float hidden) {
    Full s({1, 4, 130, 300});
    // Rows below 3 see nothing, nor does row 40; keys from 80 on are hidden in batch 2.
    s.mask = causal(-3) & lengths({300, 250, 80});
    for (int64_t h = 0; h < s.Hq; ++h)
      for (int64_t j = 0; j < s.S; ++j) s.bias.at(0, h, 40, j) = -INFINITY;
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t h = 0; h < s.Hq; ++h)
        for (const int64_t i : {0, 1, 2, 40}) {
          // With row 40, whose scores were computed before its bias hid them, only what is not part of them.
          for (int64_t x = 0; x < s.D && i < 40; ++x) s.q.at(b, h, i, x) = s.t_q.at(b, h, i, x) = hidden;
          for (int64_t x = 0; x < s.Dv; ++x) s.d_out.at(b, h, i, x) = hidden;
          s.d_lse.at(b, h, i, 0) = hidden;
        }
      for (int64_t h = 0; h < s.Hkv; ++h)
        for (int64_t j = b == 2 ? 80 : 127; j < s.S; ++j) {
          for (int64_t x = 0; x < s.D; ++x) s.k.at(b, h, j, x) = s.t_k.at(b, h, j, x) = hidden;
          for (int64_t x = 0; x < s.Dv; ++x) s.v.at(b, h, j, x) = s.t_v.at(b, h, j, x) = hidden;
        }
    }
    // A row without keys is one with its sink alone, and the sink's score takes part in d_lse.
    s.sinks = s.t_sinks = Data();
    return s;
  };
  Full clean = with(0), poisoned = with(NAN);
  Results want = clean.run(), got = poisoned.run();
  EXPECT_TRUE(want == got);
  for (const int64_t i : {0, 1, 2, 40}) {  // rows that see nothing
    for (int64_t x = 0; x < clean.D; ++x) EXPECT_EQ(got.d[kQ].at(1, 1, i, x), 0.0f);
    for (int64_t x = 0; x < clean.Dv; ++x) EXPECT_EQ(got.d[kDOut].at(1, 1, i, x), 0.0f);
    EXPECT_EQ(got.d[kDLse].at(1, 1, i, 0), 0.0f);
  }
  for (int64_t x = 0; x < clean.D; ++x) EXPECT_EQ(got.d[kK].at(2, 0, 90, x), 0.0f);
  for (int64_t x = 0; x < clean.Dv; ++x) EXPECT_EQ(got.d[kV].at(2, 0, 90, x), 0.0f);
}

// A key that some rows see and others do not: what others give is as if it were not there.
TEST_P(EveryTarget, ANanSomeRowsSeeStaysInThem) {
  Full s({1, 4, 130, 300});
  s.mask = causal();  // row i sees keys up to i + 170
  s.dropout = 0;
  Results want = s.run();
  for (int64_t x = 0; x < s.D; ++x) s.k.at(0, 0, 250, x) = s.t_k.at(0, 0, 250, x) = NAN;
  Results got = s.run();
  for (int64_t h = 0; h < s.Hq; ++h)
    for (int64_t i = 0; i < s.L; ++i)
      for (int64_t x = 0; x < s.D; ++x) {
        const float y = got.d[kQ].at(0, h, i, x);
        if (h < 2 && i >= 80)
          EXPECT_TRUE(std::isnan(y)) << h << " " << i;
        else
          EXPECT_EQ(y, want.d[kQ].at(0, h, i, x)) << h << " " << i;
      }
}

// Gradients that are as large as they are because a and the tangents have a large mean: where out is taken off first,
// their covariance keeps its digits.
TEST_P(EveryTarget, LargeMeansCancel) {
  const int64_t L = 7, S = 300, D = 16;
  std::mt19937_64 random(9);
  const Shape sq{1, 1, L, D}, sk{1, 1, S, D}, sl{1, 1, L, 1};
  Data q(sq, random), k(sk, random), v(sk, random), d_out(sq, random), t_q(sq, random), t_k(sk, random),
      t_v(sk, random);
  for (float& x : v.values()) x += 100;
  for (float& x : d_out.values()) x += 2;
  for (float& x : t_k.values()) x += 100;
  for (float& x : q.values()) x += 2;
  Data out = Data::empty_like(q), lse(sl, random), d_q = out, d_k = Data::empty_like(k);
  const Attention a{.q = q.read(), .k = k.read(), .v = v.read()};
  forward(a, {out.write(), lse.write()});
  const Incoming in{out.read(), lse.read(), d_out.read()};
  const Tangents dd{t_q.read(), t_k.read(), t_v.read()};
  const SecondGradients g{d_q.write(), d_k.write()};
  double_backward(a, in, dd, g);
  heed::testing::Exact exact_q(sq), exact_k(sk);
  reference::double_backward(check_double_backward(a, in, dd, g), in, dd, {exact_q.write(), exact_k.write()});
  double size = 0;
  for (const double x : exact_q.values) size = std::fmax(size, std::fabs(x));
  for (int64_t i = 0; i < L; ++i)
    for (int64_t x = 0; x < D; ++x)
      EXPECT_NEAR(d_q.at(0, 0, i, x), exact_q.values[i * D + x], 1e-4 * size) << "of " << size;
}

INSTANTIATE_TEST_SUITE_P(Targets, EveryTarget, ::testing::ValuesIn(targets()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace heed
