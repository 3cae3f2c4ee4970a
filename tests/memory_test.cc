// Memory is linear in the lengths: 65,536 queries and keys, causal, forward and backward, under 400 MB resident.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <fstream>

namespace heed {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// The most memory this process ever had resident, in MB.
double peak_resident() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word)
    if (word == "VmHWM:") {
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
  EXPECT_LT(peak_resident(), 400);
  EXPECT_GT(peak_resident(), 150);  // the tensors alone are 144 MB: the measurement measures

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

}  // namespace
}  // namespace heed
