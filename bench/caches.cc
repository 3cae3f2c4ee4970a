// Decoding from caches of every dtype and some page sizes: time, in turns, as a ratio to f16 in one piece, and the
// error against double precision over the keys and values that were put in. Nothing is timed before it matches.
//
//   build/bench_caches [ROUNDS]
#include <heed/cache.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "check.h"
#include "half.h"
#include "reference.h"

namespace heed {
namespace {

struct Workload {
  const char* name;
  int64_t B, Hq, Hkv, S, D;
};

struct Way {
  const char* name;
  DType q, cache;
  int64_t page_keys;  // 0: in one piece
  double bound;       // of the error: half precision rounds values of up to 1, bytes of up to 1/254 and scores more
};

using Clock = std::chrono::steady_clock;

std::vector<char> elements(const std::vector<float>& x, DType t) {
  std::vector<char> y(x.size() * bytes_of(t));
  if (t == DType::f32) std::memcpy(y.data(), x.data(), y.size());
  for (size_t i = 0; t == DType::f16 && i < x.size(); ++i)
    reinterpret_cast<uint16_t*>(y.data())[i] = half_of_float(x[i]);
  return y;
}

bool run(const Workload& w, int rounds) {
  std::vector<float> q(w.B * w.Hq * w.D), k(w.B * w.Hkv * w.S * w.D), v(k);
  uint32_t x = 1;
  for (auto* t : {&q, &k, &v})
    for (float& y : *t) y = static_cast<float>((x = x * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
  for (float& y : q) y *= 4;  // so that some keys count more than others
  const Shape sq{w.B, w.Hq, 1, w.D}, sk{w.B, w.Hkv, w.S, w.D};
  const ConstTensor new_k = tensor(static_cast<const float*>(k.data()), sk);
  const ConstTensor new_v = tensor(static_cast<const float*>(v.data()), sk);
  std::vector<double> exact(q.size());
  std::vector<float> unused(q.size());
  const Attention plain{.q = tensor(static_cast<const float*>(q.data()), sq), .k = new_k, .v = new_v};
  reference::forward(check_forward(plain, {tensor(unused.data(), sq)}), {tensor(exact.data(), sq)});

  const Way ways[] = {{"f16 in one piece", DType::f16, DType::f16, 0, 2e-3},
                      {"f32", DType::f32, DType::f32, 256, 1e-5},
                      {"f16", DType::f16, DType::f16, 256, 2e-3},
                      {"f16, pages of 16", DType::f16, DType::f16, 16, 2e-3},
                      {"i8, q f16", DType::f16, DType::i8, 256, 2e-2},
                      {"i8, q f32", DType::f32, DType::i8, 256, 2e-2},
                      {"i8, q f16, pages of 64", DType::f16, DType::i8, 64, 2e-2},
                      {"i8, q f16, pages of 16", DType::f16, DType::i8, 16, 2e-2}};
  struct Run {
    Cache cache;
    std::vector<char> q, k, v, out;
    Attention a;
    Plan plan;
    std::vector<double> times;
    double worst = 0;
  };
  std::vector<Run> runs;
  bool good = true;
  for (const Way& way : ways) {
    const CacheShape shape{.batch = w.B,
                           .kv_heads = w.Hkv,
                           .head_size = w.D,
                           .dtype = way.cache,
                           .page_keys = std::max<int64_t>(16, way.page_keys)};
    Run& r = runs.emplace_back(Run{Cache(shape), elements(q, way.q), {}, {}, {}, {}, {}, {}});
    r.out.resize(r.q.size());
    if (way.page_keys > 0) {
      r.cache.append(new_k, new_v);
      r.a = r.cache.view({});
    } else {
      r.k = elements(k, way.cache);
      r.v = elements(v, way.cache);
      r.a.k = tensor(static_cast<const void*>(r.k.data()), way.cache, sk);
      r.a.v = tensor(static_cast<const void*>(r.v.data()), way.cache, sk);
    }
    r.a.q = tensor(static_cast<const void*>(r.q.data()), way.q, sq);
    const Tensor out = tensor(static_cast<void*>(r.out.data()), way.q, sq);
    forward(r.a, {out});
    for (int64_t b = 0; b < w.B; ++b)
      for (int64_t h = 0; h < w.Hq; ++h)
        for (int64_t d = 0; d < w.D; ++d)
          r.worst = std::fmax(r.worst, std::fabs(reference::at(out, b, h, 0, d) - exact[(b * w.Hq + h) * w.D + d]));
    if (!(r.worst < way.bound)) {
      std::printf("%s %-24s differs from the reference by %g; not timed\n", w.name, way.name, r.worst);
      good = false;
    }
  }
  if (!good) return false;
  for (int round = 0; round < rounds; ++round)
    for (size_t i = 0; i < runs.size(); ++i) {
      Run& r = runs[i];
      r.a.plan = &r.plan;
      const auto t = Clock::now();
      forward(r.a, {tensor(static_cast<void*>(r.out.data()), ways[i].q, sq)});
      r.times.push_back(std::chrono::duration<double>(Clock::now() - t).count() * 1e3);
    }
  for (size_t i = 0; i < runs.size(); ++i) {
    std::sort(runs[i].times.begin(), runs[i].times.end());
    const auto best = [&](size_t x) { return runs[x].times[0]; };
    const auto median = [&](size_t x) { return runs[x].times[runs[x].times.size() / 2]; };
    std::printf("%s %-24s best %7.3f ms  median %7.3f  as fast as the first: %.2f %.2f  error %.1e\n", w.name,
                ways[i].name, best(i), median(i), best(0) / best(i), median(0) / median(i), runs[i].worst);
  }
  return true;
}

}  // namespace
}  // namespace heed

int main(int argc, char** argv) {
  using namespace heed;
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 31;
  std::printf("heed %s, %s, %d threads, %d rounds; ratios of best and median times\n", version().c_str(),
              target().c_str(), threads(), rounds);
  bool good = true;
  for (const Workload& w : {Workload{"D1", 1, 32, 8, 8192, 128}, Workload{"D2", 8, 32, 8, 2048, 128}})
    good &= run(w, rounds);
  return good ? 0 : 1;
}
