// The door of the probes: check the arguments, plan, dispatch; and rollout, which is probes one after the other.
#include "probe.h"

#include <cmath>
#include <limits>
#include <string>

#include "check.h"
#include "passes.h"
#include "reference.h"
#include "threads.h"

namespace heed {
namespace {

void check_value(const char* name, const ConstTensor& t, const Shape& want, const char* meaning, DType q) {
  check_shape(name, t, want, meaning);
  check_rows(name, t);
  check_exact(name, t, q);
}

void check_wanted(const char* name, const Tensor& t, const Shape& want, const char* meaning, DType q) {
  if (!t.data) return;
  check_value(name, t, want, meaning, q);
  check_writable(name, t);
}

void check_wanted(const char* name, const KeyTensor& t, const Shape& want, const char* meaning) {
  if (!t.data) return;
  const Tensor as_numbers{t.data, DType::f64, t.shape, t.stride};  // of the same size
  check_shape(name, as_numbers, want, meaning);
  check_rows(name, as_numbers);
  check_writable(name, as_numbers);
}

void check_mass(const Problem& p, const Probes& w) {
  const DType q = p.a.q.dtype;
  check_wanted("mass", w.mass, {p.B, p.Hq, 1, p.S}, "[B, Hq, 1, S]", q);
  if (!w.mass.data && (w.mass_factor.data || w.mass_queries))
    throw Error("mass_factor or mass_queries is given but no mass is asked for; leave it out");
  if (w.mass_factor.data) check_value("mass_factor", w.mass_factor, {p.B, p.Hq, p.L, 1}, "[B, Hq, L, 1]", q);
  if (!w.mass_queries) return;
  const Span span = *w.mass_queries;
  if (span.begin < 0 || span.end > p.L || span.begin > span.end)
    throw Error("mass_queries is [" + text(span.begin) + ", " + text(span.end) + ") but there are " + text(p.L) +
                " queries; give a range of them");
}

void check_list(const Problem& p, const Probes& w) {
  const int64_t n = static_cast<int64_t>(w.rows.size());
  if (n > 0 && !w.weights.data && p.S > 0)
    throw Error(text(n) + " rows are listed but weights has no data; give a tensor of [1, 1, " + text(n) + ", " +
                text(p.S) + "]");
  check_wanted("weights", w.weights, {1, 1, n, p.S}, "[1, 1, rows, S]", p.a.q.dtype);
  for (int64_t x = 0; x < n; ++x) {
    const auto& [b, h, i] = w.rows[x];
    if (b < 0 || b >= p.B || h < 0 || h >= p.Hq || i < 0 || i >= p.L)
      throw Error("row " + text(x) + " of the list is batch " + text(b) + ", head " + text(h) + ", query " + text(i) +
                  " but there are " + text(p.B) + ", " + text(p.Hq) + " and " + text(p.L) + "; all count from 0");
  }
}

Problem check_probe(const Attention& a, const ConstTensor& lse, const Probes& w) {
  const Problem p = check_weights(a, lse);
  const DType q = a.q.dtype;
  const int64_t k = w.top_keys.data ? w.top_keys.shape[3] : w.top_weights.shape[3];
  const Shape top{p.B, p.Hq, p.L, k}, row{p.B, p.Hq, p.L, 1};
  check_wanted("top_keys", w.top_keys, top, "[B, Hq, L, k]");
  check_wanted("top_weights", w.top_weights, top, "[B, Hq, L, k]", q);
  check_wanted("largest_key", w.largest_key, row, "[B, Hq, L, 1]");
  check_wanted("largest", w.largest, row, "[B, Hq, L, 1]", q);
  check_wanted("entropy", w.entropy, row, "[B, Hq, L, 1]", q);
  check_mass(p, w);
  check_list(p, w);
  return p;
}

}  // namespace

void probe(const Attention& a, const ConstTensor& lse, const Probes& wanted) {
  const Problem p = check_probe(a, lse, wanted);
  if (a.q.dtype == DType::f64) return reference::probe(p, lse, wanted);
  settle_target();
  std::optional<Plan> once;
  Plan::State& plan = (a.plan ? *a.plan : once.emplace()).state();
  const InUse mark(plan);
  plan.prepare_backward(p, workers(a.executor));
  probe_pass(p, plan, lse, wanted);
}

// ---- Rollout ----

namespace {

// What row i of A_l + I adds up to, A_l being the mean over heads: 1, and what each head's row has; a softmax over keys
// alone has 1, a sink leaves it less, a row that sees nothing has none.
double row_sum(const Problem& p, const ConstTensor& lse, int64_t b, int64_t i) {
  double sum = 0;
  for (int64_t h = 0; h < p.Hq; ++h) {
    const double l = reference::at(lse, b, h, i, 0);
    if (l == -std::numeric_limits<double>::infinity()) continue;
    sum += p.a.sinks.data ? 1 - std::exp(reference::at(p.a.sinks, 0, h, 0, 0) - l) : 1;
  }
  return 1 + sum / static_cast<double>(p.Hq);
}

// r <- r M, M = A_l + I with its rows divided by their sums: r_i / sum_i is what row i deals out, once to position i
// and once by its weights, which is a mass with that as the factor of each row. r: [B][L].
template <class F>
void through_layer(const Problem& p, const ConstTensor& lse, DType dtype, std::vector<double>& r) {
  std::vector<F> factor(p.B * p.L), mass(p.B * p.Hq * p.L);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t i = 0; i < p.L; ++i) {
      double& x = r[b * p.L + i];
      x /= row_sum(p, lse, b, i);
      factor[b * p.L + i] = static_cast<F>(x / static_cast<double>(p.Hq));
    }
  Probes wanted;
  wanted.mass = tensor(mass.data(), dtype, {p.B, p.Hq, 1, p.L});
  wanted.mass_factor = tensor(factor.data(), dtype, {p.B, p.Hq, p.L, 1}, {p.L, 0, 1, 1});  // one for all heads
  probe(p.a, lse, wanted);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hq; ++h)
      for (int64_t j = 0; j < p.L; ++j) r[b * p.L + j] += static_cast<double>(mass[(b * p.Hq + h) * p.L + j]);
}

}  // namespace

void rollout_row(const std::vector<RolloutLayer>& layers, int64_t query, const Tensor& out) {
  if (layers.empty()) throw Error("the rollout has 0 layers; give at least 1");
  const ConstTensor& first = layers[0].attention.q;
  std::vector<Problem> problems;
  for (size_t n = 0; n < layers.size(); ++n) {
    const Problem p = check_weights(layers[n].attention, layers[n].lse);
    const std::string name = "layer " + text(static_cast<int64_t>(n));
    if (p.L != p.S)
      throw Error(name + " has " + text(p.L) + " queries and " + text(p.S) +
                  " keys; rollout needs the same positions on both sides");
    if (p.B != first.shape[0] || p.L != first.shape[2])
      throw Error(name + " has batch " + text(p.B) + " and length " + text(p.L) + " but layer 0 has " +
                  text(first.shape[0]) + " and " + text(first.shape[2]) + "; they must be equal");
    check_dtype((name + "'s q").c_str(), p.a.q, first.dtype, "layer 0's");
    problems.push_back(p);
  }
  const int64_t B = first.shape[0], L = first.shape[2];
  check_value("out", out, {B, 1, 1, L}, "[B, 1, 1, L]", first.dtype);
  check_writable("out", out);
  if (query < 0 || query >= L)
    throw Error("the query is " + text(query) + " but there are " + text(L) + "; they count from 0");

  std::vector<double> r(B * L);
  for (int64_t b = 0; b < B; ++b) r[b * L + query] = 1;
  for (size_t n = layers.size(); n-- > 0;)
    first.dtype == DType::f64 ? through_layer<double>(problems[n], layers[n].lse, DType::f64, r)
                              : through_layer<float>(problems[n], layers[n].lse, DType::f32, r);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t j = 0; j < L; ++j) reference::put(out, b, 0, 0, j, r[b * L + j]);
}

void rollout(const ConstTensor& weights, const Tensor& out) {
  const auto wide = [](const char* name, const ConstTensor& t) {
    if (t.dtype != DType::f32 && t.dtype != DType::f64)
      throw Error(std::string(name) + " is " + text(t.dtype) + "; it must be f32 or f64");
  };
  const int64_t layers = weights.shape[0], H = weights.shape[1], L = weights.shape[2];
  check_shape("weights", weights, {layers, H, L, L}, "[layers, H, L, L]");
  if (layers < 1 || H < 1)
    throw Error("weights has shape " + text(weights.shape) + "; it needs at least 1 layer and 1 head");
  check_rows("weights", weights);
  wide("weights", weights);
  check_shape("out", out, {1, 1, L, L}, "[1, 1, L, L]");
  check_rows("out", out);
  check_writable("out", out);
  wide("out", out);

  // Row after row through the layers, from the last to the first.
  parallel(nullptr, L, [&](int64_t i) {
    std::vector<double> r(L), next(L), row(L);
    r[i] = 1;
    for (int64_t n = layers; n-- > 0; r.swap(next)) {
      next.assign(L, 0);
      for (int64_t y = 0; y < L; ++y) {
        if (r[y] == 0) continue;
        double sum = 1;
        for (int64_t j = 0; j < L; ++j) {
          row[j] = 0;
          for (int64_t h = 0; h < H; ++h) row[j] += reference::at(weights, n, h, y, j) / static_cast<double>(H);
          sum += row[j];
        }
        row[y] += 1;
        for (int64_t j = 0; j < L; ++j) next[j] += r[y] / sum * row[j];
      }
    }
    for (int64_t j = 0; j < L; ++j) reference::put(out, 0, 0, i, j, r[j]);
  });
}

}  // namespace heed
