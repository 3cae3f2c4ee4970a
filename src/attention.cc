// The only door: check the arguments, plan, dispatch.
#include "heed/attention.h"

#include "check.h"
#include "passes.h"
#include "reference.h"

namespace heed {

void forward(const Attention& a, const Output& result) {
  const Problem p = check_forward(a, result);
  if (a.q.dtype == DType::f64) return reference::forward(p, result);
  settle_target();
  forward_pass(p, Plan(p), result);
}

void backward(const Attention& a, const Incoming& in, const Gradients& gradients) {
  const Problem p = check_backward(a, in, gradients);
  if (a.q.dtype == DType::f64) return reference::backward(p, in, gradients);
  settle_target();
  backward_pass(p, Plan(p), in, gradients);
}

std::string version() { return HEED_VERSION; }

}  // namespace heed
