// The door of linear attention: check the arguments, dispatch.
#include "linear.h"

#include <cmath>
#include <string>

#include "check.h"
#include "passes.h"

namespace heed {
namespace {

void check_state(const char* name, const ConstTensor& t, const LinearProblem& p) {
  check_shape(name, t, {p.B, p.Hkv, p.dk, p.dv}, "[B, Hkv, dk, dv]");
  check_rows(name, t);
  check_exact(name, t, p.a.q.dtype);
}

// A gradient of decay or beta, if it is wanted.
void check_gradient(const std::string& d_name, const Tensor& d, const std::string& name, const ConstTensor& of,
                    DType q) {
  if (!d.data) return;
  if (!of.data) throw Error(d_name + " is asked for but there is no " + name + "; leave it out");
  check_shape(d_name.c_str(), d, of.shape, (name + "'s shape").c_str());
  check_rows(d_name.c_str(), d);
  check_writable(d_name.c_str(), d);
  check_exact(d_name.c_str(), d, q);
}

LinearProblem check_linear(const LinearAttention& a) {
  for (const auto& [name, t] : {std::pair{"q", a.q}, {"k", a.k}, {"v", a.v}}) {
    check_view(name, t);
    check_rows(name, t);
    check_dtype(name, t, a.q.dtype);
  }
  if (a.q.shape[1] < 1 || a.k.shape[1] < 1)
    throw Error("q has " + text(a.q.shape[1]) + " heads and k has " + text(a.k.shape[1]) + "; both need at least 1");
  LinearProblem p{a, a.q.shape[0], a.q.shape[1], a.k.shape[1], 0, a.q.shape[2], a.q.shape[3], a.v.shape[3], 0};
  if (p.Hq % p.Hkv != 0)
    throw Error("k has " + text(p.Hkv) + " heads; q's " + text(p.Hq) + " heads need a divisor of " + text(p.Hq));
  p.group = p.Hq / p.Hkv;
  check_shape("k", a.k, {p.B, p.Hkv, p.T, p.dk}, "q's batch, length and head size with k's heads");
  check_shape("v", a.v, {p.B, p.Hkv, p.T, p.dv}, "k's batch, heads and length with v's head size");
  if (a.update < Update::linear || a.update > Update::gated_delta)
    throw Error("update is number " + text(static_cast<int64_t>(a.update)) +
                "; it must be linear (0), gated (1), delta (2) or gated_delta (3)");

  if (p.decays() != (a.decay.data != nullptr) && !(p.decays() && p.B * p.T == 0))
    throw Error(p.decays() ? "a gated update needs decay, of shape [" + text(p.B) + ", " + text(p.Hkv) + ", " +
                                 text(p.T) + ", " + text(p.dk) + " or 1]"
                           : "decay is given but the update has no gate; leave it out or set update to gated or "
                             "gated_delta");
  if (a.decay.data) {
    check_rows("decay", a.decay);
    check_shape("decay", a.decay, {p.B, p.Hkv, p.T, a.decay.shape[3] == 1 ? 1 : p.dk}, "[B, Hkv, T, dk or 1]");
    if (a.decay.dtype != DType::f32 || exact(a.q.dtype) != DType::f32) check_dtype("decay", a.decay, a.q.dtype);
  }
  if (p.corrects() != (a.beta.data != nullptr) && !(p.corrects() && p.B * p.T == 0))
    throw Error(p.corrects() ? "a delta update needs beta, of shape [" + text(p.B) + ", " + text(p.Hkv) + " or 1, " +
                                   text(p.T) + ", 1]"
                             : "beta is given but the update is not a delta rule; leave it out or set update to delta "
                               "or gated_delta");
  if (a.beta.data) {
    check_shape("beta", a.beta, {p.B, a.beta.shape[1] == 1 ? 1 : p.Hkv, p.T, 1}, "[B, Hkv or 1, T, 1]");
    if (a.beta.dtype != DType::f32 || exact(a.q.dtype) != DType::f32) check_dtype("beta", a.beta, a.q.dtype);
  }
  if (a.state.data) check_state("state", a.state, p);
  p.scale = a.scale.value_or(1.0 / std::sqrt(static_cast<double>(p.dk)));
  if (!std::isfinite(p.scale)) throw Error("scale is " + std::to_string(p.scale) + "; it must be a finite number");
  return p;
}

}  // namespace

LinearProblem check_linear(const LinearAttention& a, const LinearOutput& result) {
  const LinearProblem p = check_linear(a);
  check_written("out", result.out, {p.B, p.Hq, p.T, p.dv}, "[B, Hq, T, dv]", a.q.dtype);
  if (result.state.data) {
    check_state("the result's state", result.state, p);
    check_writable("the result's state", result.state);
  }
  return p;
}

LinearProblem check_linear(const LinearAttention& a, const LinearIncoming& in, const LinearGradients& g) {
  const LinearProblem p = check_linear(a);
  check_read("d_out", in.d_out, {p.B, p.Hq, p.T, p.dv}, "[B, Hq, T, dv]", a.q.dtype);
  if (in.d_state.data) check_state("the incoming d_state", in.d_state, p);
  if (g.d_q.data) check_written("d_q", g.d_q, a.q.shape, "q's shape", a.q.dtype);
  if (g.d_k.data) check_written("d_k", g.d_k, a.k.shape, "k's shape", a.q.dtype);
  if (g.d_v.data) check_written("d_v", g.d_v, a.v.shape, "v's shape", a.q.dtype);
  check_gradient("d_decay", g.d_decay, "decay", a.decay, a.q.dtype);
  check_gradient("d_beta", g.d_beta, "beta", a.beta, a.q.dtype);
  if (g.d_state.data) {
    check_state("d_state", g.d_state, p);
    check_writable("d_state", g.d_state);
  }
  return p;
}

void forward(const LinearAttention& a, const LinearOutput& result) {
  const LinearProblem p = check_linear(a, result);
  if (a.q.dtype == DType::f64) return reference::forward(p, result);
  settle_target();
  linear_forward_pass(p, result);
}

void backward(const LinearAttention& a, const LinearIncoming& in, const LinearGradients& gradients) {
  const LinearProblem p = check_linear(a, in, gradients);
  if (a.q.dtype == DType::f64) return reference::backward(p, in, gradients);
  settle_target();
  linear_backward_pass(p, in, gradients);
}

}  // namespace heed
