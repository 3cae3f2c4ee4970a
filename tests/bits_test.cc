// The contract on bits (docs/design.md, section 2): an output row depends on its own query and the keys and values it
// sees, and on nothing else. Compares bytes.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <cstring>

#include "half.h"
#include "problems.h"

namespace heed {
namespace {

using heed::testing::Data;

// Highway's targets with a fused multiply-add; the contract leaves the others out.
bool has_fma(const std::string& target) { return target != "SSE4" && target != "SCALAR"; }

struct Result {
  std::vector<float> out, lse, d_q, d_k, d_v, d_bias, d_w, d_alibi, d_sinks;
  bool operator==(const Result& o) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    };
    return same(out, o.out) && same(lse, o.lse) && same(d_q, o.d_q) && same(d_k, o.d_k) && same(d_v, o.d_v) &&
           same(d_bias, o.d_bias) && same(d_w, o.d_w) && same(d_alibi, o.d_alibi) && same(d_sinks, o.d_sinks);
  }
};

struct Given {
  int64_t B = 3, Hq = 4, Hkv = 2, L = 130, S = 300, D = 24, Dv = 40;
  Score score = Score::dot;
  Data q, k, v, w, bias, d_out, alibi, sinks;
  double dropout = 0;

  explicit Given(Score s) : score(s) {
    std::mt19937_64 random(11);
    q = Data({B, Hq, L, D}, random, 3);
    k = Data({B, Hkv, S, D}, random, 3);
    v = Data({B, Hkv, S, Dv}, random);
    if (s == Score::additive) w = Data({1, 1, 1, D}, random);
    bias = Data({1, Hq, L, S}, random);
    d_out = Data({B, Hq, L, Dv}, random);
  }
  // With what else an option can add to a problem, and a bias that is shared as its shape says.
  Given(Score s, Shape bias_shape) : Given(s) {
    std::mt19937_64 random(12);
    bias = Data(bias_shape, random);
    alibi = Data({1, Hq, 1, 1}, random, 0.1);
    sinks = Data({1, 1, 1, 1}, random);
    dropout = 0.2;
  }
  Attention problem() {
    return {.q = q.read(),
            .k = k.read(),
            .v = v.read(),
            .score = score,
            .w = w.read(),
            .bias = bias.read(),
            .alibi = alibi.read(),
            .mask = causal() & window(200, -1) & lengths({300, 250, 170}),
            .sinks = sinks.read(),
            .dropout = dropout};
  }
  Result run() {
    Data out = Data::empty_like(d_out), d_q = Data::empty_like(q), d_k = Data::empty_like(k), d_v = Data::empty_like(v);
    Data d_bias = Data::empty_like(bias), d_w = Data::empty_like(w);
    Data d_alibi = Data::empty_like(alibi), d_sinks = Data::empty_like(sinks);
    std::vector<float> lse(B * Hq * L);
    const Tensor l = tensor(lse.data(), {B, Hq, L, 1});
    forward(problem(), {out.write(), l});
    backward(problem(), {out.read(), l, d_out.read()},
             {d_q.write(), d_k.write(), d_v.write(), d_w.write(), d_bias.write(), d_alibi.write(), d_sinks.write()});
    return {out.values(),    lse,          d_q.values(),     d_k.values(),    d_v.values(),
            d_bias.values(), d_w.values(), d_alibi.values(), d_sinks.values()};
  }
};

class Bits : public ::testing::TestWithParam<Score> {
 protected:
  void TearDown() override {
    set_threads(2);
    set_target(targets()[0]);
  }
};

// With 1 thread a KV head stays whole in the backward; with 2 and more, its blocks are shared (6 heads).
TEST_P(Bits, SameForAnyThreadCount) {
  for (const Shape& bias : {Shape{1, 4, 130, 300}, Shape{1, 1, 130, 300}, Shape{3, 1, 1, 300}, Shape{1, 4, 130, 1},
                            Shape{1, 1, 1, 300}, Shape{1, 1, 1, 1}}) {
    Given s(GetParam(), bias);
    for (const std::string& t : targets()) {
      set_target(t);
      set_threads(1);
      const Result one = s.run();
      for (int n = 2; n <= 8; ++n) {
        set_threads(n);
        EXPECT_EQ(threads(), n);
        EXPECT_TRUE(s.run() == one) << t << " with " << n << " threads";
      }
    }
  }
}

// One long head: workers follow each other from tile to tile.
TEST_P(Bits, SameForOneHeadSharedByBlocks) {
  std::mt19937_64 random(13);
  const int64_t L = 1500, D = 16;
  Data q({1, 1, L, D}, random, 3), k({1, 1, L, D}, random, 3), v({1, 1, L, D}, random), d_out({1, 1, L, D}, random);
  Data w({1, 1, 1, D}, random);
  for (const Mask& mask : {Mask(), causal(), causal() & window(300, 0)}) {
    const Attention a{.q = q.read(),
                      .k = k.read(),
                      .v = v.read(),
                      .score = GetParam(),
                      .w = GetParam() == Score::additive ? w.read() : ConstTensor(),
                      .mask = mask};
    std::vector<float> first;
    for (int round = 0; round < 12; ++round) {
      set_threads(1 + round % 4);
      Data out = Data::empty_like(q), d_q = out, d_k = out, d_v = out;
      std::vector<float> lse(L);
      const Tensor l = tensor(lse.data(), {1, 1, L, 1});
      forward(a, {out.write(), l});
      backward(a, {out.read(), l, d_out.read()}, {.d_q = d_q.write(), .d_k = d_k.write(), .d_v = d_v.write()});
      std::vector<float> all = d_q.values();
      for (Data* x : {&d_k, &d_v}) all.insert(all.end(), x->values().begin(), x->values().end());
      if (first.empty()) first = all;
      EXPECT_EQ(std::memcmp(all.data(), first.data(), 4 * all.size()), 0) << threads() << " threads";
    }
  }
}

TEST_P(Bits, SameOnEveryTargetWithFma) {
  Given s(GetParam(), {1, 4, 130, 300});
  std::vector<std::string> fma;
  for (const std::string& t : targets())
    if (has_fma(t)) fma.push_back(t);
  if (fma.size() < 2) GTEST_SKIP() << "this machine has " << fma.size() << " targets with FMA; two are needed";
  set_target(fma[0]);
  const Result first = s.run();
  for (const std::string& t : fma) {
    set_target(t);
    EXPECT_TRUE(s.run() == first) << t << " against " << fma[0];
  }
}

TEST_P(Bits, SameAloneAsInABatchAndWholeAsDecoded) {
  Given s(GetParam());
  std::vector<float> all(s.B * s.Hq * s.L * s.Dv), one(s.Dv);
  forward(s.problem(), {tensor(all.data(), {s.B, s.Hq, s.L, s.Dv})});
  // Each row again as a problem of one batch, one head, one query over just the keys it may see, cut to the last
  // visible one.
  const Mask mask = s.problem().mask;
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t h = 0; h < s.Hq; ++h)
      for (const int64_t i : {0, 47, 48, 100, 129}) {
        const Span keys = mask.row({s.B, s.Hq, s.L, s.S}, b, h, i);
        const int64_t g = h / (s.Hq / s.Hkv), n = keys.end;
        Attention a{.q = tensor(&s.q.at(b, h, i, 0), {1, 1, 1, s.D}),
                    .k = tensor(&s.k.at(b, g, 0, 0), {1, 1, n, s.D}),
                    .v = tensor(&s.v.at(b, g, 0, 0), {1, 1, n, s.Dv}),
                    .score = s.score,
                    .w = s.w.read(),
                    .bias = tensor(&s.bias.at(0, h, i, 0), {1, 1, 1, n}),
                    .mask = window(n - 1 - keys.begin, 0)};
        forward(a, {tensor(one.data(), {1, 1, 1, s.Dv})});
        EXPECT_EQ(std::memcmp(one.data(), &all[((b * s.Hq + h) * s.L + i) * s.Dv], s.Dv * sizeof(float)), 0)
            << "batch " << b << " head " << h << " row " << i;
      }
}

// However the work is shared (heads, tiles or blocks of keys: src/plan.h) and whatever rides in a tile, a row has one
// value. Long enough for several blocks of keys, in every dtype.
TEST(Sharing, SameBitsForEveryWayAndGroup) {
  const int64_t Hkv = 2, group = 3, L = 40, S = 700, D = 40, Dv = 72;
  std::mt19937_64 random(5);
  Data q({1, Hkv * group, L, D}, random, 3), k({1, Hkv, S, D}, random, 3), v({1, Hkv, S, Dv}, random);
  const auto bits = [](const Data& from, DType t) {
    std::vector<uint16_t> to;
    for (const float x : const_cast<Data&>(from).values())
      to.push_back(t == DType::f16 ? half_of_float(x) : bfloat_of_float(x));
    return to;
  };
  for (const DType t : {DType::f32, DType::f16, DType::bf16}) {
    std::vector<uint16_t> narrow[3];
    const void* data[3] = {q.values().data(), k.values().data(), v.values().data()};
    if (t != DType::f32)
      for (int x = 0; x < 3; ++x) data[x] = (narrow[x] = bits(x == 0 ? q : x == 1 ? k : v, t)).data();
    const int64_t size = t == DType::f32 ? 4 : 2;
    const auto at = [&](int x, int64_t element) { return static_cast<const char*>(data[x]) + element * size; };
    Attention a{.q = tensor(data[0], t, q.shape()),
                .k = tensor(data[1], t, k.shape()),
                .v = tensor(data[2], t, v.shape()),
                .softcap = 20,
                .mask = causal() & window(500, -1)};
    const int64_t row = Dv * size, n = Hkv * group * L * row;
    std::vector<char> first, out(n), one(row);
    for (const int threads : {1, 2, 3, 8}) {  // 1: heads; more: tiles
      set_threads(threads);
      forward(a, {tensor(static_cast<void*>(out.data()), t, {1, Hkv * group, L, Dv})});
      if (first.empty()) first = out;
      EXPECT_EQ(out, first) << threads;
    }
    set_threads(2);
    for (int64_t h = 0; h < Hkv * group; ++h)
      for (int64_t i = 0; i < L; ++i) {  // each row alone: blocks
        const int64_t end = i + S - L + 1;
        Attention alone{.q = tensor(static_cast<const void*>(at(0, (h * L + i) * D)), t, {1, 1, 1, D}),
                        .k = tensor(static_cast<const void*>(at(1, h / group * S * D)), t, {1, 1, end, D}),
                        .v = tensor(static_cast<const void*>(at(2, h / group * S * Dv)), t, {1, 1, end, Dv}),
                        .softcap = 20,
                        .mask = window(500, -1)};
        forward(alone, {tensor(static_cast<void*>(one.data()), t, {1, 1, 1, Dv})});
        EXPECT_EQ(std::memcmp(one.data(), first.data() + (h * L + i) * row, row), 0) << "head " << h << " row " << i;
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Scores, Bits, ::testing::Values(Score::dot, Score::additive));

// Sums over the bits of results, recorded once: the same on every target with FMA, be it AVX-512, AVX2 or NEON
// (tests/aarch64.sh runs this one under qemu). Inputs come from integers alone. A change that means to change bits
// records the new sums, which the failure prints, and says so in CHANGELOG.md.
struct Golden {
  Score score;
  DType dtype;
  uint64_t out, lse, gradients;
};

class Recorded : public ::testing::TestWithParam<Golden> {
 protected:
  void TearDown() override { set_target(targets()[0]); }
};

template <class T>
uint64_t sum_of_bits(const std::vector<T>& x, uint64_t sum = 14695981039346656037u) {
  for (size_t i = 0; i < x.size() * sizeof(T); ++i)  // FNV-1a
    sum = (sum ^ reinterpret_cast<const unsigned char*>(x.data())[i]) * 1099511628211u;
  return sum;
}

TEST_P(Recorded, SameBitsAsRecorded) {
  const Golden& want = GetParam();
  const DType t = want.dtype;
  const bool additive = want.score == Score::additive, narrow = t != DType::f32;
  const int64_t B = 2, Hq = 4, Hkv = 2, L = 67, S = 301, D = 24, Dv = 40;
  uint64_t state = 1;
  // Multiples of 2^-15 in [-1, 1), times a factor that is a power of two.
  const auto numbers = [&](int64_t n, float factor) {
    std::vector<float> x(n);
    for (float& y : x) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      y = static_cast<float>(static_cast<int32_t>(state >> 48) - 32768) * 0x1p-15f * factor;
    }
    return x;
  };
  // The same as the dtype's own elements.
  const auto elements = [&](const std::vector<float>& x) {
    std::vector<uint16_t> y(narrow ? x.size() : 2 * x.size());
    if (!narrow) std::memcpy(y.data(), x.data(), x.size() * sizeof(float));
    for (size_t i = 0; narrow && i < x.size(); ++i)
      y[i] = t == DType::f16 ? half_of_float(x[i]) : bfloat_of_float(x[i]);
    return y;
  };
  const auto view = [&](std::vector<uint16_t>& x, Shape shape) {
    return tensor(static_cast<void*>(x.data()), t, shape);
  };
  const auto room = [&](int64_t n) { return std::vector<uint16_t>(narrow ? n : 2 * n); };
  auto q = elements(numbers(B * Hq * L * D, 4)), k = elements(numbers(B * Hkv * S * D, 4));
  auto v = elements(numbers(B * Hkv * S * Dv, 1)), d_out = elements(numbers(B * Hq * L * Dv, 1));
  auto bias = elements(numbers(Hq * L * S, 1)), w = elements(numbers(D, 1));
  const Attention a{.q = view(q, {B, Hq, L, D}),
                    .k = view(k, {B, Hkv, S, D}),
                    .v = view(v, {B, Hkv, S, Dv}),
                    .score = want.score,
                    .w = additive ? ConstTensor(view(w, {1, 1, 1, D})) : ConstTensor(),
                    .softcap = 8,
                    .bias = view(bias, {1, Hq, L, S}),
                    .mask = causal() & window(200, -1) & lengths({301, 250})};
  for (const std::string& name : targets()) {
    if (!has_fma(name)) continue;
    set_target(name);
    auto out = room(B * Hq * L * Dv);
    std::vector<float> lse(B * Hq * L);
    const Tensor o = view(out, {B, Hq, L, Dv}), l = tensor(lse.data(), {B, Hq, L, 1});
    forward(a, {o, l});
    EXPECT_EQ(sum_of_bits(out), want.out) << name << ": out";
    EXPECT_EQ(sum_of_bits(lse), want.lse) << name << ": lse";
    auto d_q = room(B * Hq * L * D), d_k = room(B * Hkv * S * D), d_v = room(B * Hkv * S * Dv);
    // Sums over many elements are f32 beside f16 and bf16.
    std::vector<float> d_w(D), d_bias(Hq * L * S);
    backward(a, {o, l, view(d_out, {B, Hq, L, Dv})},
             {.d_q = view(d_q, {B, Hq, L, D}),
              .d_k = view(d_k, {B, Hkv, S, D}),
              .d_v = view(d_v, {B, Hkv, S, Dv}),
              .d_w = additive ? tensor(d_w.data(), {1, 1, 1, D}) : Tensor{},
              .d_bias = tensor(d_bias.data(), {1, Hq, L, S})});
    uint64_t gradients = sum_of_bits(d_q);
    for (const auto* x : {&d_k, &d_v}) gradients = sum_of_bits(*x, gradients);
    for (const auto* x : {&d_w, &d_bias}) gradients = sum_of_bits(*x, gradients);
    EXPECT_EQ(gradients, want.gradients) << name << ": gradients";
  }
}

INSTANTIATE_TEST_SUITE_P(
    Scores, Recorded,
    ::testing::Values(
        Golden{Score::dot, DType::f32, 13181055138375683486u, 17985353047106344944u, 6587467899564799460u},
        Golden{Score::additive, DType::f32, 16063049577481111726u, 3404002109330426427u, 2462315143166063095u},
        Golden{Score::dot, DType::f16, 3002870449869372096u, 18118796653207585501u, 12987916199377430170u},
        Golden{Score::dot, DType::bf16, 14128159702639596088u, 2903171697256462514u, 13514003900602310860u}));

}  // namespace
}  // namespace heed
