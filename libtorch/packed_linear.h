// x W' + b for weights that stay what they are, as in a search: they are laid out for oneDNN's product once, where
// sgemm lays them out in every call. On AVX-512 that saves a tenth of the time of hundreds of rows and half that of
// four (bench/SPEED.md, "Translating anew").
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

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

// A number that is another one when one of the tensors has become another, or was written to as autograd counts it.
uint64_t stamp_of(const std::vector<torch::Tensor>& tensors);

// Packed weights of a module, for all searches that run at the same time. When none holds them they are gone.
template <class T>
class SharedWhileUsed {
 public:
  SharedWhileUsed() = default;
  SharedWhileUsed(const SharedWhileUsed&) {}  // a copied module has weights of its own
  SharedWhileUsed& operator=(const SharedWhileUsed&) { return *this; }

  // What is held, if it was made of weights with this stamp; otherwise what make() makes.
  template <class Make>
  std::shared_ptr<const T> get(uint64_t stamp, const Make& make) {
    const std::lock_guard guard(lock_);
    std::shared_ptr<const T> shared = held_.lock();
    if (shared == nullptr || stamp != stamp_) held_ = shared = std::make_shared<const T>(make());
    stamp_ = stamp;
    return shared;
  }

 private:
  std::mutex lock_;
  std::weak_ptr<const T> held_;
  uint64_t stamp_ = 0;
};

}  // namespace heed::nn
