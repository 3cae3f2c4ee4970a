// What probe.cc calls once a probe is checked.
#pragma once

#include "heed/probe.h"
#include "plan.h"

namespace heed {

// probe() for f32, f16 and bf16; pass.cc.
void probe_pass(const Problem& p, Plan::State& plan, const ConstTensor& lse, const Probes& wanted);

namespace reference {

// The same in plain loops in double, from the given lse; tensors may be of any dtype, so that a test can ask for exact
// results of f32 inputs. reference.cc.
void probe(const Problem& p, const ConstTensor& lse, const Probes& wanted);

}  // namespace reference
}  // namespace heed
