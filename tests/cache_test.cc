// Keys and values in pages: the bits of those in one piece, for every page size, dtype, mask, thread count and target;
// a cache's sequences against plain copies of them; partial results put together.
#include <gtest/gtest.h>
#include <heed/cache.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <numeric>

#include "half.h"
#include "problems.h"

// Memory that can run out: the n-th of the next allocations fails.
int64_t allocations_left = -1;

void* allocated(std::size_t size, std::size_t alignment) {
  if (allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc();
  void* memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (!memory) throw std::bad_alloc();
  return memory;
}

void* operator new(std::size_t size) { return allocated(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t to) { return allocated(size, static_cast<std::size_t>(to)); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

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
      for (auto* all : {&k.back(), &v.back()})
        for (float& x : *all) {
          if (t == DType::f16) x = float_of_half(half_of_float(x));
          if (t == DType::bf16) x = float_of_bfloat(bfloat_of_float(x));
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
      if (score == Score::additive) n.keys = {300, 1, 270};  // tanh takes its time
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

TEST_F(Paged, F16BesideQueriesOfF32) { compare_all(DType::f16, DType::f32, Scales::none, Score::dot, 32); }
TEST_F(Paged, Bf16BesideQueriesOfF32) { compare_all(DType::bf16, DType::f32, Scales::none, Score::dot, 24); }

// Every sequence in one page each, alone, in one thread.
Result bytes_alone(const Content& c, const Mask& mask) {
  std::mt19937_64 random(1);
  Result all;
  set_threads(1);
  const std::vector<char> q = elements(c.q, c.q_type);
  for (int64_t b = 0; b < c.n.B(); ++b) {
    Content one = c;
    one.n.keys = {c.n.keys[b]};
    one.k = {c.k[b]};
    one.v = {c.v[b]};
    one.k_scale = {c.k_scale[b]};
    one.v_scale = {c.v_scale[b]};
    const InPages in(one, 1024, random);
    Attention a{
        .q = tensor(static_cast<const void*>(q.data() + b * q.size() / c.n.B()), c.q_type, {1, c.n.Hq, c.n.L, c.n.D}),
        .k = in.pool_k,
        .v = in.pool_v,
        .pages = in.pages,
        .mask = mask};
    const Result r = run(a, c.n.Dv);
    all.out.insert(all.out.end(), r.out.begin(), r.out.end());
    all.lse.insert(all.lse.end(), r.lse.begin(), r.lse.end());
  }
  return all;
}

// i8: one value whatever the pages, threads, the batch and the target are, and decoding a row has the bits of the row
// in a whole sequence.
TEST_F(Paged, BytesHaveOneValue) {
  const Mask mask = causal() & window(500, 0);
  for (const DType q_type : {DType::f32, DType::f16, DType::bf16})
    for (const int64_t D : {24, 7, 520})  // 520: more than are summed as integers at once
      for (const int64_t L : {1, 90}) {
        Sizes n;
        n.L = L;
        n.D = D;
        n.Dv = D == 7 ? 24 : 64;
        const Content c(n, DType::i8, q_type, Scales::any);
        const Result want = bytes_alone(c, mask);
        const std::vector<char> q = elements(c.q, q_type);
        std::mt19937_64 random(4);
        for (const std::string& name : targets()) {
          if (name == "SSE4" || name == "SCALAR") continue;  // values are summed without FMA there
          set_target(name);
          for (const int64_t P : {16, 64, 256, 1024}) {
            const InPages in(c, P, random);
            Attention a{.q = tensor(static_cast<const void*>(q.data()), q_type, {n.B(), n.Hq, L, D}),
                        .k = in.pool_k,
                        .v = in.pool_v,
                        .pages = in.pages,
                        .mask = mask};
            for (const int threads : {1, 2, 8}) {
              set_threads(threads);
              EXPECT_EQ(difference(run(a, n.Dv), want), "")
                  << name << ", D " << D << ", L " << L << ", pages of " << P << ", " << threads << " threads";
            }
            // Rows of the first sequence on their own, with the keys up to their own.
            for (int64_t i = 0; i < L && L > 1; i += 11) {
              Attention row = a;
              row.q.data = q.data() + i * D * bytes_of(q_type);
              row.q.shape = {1, n.Hq, 1, D};
              row.pages.keys = {n.keys[0] - L + 1 + i};
              const Result alone = run(row, n.Dv);
              for (int64_t h = 0; h < n.Hq; ++h) {
                EXPECT_EQ(alone.lse[h], want.lse[h * L + i]);
                const int64_t size = n.Dv * bytes_of(q_type);
                EXPECT_EQ(std::memcmp(&alone.out[h * size], &want.out[(h * L + i) * size], size), 0) << name << i;
              }
            }
          }
        }
      }
}

// Sums over the bits of results, recorded once as in bits_test.cc: the same on AVX-512, AVX2 and NEON, for a token and
// for a prompt. What goes in comes from integers alone.
TEST_F(Paged, BytesHaveTheBitsRecorded) {
  const int64_t L = 40, S = 300, D = 24, Dv = 32, P = 16;
  uint64_t state = 1;
  const auto next = [&] {
    return static_cast<int32_t>((state = state * 6364136223846793005u + 1442695040888963407u) >> 56);
  };
  std::vector<float> q(4 * L * D);
  std::vector<int8_t> k(2 * 304 * D), v(2 * 304 * Dv);
  std::vector<float> k_scale(2 * 304), v_scale(k_scale);
  for (float& x : q) x = static_cast<float>(next() - 128) * 0x1p-6f + static_cast<float>(next()) * 0x1p-14f;
  for (auto* all : {&k, &v})
    for (int8_t& x : *all) x = static_cast<int8_t>(next() - 128);
  for (auto* all : {&k_scale, &v_scale})
    for (float& x : *all) x = static_cast<float>(100 + next()) * 0x1p-15f;
  std::vector<int32_t> table(304 / P);
  std::iota(table.begin(), table.end(), 0);
  const int64_t pages = 304 / P;
  for (const std::string& name : targets()) {
    if (name == "SSE4" || name == "SCALAR") continue;
    set_target(name);
    uint64_t sums[2];
    for (const bool whole : {true, false}) {
      const int64_t rows = whole ? L : 1;
      Attention a{.q = tensor(q.data(), {1, 4, rows, D}),
                  .k = tensor(static_cast<const void*>(k.data()), DType::i8, {pages, 2, P, D}),
                  .v = tensor(static_cast<const void*>(v.data()), DType::i8, {pages, 2, P, Dv}),
                  .pages = {table.data(),
                            pages,
                            pages,
                            {S},
                            tensor(k_scale.data(), {pages, 2, P, 1}),
                            tensor(v_scale.data(), {pages, 2, P, 1})},
                  .mask = causal()};
      const Result r = run(a, Dv);
      uint64_t& sum = sums[whole] = 14695981039346656037u;  // FNV-1a
      for (const char x : r.out) sum = (sum ^ static_cast<unsigned char>(x)) * 1099511628211u;
    }
    EXPECT_EQ(sums[0], 4352659740389284082u) << name << ": a token";
    EXPECT_EQ(sums[1], 10973103885656610479u) << name << ": a prompt";
  }
}

// docs/numerics.md says what i8 is. A query that sees one key has its score as lse.
TEST_F(Paged, BytesAreWhatTheDocsSay) {
  Sizes n;
  n.keys = {1};
  n.Hq = n.Hkv = 1;
  const Content c(n, DType::i8, DType::f32, Scales::any);
  std::mt19937_64 random(4);
  const InPages in(c, 16, random);
  Attention a{.q = tensor(c.q.data(), {1, 1, 1, n.D}), .k = in.pool_k, .v = in.pool_v, .pages = in.pages};
  double sum = 0, exact = 0;
  float largest = 0;
  const float scale2 = static_cast<float>(1 / std::sqrt(24.0) * 1.44269504088896340736);
  for (const float x : c.q) largest = std::max(largest, std::fabs(x * scale2));
  for (int64_t d = 0; d < n.D; ++d) {
    sum += std::nearbyint(c.q[d] * scale2 / (largest / 32767)) * c.k[0][d];
    exact += c.q[d] * scale2 * c.k[0][d];
  }
  const double score = sum * (largest / 32767) * c.k_scale[0][0] * std::log(2.0);
  EXPECT_GT(std::fabs(sum * (largest / 32767) - exact), 1e-4);  // so that the rounding of q shows
  for (const std::string& name : targets()) {
    set_target(name);
    const Result r = run(a, n.Dv);
    EXPECT_NEAR(r.lse[0], score, 3e-7 * (1 + std::fabs(score))) << name;
    for (int64_t d = 0; d < n.Dv; ++d)
      EXPECT_NEAR(reinterpret_cast<const float*>(r.out.data())[d], c.v[0][d] * c.v_scale[0][0], 1e-6);
  }
}

// Against double precision over what the bytes stand for. A query's elements are off by half a unit, largest / 65534; a
// change e of all scores changes a mean of values by at most 2 e times the largest.
TEST_F(Paged, BytesAreAsExactAsDerived) {
  for (const int64_t L : {1, 70}) {
    Sizes n;
    n.L = L;
    const Content c(n, DType::i8, DType::f32, Scales::any);
    std::mt19937_64 random(4);
    const InPages in(c, 64, random);
    Attention a{.q = tensor(c.q.data(), {n.B(), n.Hq, L, n.D}), .k = in.pool_k, .v = in.pool_v, .pages = in.pages};
    const double of_score = 2.0 / 65534 * 24 * 127 * 0.014 / std::sqrt(24.0), bound = 2 * of_score * 127 * 0.014;
    const Result r = run(a, n.Dv);
    const float* out = reinterpret_cast<const float*>(r.out.data());
    double worst = 0;
    for (int64_t b = 0; b < n.B(); ++b) {
      const int64_t S = n.keys[b];
      Data q({1, n.Hq, L, n.D}, random), k({1, n.Hkv, S, n.D}, random), v({1, n.Hkv, S, n.Dv}, random);
      std::copy_n(c.q.begin() + b * q.values().size() / 1, 0, q.values().begin());
      for (int64_t x = 0; x < n.Hq * L * n.D; ++x) q.values()[x] = c.q[b * n.Hq * L * n.D + x];
      for (int64_t x = 0; x < n.Hkv * S * n.D; ++x) k.values()[x] = c.k[b][x] * c.k_scale[b][x / n.D];
      for (int64_t x = 0; x < n.Hkv * S * n.Dv; ++x) v.values()[x] = c.v[b][x] * c.v_scale[b][x / n.Dv];
      const Attention plain{.q = q.read(), .k = k.read(), .v = v.read()};
      heed::testing::Exact exact({1, n.Hq, L, n.Dv});
      std::vector<float> unused(exact.values.size());
      reference::forward(check_forward(plain, {tensor(unused.data(), {1, n.Hq, L, n.Dv})}), {exact.write()});
      for (size_t x = 0; x < exact.values.size(); ++x)
        worst = std::fmax(worst, std::fabs(out[b * exact.values.size() + x] - exact.values[x]));
    }
    EXPECT_LT(worst, bound + 3e-6);
  }
}

// ---- The cache ----

// Plain copies of what was appended to each sequence, position by position.
struct Copies {
  int64_t Hkv, D, Dv;
  std::vector<std::vector<float>> k, v;  // [S][Hkv][D]

  std::vector<float> one_piece(const std::vector<float>& x, int64_t size) const {
    const int64_t S = x.size() / (Hkv * size);
    std::vector<float> y(x.size());
    for (int64_t j = 0; j < S; ++j)
      for (int64_t h = 0; h < Hkv; ++h) std::copy_n(&x[(j * Hkv + h) * size], size, &y[(h * S + j) * size]);
    return y;
  }
};

struct Grown {
  CacheShape shape;
  Cache cache;
  Copies copies;
  std::mt19937_64 random{8};
  int64_t queries = 1;  // how many the last append was for

  explicit Grown(const CacheShape& s) : shape(s), cache(s), copies{s.kv_heads, s.head_size, s.value_size, {}, {}} {
    copies.k.resize(s.batch);
    copies.v.resize(s.batch);
  }

  // n keys more for the sequences [begin, end), in the layout [B, n, H, D].
  void append(int64_t begin, int64_t end, int64_t n) {
    const int64_t B = end - begin, H = shape.kv_heads, D = shape.head_size, Dv = shape.value_size;
    const std::vector<float> k = random_floats(B * n * H * D, random, 2), v = random_floats(B * n * H * Dv, random);
    const ConstTensor kt = tensor(k.data(), {B, H, n, D}, {n * H * D, D, H * D, 1});
    const ConstTensor vt = tensor(v.data(), {B, H, n, Dv}, {n * H * Dv, Dv, H * Dv, 1});
    if (B == shape.batch)
      cache.append(kt, vt);
    else
      cache.append(begin, kt, vt);
    for (int64_t b = 0; b < B; ++b) {
      auto &to_k = copies.k[begin + b], &to_v = copies.v[begin + b];
      to_k.insert(to_k.end(), k.begin() + b * n * H * D, k.begin() + (b + 1) * n * H * D);
      to_v.insert(to_v.end(), v.begin() + b * n * H * Dv, v.begin() + (b + 1) * n * H * Dv);
    }
  }

  void truncate(int64_t b, int64_t keys) {
    cache.truncate(b, keys);
    copies.k[b].resize(keys * shape.kv_heads * shape.head_size);
    copies.v[b].resize(keys * shape.kv_heads * shape.value_size);
  }

  void select(const std::vector<int64_t>& from) {
    cache.select(from);
    const Copies before = copies;
    for (size_t b = 0; b < from.size(); ++b) {
      copies.k[b] = before.k[from[b]];
      copies.v[b] = before.v[from[b]];
    }
  }

  int64_t length(int64_t b) const { return copies.k[b].size() / (shape.kv_heads * shape.head_size); }

  // L queries of each sequence through the cache, against the copies in one piece; i8: in a cache of one page.
  void check(int64_t L, const std::string& what) {
    const int64_t B = shape.batch, Hq = 2 * shape.kv_heads, D = shape.head_size, Dv = shape.value_size;
    const DType q_type = shape.dtype == DType::i8 ? DType::f32 : shape.dtype;
    const Mask mask = shape.window > 0 ? causal() & window(shape.window - 1, 0) : causal();
    const std::vector<char> q = elements(random_floats(B * Hq * L * D, random, 2), q_type);
    const Result got =
        run(cache.view({.q = tensor(static_cast<const void*>(q.data()), q_type, {B, Hq, L, D}), .mask = mask}), Dv);
    const int64_t each = Hq * L * Dv * bytes_of(q_type);
    for (int64_t b = 0; b < B; ++b) {
      const int64_t S = length(b);
      ASSERT_EQ(cache.length(b), S);
      Attention a{
          .q = tensor(static_cast<const void*>(q.data() + b * Hq * L * D * bytes_of(q_type)), q_type, {1, Hq, L, D}),
          .mask = mask};
      const std::vector<float> k = copies.one_piece(copies.k[b], D), v = copies.one_piece(copies.v[b], Dv);
      const std::vector<char> k_is = elements(k, q_type), v_is = elements(v, q_type);
      a.k = tensor(static_cast<const void*>(k_is.data()), q_type, {1, shape.kv_heads, S, D});
      a.v = tensor(static_cast<const void*>(v_is.data()), q_type, {1, shape.kv_heads, S, Dv});
      CacheShape flat = shape;
      flat.batch = 1;
      flat.page_keys = 1024;
      flat.window = 0;
      Cache one(flat);
      if (shape.dtype == DType::i8) {
        one.append(a.k, a.v);
        a = one.view(a);
      }
      const Result want = run(a, Dv);
      ASSERT_EQ(std::memcmp(got.out.data() + b * each, want.out.data(), each), 0) << what << ", sequence " << b;
      ASSERT_EQ(std::memcmp(&got.lse[b * Hq * L], want.lse.data(), 4 * Hq * L), 0) << what << ", sequence " << b;
    }
  }
};

TEST(Cache, HoldsWhatPlainCopiesHold) {
  for (const DType t : {DType::f32, DType::f16, DType::bf16, DType::i8})
    for (const int64_t P : {16, 64, 256}) {
      Grown g({.batch = 4, .kv_heads = 2, .head_size = 24, .value_size = 32, .dtype = t, .page_keys = P});
      const std::string what = "dtype " + std::to_string(static_cast<int>(t)) + ", pages of " + std::to_string(P);
      g.append(0, 4, 37);
      g.check(37, what + ", prompt");
      for (int step = 0; step < 60; ++step) {
        const int64_t b = g.random() % 4;
        switch (g.random() % 5) {
          case 0:
            g.append(0, 4, 1 + g.random() % 30);
            break;
          case 1:
            g.append(b, b + 1, 1 + g.random() % 300);
            break;
          case 2:
            g.truncate(b, g.length(b) - g.random() % (g.length(b) + 1));
            break;
          case 3:
            g.cache.fork(b, (b + 1) % 4);
            g.copies.k[(b + 1) % 4] = g.copies.k[b];
            g.copies.v[(b + 1) % 4] = g.copies.v[b];
            break;
          case 4:
            g.select({b, 3, b, static_cast<int64_t>(g.random() % 4)});
            break;
        }
        g.check(1 + step % 3, what + ", step " + std::to_string(step));
        if (HasFatalFailure()) return;
      }
    }
}

// A window: the same as with everything kept, in memory that stops growing.
TEST(Cache, KeepsAWindow) {
  for (const DType t : {DType::f32, DType::i8}) {
    Grown g({.batch = 2, .kv_heads = 1, .head_size = 16, .value_size = 16, .dtype = t, .page_keys = 16, .window = 50});
    g.append(0, 2, 200);
    g.check(200, "prompt");
    int64_t after = 0;
    for (int step = 0; step < 300; ++step) {
      const int64_t n = 1 + step % 3;
      g.append(0, 2, n);
      if (step == 20) after = g.cache.bytes();
      if (step % 7 == 0) g.check(n, "step " + std::to_string(step));
      if (HasFatalFailure()) return;
      if (n == 3) g.truncate(step % 2, g.length(step % 2) - 2);
    }
    EXPECT_EQ(g.cache.bytes(), after);
    EXPECT_GE(g.cache.first(0), g.length(0) - 50 - 3 * 16);
    EXPECT_LE(g.cache.first(0), g.length(0) - 50);
    EXPECT_THROW(g.cache.truncate(0, 100), Error);
    EXPECT_EQ(g.cache.length(0), g.length(0));
    // What was given back is not read: the mask has to say so.
    const std::vector<float> q(2 * 16);
    std::vector<float> out(2 * 16, 7);
    EXPECT_THROW(forward(g.cache.view({.q = tensor(q.data(), {2, 1, 1, 16})}), {tensor(out.data(), {2, 1, 1, 16})}),
                 Error);
    EXPECT_EQ(out, std::vector<float>(2 * 16, 7));
    g.truncate(0, 0);
    g.append(0, 1, 20);
    g.append(1, 2, 20);
    g.check(1, "from the start");
  }
}

TEST(Cache, ForksShareFullPages) {
  const CacheShape shape{.batch = 3, .kv_heads = 1, .head_size = 16, .value_size = 16, .page_keys = 16};
  Grown g(shape);
  g.append(0, 1, 16 * 100);
  const int64_t before = g.cache.bytes();
  g.select({0, 0, 0});
  EXPECT_EQ(g.cache.bytes(), before);
  for (int64_t b = 0; b < 3; ++b) g.append(b, b + 1, 5);
  EXPECT_LT(g.cache.bytes(), 2 * before);
  const int64_t forked = g.cache.bytes();
  for (int64_t b = 0; b < 3; ++b) g.append(b, b + 1, 5);
  g.cache.fork(1, 2);  // in the middle of a page: copied when either writes
  g.copies.k[2] = g.copies.k[1];
  g.copies.v[2] = g.copies.v[1];
  g.append(2, 3, 2);
  g.append(1, 2, 3);
  g.check(1, "after forks");
  for (int64_t b = 0; b < 3; ++b) g.truncate(b, 0);  // what nobody has is used again
  g.append(2, 3, 16 * 100);
  g.check(1, "alone");
  EXPECT_EQ(g.cache.bytes(), forked);
}

// A row of a cache of bytes is off by at most 1/254 of its largest element.
TEST(Cache, RoundsToBytesAsStated) {
  std::mt19937_64 random(2);
  Cache cache({.head_size = 40, .dtype = DType::i8, .page_keys = 16});
  std::vector<float> k = random_floats(16 * 40, random, 3), v = random_floats(16 * 40, random);
  std::fill_n(&v[40], 40, 0.0f);
  v[80] = INFINITY;
  v[120] = NAN;
  for (int d = 0; d < 40; ++d) v[160 + d] *= 1e-38f;
  cache.append(tensor(k.data(), {1, 1, 16, 40}), tensor(v.data(), {1, 1, 16, 40}));
  const Attention a = cache.view({});
  const int64_t page = a.pages.table[0];
  for (int64_t j = 0; j < 16; ++j)
    for (const bool keys : {true, false}) {
      const float* row = (keys ? k : v).data() + j * 40;
      const float scale = static_cast<const float*>((keys ? a.pages.k_scale : a.pages.v_scale).data)[page * 16 + j];
      const int8_t* bytes = static_cast<const int8_t*>((keys ? a.k : a.v).data) + (page * 16 + j) * 40;
      const float largest =
          std::fabs(*std::max_element(row, row + 40, [](float x, float y) { return std::fabs(x) < std::fabs(y); }));
      if (!keys && (j == 2 || j == 3)) {
        EXPECT_TRUE(std::isnan(scale));
        continue;
      }
      for (int64_t d = 0; d < 40; ++d)
        EXPECT_LE(std::fabs(row[d] - static_cast<double>(scale) * bytes[d]), largest / 254.0 * 1.00001 + 1e-45);
    }
}

TEST(Cache, ChangesNothingWhenItFails) {
  Grown g({.batch = 2, .kv_heads = 1, .head_size = 16, .value_size = 16, .page_keys = 16});
  g.append(0, 2, 40);
  const float one[16] = {};
  const int64_t many = int64_t{1} << 36;  // more pages than there can be
  const ConstTensor row = tensor(one, {2, 1, many, 16}, {0, 0, 0, 1});
  EXPECT_THROW(g.cache.append(row, row), Error);
  ConstTensor wide = tensor(one, {2, 1, 1, 16}, {0, 0, 0, 1});
  ConstTensor narrow = tensor(one, {2, 1, 1, 8}, {0, 0, 0, 1});
  EXPECT_THROW(g.cache.append(wide, narrow), Error);
  EXPECT_THROW(g.cache.append(narrow, wide), Error);
  EXPECT_THROW(g.cache.append(2, wide, wide), Error);
  EXPECT_THROW(g.cache.truncate(0, 41), Error);
  EXPECT_THROW(g.cache.truncate(-1, 0), Error);
  EXPECT_THROW(g.cache.fork(0, 2), Error);
  EXPECT_THROW(g.cache.select({0}), Error);
  EXPECT_THROW(g.cache.select({0, 5}), Error);
  EXPECT_THROW(g.cache.view({}, 1, 2), Error);
  g.check(3, "after errors");
  // Memory runs out at the first allocation of an append, a select and a fork, at the second, and so on.
  const std::vector<float> more(2 * 500 * 16);
  const ConstTensor some = tensor(more.data(), {2, 1, 500, 16});
  const std::vector<int64_t> crossed = {1, 0};
  int failed = 0;
  const auto run_out = [&](auto&& change) {
    for (int64_t at = 0, again = true; again; ++at) {
      allocations_left = at;
      try {
        change();
        again = false;
      } catch (const std::bad_alloc&) {
        ++failed;
      }
      allocations_left = -1;
      if (again) g.check(2, "out of memory");
    }
  };
  run_out([&] { g.cache.append(some, some); });
  EXPECT_GE(failed, 5);
  for (int64_t b : {0, 1}) g.cache.truncate(b, 40);
  run_out([&] { g.cache.select(crossed); });
  EXPECT_GE(failed, 7);
  g.cache.select(crossed);
  g.append(0, 2, 1);
  g.check(1, "and it goes on");
  EXPECT_THROW(Cache({.head_size = 0}), Error);
  EXPECT_THROW(Cache({.head_size = 8, .dtype = DType::f64}), Error);
  EXPECT_THROW(Cache({.head_size = 8, .page_keys = 20}), Error);
  EXPECT_THROW(Cache({.head_size = 8, .window = -1}), Error);
}

TEST(Cache, EmptyOneGivesZeros) {
  const Cache cache({.batch = 2, .head_size = 16});
  const std::vector<float> q(2 * 16, 1);
  const Result r = run(cache.view({.q = tensor(q.data(), {2, 1, 1, 16}), .mask = causal()}), 16);
  EXPECT_EQ(r.out, std::vector<char>(2 * 16 * 4));
  EXPECT_EQ(r.lse, std::vector<float>(2, -INFINITY));
}

// NaN in a query, or in a key that is seen, reaches the row; in a key that is not seen it changes nothing.
TEST(Cache, ShowsNaNToWhoSeesIt) {
  for (const DType t : {DType::f32, DType::i8}) {
    Cache cache({.batch = 1, .head_size = 16, .dtype = t, .page_keys = 16});
    std::vector<float> k(40 * 16, 0.5f), v(k), q(3 * 16, 0.5f);
    k[7 * 16 + 3] = kNaN;
    q[2 * 16] = INFINITY;
    cache.append(tensor(k.data(), {1, 1, 40, 16}), tensor(v.data(), {1, 1, 40, 16}));
    const auto out = [&](const Mask& mask) {
      const Result r = run(cache.view({.q = tensor(q.data(), {1, 1, 3, 16}), .mask = mask}), 16);
      const float* x = reinterpret_cast<const float*>(r.out.data());
      return std::vector<float>{x[0], x[16], x[32]};
    };
    const std::vector<float> all = out({}), some = out(window(29, 0));
    for (const float x : all) EXPECT_TRUE(std::isnan(x));
    EXPECT_FLOAT_EQ(some[0], 0.5f);
    EXPECT_FLOAT_EQ(some[1], 0.5f);
    EXPECT_TRUE(std::isnan(some[2]));
  }
}

// A plan that is kept is made anew when sequences have grown.
TEST(Cache, GoesWithAPlan) {
  Grown g({.batch = 2, .kv_heads = 1, .head_size = 16, .value_size = 16});
  g.append(0, 1, 700);
  g.append(1, 2, 690);
  Plan plan;
  const std::vector<float> q = random_floats(2 * 16, g.random);
  for (int step = 0; step < 5; ++step) {
    Attention a = g.cache.view({.q = tensor(q.data(), {2, 1, 1, 16})});
    const Result want = run(a, 16);
    a.plan = &plan;
    EXPECT_EQ(difference(run(a, 16), want), "") << step;
    g.append(1, 2, 1);
  }
}

// ---- Errors ----

std::string words(const Attention& a) {
  std::vector<float> out(3 * 4 * 32, 7);
  try {
    forward(a, {tensor(out.data(), {3, 4, 1, 32})});
  } catch (const Error& e) {
    EXPECT_EQ(out, std::vector<float>(out.size(), 7)) << "written before: " << e.what();
    return e.what();
  }
  return "";
}

TEST(PageErrors, SayBothNumbers) {
  const Content c({}, DType::i8, DType::f32, Scales::any);
  std::mt19937_64 random(1);
  const InPages in(c, 64, random);
  const auto problem = [&] {
    return Attention{.q = tensor(c.q.data(), {3, 4, 1, 24}), .k = in.pool_k, .v = in.pool_v, .pages = in.pages};
  };
  EXPECT_EQ(words(problem()), "");
  const auto error = [&](auto&& change) {
    Attention a = problem();
    change(a);
    return words(a);
  };
  std::vector<int32_t> table = in.table;
  const int64_t columns = in.pages.table_columns, pages = in.pool_k.shape[0];
  EXPECT_EQ(error([&](Attention& a) {
              table[3] = static_cast<int32_t>(pages);
              a.pages.table = table.data();
            }),
            "sequence 0 sees its key 192, which is in page " + std::to_string(pages) + ", but there are " +
                std::to_string(pages) + "; mend the table, or mask what is not there");
  EXPECT_EQ(error([&](Attention& a) {  // key 0 of sequence 0 is masked
              table = in.table;
              table[0] = -1;
              a.pages.table = table.data();
              a.mask = window(600, 0);
            }),
            "");
  EXPECT_EQ(error([&](Attention& a) { a.pages.keys[0] = columns * 64 + 1; }),
            "a sequence has " + std::to_string(columns * 64 + 1) + " keys but its " + std::to_string(columns) +
                " pages hold " + std::to_string(columns * 64) + "; give the table a column for every 64 keys");
  EXPECT_EQ(error([&](Attention& a) { a.pages.keys[1] = -4; }), "a sequence has -4 keys; it cannot have fewer than 0");
  EXPECT_EQ(error([&](Attention& a) {
              a.pages.keys = {1, 2};
            }),
            "pages.keys has 2 sequences but q has batch 3; give each its number of keys");
  EXPECT_EQ(error([&](Attention& a) {
              a.k.shape[2] = a.v.shape[2] = a.pages.k_scale.shape[2] = a.pages.v_scale.shape[2] = 300;
            }),
            "a page holds 300 keys; it must be a multiple of 16 where a sequence has several, such as 16, 64 or 256");
  EXPECT_NE(error([&](Attention& a) { a.pages.v_scale = {}; }).find("v_scale has no data"), std::string::npos);
  EXPECT_NE(error([&](Attention& a) { a.pages.k_scale.shape[1] = 1; }).find("k_scale has shape"), std::string::npos);
  EXPECT_EQ(error([&](Attention& a) { a.k.dtype = a.v.dtype = DType::f16; }),
            "k_scale is given but the pages are f16; leave it out");
  EXPECT_EQ(error([&](Attention& a) { a.v.dtype = DType::f32; }), "k's pages are i8 and v's f32; they must be equal");
  EXPECT_EQ(error([&](Attention& a) { a.pages.table = nullptr; }),
            "k is i8, which only keys and values in pages are; give pages.table, or widen it");
  EXPECT_NE(error([&](Attention& a) { a.q.dtype = DType::i8; }).find("q is i8"), std::string::npos);
  EXPECT_NE(error([&](Attention& a) { a.v.shape[1] = 1; }).find("needs the same pages"), std::string::npos);
  EXPECT_NE(error([&](Attention& a) {
              a.score = Score::additive;
              a.w = tensor(c.q.data(), {1, 1, 1, 24});
            }).find("additive"),
            std::string::npos);
  Attention a = problem();
  std::vector<float> some(3 * 4 * 32);
  const Tensor t = tensor(some.data(), {3, 4, 1, 32}), lse = tensor(some.data(), {3, 4, 1, 1});
  EXPECT_THROW(backward(a, {t, lse, t}, {}), Error);
  EXPECT_THROW(jvp(a, lse, {}, {t}), Error);
  EXPECT_THROW(score(a, tensor(some.data(), {3, 4, 1, 1})), Error);
}

// ---- Merge ----

struct Merged : ::testing::Test {
  std::mt19937_64 random{9};
  static constexpr int64_t B = 3, H = 4, L = 5, S = 600, D = 24;
  Data q{Data({B, H, L, D}, random, 2)}, k{Data({B, 2, S, D}, random, 2)}, v{Data({B, 2, S, D}, random)};

  struct Half {
    std::vector<float> out, lse;
    Output view() {
      out.resize(B * H * L * D);
      lse.resize(B * H * L);
      return {tensor(out.data(), {B, H, L, D}), tensor(lse.data(), {B, H, L, 1})};
    }
  };
  Half some(const Mask& mask) {
    Half h;
    forward({.q = q.read(), .k = k.read(), .v = v.read(), .mask = mask}, h.view());
    return h;
  }
  static double difference(const std::vector<float>& a, const std::vector<float>& b) {
    double worst = 0;
    for (size_t x = 0; x < a.size(); ++x)
      if (a[x] != b[x]) worst = std::fmax(worst, std::fabs(static_cast<double>(a[x]) - b[x]) / (1 + std::fabs(b[x])));
    return worst;
  }
};

TEST_F(Merged, HalvesAreTheWhole) {
  // The last row sees all of the first part; the others' parts differ, and one part is nothing at all.
  Half whole = some(lengths({600, 500, 0})), a = some(lengths({200, 500, 0})),
       b = some(window(-1, -1) & lengths({0, 0, 0}));
  Half c;
  Attention rest{.q = q.read(), .k = k.read(), .v = v.read()};
  rest.k.data = &k.at(0, 0, 200, 0);
  rest.v.data = &v.at(0, 0, 200, 0);
  rest.k.shape[2] = rest.v.shape[2] = 400;
  rest.mask = lengths({400, 0, 0});
  forward(rest, c.view());
  std::fill(b.out.begin(), b.out.end(), kNaN);  // its lse is -inf: not read
  Half got;
  const auto part = [](Half& h) { return Part{h.view().out, h.view().lse}; };
  merge({part(a), part(b), part(c)}, got.view());
  EXPECT_LT(difference(got.out, whole.out), 1e-6);
  EXPECT_LT(difference(got.lse, whole.lse), 1e-6);
  EXPECT_EQ(std::memcmp(&got.out[2 * H * L * D], &whole.out[2 * H * L * D], 4 * H * L * D), 0);  // zeros
  merge({part(a), part(b), part(c)}, a.view());                                                  // in place
  EXPECT_EQ(a.out, got.out);
  EXPECT_EQ(a.lse, got.lse);
  // A part alone comes back as it is.
  Half same;
  merge({part(c)}, same.view());
  EXPECT_EQ(same.out, c.out);
  merge({}, same.view());
  EXPECT_EQ(same.out, std::vector<float>(same.out.size()));
  EXPECT_EQ(same.lse[0], -INFINITY);
  // Scores far apart.
  Half far_lse = c;
  for (float& x : far_lse.lse) x += 5000;
  merge({part(a), part(far_lse)}, same.view());
  EXPECT_EQ(std::memcmp(same.out.data(), c.out.data(), 4 * H * L * D), 0);
  Half bad = c;
  bad.lse[0] = kNaN;
  merge({part(a), part(bad)}, same.view());
  EXPECT_TRUE(std::isnan(same.out[0]) && std::isnan(same.lse[0]) && !std::isnan(same.out[D]));
}

TEST_F(Merged, RefusesWhatDoesNotFit) {
  Half a = some({}), b;
  Part p{a.view().out, a.view().lse};
  p.lse.shape[2] = 4;
  EXPECT_THROW(merge({p}, b.view()), Error);
  p = {a.view().out, {}};
  EXPECT_THROW(merge({p}, b.view()), Error);
  p = {a.view().out, a.view().lse};
  p.out.dtype = DType::f16;
  EXPECT_THROW(merge({p}, b.view()), Error);
  EXPECT_THROW(merge({p}, {}), Error);
}

// A prefix that all sequences share, read once for all their queries, and what each has behind it.
TEST(Cascade, PrefixOnceAndSuffixes) {
  const int64_t B = 5, Hkv = 2, Hq = 6, D = 32, prefix = 512;
  for (const DType t : {DType::f32, DType::f16, DType::i8}) {
    Grown g({.batch = B, .kv_heads = Hkv, .head_size = D, .value_size = D, .dtype = t});
    g.append(0, 1, prefix);
    g.select({0, 0, 0, 0, 0});
    for (int64_t b = 0; b < B; ++b) g.append(b, b + 1, 10 + 70 * b);
    const std::vector<float> q = random_floats(B * Hq * D, g.random, 2);
    std::vector<float> whole(B * Hq * D), got(whole), out(whole), shared(whole), lse(B * Hq), shared_lse(lse);
    const Shape shape{B, Hq, 1, D}, rows{B, Hq, 1, 1};
    // Sequences as queries of one, of one prefix: [B, Hq, 1, D] is [1, Hq, B, D].
    const auto turned = [](auto view) {
      std::swap(view.shape[0], view.shape[2]);
      std::swap(view.stride[0], view.stride[2]);
      return view;
    };
    const ConstTensor queries = tensor(q.data(), shape);
    Attention of_prefix = g.cache.view({.q = turned(queries)}, 0, 1);
    of_prefix.pages.keys = {prefix};
    forward(of_prefix, {turned(tensor(shared.data(), shape)), turned(tensor(shared_lse.data(), rows))});
    forward(g.cache.view({.q = queries, .mask = window(0, -1, prefix)}),
            {tensor(out.data(), shape), tensor(lse.data(), rows)});
    const ConstTensor o = tensor(const_cast<const float*>(out.data()), shape);
    const ConstTensor s = tensor(const_cast<const float*>(shared.data()), shape);
    merge({{s, tensor(shared_lse.data(), rows)}, {o, tensor(lse.data(), rows)}}, {tensor(got.data(), shape)});
    forward(g.cache.view({.q = queries}), {tensor(whole.data(), shape)});
    EXPECT_LT(Merged::difference(got, whole), 2e-6);
  }
}

}  // namespace
}  // namespace heed
