// The only door: check the arguments, plan, dispatch.
#include "heed/attention.h"

#include "check.h"
#include "passes.h"
#include "reference.h"
#include "threads.h"

namespace heed {

namespace {

// Calls f with the problem's plan, or with one for this call alone.
template <class F>
void with_plan(const Attention& a, F&& f) {
  settle_target();
  std::optional<Plan> once;
  Plan::State& plan = (a.plan ? *a.plan : once.emplace()).state();
  const InUse mark(plan);
  f(plan);
}

// Plain loops do what f64 asks for. And what an empty batch does: it has no tile or head that a plan could begin with,
// and its sums over the batch are zeros.
bool in_plain_loops(const Problem& p) { return p.a.q.dtype == DType::f64 || p.B == 0; }

// A derivative along a direction is the part of the double backward that needs no gradients.
void second(const Problem& p, const Incoming& in, const Tangents& along, const SecondGradients& wanted) {
  with_plan(p.a, [&](Plan::State& plan) {
    plan.prepare_backward(p, workers(p.a.executor));
    second_pass(p, plan, in, along, wanted);
  });
}

}  // namespace

void forward(const Attention& a, const Output& result) {
  const Problem p = check_forward(a, result);
  if (in_plain_loops(p)) return reference::forward(p, result);
  with_plan(a, [&](Plan::State& plan) {
    plan.prepare(p, workers(a.executor));
    check_table(p, plan.tiling);
    plan.way == Way::blocks ? decode_pass(p, plan, result) : forward_pass(p, plan, result);
  });
}

void backward(const Attention& a, const Incoming& in, const Gradients& gradients) {
  const Problem p = check_backward(a, in, gradients);
  if (in_plain_loops(p)) return reference::backward(p, in, gradients);
  with_plan(a, [&](Plan::State& plan) {
    plan.prepare_backward(p, workers(a.executor));
    backward_pass(p, plan, in, gradients);
  });
}

void jvp(const Attention& a, const ConstTensor& lse, const Tangents& tangents, const Output& result) {
  const Problem p = check_jvp(a, lse, tangents, result);
  if (in_plain_loops(p)) return reference::jvp(p, tangents, result);
  Incoming in;
  in.lse = lse;
  second(p, in, tangents, {.d_d_out = result.out, .d_d_lse = result.lse});
}

void double_backward(const Attention& a, const Incoming& in, const Tangents& dd, const SecondGradients& wanted) {
  const Problem p = check_double_backward(a, in, dd, wanted);
  if (in_plain_loops(p)) return reference::double_backward(p, in, dd, wanted);
  second(p, in, dd, wanted);
}

std::string version() { return HEED_VERSION; }

}  // namespace heed
