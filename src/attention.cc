// The only door: check the arguments, plan, dispatch.
#include "heed/attention.h"

#include "check.h"
#include "passes.h"
#include "reference.h"
#include "threads.h"

namespace heed {

void forward(const Attention& a, const Output& result) {
  const Problem p = check_forward(a, result);
  if (a.q.dtype == DType::f64) return reference::forward(p, result);
  settle_target();
  std::optional<Plan> once;
  Plan::State& plan = (a.plan ? *a.plan : once.emplace()).state();
  const InUse mark(plan);
  plan.prepare(p, workers(a.executor));
  plan.way == Way::blocks ? decode_pass(p, plan, result) : forward_pass(p, plan, result);
}

void backward(const Attention& a, const Incoming& in, const Gradients& gradients) {
  const Problem p = check_backward(a, in, gradients);
  if (a.q.dtype == DType::f64) return reference::backward(p, in, gradients);
  settle_target();
  std::optional<Plan> once;
  Plan::State& plan = (a.plan ? *a.plan : once.emplace()).state();
  const InUse mark(plan);
  plan.prepare_backward(p, workers(a.executor));
  backward_pass(p, plan, in, gradients);
}

std::string version() { return HEED_VERSION; }

}  // namespace heed
