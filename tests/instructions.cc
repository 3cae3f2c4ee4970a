// Three fixed workloads whose instructions instructions_test.sh counts. Usage: instructions build | prefill | causal |
// decode
#include <heed/attention.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace {

// How this was built, as far as counts depend on it.
const char* build() {
#if defined(__SANITIZE_ADDRESS__) || !defined(NDEBUG) || !defined(__OPTIMIZE__)
  return "not a release";
#elif !defined(__x86_64__)
  return "not x86-64";
#elif defined(__clang__)
  return "Clang";
#elif __GNUC__ == 12
  return "GCC 12";
#else
  return "another compiler";
#endif
}

struct Sizes {
  int64_t Hq, Hkv, L, S, D;
  heed::DType dtype;
  heed::Mask mask;
};

// What callgrind collects (--toggle-collect): one call, its plan included.
extern "C" __attribute__((noinline)) void counted(const heed::Attention& a, const heed::Output& result) {
  heed::forward(a, result);
}

int run(const Sizes& s) {
  heed::set_target("AVX2");
  const bool f32 = s.dtype == heed::DType::f32;
  // Multiples of 1/8 in [-1, 1): the same work whatever the library of random numbers.
  uint32_t state = 1;
  const auto numbers = [&](int64_t n) {
    std::vector<uint32_t> x(f32 ? n : (n + 1) / 2);  // bf16: two to a word
    for (uint32_t& word : x) {
      uint32_t both[2];
      for (uint32_t& bits : both) {
        state = state * 1664525u + 1013904223u;
        const float y = (static_cast<float>(state >> 28) - 8) / 8;
        std::memcpy(&bits, &y, sizeof y);
      }
      word = f32 ? both[0] : (both[0] & 0xFFFF0000u) | both[1] >> 16;
    }
    return x;
  };
  auto q = numbers(s.Hq * s.L * s.D), k = numbers(s.Hkv * s.S * s.D), v = numbers(s.Hkv * s.S * s.D);
  std::vector<uint32_t> out(q.size());
  const auto view = [&](std::vector<uint32_t>& x, int64_t heads, int64_t length) {
    return heed::tensor(static_cast<void*>(x.data()), s.dtype, {1, heads, length, s.D});
  };
  const heed::Attention a{.q = view(q, s.Hq, s.L), .k = view(k, s.Hkv, s.S), .v = view(v, s.Hkv, s.S), .mask = s.mask};
  const heed::Output result{view(out, s.Hq, s.L)};
  heed::forward(a, result);  // what only the first call does
  counted(a, result);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  using heed::DType;
  if (what == "build") return std::puts(build()) < 0;
  const std::vector<std::string> targets = heed::targets();
  if (std::find(targets.begin(), targets.end(), "AVX2") == targets.end()) return 77;  // skipped
  if (what == "prefill") return run({2, 2, 200, 300, 64, DType::f32, {}});
  if (what == "causal") return run({4, 2, 300, 300, 64, DType::f32, heed::causal()});
  if (what == "decode") return run({8, 2, 1, 2048, 128, DType::bf16, heed::causal()});
  std::fprintf(stderr, "usage: instructions build | prefill | causal | decode\n");
  return 2;
}
