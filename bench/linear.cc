// Linear attention: tokens and GFLOP in a second, forward and backward, for each update rule. The first tokens are
// checked against the double-precision reference before anything is timed.
//
//   build/bench_linear [ROUNDS]
#include "linear/linear.h"

#include <heed/linear.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace heed {
namespace {

struct Workload {
  int64_t B, Hq, Hkv, T, dk, dv;
};

template <class F>
double median_seconds(int rounds, F&& f) {
  std::vector<double> x;
  for (int r = 0; r < rounds; ++r) {
    const auto start = std::chrono::steady_clock::now();
    f();
    x.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(x.begin(), x.begin() + rounds / 2, x.end());
  return x[rounds / 2];
}

bool run(const Workload& w, Update update, const char* name, int rounds) {
  const Shape sq{w.B, w.Hq, w.T, w.dk}, sk{w.B, w.Hkv, w.T, w.dk}, sv{w.B, w.Hkv, w.T, w.dv};
  const Shape so{w.B, w.Hq, w.T, w.dv}, sb{w.B, w.Hkv, w.T, 1}, ss{w.B, w.Hkv, w.dk, w.dv};
  const auto room = [](const Shape& s) { return std::vector<float>(s[0] * s[1] * s[2] * s[3]); };
  std::vector<float> q = room(sq), k = room(sk), v = room(sv), out = room(so), state = room(ss), decay = k,
                     beta = room(sb);
  std::vector<float> d_q = q, d_k = k, d_v = v, d_decay = k, d_out = out, d_beta = beta;
  uint32_t x = 1;
  for (auto* t : {&q, &k, &v, &decay, &beta, &d_out})
    for (float& y : *t) y = static_cast<float>((x = x * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
  for (float& y : k) y /= std::sqrt(static_cast<float>(w.dk) / 3);  // of length 1, about
  for (float& y : decay) y = -0.1f * std::fabs(y);
  for (float& y : beta) y = std::fabs(y);
  const bool gated = update == Update::gated || update == Update::gated_delta;
  const bool delta = update == Update::delta || update == Update::gated_delta;
  LinearAttention a{.q = tensor(q.data(), sq), .k = tensor(k.data(), sk), .v = tensor(v.data(), sv), .update = update};
  if (gated) a.decay = tensor(decay.data(), sk);
  if (delta) a.beta = tensor(beta.data(), sb);
  const LinearOutput result{tensor(out.data(), so), tensor(state.data(), ss)};

  forward(a, result);
  LinearAttention few = a;
  const int64_t T = std::min<int64_t>(w.T, 100);
  for (ConstTensor* t : {&few.q, &few.k, &few.v, &few.decay, &few.beta})
    if (t->data) t->shape[2] = T;
  std::vector<double> exact(w.B * w.Hq * T * w.dv);
  const Tensor want = tensor(exact.data(), {w.B, w.Hq, T, w.dv});
  Tensor head = result.out;
  head.shape[2] = T;
  reference::forward(check_linear(few, LinearOutput{head}), LinearOutput{want});
  double worst = 0;
  for (int64_t h = 0; h < w.B * w.Hq; ++h)
    for (int64_t e = 0; e < T * w.dv; ++e)
      worst = std::fmax(worst, std::fabs(out[h * w.T * w.dv + e] - exact[h * T * w.dv + e]));
  if (!(worst < 1e-5)) {
    std::printf("%s is wrong by %g; nothing is timed\n", name, worst);
    return false;
  }

  const double seconds = median_seconds(rounds, [&] { forward(a, result); });
  const double state_size = static_cast<double>(w.dk * w.dv), tokens = static_cast<double>(w.B * w.T);
  const double flops = tokens * state_size * static_cast<double>(2 * w.Hq + w.Hkv * (2 + gated + 2 * delta));
  std::printf("%-5ld %3ld/%-3ld %4ld %4ld  %-12s %9.2f ms %9.0f tokens/s %6.1f GFLOP/s", w.T, w.Hq, w.Hkv, w.dk, w.dv,
              name, seconds * 1e3, tokens / seconds, flops / seconds * 1e-9);
  const LinearGradients gradients{.d_q = tensor(d_q.data(), sq),
                                  .d_k = tensor(d_k.data(), sk),
                                  .d_v = tensor(d_v.data(), sv),
                                  .d_decay = gated ? tensor(d_decay.data(), sk) : Tensor{},
                                  .d_beta = delta ? tensor(d_beta.data(), sb) : Tensor{}};
  const double back = median_seconds(rounds, [&] { backward(a, LinearIncoming{tensor(d_out.data(), so)}, gradients); });
  std::printf("   backward %9.2f ms", back * 1e3);
  std::printf("\n");
  return true;
}

}  // namespace
}  // namespace heed

int main(int count, char** arguments) {
  using namespace heed;
  const int rounds = count > 1 ? std::max(1, std::atoi(arguments[1])) : 7;
  std::printf("target %s, %d threads; T, Hq/Hkv, dk, dv, update\n", target().c_str(), threads());
  bool right = true;
  for (const Workload& w : {Workload{1, 8, 8, 2048, 64, 64}, Workload{1, 8, 8, 2048, 128, 128},
                            Workload{1, 32, 8, 2048, 128, 128}, Workload{1, 8, 8, 1, 128, 128}})
    for (const auto& [update, name] : {std::pair{Update::linear, "linear"},
                                       {Update::gated, "gated"},
                                       {Update::delta, "delta"},
                                       {Update::gated_delta, "gated_delta"}})
      right &= run(w, update, name, rounds);
  return right ? 0 : 1;
}
