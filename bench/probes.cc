// What this machine can do, measured beside the timed rounds of bench/compare, which loads this as a shared library:
// the FMA peak, a register tile that reads its operands from L1 as a real kernel does, and the read bandwidth; and the
// loop in which Heed's calls are timed, so that no Python lies between them.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "probes.cc"
// As in src/targets.h: what the engine does not use is no peak of ours, and SVE's vectors do not go into arrays.
#define HWY_BROKEN_EMU128 1
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV | HWY_WASM | HWY_WASM_EMU256)
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <heed/heed.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"

#ifndef HEED_BENCH_PROBES_ONCE
#define HEED_BENCH_PROBES_ONCE
namespace heed_bench {

using Clock = std::chrono::steady_clock;

inline double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// How the bandwidth probe walks a thread's blocks, which lie `apart` bytes from each other: in turns of one block from
// each of `streams` places, with a prefetch `ahead` bytes before the load.
constexpr size_t kBlock = 4096;
struct Walk {
  const uint8_t* from;
  size_t blocks, apart;
  int streams, ahead;
};

inline std::atomic<uint64_t> sink;  // what is computed only to be timed ends here

}  // namespace heed_bench
#endif

HWY_BEFORE_NAMESPACE();
namespace heed_bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

const char* Name() { return hwy::TargetName(HWY_TARGET); }

// Says that the vector may have changed: GCC then keeps it in a register and does not fold its load into every FMA.
template <class V>
HWY_INLINE void Pin(V& v) {
#if HWY_ARCH_X86
  asm("" : "+v"(v.raw));
#elif HWY_ARCH_ARM
  asm("" : "+w"(v.raw));
#else
  (void)v;
#endif
}

// Flops a second of one thread: twelve chains of FMAs hide the latency of any core we know (two a cycle, four cycles).
double Fma(double seconds) {
  const hn::ScalableTag<float> d;
  constexpr int kChains = 12, kTurns = 20000;
  using V = hn::Vec<decltype(d)>;
  V sum[kChains], half = hn::Set(d, 0.5f);
  for (int i = 0; i < kChains; ++i) sum[i] = hn::Set(d, static_cast<float>(i));
  Pin(half);
  double turns = 0;
  const auto start = Clock::now();
  do {
    for (int t = 0; t < kTurns; ++t)
      for (int i = 0; i < kChains; ++i) sum[i] = hn::MulAdd(sum[i], half, half);
    turns += kTurns;
  } while (since(start) < seconds);
  const double took = since(start);
  for (int i = 0; i < kChains; ++i) sink += static_cast<uint64_t>(hn::GetLane(sum[i]));
  return turns * kChains * 2 * hn::Lanes(d) / took;
}

// Flops a second of one thread that multiplies 6 rows by two vectors of columns, 128 deep, again and again: a tile of
// sums in registers, its operands in L1.
double Tile(double seconds) {
  const hn::ScalableTag<float> d;
  constexpr int kRows = 6, kDeep = 128, kTurns = 500;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  auto a = hwy::AllocateAligned<float>(kRows * kDeep), b = hwy::AllocateAligned<float>(2 * lanes * kDeep),
       c = hwy::AllocateAligned<float>(2 * lanes * kRows);
  for (int i = 0; i < kRows * kDeep; ++i) a[i] = 1e-3f;
  for (size_t i = 0; i < 2 * lanes * kDeep; ++i) b[i] = 1e-3f;
  double turns = 0;
  const auto start = Clock::now();
  do {
    for (int t = 0; t < kTurns; ++t) {
      V sum[kRows][2];
      for (auto& row : sum) row[0] = row[1] = hn::Zero(d);
      const float* HWY_RESTRICT at = a.get();
      const float* HWY_RESTRICT bt = b.get();
      for (int k = 0; k < kDeep; ++k, at += kRows, bt += 2 * lanes) {
        V b0 = hn::Load(d, bt), b1 = hn::Load(d, bt + lanes);
        Pin(b0);
        Pin(b1);
        for (int i = 0; i < kRows; ++i) {
          const V x = hn::Set(d, at[i]);
          sum[i][0] = hn::MulAdd(x, b0, sum[i][0]);
          sum[i][1] = hn::MulAdd(x, b1, sum[i][1]);
        }
      }
      for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < 2; ++j) hn::Store(sum[i][j], d, c.get() + (2 * i + j) * lanes);
      asm volatile("" ::"r"(a.get()), "r"(b.get()), "r"(c.get()) : "memory");
    }
    turns += kTurns;
  } while (since(start) < seconds);
  return turns * kRows * kDeep * 4 * lanes / since(start);
}

// Bytes a second of one thread.
double Read(const Walk& w, double seconds) {
  const hn::ScalableTag<uint64_t> d;
  const size_t step = 8 * hn::Lanes(d), blocks = w.blocks / w.streams;
  auto x = hn::Zero(d), y = x, z = x, u = x;
  double bytes = 0;
  const auto start = Clock::now();
  for (size_t block = 0;; block = (block + 1) % blocks) {
    for (int s = 0; s < w.streams; ++s) {
      const uint8_t* p = w.from + (s * blocks + block) * w.apart;
      for (const uint8_t* end = p + kBlock; p < end; p += 4 * step) {
        if (w.ahead)
          for (size_t line = 0; line < 4 * step; line += 64) __builtin_prefetch(p + w.ahead + line);
        const uint64_t* q = reinterpret_cast<const uint64_t*>(p);
        x = hn::Xor(x, hn::Load(d, q));
        y = hn::Xor(y, hn::Load(d, q + step / 8));
        z = hn::Xor(z, hn::Load(d, q + 2 * step / 8));
        u = hn::Xor(u, hn::Load(d, q + 3 * step / 8));
      }
    }
    bytes += static_cast<double>(kBlock) * w.streams;
    if (block % 64 == 63 && since(start) >= seconds) break;
  }
  const double took = since(start);
  sink += hn::GetLane(hn::Xor(hn::Xor(x, y), hn::Xor(z, u)));
  return bytes / took;
}

}  // namespace HWY_NAMESPACE
}  // namespace heed_bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed_bench {
HWY_EXPORT(Name);
HWY_EXPORT(Fma);
HWY_EXPORT(Tile);
HWY_EXPORT(Read);

namespace {

// The sum of what the threads return that run f(thread) at the same time.
template <class F>
double together(int threads, F&& f) {
  std::vector<double> rate(threads);
  std::vector<std::thread> pool;
  std::atomic<int> ready{0};
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&, t] {
      ++ready;
      while (ready < threads) std::this_thread::yield();
      rate[t] = f(t);
    });
  double sum = 0;
  for (int t = 0; t < threads; ++t) {
    pool[t].join();
    sum += rate[t];
  }
  return sum;
}

// Best first: Highway gives better targets lower bits.
std::vector<int64_t> targets() {
  std::vector<int64_t> bits;
  for (int64_t rest = (hwy::SupportedTargets() | HWY_STATIC_TARGET) & HWY_TARGETS; rest != 0; rest &= rest - 1)
    bits.push_back(rest & -rest);
  return bits;
}

}  // namespace
}  // namespace heed_bench

using namespace heed_bench;

extern "C" {

// The name of the target-th best SIMD target that this machine runs, NULL past the last one.
const char* heed_bench_target(int target) {
  const auto all = targets();
  return target < static_cast<int>(all.size()) ? hwy::TargetName(all[target]) : nullptr;
}

// Flops a second of all threads.
double heed_bench_fma(int target, int threads, double seconds) {
  hwy::GetChosenTarget().Update(targets().at(target));
  return together(threads, [&](int) { return HWY_DYNAMIC_DISPATCH(Fma)(seconds); });
}

double heed_bench_tile(int target, int threads, double seconds) {
  hwy::GetChosenTarget().Update(targets().at(target));
  return together(threads, [&](int) { return HWY_DYNAMIC_DISPATCH(Tile)(seconds); });
}

// Bytes a second of all threads that read half a gigabyte, written once, the first time. alternate: the threads take
// every n-th block each; otherwise each has a part of its own.
double heed_bench_read(int threads, double seconds, int streams, int ahead, int alternate) {
  constexpr size_t kBytes = size_t{512} << 20, kSpare = 1 << 20;  // prefetches run past the end
  static uint8_t* const buffer = [] {
    void* p = mmap(nullptr, kBytes + kSpare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return static_cast<uint8_t*>(nullptr);
    madvise(p, kBytes + kSpare, MADV_HUGEPAGE);
    std::memset(p, 1, kBytes + kSpare);
    return static_cast<uint8_t*>(p);
  }();
  if (!buffer) return 0;
  hwy::GetChosenTarget().Update(targets().at(0));
  const size_t blocks = kBytes / kBlock / threads;
  return together(threads, [&](int t) {
    const Walk walk = alternate ? Walk{buffer + t * kBlock, blocks, threads * kBlock, streams, ahead}
                                : Walk{buffer + t * blocks * kBlock, blocks, kBlock, streams, ahead};
    return HWY_DYNAMIC_DISPATCH(Read)(walk, seconds);
  });
}

// Calls forward on the problems in turn, `inner` calls for each of the `samples` times that go into seconds (per call).
// Stops at the first status that is not HEED_OK and returns it.
int heed_bench_calls(heed_status (*forward)(const heed_attention*, heed_tensor, heed_tensor),
                     const heed_attention* problems, int64_t problem_count, const heed_tensor* out_and_lse,
                     int64_t samples, int64_t inner, double* seconds) {
  int64_t at = 0;
  for (int64_t i = 0; i < samples; ++i) {
    const auto start = Clock::now();
    for (int64_t j = 0; j < inner; ++j) {
      const heed_status status = forward(&problems[at], out_and_lse[0], out_and_lse[1]);
      if (status != HEED_OK) return status;
      if (++at == problem_count) at = 0;
    }
    seconds[i] = since(start) / static_cast<double>(inner);
  }
  return HEED_OK;
}

// The same for forward and backward, one after the other, as one sample.
int heed_bench_steps(heed_status (*forward)(const heed_attention*, heed_tensor, heed_tensor),
                     heed_status (*backward)(const heed_attention*, const heed_incoming*, const heed_gradients*),
                     const heed_attention* problem, const heed_incoming* in, const heed_gradients* gradients,
                     int64_t samples, double* seconds) {
  for (int64_t i = 0; i < samples; ++i) {
    const auto start = Clock::now();
    heed_status status = forward(problem, in->out, in->lse);
    if (status == HEED_OK) status = backward(problem, in, gradients);
    if (status != HEED_OK) return status;
    seconds[i] = since(start);
  }
  return HEED_OK;
}

}  // extern "C"
#endif
