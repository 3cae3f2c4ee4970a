// x W' + b for weights that stay what they are, as in a search: they are laid out for oneDNN's product once, where
// sgemm lays them out in every call. On AVX-512 that saves a tenth of the time of hundreds of rows and half that of
// four (bench/SPEED.md, "Translating anew").
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/types.h>

#include <memory>

namespace heed::nn {

class PackedLinear {
 public:
  PackedLinear() = default;  // nothing is packed: it may only be assigned to

  // weight [out, in] and bias [out] or undefined, as torch::nn::Linear has them. Later changes of them do not show.
  // Throws heed::Error for other shapes.
  explicit PackedLinear(const torch::Tensor& weight, const torch::Tensor& bias = {});

  // x [..., in] -> [..., out], without a gradient: into `out`, if it is given, which is contiguous. What is not
  // float32, and all where the program was built without oneDNN, goes to LibTorch. Any number of threads may use one at
  // once. Throws heed::Error for other shapes.
  torch::Tensor forward(const torch::Tensor& x, torch::Tensor out = {}) const;

 private:
  struct Packed;
  torch::Tensor weight_, bias_;
  std::shared_ptr<const Packed> packed_;  // nullptr: LibTorch multiplies
};

}  // namespace heed::nn
