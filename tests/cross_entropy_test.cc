// The fused loss against LibTorch's own, in value and gradient.
#include "libtorch/cross_entropy.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <torch/torch.h>

namespace F = torch::nn::functional;
using heed::nn::cross_entropy;

namespace {

TEST(CrossEntropy, EqualsLibTorch) {
  torch::manual_seed(1);
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    for (const auto& [rows, classes] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 2}, {7, 5}, {33, 4001}, {2, 200000}}) {
      for (const double smoothing : {0.0, 0.1}) {
        auto x = (5 * torch::randn({rows, classes}, dtype)).requires_grad_();
        const auto targets = torch::randint(classes, {rows}, torch::kInt64);
        // In double: LibTorch's own float loss is off by 1e-4 where there are 200,000 classes.
        auto exact = x.detach().to(torch::kFloat64).requires_grad_();
        const auto expected = F::cross_entropy(exact, targets, F::CrossEntropyFuncOptions().label_smoothing(smoothing));
        (3 * expected).backward();

        const auto logits = x * 1;  // not a leaf: its memory is used
        const auto result = cross_entropy(logits, targets, smoothing);
        (3 * result.loss).backward();
        // LibTorch's log_softmax adds up a row in float, so that its error grows with the classes.
        const double tolerance = dtype == torch::kFloat64 ? 1e-12 : 5e-6 + 3e-10 * static_cast<double>(classes);
        EXPECT_NEAR(result.loss.item<double>(), expected.item<double>(), 4 * tolerance);
        const double nll = F::nll_loss(torch::log_softmax(exact, 1), targets).item<double>();
        EXPECT_NEAR(result.sum / static_cast<double>(rows), nll, 4 * tolerance);
        EXPECT_LT((x.grad() - exact.grad()).abs().max().item<double>(), tolerance);

        torch::NoGradGuard no_grad;
        const auto plain = cross_entropy(x, targets, smoothing);
        EXPECT_EQ(plain.sum, result.sum);
        EXPECT_EQ(plain.loss.item<double>(), result.loss.item<double>());
      }
    }
  }
}

TEST(CrossEntropy, LeavesALeafAlone) {
  auto x = torch::randn({3, 4}, torch::requires_grad());
  const auto before = x.detach().clone();
  cross_entropy(x, torch::tensor({0, 1, 2}), 0.1).loss.backward();
  EXPECT_TRUE(torch::equal(x, before));
  EXPECT_TRUE(x.grad().defined());
}

TEST(CrossEntropy, BitsDoNotDependOnThreads) {
  torch::manual_seed(2);
  const auto x = torch::randn({500, 1000}).requires_grad_();
  const auto targets = torch::randint(1000, {500}, torch::kInt64);
  torch::Tensor gradients[2];
  double sums[2];
  const int before = torch::get_num_threads();
  for (int i = 0; i < 2; ++i) {
    torch::set_num_threads(i + 1);
    const auto result = cross_entropy(x * 1, targets, 0.1);
    sums[i] = result.sum;
    result.loss.backward();
    gradients[i] = x.grad().clone();
    x.mutable_grad().reset();
  }
  torch::set_num_threads(before);
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_TRUE(torch::equal(gradients[0], gradients[1]));
}

TEST(CrossEntropy, AnotherUserOfTheLogitsIsToldSo) {
  auto x = torch::randn({3, 4}, torch::requires_grad());
  const auto logits = x * 1;
  const auto squares = logits * logits;  // needs the values for its backward
  const auto loss = cross_entropy(logits, torch::tensor({0, 1, 2}), 0).loss + squares.sum();
  EXPECT_THROW(loss.backward(), c10::Error);
}

TEST(CrossEntropy, ArgumentsThatDoNotFit) {
  const auto error = [](const torch::Tensor& logits, const torch::Tensor& targets, double smoothing) -> std::string {
    try {
      cross_entropy(logits, targets, smoothing);
    } catch (const heed::Error& e) {
      return e.what();
    }
    return "";
  };
  const auto x = torch::randn({2, 4});
  const auto y = torch::tensor({0, 1});
  EXPECT_EQ(error(x, y, 0), "");
  EXPECT_NE(error(x, torch::tensor({0, 1, 2}), 0).find("[2, 4] and targets [3]"), std::string::npos);
  EXPECT_NE(error(x, torch::tensor({0, 4}), 0).find("class 4 is not one of the 4"), std::string::npos);
  EXPECT_NE(error(x, torch::tensor({-1, 3}), 0).find("class -1"), std::string::npos);
  EXPECT_NE(error(x, y.to(torch::kInt32), 0).find("int64"), std::string::npos);
  EXPECT_NE(error(x, y, 1.0).find("smoothing is 1"), std::string::npos);
  EXPECT_NE(error(torch::empty({0, 4}), torch::empty({0}, torch::kInt64), 0), "");
}

}  // namespace
