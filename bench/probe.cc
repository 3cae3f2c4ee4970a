// What it costs to look where the attention went: all probes of a forward beside that forward, in turns. A few rows are
// first checked against the dense steps in double; nothing is timed before it matches.
//
//   build/bench_probe [ROUNDS]
#include <heed/probe.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace heed {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + x.size() / 2, x.end());
  return x[x.size() / 2];
}

constexpr int64_t kLength = 16384, kSize = 64, kStrongest = 8;

struct Workload {
  const char* name;
  int64_t heads;
  bool is_causal, alibi;
};

bool run(const Workload& w, int rounds) {
  const int64_t H = w.heads, L = kLength, D = kSize;
  std::vector<float> q(H * L * D), k(q), v(q), out(q), lse(H * L), slopes(H, 0.01f);
  uint32_t x = 1;
  for (auto* t : {&q, &k, &v})
    for (float& y : *t) y = static_cast<float>((x = x * 1664525u + 1013904223u) >> 8) * 0x1p-22f - 2;
  const Shape shape{1, H, L, D}, row{1, H, L, 1}, top{1, H, L, kStrongest};
  Plan plan;
  Attention a{.q = tensor(q.data(), shape), .k = tensor(k.data(), shape), .v = tensor(v.data(), shape), .plan = &plan};
  if (w.is_causal) a.mask = causal();
  if (w.alibi) a.alibi = tensor(slopes.data(), {1, H, 1, 1});
  const Tensor l = tensor(lse.data(), row);
  const auto ahead = [&] { forward(a, {tensor(out.data(), shape), l}); };
  ahead();

  std::vector<int64_t> keys(H * L * kStrongest), largest_key(H * L);
  std::vector<float> weights(H * L * kStrongest), largest(H * L), entropy(H * L), mass(H * L), listed(3 * L), exact(L);
  const Probes all{.top_keys = key_tensor(keys.data(), top),
                   .top_weights = tensor(weights.data(), top),
                   .largest_key = key_tensor(largest_key.data(), row),
                   .largest = tensor(largest.data(), row),
                   .entropy = tensor(entropy.data(), row),
                   .mass = tensor(mass.data(), {1, H, 1, L})};
  Probes with_rows = all;
  with_rows.rows = {{0, 0, 7}, {0, 0, L / 2}, {0, 0, L - 1}};
  with_rows.weights = tensor(listed.data(), {1, 1, 3, L});
  probe(a, l, with_rows);
  double worst = 0;
  for (int64_t n = 0; n < 3; ++n) {
    const int64_t i = with_rows.rows[n].query;
    std::vector<float> bias(L);
    for (int64_t j = 0; w.alibi && j < L; ++j) bias[j] = slopes[0] * static_cast<float>(j - i);
    Attention one{.q = tensor(q.data() + i * D, {1, 1, 1, D}),
                  .k = tensor(k.data(), {1, 1, L, D}),
                  .bias = tensor(bias.data(), {1, 1, 1, L})};
    if (w.is_causal) one.mask = causal(i);
    score(one, tensor(exact.data(), {1, 1, 1, L}));
    weigh(tensor(exact.data(), {1, 1, 1, L}), tensor(exact.data(), {1, 1, 1, L}));
    for (int64_t j = 0; j < L; ++j) worst = std::fmax(worst, std::fabs(listed[n * L + j] - exact[j]));
    worst = std::fmax(worst, std::fabs(weights[i * kStrongest] - *std::max_element(exact.begin(), exact.end())));
  }
  if (!(worst < 1e-5)) {
    std::printf("%-10s differs from the dense steps by %g; not timed\n", w.name, worst);
    return false;
  }

  const Probes some[] = {all,
                         {.top_keys = all.top_keys, .top_weights = all.top_weights},
                         {.largest_key = all.largest_key, .largest = all.largest},
                         {.entropy = all.entropy},
                         {.mass = all.mass}};
  std::vector<double> forwards, shares[5];
  for (int r = 0; r < rounds; ++r) {
    double start = now();
    ahead();
    forwards.push_back(now() - start);
    for (int n = 0; n < 5; ++n) {
      start = now();
      probe(a, l, some[n]);
      shares[n].push_back((now() - start) / forwards.back());
    }
  }
  std::printf("%-10s forward %7.1f ms; of it all probes %.2f, top %d %.2f, largest %.2f, entropy %.2f, mass %.2f\n",
              w.name, median(forwards) * 1e3, median(shares[0]), static_cast<int>(kStrongest), median(shares[1]),
              median(shares[2]), median(shares[3]), median(shares[4]));
  return true;
}

}  // namespace
}  // namespace heed

int main(int argc, char** argv) {
  using namespace heed;
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 7;
  std::printf("heed %s, %s, %d threads, L = S = %d, D %d, medians of %d rounds\n", version().c_str(), target().c_str(),
              threads(), static_cast<int>(kLength), static_cast<int>(kSize), rounds);
  bool good = true;
  for (const Workload& w :
       {Workload{"H1", 1, false, false}, Workload{"H1 causal", 1, true, false}, Workload{"H2", 2, false, false},
        Workload{"H2 causal", 2, true, false}, Workload{"H1 ALiBi", 1, false, true}})
    good &= run(w, rounds);
  return good ? 0 : 1;
}
