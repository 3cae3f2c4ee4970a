// Memory is linear in the lengths: 65,536 queries and keys, causal, forward and backward, under 400 MB resident; and
// with every option a backward takes at most 64 MB beside its tensors at B 1, H 8, L 16,384, D 64.
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <heed/probe.h>
#include <malloc.h>

#include <cmath>
#include <fstream>
#include <string>

namespace heed {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// A figure of this process in MB: VmHWM, the most memory it ever had resident, or VmRSS, what it has now.
double resident(const std::string& name) {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word)
    if (word == name + ":") {
      double kilobytes;
      status >> kilobytes;
      return kilobytes / 1024;
    }
  return -1;
}

TEST(Memory, LinearInTheLengths) {
  if (kSanitized) GTEST_SKIP() << "AddressSanitizer multiplies memory and time";
  const int64_t L = 65536, D = 64;
  const Shape shape{1, 1, L, D};
  std::vector<float> q(L * D), k(L * D), v(L * D), out(L * D), lse(L), d_out(L * D), d_q(L * D), d_k(L * D), d_v(L * D);
  uint32_t x = 1;
  for (auto* t : {&q, &k, &v, &d_out})
    for (float& y : *t) y = static_cast<float>((x = x * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
  const Attention a{
      .q = tensor(q.data(), shape), .k = tensor(k.data(), shape), .v = tensor(v.data(), shape), .mask = causal()};
  const Tensor l = tensor(lse.data(), {1, 1, L, 1});
  forward(a, {tensor(out.data(), shape), l});
  backward(a, {tensor(out.data(), shape), l, tensor(d_out.data(), shape)},
           {.d_q = tensor(d_q.data(), shape), .d_k = tensor(d_k.data(), shape), .d_v = tensor(d_v.data(), shape)});
  EXPECT_LT(resident("VmHWM"), 400);
  EXPECT_GT(resident("VmHWM"), 150);  // the tensors alone are 144 MB: the measurement measures

  // And right: the first rows again from a short problem, to the same bits; every dv adds up to the d_out it was dealt.
  std::vector<float> head(100 * D);
  const Shape few{1, 1, 100, D};
  forward({.q = tensor(q.data(), few), .k = tensor(k.data(), few), .v = tensor(v.data(), few), .mask = causal()},
          {tensor(head.data(), few)});
  EXPECT_TRUE(std::equal(head.begin(), head.end(), out.begin()));
  for (const int64_t d : {0, 63}) {
    double dealt = 0, received = 0;
    for (int64_t i = 0; i < L; ++i) {
      dealt += d_out[i * D + d];
      received += d_v[i * D + d];
    }
    EXPECT_NEAR(received, dealt, 0.05);
  }
}

TEST(Memory, BackwardWithEveryOptionTakesLittle) {
  if (kSanitized) GTEST_SKIP() << "AddressSanitizer multiplies memory and time";
  const int64_t H = 8, L = 16384, D = 64;
  const Shape shape{1, H, L, D}, rows{1, H, L, 1}, row{1, 1, 1, L};
  for (const Score score : {Score::dot, Score::additive}) {
    const bool additive = score == Score::additive;
    std::vector<uint16_t> q(H * L * D, 0x3F01), k(q), v(q), out(q), d_out(q), d_q(q), d_k(q), d_v(q);
    std::vector<float> lse(H * L, 1.0f), d_lse(lse), bias(L, 0.5f), d_bias(bias), per_head(H, 0.01f), d_alibi(per_head),
        d_sinks(per_head), w(D), d_w(D);
    std::vector<uint16_t> narrow_w(D, 0x3F01);
    const auto bf16 = [&](std::vector<uint16_t>& x) { return tensor(x.data(), DType::bf16, shape); };
    const auto heads = [&](std::vector<float>& x) { return tensor(x.data(), {1, H, 1, 1}); };
    Attention a{.q = bf16(q),
                .k = bf16(k),
                .v = bf16(v),
                .score = score,
                .softcap = 5,
                .bias = tensor(bias.data(), row),
                .alibi = heads(per_head),
                .mask = causal() & window(additive ? 15 : 1023, 0),
                .sinks = heads(per_head),
                .dropout = 0.1};
    if (additive) a.w = tensor(narrow_w.data(), DType::bf16, {1, 1, 1, D});
    forward(a, {bf16(out), tensor(lse.data(), rows)});
    const Gradients g{bf16(d_q),
                      bf16(d_k),
                      bf16(d_v),
                      additive ? tensor(d_w.data(), {1, 1, 1, D}) : Tensor{},
                      tensor(d_bias.data(), row),
                      heads(d_alibi),
                      heads(d_sinks)};
    for (const int n : {1, 2, 8}) {
      set_threads(n);
      malloc_trim(0);                               // what is free counts as resident otherwise
      std::ofstream("/proc/self/clear_refs") << 5;  // VmHWM starts anew
      const double before = resident("VmRSS");
      backward(a, {bf16(out), tensor(lse.data(), rows), bf16(d_out), tensor(d_lse.data(), rows)}, g);
      EXPECT_LT(resident("VmHWM") - before, 64) << n << " threads" << (additive ? ", additive" : "");
      EXPECT_GT(resident("VmHWM") - before, 1) << "the measurement measures";
    }
    set_threads(2);
  }
}

// The expression in a framework's operators makes a tensor of L x S x D, 17 GB here, several times.
TEST(Memory, AdditiveScoresAtALengthTheExpressionCannot) {
  if (kSanitized) GTEST_SKIP() << "AddressSanitizer multiplies memory and time";
  const int64_t L = 4096, D = 256;
  const Shape shape{1, 1, L, D}, rows{1, 1, L, 1}, one{1, 1, 1, D};
  std::vector<float> q(L * D), k(q), v(q), out(q), d_q(q), d_k(q), d_v(q), w(D), d_w(D), lse(L);
  uint32_t x = 1;
  for (auto* t : {&q, &k, &v, &w})
    for (float& y : *t) y = static_cast<float>((x = x * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
  const Attention a{.q = tensor(q.data(), shape),
                    .k = tensor(k.data(), shape),
                    .v = tensor(v.data(), shape),
                    .score = Score::additive,
                    .w = tensor(w.data(), one)};
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << 5;
  const double before = resident("VmRSS");
  forward(a, {tensor(out.data(), shape), tensor(lse.data(), rows)});
  backward(a, {tensor(out.data(), shape), tensor(lse.data(), rows), tensor(v.data(), shape)},
           {tensor(d_q.data(), shape), tensor(d_k.data(), shape), tensor(d_v.data(), shape), tensor(d_w.data(), one)});
  EXPECT_LT(resident("VmHWM") - before, 64);
  EXPECT_GT(resident("VmHWM") - before, 1) << "the measurement measures";
  // Every key's gradient comes from the same sums as the queries': both add up to the same.
  double of_q = 0, of_k = 0, size = 0;
  for (int64_t i = 0; i < L * D; ++i) {
    of_q += d_q[i], of_k += d_k[i];
    size += std::fabs(d_q[i]);
  }
  EXPECT_GT(size, 1);
  EXPECT_NEAR(of_q, of_k, 1e-5 * size);
}

TEST(Memory, SecondDerivativesTakeLittle) {
  if (kSanitized) GTEST_SKIP() << "AddressSanitizer multiplies memory and time";
  const int64_t H = 8, L = 16384, D = 64;
  const Shape shape{1, H, L, D}, rows{1, H, L, 1}, row{1, 1, 1, L};
  std::vector<uint16_t> x(H * L * D, 0x3F01), out(x), results[4] = {x, x, x, x};
  std::vector<float> lse(H * L, 1.0f), d_d_lse(lse), bias(L, 0.5f), d_bias(bias), per_head(H, 0.01f), d_alibi(per_head),
      d_sinks(per_head);
  const auto bf16 = [&](std::vector<uint16_t>& t) { return tensor(t.data(), DType::bf16, shape); };
  const auto heads = [&](std::vector<float>& t) { return tensor(t.data(), {1, H, 1, 1}); };
  const Attention a{.q = bf16(x),
                    .k = bf16(x),
                    .v = bf16(x),
                    .softcap = 5,
                    .bias = tensor(bias.data(), row),
                    .alibi = heads(per_head),
                    .mask = causal() & window(255, 0),
                    .sinks = heads(per_head),
                    .dropout = 0.1};
  forward(a, {bf16(out), tensor(lse.data(), rows)});
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << 5;
  const double before = resident("VmRSS");
  double_backward(a, {bf16(out), tensor(lse.data(), rows), bf16(x), tensor(lse.data(), rows)},
                  {bf16(x), bf16(x), bf16(x), tensor(bias.data(), row), heads(per_head), heads(per_head)},
                  {bf16(results[0]), bf16(results[1]), bf16(results[2]), tensor(d_bias.data(), row), heads(d_alibi),
                   heads(d_sinks), bf16(results[3]), tensor(d_d_lse.data(), rows)});
  EXPECT_LT(resident("VmHWM") - before, 64);
  EXPECT_GT(resident("VmHWM") - before, 1) << "the measurement measures";
}

TEST(Memory, ProbesTakeLittle) {
  if (kSanitized) GTEST_SKIP() << "AddressSanitizer multiplies memory and time";
  const int64_t L = 16384, D = 64, k = 8;
  std::vector<float> q(L * D), key(L * D), out(L * D), lse(L), weights(L * k), entropy(L), mass(L), listed(L);
  std::vector<int64_t> keys(L * k);
  uint32_t x = 1;
  for (auto* t : {&q, &key})
    for (float& y : *t) y = static_cast<float>((x = x * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
  const Shape shape{1, 1, L, D}, rows{1, 1, L, 1};
  const Attention a{
      .q = tensor(q.data(), shape), .k = tensor(key.data(), shape), .v = tensor(key.data(), shape), .mask = causal()};
  const Tensor l = tensor(lse.data(), rows);
  forward(a, {tensor(out.data(), shape), l});
  for (const int n : {1, 2, 8}) {
    set_threads(n);
    malloc_trim(0);
    std::ofstream("/proc/self/clear_refs") << 5;
    const double before = resident("VmRSS");
    probe(a, l,
          {.top_keys = key_tensor(keys.data(), {1, 1, L, k}),
           .top_weights = tensor(weights.data(), {1, 1, L, k}),
           .entropy = tensor(entropy.data(), rows),
           .mass = tensor(mass.data(), {1, 1, 1, L}),
           .rows = {{0, 0, 9}},
           .weights = tensor(listed.data(), {1, 1, 1, L})});
    EXPECT_LT(resident("VmHWM") - before, 16) << n << " threads; L x S floats are 1024 MB";
    EXPECT_GT(resident("VmHWM") - before, 0.1) << "the measurement measures";
  }
  set_threads(2);
  double all = 0;
  for (const float y : mass) all += y;
  EXPECT_NEAR(all / L, 1, 1e-5);  // every row deals out 1
}

}  // namespace
}  // namespace heed
