// A layer compared with its formula written out: values and gradients, in both dtypes.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/plain_attention.h"
#include "tests/said.h"

namespace heed::plain {

inline constexpr torch::ScalarType kDTypes[] = {torch::kFloat64, torch::kFloat32};

// Compares a layer with its formula: all outputs, and the gradients of the first with respect to the inputs and every
// parameter, in both dtypes. `layer` and `formula` read the layer's parameters themselves.
using Call = std::function<std::vector<Tensor>(const std::vector<Tensor>& inputs)>;
inline void check(torch::nn::Module& module, const std::vector<Tensor>& inputs, const Call& layer, const Call& formula,
                  const std::string& what) {
  const auto run = [&](const Call& call, torch::ScalarType dtype) {
    module.to(dtype);
    std::vector<Tensor> leaves;
    for (const Tensor& input : inputs) leaves.push_back(input.detach().to(dtype).clone().requires_grad_());
    std::vector<Tensor> all = call(leaves);
    for (const Tensor& parameter : module.parameters()) leaves.push_back(parameter);
    for (Tensor& gradient : gradients(mixed(all[0]), leaves)) all.push_back(gradient);
    return all;
  };
  // Through float32 and back once, so that both dtypes see the same parameters.
  module.to(torch::kFloat32);
  const std::vector<Tensor> exact = run(formula, torch::kFloat64);
  for (const auto dtype : kDTypes) {
    const std::vector<Tensor> actual = run(layer, dtype);
    ASSERT_EQ(actual.size(), exact.size());
    for (size_t i = 0; i < exact.size(); ++i) {
      expect_near(actual[i], exact[i], tolerance(dtype),
                  what + ", result or gradient " + std::to_string(i) + ", " + c10::toString(dtype));
    }
  }
}

// Biases start at 0, norms at 1 and some layers as the identity: gives every parameter, and what batch norms keep,
// something to show.
inline void stir(torch::nn::Module& module) {
  torch::NoGradGuard no_grad;
  for (Tensor& parameter : module.parameters()) parameter.add_(0.3 * torch::randn_like(parameter));
  for (auto& buffer : module.named_buffers()) {
    if (buffer.key().find("running_mean") != std::string::npos) buffer.value().normal_();
    if (buffer.key().find("running_var") != std::string::npos) buffer.value().uniform_(0.5, 1.5);
  }
}

// Float32 values in float64, so that neither dtype rounds its inputs.
inline Tensor random(const std::vector<int64_t>& shape) { return torch::randn(shape).to(torch::kFloat64); }

inline std::vector<std::string> names(const torch::nn::Module& module) {
  std::vector<std::string> result;
  for (const auto& item : module.named_parameters()) result.push_back(item.key());
  return result;
}

inline void expect_message(const std::function<void()>& call, const std::string& part) {
  const std::string text = heed::tests::error_of(call);
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

}  // namespace heed::plain
