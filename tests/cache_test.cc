// Keys and values in pages: the bits of those in one piece, for every page size, dtype, mask, thread count and target;
// a cache's sequences against plain copies of them; partial results put together.
#include <gtest/gtest.h>
#include <heed/cache.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "half.h"
#include "problems.h"

namespace heed {
namespace {

using heed::testing::Data;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Floats as elements of a dtype.
std::vector<char> elements(const std::vector<float>& x, DType t) {
  std::vector<char> bytes(x.size() * (t == DType::f32 ? 4 : t == DType::i8 ? 1 : 2));
  for (size_t i = 0; i < x.size(); ++i) {
    if (t == DType::f32) reinterpret_cast<float*>(bytes.data())[i] = x[i];
    if (t == DType::f16) reinterpret_cast<uint16_t*>(bytes.data())[i] = half_of_float(x[i]);
    if (t == DType::bf16) reinterpret_cast<uint16_t*>(bytes.data())[i] = bfloat_of_float(x[i]);
    if (t == DType::i8) bytes[i] = std::isnan(x[i]) ? 111 : static_cast<char>(static_cast<int8_t>(x[i]));
  }
  return bytes;
}

std::vector<float> random_floats(int64_t n, std::mt19937_64& random, float spread = 1) {
  std::uniform_real_distribution<float> uniform(-spread, spread);
  std::vector<float> x(n);
  for (float& y : x) y = uniform(random);
  return x;
}

// The sizes of a problem, and the keys of each sequence.
struct Sizes {
  int64_t Hq = 4, Hkv = 2, L = 1, D = 24, Dv = 32;
  std::vector<int64_t> keys = {700, 1, 523};
  int64_t B() const { return static_cast<int64_t>(keys.size()); }
};

enum class Scales { none, powers_of_two, any };

// q, and keys and values of every sequence, in `t`; i8: integers, and what 1 is worth.
struct Content {
  Sizes n;
  DType t, q_type;
  std::vector<float> q;
  std::vector<std::vector<float>> k, v, k_scale, v_scale;  // of each sequence: [Hkv, S, D], [Hkv, S]

  Content(Sizes sizes, DType type, DType q_dtype, Scales scales) : n(sizes), t(type), q_type(q_dtype) {
    std::mt19937_64 random(3);
    q = random_floats(n.B() * n.Hq * n.L * n.D, random, 2);
    for (const int64_t S : n.keys) {
      k.push_back(random_floats(n.Hkv * S * n.D, random, 2));
      v.push_back(random_floats(n.Hkv * S * n.Dv, random));
      for (auto* scale : {&k_scale, &v_scale}) {
        std::vector<float> some(n.Hkv * S, 1.0f);
        for (float& x : some) {
          if (scales == Scales::powers_of_two) x = std::ldexp(1.0f, -7 + static_cast<int>(random() % 3));
          if (scales == Scales::any) x = 0.004f + 0.00001f * static_cast<float>(random() % 1000);
        }
        scale->push_back(some);
      }
      if (t != DType::i8) continue;
      for (auto* all : {&k.back(), &v.back()})
        for (float& x : *all) x = static_cast<float>(static_cast<int>(random() % 255) - 127);
    }
  }

  // Sequence b in one piece, of dtype `type`, scales multiplied in.
  std::vector<char> whole(const std::vector<float>& x, const std::vector<float>& scale, DType type) const {
    std::vector<float> y = x;
    const size_t size = x.size() / std::max<size_t>(1, scale.size());
    for (size_t i = 0; i < y.size(); ++i) y[i] *= scale[i / size];
    return elements(y, type);
  }
};

// The same in pages that lie in any order, with NaN wherever nothing was written.
struct InPages {
  std::vector<char> k, v;
  std::vector<float> k_scale, v_scale;
  std::vector<int32_t> table;
  ConstTensor pool_k, pool_v;
  Pages pages;

  InPages(const Content& c, int64_t P, std::mt19937_64& random) {
    const int64_t B = c.n.B(), most = *std::max_element(c.n.keys.begin(), c.n.keys.end());
    const int64_t columns = (most + P - 1) / P + 1, count = B * columns + 3;
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    table.assign(B * columns, -7);
    std::vector<float> all_k(count * c.n.Hkv * P * c.n.D, kNaN), all_v(count * c.n.Hkv * P * c.n.Dv, kNaN);
    k_scale.assign(count * c.n.Hkv * P, kNaN);
    v_scale = k_scale;
    for (int64_t b = 0, next = 0; b < B; ++b)
      for (int64_t j = 0; j < c.n.keys[b]; ++j) {
        if (j % P == 0) table[b * columns + j / P] = order[next++];
        for (int64_t h = 0; h < c.n.Hkv; ++h) {
          const int64_t to = (table[b * columns + j / P] * c.n.Hkv + h) * P + j % P, from = h * c.n.keys[b] + j;
          std::copy_n(&c.k[b][from * c.n.D], c.n.D, &all_k[to * c.n.D]);
          std::copy_n(&c.v[b][from * c.n.Dv], c.n.Dv, &all_v[to * c.n.Dv]);
          k_scale[to] = c.k_scale[b][from];
          v_scale[to] = c.v_scale[b][from];
        }
      }
    k = elements(all_k, c.t);
    v = elements(all_v, c.t);
    pool_k = tensor(static_cast<const void*>(k.data()), c.t, {count, c.n.Hkv, P, c.n.D});
    pool_v = tensor(static_cast<const void*>(v.data()), c.t, {count, c.n.Hkv, P, c.n.Dv});
    pages = {table.data(), columns, columns, c.n.keys};
    if (c.t == DType::i8) {
      pages.k_scale = tensor(k_scale.data(), {count, c.n.Hkv, P, 1});
      pages.v_scale = tensor(v_scale.data(), {count, c.n.Hkv, P, 1});
    }
  }
};

struct Result {
  std::vector<char> out;
  std::vector<float> lse;
};

std::string difference(const Result& a, const Result& b) {
  if (a.out.size() != b.out.size() || a.lse.size() != b.lse.size()) return "sizes differ";
  if (std::memcmp(a.out.data(), b.out.data(), a.out.size()) != 0) return "out differs";
  if (std::memcmp(a.lse.data(), b.lse.data(), 4 * a.lse.size()) != 0) return "lse differs";
  return "";
}

Result run(const Attention& a, int64_t Dv) {
  const Shape& q = a.q.shape;
  Result r;
  r.out.resize(q[0] * q[1] * q[2] * Dv * (a.q.dtype == DType::f32 ? 4 : 2));
  r.lse.resize(q[0] * q[1] * q[2]);
  forward(a, {tensor(static_cast<void*>(r.out.data()), a.q.dtype, {q[0], q[1], q[2], Dv}),
              tensor(r.lse.data(), {q[0], q[1], q[2], 1})});
  return r;
}

// Every sequence alone, in one piece of q's dtype; `mask` is given to each.
Result alone(const Content& c, const Attention& options, const std::function<Mask(int64_t)>& mask) {
  Result all;
  const std::vector<char> q = elements(c.q, c.q_type);
  const int64_t each = q.size() / c.n.B();
  for (int64_t b = 0; b < c.n.B(); ++b) {
    const int64_t S = c.n.keys[b];
    const std::vector<char> k = c.whole(c.k[b], c.k_scale[b], c.q_type), v = c.whole(c.v[b], c.v_scale[b], c.q_type);
    Attention a = options;
    a.q = tensor(static_cast<const void*>(q.data() + b * each), c.q_type, {1, c.n.Hq, c.n.L, c.n.D});
    a.k = tensor(static_cast<const void*>(k.data()), c.q_type, {1, c.n.Hkv, S, c.n.D});
    a.v = tensor(static_cast<const void*>(v.data()), c.q_type, {1, c.n.Hkv, S, c.n.Dv});
    a.mask = mask(b);
    const Result one = run(a, c.n.Dv);
    all.out.insert(all.out.end(), one.out.begin(), one.out.end());
    all.lse.insert(all.lse.end(), one.lse.begin(), one.lse.end());
  }
  return all;
}

class Paged : public ::testing::Test {
 protected:
  void TearDown() override {
    set_threads(2);
    set_target(targets()[0]);
  }

  // All page sizes, thread counts and targets against every sequence alone.
  void compare(const Content& c, const Attention& options, const std::function<Mask(int64_t)>& one, const Mask& all,
               const std::string& what) {
    std::mt19937_64 random(4);
    const std::vector<char> q = elements(c.q, c.q_type);
    for (const std::string& name : targets()) {
      set_target(name);
      set_threads(2);
      const Result want = alone(c, options, one);
      for (const int64_t P : {16, 48, 64, 256, 512, 1024}) {
        const InPages in(c, P, random);
        Attention a = options;
        a.q = tensor(static_cast<const void*>(q.data()), c.q_type, {c.n.B(), c.n.Hq, c.n.L, c.n.D});
        a.k = in.pool_k;
        a.v = in.pool_v;
        a.pages = in.pages;
        a.mask = all;
        for (const int threads : {1, 2, 8}) {
          set_threads(threads);
          EXPECT_EQ(difference(run(a, c.n.Dv), want), "")
              << what << ", " << name << ", pages of " << P << ", " << threads << " threads";
        }
      }
    }
  }

  // Decoding a token, some, and whole sequences, under several masks.
  void compare_all(DType t, DType q, Scales scales, Score score, int64_t Dv) {
    std::mt19937_64 random(6);
    for (const int64_t L : {1, 5, 90}) {
      Sizes n;
      n.L = L;
      n.Dv = Dv;
      const Content c(n, t, q, scales);
      Attention options{.q = {}, .score = score, .softcap = 20};
      const std::vector<char> w = elements(random_floats(n.D, random), q);
      if (score == Score::additive) options.w = tensor(static_cast<const void*>(w.data()), q, {1, 1, 1, n.D});
      const std::vector<float> slopes = {0.1f, 0.05f, 0.02f, 0.01f};
      options.alibi = tensor(slopes.data(), {1, n.Hq, 1, 1});
      const std::string what = "L " + std::to_string(L) + ", ";
      compare(
          c, options, [](int64_t) { return Mask(); }, {}, what + "no mask");
      const Mask near = causal() & window(299, 0);
      compare(
          c, options, [&](int64_t) { return near; }, near, what + "causal window");
      const std::vector<int64_t> some = {650, 0, 9};
      compare(
          c, options, [&](int64_t b) { return causal() & lengths({some[b]}); }, causal() & lengths(some),
          what + "causal lengths");
    }
  }
};

TEST_F(Paged, F32HasTheBitsOfOnePiece) { compare_all(DType::f32, DType::f32, Scales::none, Score::dot, 32); }
TEST_F(Paged, F32WithOddValues) { compare_all(DType::f32, DType::f32, Scales::none, Score::dot, 40); }
TEST_F(Paged, Additive) { compare_all(DType::f32, DType::f32, Scales::none, Score::additive, 32); }
TEST_F(Paged, F16) { compare_all(DType::f16, DType::f16, Scales::none, Score::dot, 32); }
TEST_F(Paged, Bf16) { compare_all(DType::bf16, DType::bf16, Scales::none, Score::dot, 32); }

// Where scales are powers of two every rounding is the same whether they are multiplied in before or after.
TEST_F(Paged, BytesHaveTheBitsOfWhatTheyStandFor) {
  compare_all(DType::i8, DType::f32, Scales::powers_of_two, Score::dot, 64);
  compare_all(DType::i8, DType::f16, Scales::powers_of_two, Score::dot, 24);
}

}  // namespace
}  // namespace heed
