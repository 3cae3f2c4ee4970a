// AdamW with gradient clipping and a running mean of the weights, in one walk through memory.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "libtorch/safetensors.h"

namespace heed::nn {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.98;  // of the Transformer paper: forgets a bad start sooner than 0.999
  double epsilon = 1e-8;
  double weight_decay = 1e-4;  // on tensors of two or more dimensions; biases and norms are left alone
  double clip = 1.0;           // largest norm of all gradients together; 0: no limit
  int64_t average = 10;        // keep a running mean over about the last 1/average of all steps; 0: none
};

// Loshchilov & Hutter 2019, the same update as torch::optim::AdamW, with clipping and averaging in one walk over pieces
// that fit the cache; its bits do not depend on the number of threads. What it gains over LibTorch's: docs/design.md,
// section 5.
//
// The running mean is that of Shamir & Zhang 2013 (polynomial-decay averaging): after step t,
// mean += (w - mean) * min(1, average / (t + average - 1)). Its window grows with the run, so one setting does for a
// minute as for a day. Floating-point buffers (BatchNorm's statistics) are averaged along.
class AdamW {
 public:
  // Takes the parameters that require a gradient now. The module must outlive this. Throws heed::Error if there is
  // none.
  AdamW(torch::nn::Module& module, const AdamWOptions& options);

  // Applies the gradients and clears them; returns their norm before clipping. A norm that is not finite applies
  // nothing.
  double step(double rate);

  int64_t steps() const { return steps_; }

  // Exchanges the weights with their running mean; twice is nothing. Without a mean, nothing happens.
  void exchange_average();

  // Everything step() changes beside the weights: "exp_avg.<name>", "exp_avg_sq.<name>", "average.<name>". The tensors
  // are the living ones. set_steps and copying into them restores a state.
  NamedTensors state() const;
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  struct Slot {
    std::string name;
    torch::Tensor value;      // the module's own
    torch::Tensor first;      // exp_avg; undefined for buffers
    torch::Tensor second;     // exp_avg_sq; undefined for buffers
    torch::Tensor average;    // undefined without averaging
    double weight_decay = 0;  //
  };
  std::vector<Slot> slots_;
  AdamWOptions options_;
  int64_t steps_ = 0;
};

// The module's parameters and buffers by name, each tensor once even where modules share it.
NamedTensors weights(const torch::nn::Module& module);

// Copies values into the tensors of the same names. `what` names their origin in the heed::Error that is thrown, before
// anything is copied, when a name is missing or a shape or dtype differs.
void copy_into(const NamedTensors& to, const NamedTensors& from, const std::string& what);

}  // namespace heed::nn
