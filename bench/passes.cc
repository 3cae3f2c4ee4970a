// What the forward and the backward pass reach, in GFLOP/s, on the workloads of attention's usual places. Each is first
// checked against the double-precision reference on its leading rows; nothing is timed before it matches.
//
//   build/bench_passes [ROUNDS]
#include <heed/attention.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "check.h"
#include "reference.h"

namespace heed {
namespace {

struct Workload {
  const char* name;
  int64_t B, Hq, Hkv, L, S, D;
  Mask mask;
  Score score = Score::dot;
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + x.size() / 2, x.end());
  return x[x.size() / 2];
}

bool run(const Workload& w, int rounds) {
  std::vector<float> q(w.B * w.Hq * w.L * w.D), k(w.B * w.Hkv * w.S * w.D), v(k), out(q), d_out(q), dq(q), dk(k), dv(k);
  std::vector<float> lse(w.B * w.Hq * w.L), additive(w.D, 0.1f);
  uint32_t x = 1;
  for (auto* t : {&q, &k, &v, &d_out})
    for (float& y : *t) y = static_cast<float>((x = x * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
  const Shape sq{w.B, w.Hq, w.L, w.D}, sk{w.B, w.Hkv, w.S, w.D}, sl{w.B, w.Hq, w.L, 1};
  Attention a{.q = tensor(q.data(), sq),
              .k = tensor(k.data(), sk),
              .v = tensor(v.data(), sk),
              .score = w.score,
              .mask = w.mask};
  if (w.score == Score::additive) a.w = tensor(additive.data(), {1, 1, 1, w.D});
  const Output result{tensor(out.data(), sq), tensor(lse.data(), sl)};
  const Incoming in{result.out, result.lse, tensor(d_out.data(), sq)};
  const Gradients gradients{tensor(dq.data(), sq), tensor(dk.data(), sk), tensor(dv.data(), sk)};

  // A few rows of the first head in double, as a problem of their own with the same alignment.
  forward(a, result);
  const int64_t rows = std::min<int64_t>(4, w.L);
  std::vector<double> exact(rows * w.D);
  Attention few = a;
  few.q.shape = {1, 1, rows, w.D};
  few.k.shape = few.v.shape = {1, 1, w.S, w.D};
  const MaskShape whole{w.B, w.Hq, w.L, w.S};
  double worst = 0;
  int64_t pairs = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const Span keys = w.mask.row(whole, 0, 0, i);
    few.q.data = q.data() + i * w.D;
    few.q.shape[2] = 1;
    few.mask = window(-1, keys.end - 1, 0) & window(0, -1, keys.begin);
    const Tensor to = tensor(exact.data() + i * w.D, {1, 1, 1, w.D});
    Attention f64_shapes = few;
    reference::forward(
        {f64_shapes, 1, 1, 1, 1, 1, w.S, w.D, w.D, w.score == Score::dot ? 1 / std::sqrt(double(w.D)) : 1.0}, {to});
    for (int64_t d = 0; d < w.D; ++d) worst = std::fmax(worst, std::fabs(out[i * w.D + d] - exact[i * w.D + d]));
  }
  if (!(worst < 1e-5)) {
    std::printf("%-28s differs from the reference by %g; not timed\n", w.name, worst);
    return false;
  }
  for (int64_t b = 0; b < w.B; ++b)
    for (int64_t i = 0; i < w.L; ++i) {
      const Span keys = w.mask.row(whole, b, 0, i);
      pairs += w.Hq * (keys.end - keys.begin);
    }
  std::vector<double> forwards, backwards;
  for (int r = 0; r < rounds; ++r) {
    auto t = Clock::now();
    forward(a, result);
    forwards.push_back(seconds_since(t));
    t = Clock::now();
    backward(a, in, gradients);
    backwards.push_back(seconds_since(t));
  }
  const double flops = 4.0 * pairs * w.D, f = median(forwards), b = median(backwards);
  std::printf("%-28s forward %9.3f ms %7.1f GFLOP/s   backward %9.3f ms %7.1f GFLOP/s   error %.1e\n", w.name, f * 1e3,
              flops / f / 1e9, b * 1e3, 2.5 * flops / b / 1e9, worst);
  return true;
}

}  // namespace
}  // namespace heed

int main(int argc, char** argv) {
  using namespace heed;
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 7;
  std::printf(
      "heed %s, %s, %d threads, medians of %d rounds; flops are 4 (forward) and 10 (backward) x visible pairs x D\n",
      version().c_str(), target().c_str(), threads(), rounds);
  const std::vector<Workload> workloads = {
      {"1,16,1024,64", 1, 16, 16, 1024, 1024, 64, {}},
      {"1,16,1024,64 causal", 1, 16, 16, 1024, 1024, 64, causal()},
      {"1,8,2048,128 causal", 1, 8, 8, 2048, 2048, 128, causal()},
      {"8,12,197,64 ViT", 8, 12, 12, 197, 197, 64, {}},
      {"8,8,512,64 causal", 8, 8, 8, 512, 512, 64, causal()},
      {"1,8,4096,64 window 256", 1, 8, 8, 4096, 4096, 64, causal() & window(255, 0)},
      {"1,32/8,1,8192,128 decode", 1, 32, 8, 1, 8192, 128, {}},
      {"32,1,40,40,256 additive", 32, 1, 1, 40, 40, 256, {}, Score::additive},
  };
  bool good = true;
  for (const Workload& w : workloads) good &= run(w, rounds);
  return good ? 0 : 1;
}
