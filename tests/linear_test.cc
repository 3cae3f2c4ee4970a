// Linear attention against its recurrence in double, on every SIMD target; gradients also by difference quotients.
#include "linear/linear.h"

#include <gtest/gtest.h>
#include <heed/linear.h>

#include <cstring>

#include "half.h"
#include "problems.h"

namespace heed {
namespace {

using heed::testing::Data;
using heed::testing::error;
using heed::testing::Exact;

// A state's element is a sum over T <= 150 tokens of products below 1 (which decay, or which a delta rule corrects), an
// output one over dk <= 80 channels of those: 150 + 80 roundings of values of size up to 10 in the worst case, which
// come out far smaller; gradients are sums of the same kind, of length G = 3 times as many.
constexpr double kForward = 5e-6, kBackward = 2e-5;

struct Case {
  std::string name;
  int64_t B, Hq, Hkv, T, dk, dv;
  Update update = Update::linear;
  bool per_head = false;     // one decay for all channels
  bool shared_beta = false;  // one for all heads
  bool state = true;
  std::string layout = "bhld";
  std::optional<double> scale = {};
};

std::vector<Case> lattice() {
  std::vector<Case> cases = {
      {"one", 1, 1, 1, 1, 1, 1},
      {"odd", 2, 3, 3, 7, 5, 3},
      {"longer_than_a_tile", 1, 2, 2, 101, 16, 16},
      {"several_chunks", 1, 1, 1, 150, 24, 16, Update::gated},
      {"wide", 1, 2, 2, 40, 80, 150},
      {"grouped", 2, 6, 2, 37, 16, 24},
      {"multi_query", 1, 5, 1, 33, 12, 20, Update::gated},
      {"multi_query_per_head", 1, 5, 1, 33, 12, 70, Update::gated, true},
      {"no_state", 1, 4, 2, 20, 16, 16, Update::gated, false, false, false},
      {"blhd", 2, 4, 2, 35, 16, 16, Update::gated, false, false, true, "blhd"},
      {"gaps", 2, 4, 2, 35, 18, 17, Update::gated, true, false, true, "gaps", -0.7},
      {"wide_gated", 1, 1, 1, 70, 130, 72, Update::gated},
  };
  for (const Update update : {Update::delta, Update::gated_delta})
    for (const bool per_head : {false, true})
      for (const bool shared : {false, true}) {
        const std::string name = std::string(update == Update::delta ? "delta" : "gated_delta") +
                                 (per_head ? "_per_head" : "") + (shared ? "_shared" : "");
        if (update == Update::delta && per_head) continue;
        cases.push_back({name, 2, 3, 3, 37, 24, 20, update, per_head, shared});
        cases.push_back({name + "_grouped", 1, 6, 2, 40, 16, 70, update, per_head, shared, true, "gaps", 0.3});
      }
  return cases;
}

// Keys of length 1, decays between 0.37 and 1 and one in eight 0.
struct Problem {
  Data q, k, v, decay, beta, state, d_out, d_state;
  LinearAttention a;
  Problem(const Case& c, uint64_t seed) {
    std::mt19937_64 random(seed);
    q = Data({c.B, c.Hq, c.T, c.dk}, random, 1, c.layout);
    k = Data({c.B, c.Hkv, c.T, c.dk}, random, 1, c.layout);
    v = Data({c.B, c.Hkv, c.T, c.dv}, random, 1, c.layout);
    d_out = Data({c.B, c.Hq, c.T, c.dv}, random, 1, c.layout);
    d_state = Data({c.B, c.Hkv, c.dk, c.dv}, random, 1, c.layout);
    if (c.state) state = Data({c.B, c.Hkv, c.dk, c.dv}, random, 1, c.layout);
    for (int64_t b = 0; b < c.B; ++b)
      for (int64_t h = 0; h < c.Hkv; ++h)
        for (int64_t t = 0; t < c.T; ++t) {
          double length = 0;
          for (int64_t i = 0; i < c.dk; ++i) length += k.at(b, h, t, i) * k.at(b, h, t, i);
          for (int64_t i = 0; i < c.dk; ++i) k.at(b, h, t, i) /= static_cast<float>(std::sqrt(length));
        }
    if (c.update == Update::gated || c.update == Update::gated_delta) {
      decay = Data({c.B, c.Hkv, c.T, c.per_head ? 1 : c.dk}, random, 1, c.layout);
      for (float& g : decay.values()) g = g > 0.75f ? -INFINITY : -std::fabs(g);
    }
    if (c.update == Update::delta || c.update == Update::gated_delta) {
      beta = Data({c.B, c.shared_beta ? 1 : c.Hkv, c.T, 1}, random, 1, c.layout);
      for (float& x : beta.values()) x = std::fabs(x);
    }
    a = {.q = q.read(),
         .k = k.read(),
         .v = v.read(),
         .update = c.update,
         .decay = decay.read(),
         .beta = beta.read(),
         .state = state.read(),
         .scale = c.scale};
  }
  LinearIncoming incoming() { return {d_out.read(), d_state.read()}; }
};

class Lattice : public ::testing::TestWithParam<std::tuple<std::string, Case>> {
 protected:
  void SetUp() override {
    set_target(std::get<0>(GetParam()));
    ASSERT_EQ(target(), std::get<0>(GetParam()));
  }
  const Case& c() const { return std::get<1>(GetParam()); }
};

TEST_P(Lattice, Forward) {
  Problem p(c(), 1);
  Data out = Data::empty_like(p.d_out), state = Data::empty_like(p.d_state);
  forward(p.a, LinearOutput{out.write(), state.write()});
  Exact want(out.shape()), want_state(state.shape());
  reference::forward(check_linear(p.a, LinearOutput{out.write()}), LinearOutput{want.write(), want_state.write()});
  EXPECT_LT(error(out, want), kForward);
  EXPECT_LT(error(state, want_state), kForward);
  // Without the state.
  Data alone = Data::empty_like(out);
  forward(p.a, LinearOutput{alone.write()});
  EXPECT_EQ(std::memcmp(alone.values().data(), out.values().data(), out.values().size() * sizeof(float)), 0);
}

TEST_P(Lattice, Backward) {
  Problem p(c(), 2);
  Data d_q = Data::empty_like(p.q), d_k = Data::empty_like(p.k), d_v = Data::empty_like(p.v);
  Data d_decay = Data::empty_like(p.decay), d_state = Data::empty_like(p.d_state), d_beta = Data::empty_like(p.beta);
  const LinearGradients got{d_q.write(), d_k.write(), d_v.write(), d_decay.write(), d_state.write(), d_beta.write()};
  backward(p.a, p.incoming(), got);
  Exact q(p.q.shape()), k(p.k.shape()), v(p.v.shape()), decay(p.decay.shape()), state(p.d_state.shape()),
      beta(p.beta.shape());
  reference::backward(check_linear(p.a, p.incoming(), got), p.incoming(),
                      LinearGradients{q.write(), k.write(), v.write(), decay.write(), state.write(), beta.write()});
  EXPECT_LT(error(d_q, q), kBackward);
  EXPECT_LT(error(d_k, k), kBackward);
  EXPECT_LT(error(d_v, v), kBackward);
  EXPECT_LT(error(d_decay, decay), kBackward);
  EXPECT_LT(error(d_state, state), kBackward);
  EXPECT_LT(error(d_beta, beta), kBackward);

  // Each gradient alone has the same bits as all together.
  for (Data* one : {&d_q, &d_k, &d_v, &d_decay, &d_state, &d_beta}) {
    if (one->empty()) continue;
    const std::vector<float> all = one->values();
    *one = Data::empty_like(*one);
    LinearGradients only;
    (one == &d_q       ? only.d_q
     : one == &d_k     ? only.d_k
     : one == &d_v     ? only.d_v
     : one == &d_decay ? only.d_decay
     : one == &d_beta  ? only.d_beta
                       : only.d_state) = one->write();
    backward(p.a, p.incoming(), only);
    EXPECT_EQ(std::memcmp(all.data(), one->values().data(), all.size() * sizeof(float)), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Lattice,
                         ::testing::Combine(::testing::ValuesIn(targets()), ::testing::ValuesIn(lattice())),
                         [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param).name; });

// ---- The reference itself ----

TEST(Reference, AHandMadeStep) {
  // dk = 2, dv = 1, S = (1, 2), g = (ln 1/2, 0), k = (1, 3), v = 5, beta = 1/2, q = (1, 10), scale 2.
  const double q[] = {1, 10}, k[] = {1, 3}, v[] = {5}, beta[] = {0.5}, g[] = {std::log(0.5), 0}, s[] = {1, 2};
  const auto out = [&](Update update) {
    double o = 0;
    LinearAttention a{.q = tensor(q, {1, 1, 1, 2}),
                      .k = tensor(k, {1, 1, 1, 2}),
                      .v = tensor(v, {1, 1, 1, 1}),
                      .update = update,
                      .state = tensor(s, {1, 1, 2, 1}),
                      .scale = 2};
    if (update == Update::gated || update == Update::gated_delta) a.decay = tensor(g, {1, 1, 1, 2});
    if (update == Update::delta || update == Update::gated_delta) a.beta = tensor(beta, {1, 1, 1, 1});
    forward(a, LinearOutput{tensor(&o, {1, 1, 1, 1})});
    return o;
  };
  EXPECT_NEAR(out(Update::linear), 2 * (1 * (1 + 5) + 10 * (2 + 15)), 1e-12);
  EXPECT_NEAR(out(Update::gated), 2 * (1 * (0.5 + 5) + 10 * (2 + 15)), 1e-12);
  // S' k = 1 + 6 = 7, so u = (5 - 7) / 2 = -1; decayed 0.5 + 6 = 6.5 and u = -0.75.
  EXPECT_NEAR(out(Update::delta), 2 * (1 * (1 - 1) + 10 * (2 - 3)), 1e-12);
  EXPECT_NEAR(out(Update::gated_delta), 2 * (1 * (0.5 - 0.75) + 10 * (2 - 2.25)), 1e-12);
}

// One problem in double whose loss is sum(d_out . out) + sum(d_state . last state).
struct Slopes {
  std::vector<Exact> in;  // q, k, v, decay, state, beta
  Exact d_out, d_state;
  LinearAttention a;
  explicit Slopes(Problem& p) : d_out(p.d_out.shape()), d_state(p.d_state.shape()) {
    for (Data* x : {&p.q, &p.k, &p.v, &p.decay, &p.state, &p.beta}) in.push_back(copy(*x));
    d_out = copy(p.d_out);
    d_state = copy(p.d_state);
    for (double& g : in[3].values)
      if (std::isinf(g)) g = -3;
    a = p.a;
    a.q = in[0].write();
    a.k = in[1].write();
    a.v = in[2].write();
    if (p.a.decay.data) a.decay = in[3].write();
    if (p.a.state.data) a.state = in[4].write();
    if (p.a.beta.data) a.beta = in[5].write();
  }
  static Exact copy(Data& x) {
    Exact e(x.shape());
    size_t n = 0;
    for (int64_t b = 0; b < e.shape[0]; ++b)
      for (int64_t h = 0; h < e.shape[1]; ++h)
        for (int64_t i = 0; i < e.shape[2]; ++i)
          for (int64_t d = 0; d < e.shape[3]; ++d) e.values[n++] = x.at(b, h, i, d);
    return e;
  }
  double loss() {
    Exact out(d_out.shape), state(d_state.shape);
    forward(a, LinearOutput{out.write(), state.write()});
    double sum = 0;
    for (size_t n = 0; n < out.values.size(); ++n) sum += out.values[n] * d_out.values[n];
    for (size_t n = 0; n < state.values.size(); ++n) sum += state.values[n] * d_state.values[n];
    return sum;
  }
};

TEST(Reference, GradientsAreSlopes) {
  for (const Case& c : lattice()) {
    if (c.T * c.dk * c.dv > 40 * 40 * 30) continue;
    Problem p(c, 3);
    Slopes s(p);
    std::vector<Exact> d;
    for (const Exact& x : s.in) d.emplace_back(x.shape);
    if (!c.state) d[4] = Exact(s.d_state.shape);
    LinearGradients wanted{d[0].write(), d[1].write(), d[2].write(), d[3].write(), d[4].write(), d[5].write()};
    backward(s.a, LinearIncoming{s.d_out.write(), s.d_state.write()}, wanted);
    for (size_t x = 0; x < s.in.size(); ++x)
      for (size_t n = 0; n < s.in[x].values.size(); n += 1 + s.in[x].values.size() / 7) {
        const double before = s.in[x].values[n], step = 1e-5;
        s.in[x].values[n] = before + step;
        const double above = s.loss();
        s.in[x].values[n] = before - step;
        const double below = s.loss();
        s.in[x].values[n] = before;
        EXPECT_NEAR((above - below) / (2 * step), d[x].values[n], 1e-6) << c.name << " input " << x << " " << n;
      }
  }
}

// ---- What is promised beside the numbers ----

bool same(const Data& a, const Data& b) {
  Data x = a, y = b;
  return x.empty() || std::memcmp(x.values().data(), y.values().data(), x.values().size() * sizeof(float)) == 0;
}

bool has_fma(const std::string& target) { return target != "SSE4" && target != "SCALAR"; }

const std::vector<Update> kAll = {Update::linear, Update::gated, Update::delta, Update::gated_delta};

TEST(Bits, DoNotDependOnThreadsOrTarget) {
  for (const Update update : kAll) {
    const Case c{"", 2, 4, 2, 75, 40, 150, update};
    Problem p(c, 4);
    std::vector<Data> first;
    for (const std::string& target : targets()) {
      set_target(target);
      if (!has_fma(target)) continue;
      for (const int n : {1, 2, 7, 40}) {
        set_threads(n);
        std::vector<Data> now;
        for (const Data* x : {&p.d_out, &p.d_state, &p.q, &p.k, &p.v, &p.decay, &p.d_state, &p.beta})
          now.push_back(Data::empty_like(*x));
        forward(p.a, LinearOutput{now[0].write(), now[1].write()});
        backward(p.a, p.incoming(),
                 LinearGradients{now[2].write(), now[3].write(), now[4].write(), now[5].write(), now[6].write(),
                                 now[7].write()});
        if (first.empty()) first = now;
        for (size_t x = 0; x < now.size(); ++x) EXPECT_TRUE(same(first[x], now[x])) << x << " " << n << " " << target;
      }
    }
  }
  set_threads(2);
}

TEST(Bits, DoNotDependOnHowASequenceIsCut) {
  for (const std::string& target : targets()) {
    set_target(target);
    for (const Update update : kAll) {
      const Case c{"", 1, 4, 2, 75, 20, 36, update};
      Problem p(c, 5);
      Data whole = Data::empty_like(p.d_out), last = Data::empty_like(p.d_state);
      forward(p.a, LinearOutput{whole.write(), last.write()});
      Data cut = Data::empty_like(p.d_out), state = p.state;
      int64_t t0 = 0;
      for (const int64_t n : {1, 1, 3, 40, 30}) {
        const auto part = [&](auto t) {  // tokens [t0, t0 + n); the memory of the state is read and written
          if (!t.data) return t;
          t.data = static_cast<decltype(t.data)>(static_cast<const float*>(t.data) + t0 * t.stride[2]);
          t.shape[2] = n;
          return t;
        };
        LinearAttention a = p.a;
        for (ConstTensor* t : {&a.q, &a.k, &a.v, &a.decay, &a.beta}) *t = part(*t);
        a.state = state.read();
        Tensor out = cut.write();
        out.data = static_cast<float*>(out.data) + t0 * out.stride[2];
        out.shape[2] = n;
        forward(a, LinearOutput{out, state.write()});
        t0 += n;
      }
      EXPECT_TRUE(same(whole, cut)) << target;
      EXPECT_EQ(std::memcmp(last.values().data(), state.values().data(), 2 * 20 * 36 * sizeof(float)), 0) << target;
    }
  }
}

TEST(Dtypes, NarrowOnesRoundOnce) {
  // The f32 results of the same values, rounded, bit for bit.
  for (const std::string& target : targets()) {
    set_target(target);
    for (const DType type : {DType::f16, DType::bf16})
      for (const Update update : kAll) {
        const auto narrow = [&](float x) { return type == DType::f16 ? half_of_float(x) : bfloat_of_float(x); };
        const auto wide = [&](uint16_t x) { return type == DType::f16 ? float_of_half(x) : float_of_bfloat(x); };
        Problem p({"", 1, 4, 2, 37, 20, 21, update}, 6);
        std::vector<std::vector<uint16_t>> kept;
        kept.reserve(8);
        const auto narrowed = [&](Data& x) {
          if (x.empty()) return ConstTensor();
          std::vector<uint16_t>& bits = kept.emplace_back();
          for (float& f : x.values()) {
            bits.push_back(narrow(f));
            f = wide(bits.back());
          }
          return ConstTensor(bits.data(), type, x.shape(), x.stride());
        };
        LinearAttention a = p.a;
        a.q = narrowed(p.q);
        a.k = narrowed(p.k);
        a.v = narrowed(p.v);
        a.decay = narrowed(p.decay);
        LinearIncoming in = p.incoming();
        in.d_out = narrowed(p.d_out);
        Data out = Data::empty_like(p.d_out), d_q = Data::empty_like(p.q), d_decay = Data::empty_like(p.decay);
        Data d_decay2 = d_decay, state = Data::empty_like(p.state), state2 = state;
        std::vector<uint16_t> out2(out.values().size()), d_q2(d_q.values().size());
        forward(p.a, LinearOutput{out.write(), state.write()});
        forward(a, LinearOutput{tensor(out2.data(), type, out.shape()), state2.write()});
        for (int64_t n = 0; n < 4 * 37 * 21; ++n) ASSERT_EQ(out2[n], narrow(out.values()[n]));
        EXPECT_TRUE(same(state, state2));
        backward(p.a, p.incoming(), LinearGradients{.d_q = d_q.write(), .d_decay = d_decay.write()});
        backward(a, in, LinearGradients{.d_q = tensor(d_q2.data(), type, d_q.shape()), .d_decay = d_decay2.write()});
        for (int64_t n = 0; n < 4 * 37 * 20; ++n) ASSERT_EQ(d_q2[n], narrow(d_q.values()[n]));
        EXPECT_TRUE(d_decay.empty() || same(d_decay, d_decay2));
      }
  }
}

TEST(Decay, OfAnySize) {
  // exp(g) itself is seen in S when q, S are 1 and k is 0.
  for (const std::string& target : targets()) {
    set_target(target);
    for (const float g : {0.0f, -1e-7f, -0.3f, -1.0f, -20.0f, -80.0f, -INFINITY, 0.5f, 3.0f, 80.0f, 88.0f}) {
      std::vector<float> one(1, 1.0f), zero(1, 0.0f), o(1), gate(1, g);
      const Shape s{1, 1, 1, 1};
      forward(LinearAttention{.q = tensor(one.data(), s),
                              .k = tensor(zero.data(), s),
                              .v = tensor(one.data(), s),
                              .update = Update::gated,
                              .decay = tensor(gate.data(), s),
                              .state = tensor(one.data(), s)},
              LinearOutput{tensor(o.data(), s)});
      const double want = std::exp(double{g});
      EXPECT_LE(std::fabs(o[0] - want), 2.5e-7 * want) << g << " " << target;
    }
  }
}

TEST(Tokens, NoneAtAll) {
  std::mt19937_64 random(7);
  Data state({1, 2, 3, 4}, random), last = Data::empty_like(state), d_state = Data::empty_like(state);
  float none = 0;
  const LinearAttention a{.q = tensor(&none, {1, 2, 0, 3}),
                          .k = tensor(&none, {1, 2, 0, 3}),
                          .v = tensor(&none, {1, 2, 0, 4}),
                          .state = state.read()};
  forward(a, LinearOutput{tensor(&none, {1, 2, 0, 4}), last.write()});
  backward(a, LinearIncoming{tensor(&none, {1, 2, 0, 4}), state.read()}, LinearGradients{.d_state = d_state.write()});
  for (int n = 0; n < 24; ++n) {
    EXPECT_EQ(last.values()[n], state.values()[n]);
    EXPECT_EQ(d_state.values()[n], state.values()[n]);
  }
}

// ---- Bad arguments ----

class Says : public ::testing::Test {
 protected:
  Problem p{{"", 2, 4, 2, 5, 3, 6, Update::gated_delta}, 8};
  Data out = p.d_out, state = p.d_state;
  template <class Call>
  static std::string said(Call&& call) {
    try {
      call();
    } catch (const Error& e) {
      return e.what();
    }
    return "nothing";
  }
  std::string says(const LinearOutput& result) {
    for (float& x : out.values()) x = 42;
    const std::string text = said([&] { forward(p.a, result); });
    for (const float x : out.values()) EXPECT_TRUE(text == "nothing" || x == 42);
    return text;
  }
  std::string says() { return says({out.write(), state.write()}); }
};

TEST_F(Says, Sizes) {
  EXPECT_EQ(says(), "nothing");
  const LinearAttention good = p.a;
  p.a.q = {};
  EXPECT_EQ(says(), "q has no data; give a tensor");
  p.a = good;
  p.a.k.shape[1] = 3;
  EXPECT_EQ(says(), "k has 3 heads; q's 4 heads need a divisor of 4");
  p.a.k.shape[1] = 0;
  EXPECT_EQ(says(), "q has 4 heads and k has 0; both need at least 1");
  p.a = good;
  p.a.k.shape[2] = 4;
  EXPECT_EQ(says(), "k has shape [2, 2, 4, 3] but q's batch, length and head size with k's heads is [2, 2, 5, 3]");
  p.a = good;
  p.a.v.shape[1] = 1;
  EXPECT_EQ(says(), "v has shape [2, 1, 5, 6] but k's batch, heads and length with v's head size is [2, 2, 5, 6]");
  p.a = good;
  p.a.v.dtype = DType::bf16;
  EXPECT_EQ(says(), "v is bf16 but q is f32; all tensors of a call share one dtype");
  p.a = good;
  p.a.v.stride[3] = 2;
  EXPECT_EQ(says(),
            "v's last dimension has stride 2; it must be contiguous (stride 1), so copy it or pass it transposed");
  p.a = good;
  p.a.scale = INFINITY;
  EXPECT_EQ(says(), "scale is inf; it must be a finite number");
  p.a.scale = {};
  p.a.update = static_cast<Update>(9);
  EXPECT_EQ(says(), "update is number 9; it must be linear (0), gated (1), delta (2) or gated_delta (3)");
}

TEST_F(Says, GatesBetasAndStates) {
  const LinearAttention good = p.a;
  p.a.decay = {};
  EXPECT_EQ(says(), "a gated update needs decay, of shape [2, 2, 5, 3 or 1]");
  p.a = good;
  p.a.update = Update::delta;
  EXPECT_EQ(says(), "decay is given but the update has no gate; leave it out or set update to gated or gated_delta");
  p.a = good;
  p.a.decay.shape[3] = 2;
  EXPECT_EQ(says(), "decay has shape [2, 2, 5, 2] but [B, Hkv, T, dk or 1] is [2, 2, 5, 3]");
  p.a = good;
  p.a.decay.dtype = DType::f16;
  EXPECT_EQ(says(), "decay is f16 but q is f32; all tensors of a call share one dtype");
  p.a = good;
  p.a.beta = {};
  EXPECT_EQ(says(), "a delta update needs beta, of shape [2, 2 or 1, 5, 1]");
  p.a = good;
  p.a.update = Update::gated;
  EXPECT_EQ(says(),
            "beta is given but the update is not a delta rule; leave it out or set update to delta or gated_delta");
  p.a = good;
  p.a.beta.shape[2] = 4;
  EXPECT_EQ(says(), "beta has shape [2, 2, 4, 1] but [B, Hkv or 1, T, 1] is [2, 2, 5, 1]");
  p.a = good;
  p.a.beta.dtype = DType::f64;
  EXPECT_EQ(says(), "beta is f64 but q is f32; all tensors of a call share one dtype");
  p.a = good;
  p.a.state.shape[3] = 5;
  EXPECT_EQ(says(), "state has shape [2, 2, 3, 5] but [B, Hkv, dk, dv] is [2, 2, 3, 6]");
  p.a = good;
  p.a.state.dtype = DType::f16;
  EXPECT_EQ(says(), "state is f16 but for q of f32 it must be f32");
}

TEST_F(Says, Results) {
  EXPECT_EQ(says({}), "out has no data; give a tensor");
  Tensor t = out.write();
  t.shape[1] = 2;
  EXPECT_EQ(says({t}), "out has shape [2, 2, 5, 6] but [B, Hq, T, dv] is [2, 4, 5, 6]");
  t = out.write();
  t.stride[0] = 0;
  EXPECT_EQ(says({t}), "out is written but its axis 0 of size 2 has stride 0; give it memory of its own");
  t = state.write();
  t.shape[2] = 4;
  EXPECT_EQ(says({out.write(), t}), "the result's state has shape [2, 2, 4, 6] but [B, Hkv, dk, dv] is [2, 2, 3, 6]");
  t = state.write();
  t.stride[1] = 0;
  EXPECT_EQ(says({out.write(), t}),
            "the result's state is written but its axis 1 of size 2 has stride 0; give it memory of its own");
}

TEST_F(Says, Backward) {
  const auto backward_says = [&](const LinearIncoming& in, const LinearGradients& g) {
    return said([&] { backward(p.a, in, g); });
  };
  Data d_q = p.q, d_k = p.k, d_v = p.v, d_decay = p.decay, d_state = p.state, d_beta = p.beta;
  LinearGradients good{d_q.write(), d_k.write(), d_v.write(), d_decay.write(), d_state.write(), d_beta.write()};
  EXPECT_EQ(backward_says(p.incoming(), good), "nothing");
  LinearIncoming in = p.incoming();
  in.d_out = {};
  EXPECT_EQ(backward_says(in, good), "d_out has no data; give a tensor");
  in = p.incoming();
  in.d_state.shape[2] = 2;
  EXPECT_EQ(backward_says(in, good),
            "the incoming d_state has shape [2, 2, 2, 6] but [B, Hkv, dk, dv] is [2, 2, 3, 6]");
  const auto with = [&](auto field) {
    LinearGradients g = good;
    (g.*field).shape[2] += 1;
    return backward_says(p.incoming(), g);
  };
  EXPECT_EQ(with(&LinearGradients::d_q), "d_q has shape [2, 4, 6, 3] but q's shape is [2, 4, 5, 3]");
  EXPECT_EQ(with(&LinearGradients::d_k), "d_k has shape [2, 2, 6, 3] but k's shape is [2, 2, 5, 3]");
  EXPECT_EQ(with(&LinearGradients::d_v), "d_v has shape [2, 2, 6, 6] but v's shape is [2, 2, 5, 6]");
  EXPECT_EQ(with(&LinearGradients::d_decay), "d_decay has shape [2, 2, 6, 3] but decay's shape is [2, 2, 5, 3]");
  EXPECT_EQ(with(&LinearGradients::d_beta), "d_beta has shape [2, 2, 6, 1] but beta's shape is [2, 2, 5, 1]");
  EXPECT_EQ(with(&LinearGradients::d_state), "d_state has shape [2, 2, 4, 6] but [B, Hkv, dk, dv] is [2, 2, 3, 6]");
  LinearGradients g = good;
  g.d_decay.dtype = DType::f16;
  EXPECT_EQ(backward_says(p.incoming(), g), "d_decay is f16 but for q of f32 it must be f32");
  p.a.update = Update::gated;
  p.a.beta = {};
  EXPECT_EQ(backward_says(p.incoming(), good), "d_beta is asked for but there is no beta; leave it out");
  good.d_beta = {};
  p.a.update = Update::linear;
  p.a.decay = {};
  EXPECT_EQ(backward_says(p.incoming(), good), "d_decay is asked for but there is no decay; leave it out");
}

}  // namespace
}  // namespace heed
