// Sums and copies over the group.
#include "libtorch/shares.h"

#include <torch/utils.h>

#include <cmath>
#include <cstring>

#include "libtorch/adamw.h"
#include "libtorch/splitmix.h"

namespace heed::nn {
namespace {

// The tensor's memory as a vector, whatever its (dense) strides.
torch::Tensor as_vector(const torch::Tensor& t) { return t.detach().as_strided({t.numel()}, {1}); }

// FNV-1a over words of 8 bytes.
int64_t checksum(const NamedTensors& tensors) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const auto& [name, tensor] : tensors) {
    const char* at = static_cast<const char*>(tensor.data_ptr());
    for (size_t left = tensor.nbytes(); left > 0;) {
      const size_t n = std::min<size_t>(left, 8);
      uint64_t word = 0;
      std::memcpy(&word, at, n);
      hash = (hash ^ word) * 0x100000001B3u;
      at += n;
      left -= n;
    }
  }
  return static_cast<int64_t>(hash);
}

}  // namespace

Shares::Shares(torch::nn::Module& module, Processes& group) : group_(group) {
  for (const auto& [name, tensor] : weights(module)) {
    if (tensor.requires_grad()) parameters_.push_back(tensor);
  }
  buffers_ = module.buffers();
}

Shares::Step Shares::combine(const Step& share) {
  torch::NoGradGuard no_grad;
  std::vector<double> numbers = {share.sum, static_cast<double>(share.units), share.stop ? 1.0 : 0.0,
                                 group_.rank() == 0 ? share.seconds : 0.0};
  const size_t first = numbers.size();
  for (const auto& parameter : parameters_) numbers.push_back(parameter.grad().defined() ? 1 : 0);
  group_.sum(numbers);
  const Step whole{numbers[0], std::llround(numbers[1]), numbers[2] > 0, numbers[3]};
  const double weight = whole.units > 0 ? static_cast<double>(share.units) / numbers[1] : 0;

  for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
    std::vector<torch::Tensor> reached;
    int64_t size = 0;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      if (numbers[first + i] == 0 || parameters_[i].scalar_type() != dtype) continue;
      reached.push_back(parameters_[i]);
      size += parameters_[i].numel();
    }
    if (size == 0) continue;
    if (!flat_.defined() || flat_.numel() != size || flat_.scalar_type() != dtype) flat_ = torch::empty({size}, dtype);
    std::vector<torch::Tensor> pieces;
    int64_t at = 0;
    for (const auto& parameter : reached) {
      pieces.push_back(flat_.as_strided(parameter.sizes(), parameter.strides(), at));
      at += parameter.numel();
      const auto gradient = parameter.grad();
      gradient.defined() ? pieces.back().copy_(gradient) : pieces.back().zero_();
    }
    group_.sum(flat_.mul_(weight));
    for (size_t i = 0; i < reached.size(); ++i) reached[i].mutable_grad() = pieces[i];
  }
  for (const auto& buffer : buffers_) group_.broadcast(as_vector(buffer));
  return whole;
}

void Shares::broadcast(const NamedTensors& tensors) {
  for (const auto& [name, tensor] : tensors) group_.broadcast(as_vector(tensor));
}

void Shares::align(const NamedTensors& tensors) {
  const int64_t mine = checksum(tensors);
  auto theirs = torch::full({1}, mine, torch::kInt64);
  group_.broadcast(theirs);
  double differ[] = {theirs.item<int64_t>() == mine ? 0.0 : 1.0};
  group_.sum(differ);
  if (differ[0] > 0) broadcast(tensors);
}

uint64_t seed_of(uint64_t seed, int64_t step, int rank) {
  return splitmix(splitmix(seed, static_cast<uint64_t>(step)), static_cast<uint64_t>(rank));
}

}  // namespace heed::nn
