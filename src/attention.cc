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

}  // namespace

void forward(const Attention& a, const Output& result) {
  const Problem p = check_forward(a, result);
  if (a.q.dtype == DType::f64) return reference::forward(p, result);
  with_plan(a, [&](Plan::State& plan) {
    plan.prepare(p, workers(a.executor));
    plan.way == Way::blocks ? decode_pass(p, plan, result) : forward_pass(p, plan, result);
  });
}

void backward(const Attention& a, const Incoming& in, const Gradients& gradients) {
  const Problem p = check_backward(a, in, gradients);
  if (a.q.dtype == DType::f64) return reference::backward(p, in, gradients);
  with_plan(a, [&](Plan::State& plan) {
    plan.prepare_backward(p, workers(a.executor));
    backward_pass(p, plan, in, gradients);
  });
}

std::string version() { return HEED_VERSION; }

}  // namespace heed
