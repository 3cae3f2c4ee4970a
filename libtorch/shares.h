// How the shares of several processes become one training step.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <vector>

#include "libtorch/processes.h"
#include "libtorch/safetensors.h"

namespace heed::nn {

class Shares {
 public:
  // The module and the group must outlive this.
  Shares(torch::nn::Module& module, Processes& group);

  // What a rank has to say after the backward pass of its share, and what comes of all together.
  struct Step {
    double sum = 0;      // loss summed over the units
    int64_t units = 0;   // tokens, pictures
    bool stop = false;   // told to stop; of all together: any was
    double seconds = 0;  // on the clock; of all together: rank 0's
  };
  // The module's gradients, which are means over the units of the share, become the mean over all; those that no share
  // has reached stay undefined. Buffers become rank 0's.
  Step combine(const Step& share);

  // Rank 0's tensors, for all.
  void broadcast(const NamedTensors& tensors);
  // The same, if they differ: all ranks compute the same, but processors of different kinds may round differently.
  void align(const NamedTensors& tensors);

 private:
  Processes& group_;
  std::vector<torch::Tensor> parameters_, buffers_;
  torch::Tensor flat_;  // gradients one after the other; kept, so that its pages are
};

// The seed of a rank's random numbers in a step.
uint64_t seed_of(uint64_t seed, int64_t step, int rank);

}  // namespace heed::nn
