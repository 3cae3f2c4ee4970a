// The optimiser against LibTorch's, the schedule, and a loop that resumes to the same bits.
#include "libtorch/trainer.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <signal.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "libtorch/files.h"
#include "libtorch/interrupt.h"
#include "said.h"

namespace fs = std::filesystem;
using namespace heed::nn;

namespace {

using heed::tests::error_of;

// A regression with dropout and BatchNorm: weights, buffers and random numbers all matter.
struct Net : torch::nn::Module {
  Net() {
    first = register_module("first", torch::nn::Linear(6, 16));
    norm = register_module("norm", torch::nn::BatchNorm1d(16));
    drop = register_module("drop", torch::nn::Dropout(0.2));
    last = register_module("last", torch::nn::Linear(16, 1));
  }
  torch::Tensor forward(const torch::Tensor& x) { return last(drop(torch::relu(norm(first(x))))).squeeze(1); }
  torch::nn::Linear first{nullptr}, last{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Dropout drop{nullptr};
};

std::shared_ptr<Net> fresh_net() {
  torch::manual_seed(5);
  return std::make_shared<Net>();
}

class Regression : public TrainingTask {
 public:
  explicit Regression(Net& net, double scale = 1) : net_(net), scale_(scale) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(9);
    x_ = torch::randn({96, 6}, generator);
    y_ = x_.select(1, 0) - 2 * x_.select(1, 1);
  }
  int64_t start_epoch(int64_t epoch) override {
    epoch_ = epoch;
    return 4;
  }
  StepLoss loss(int64_t index) override {
    EXPECT_TRUE(net_.is_training());
    EXPECT_TRUE(at::globalContext().deterministicAlgorithms());
    const int64_t begin = (index * 16 + epoch_ * 16) % 64;
    const auto loss = torch::mse_loss(net_.forward(x_.narrow(0, begin, 16)), y_.narrow(0, begin, 16)) * scale_;
    return {loss, loss.item<double>() * 16, 16};
  }
  double validate() override {
    EXPECT_FALSE(net_.is_training());
    return torch::mse_loss(net_.forward(x_.narrow(0, 64, 32)), y_.narrow(0, 64, 32)).item<double>();
  }

 private:
  Net& net_;
  double scale_;
  torch::Tensor x_, y_;
  int64_t epoch_ = 0;
};

class Trainer : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "heed-trainer-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    options_.steps = 30;
    options_.learning_rate = 0.01;
    options_.warmup = 3;
    options_.checkpoint = (dir_ / "work").string();
    options_.identity = {{"learning_rate", 0.01}, {"data", "96 rows"}};
  }
  void TearDown() override { fs::remove_all(dir_); }

  // Trains a fresh net, interrupted by Ctrl-C after each of these steps; returns its weights.
  NamedTensors run(const std::vector<int64_t>& stops, TrainSummary* summary = nullptr) {
    for (size_t i = 0; i <= stops.size(); ++i) {
      const auto net = fresh_net();
      Regression task(*net);
      const auto result = train(*net, task, options_, [&](const TrainProgress& p) {
        if (i < stops.size() && p.step == stops[i]) ::raise(SIGINT);
      });
      EXPECT_EQ(result.interrupted, i < stops.size());
      EXPECT_EQ(result.resumed, i > 0);
      if (i == stops.size()) {
        if (summary != nullptr) *summary = result;
        return weights(*net);
      }
      torch::rand({i == 0 ? 3 : 5});  // the next run must not depend on the generator it finds
    }
    return {};
  }

  std::string error_of_options() {
    return error_of([&] {
      const auto net = fresh_net();
      Regression task(*net);
      train(*net, task, options_);
    });
  }

  fs::path dir_;
  TrainerOptions options_;
};

void expect_equal(const NamedTensors& a, const NamedTensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].first, b[i].first);
    EXPECT_TRUE(torch::equal(a[i].second, b[i].second)) << a[i].first;
  }
}

TEST(AdamWTest, EqualsLibTorch) {
  for (const double clip : {0.0, 0.05}) {
    const auto ours = fresh_net(), theirs = fresh_net();
    ours->to(torch::kFloat64);
    theirs->to(torch::kFloat64);
    AdamW optimizer(*ours,
                    {.beta1 = 0.9, .beta2 = 0.98, .epsilon = 1e-8, .weight_decay = 0.1, .clip = clip, .average = 0});
    std::vector<torch::Tensor> matrices, vectors;  // LibTorch decays all or nothing
    for (auto& p : theirs->parameters()) (p.dim() > 1 ? matrices : vectors).push_back(p);
    const auto adamw = [](double decay) {
      return torch::optim::AdamWOptions(0.01).betas({0.9, 0.98}).eps(1e-8).weight_decay(decay);
    };
    torch::optim::AdamW first(matrices, adamw(0.1)), second(vectors, adamw(0));
    for (int step = 0; step < 20; ++step) {
      const auto x = torch::randn({8, 6}, torch::kFloat64);
      for (auto* net : {&ours, &theirs}) {
        torch::manual_seed(static_cast<uint64_t>(step));
        (*net)->forward(x).pow(2).mean().backward();
      }
      const double norm = optimizer.step(0.01);
      double expected_norm = 0;
      for (auto& p : theirs->parameters()) expected_norm += p.grad().pow(2).sum().item<double>();
      EXPECT_NEAR(norm, std::sqrt(expected_norm), 1e-10);
      if (clip > 0 && norm > clip) {
        for (auto& p : theirs->parameters()) p.mutable_grad() *= clip / std::sqrt(expected_norm);
      }
      first.step();
      second.step();
      for (auto& p : theirs->parameters()) p.mutable_grad().reset();
    }
    const auto a = ours->parameters(), b = theirs->parameters();
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_FALSE(a[i].grad().defined());
      EXPECT_LT((a[i] - b[i]).abs().max().item<double>(), 1e-8) << i;
    }
  }
}

TEST(AdamWTest, RunningMeanExchangeAndThreads) {
  NamedTensors states[2];
  const int before = torch::get_num_threads();
  for (int i = 0; i < 2; ++i) {
    torch::set_num_threads(i + 1);
    torch::manual_seed(3);
    torch::nn::Linear net(300, 200);
    AdamW optimizer(*net, {.average = 1});  // the plain mean of all steps
    auto sum = torch::zeros_like(net->weight);
    for (int step = 0; step < 5; ++step) {
      net(torch::randn({4, 300})).pow(2).sum().backward();
      optimizer.step(0.01);
      sum += net->weight.detach();
    }
    const auto raw = net->weight.detach().clone();
    optimizer.exchange_average();
    EXPECT_LT((net->weight - sum / 5).abs().max().item<double>(), 1e-6);
    optimizer.exchange_average();
    EXPECT_TRUE(torch::equal(net->weight, raw));
    states[i] = optimizer.state();
  }
  torch::set_num_threads(before);
  expect_equal(states[0], states[1]);
}

TEST(AdamWTest, ANonFiniteGradientChangesNothing) {
  torch::nn::Linear net(3, 2);
  AdamW optimizer(*net, {});
  const auto before = net->weight.detach().clone();
  (net(torch::ones({1, 3})).sum() * std::numeric_limits<double>::infinity()).backward();
  EXPECT_FALSE(std::isfinite(optimizer.step(0.1)));
  EXPECT_TRUE(torch::equal(net->weight, before));
  EXPECT_EQ(optimizer.steps(), 0);
  EXPECT_FALSE(net->weight.grad().defined());
  for (auto& p : net->parameters()) p.set_requires_grad(false);
  EXPECT_THROW(AdamW(*net, {}), heed::Error);
}

TEST(Schedule, WarmsUpAndCoolsDown) {
  const double none = std::nan("");
  EXPECT_DOUBLE_EQ(learning_rate_at(2, 10, 5, none), 1);
  EXPECT_DOUBLE_EQ(learning_rate_at(2, 10, 10, none), 2);
  EXPECT_DOUBLE_EQ(learning_rate_at(2, 10, 40, none), 1);
  EXPECT_DOUBLE_EQ(learning_rate_at(2, 0, 1, none), 2);
  EXPECT_NEAR(learning_rate_at(2, 10, 1, 0), 0.2, 1e-12);
  EXPECT_NEAR(learning_rate_at(2, 10, 500, 0.5), 1, 1e-12);
  EXPECT_NEAR(learning_rate_at(2, 10, 1000, 1), 0, 1e-12);
  EXPECT_GT(learning_rate_at(2, 1000000, 100, 0.1), 1.9) << "a tenth of the budget is warm-up enough";
}

TEST_F(Trainer, TheInverseSquareRootKnowsNoEnd) {
  const auto losses = [&](bool cosine, int64_t steps) {
    options_.cosine = cosine;
    options_.steps = steps;
    fs::remove_all(dir_ / "work");
    TrainSummary summary;
    run({}, &summary);
    return std::pair(summary.curve[2].train_loss, summary.curve[2].valid_loss);
  };
  EXPECT_EQ(losses(false, 12), losses(false, 40));
  EXPECT_NE(losses(true, 12), losses(true, 40));
  EXPECT_NE(losses(false, 12), losses(true, 12));
}

TEST_F(Trainer, Learns) {
  TrainSummary summary;
  options_.steps = 400;
  run({}, &summary);
  EXPECT_EQ(summary.steps, 400);
  EXPECT_EQ(summary.units, 6400);
  EXPECT_FALSE(at::globalContext().deterministicAlgorithms()) << "as it was before";
  EXPECT_EQ(summary.curve.size(), 100u);
  EXPECT_LT(summary.best_valid_loss, 0.3);
  EXPECT_GT(summary.curve.front().valid_loss, 1);
  double best = 1e9;
  for (const auto& p : summary.curve) best = std::min(best, p.valid_loss);
  EXPECT_EQ(best, summary.best_valid_loss);
}

TEST_F(Trainer, TheModuleHoldsTheBestWeights) {
  const auto net = fresh_net();
  Regression task(*net);
  options_.steps = 0;
  options_.patience = 2;
  options_.learning_rate = 0.5;  // wild: the last weights are not the best
  options_.warmup = 1;
  const auto summary = train(*net, task, options_);
  EXPECT_LT(summary.best_step, summary.steps);
  EXPECT_FALSE(net->is_training());
  torch::NoGradGuard no_grad;
  EXPECT_EQ(task.validate(), summary.best_valid_loss);
}

TEST_F(Trainer, ResumesToTheSameBits) {
  TrainSummary whole, pieces;
  const auto expected = run({}, &whole);
  // Not only the result: whatever the checkpoint holds, running mean, optimiser and generator included, must be equal.
  const auto state = load_checkpoint(options_.checkpoint).tensors;
  fs::remove_all(options_.checkpoint);
  expect_equal(run({1, 7, 8, 20, 29}, &pieces), expected);
  expect_equal(load_checkpoint(options_.checkpoint).tensors, state);
  EXPECT_EQ(pieces.best_valid_loss, whole.best_valid_loss);
  EXPECT_EQ(pieces.best_step, whole.best_step);
  ASSERT_EQ(pieces.curve.size(), whole.curve.size());
  for (size_t i = 0; i < whole.curve.size(); ++i) {
    EXPECT_EQ(pieces.curve[i].train_loss, whole.curve[i].train_loss);
    EXPECT_EQ(pieces.curve[i].valid_loss, whole.curve[i].valid_loss);
    EXPECT_EQ(pieces.curve[i].step, whole.curve[i].step);
  }
  // A run that is complete is complete: asked again, it ends at once with the same weights.
  const auto net = fresh_net();
  Regression task(*net);
  EXPECT_EQ(train(*net, task, options_).steps, whole.steps);
  expect_equal(weights(*net), expected);
}

// The running mean is looked at and put back: it changes what is kept, never where the training goes.
TEST_F(Trainer, TheRunningMeanDoesNotDisturb) {
  const auto tensors = [&](int64_t average) {
    options_.optimizer.average = average;
    options_.checkpoint = (dir_ / std::to_string(average)).string();
    run({});
    std::map<std::string, torch::Tensor> result;
    for (const auto& [name, tensor] : load_checkpoint(options_.checkpoint).tensors) result[name] = tensor;
    return result;
  };
  auto with = tensors(10), without = tensors(0);
  EXPECT_EQ(without.count("average.first.weight"), 0u);
  ASSERT_EQ(with.count("average.first.weight"), 1u);
  ASSERT_EQ(with.count("average.norm.running_mean"), 1u);
  EXPECT_FALSE(torch::equal(with["average.first.weight"], with["model.first.weight"]));
  for (const char* name :
       {"model.first.weight", "model.norm.running_mean", "exp_avg.last.bias", "exp_avg_sq.last.bias"}) {
    EXPECT_TRUE(torch::equal(with.at(name), without.at(name))) << name;
  }
}

TEST_F(Trainer, SecondsCarryOver) {
  options_.steps = 0;
  options_.minutes = 0.5 / 60;
  TrainSummary summary;
  run({5}, &summary);
  EXPECT_GE(summary.seconds, 0.5);
  EXPECT_LT(summary.seconds, 3);
  const double fraction = summary.curve.back().seconds;
  EXPECT_GE(fraction, 0.5);
}

TEST_F(Trainer, RefusesOtherOptionsAndModels) {
  run({});
  auto good = options_.identity;
  options_.identity["learning_rate"] = 0.02;
  EXPECT_SAYS(error_of_options(), "begun with learning_rate 0.01, and now it is 0.02");
  EXPECT_SAYS(error_of_options(), options_.checkpoint);
  options_.resume = false;
  EXPECT_EQ(error_of_options(), "no error");
  options_.resume = true;
  const auto other = error_of([&] {
    struct Wide : Net {
      Wide() { replace_module("last", torch::nn::Linear(16, 2)); }
    } net;
    Regression task(net);
    train(net, task, options_);
  });
  EXPECT_SAYS(other, "last.weight");
  options_.identity = good;
  write_file(checkpoint_path(options_.checkpoint), "rubbish");
  EXPECT_SAYS(error_of_options(), "safetensors");
}

TEST_F(Trainer, RefusesOptionsThatDoNotFit) {
  const TrainerOptions good = options_;
  const auto with = [&](const std::function<void(TrainerOptions&)>& change) {
    options_ = good;
    change(options_);
    return error_of_options();
  };
  EXPECT_SAYS(with([](auto& o) { o.steps = 0; }), "never end");
  EXPECT_SAYS(with([](auto& o) { o.steps = -1; }), "-1");
  EXPECT_SAYS(with([](auto& o) { o.learning_rate = 0; }), "learning_rate is 0");
  EXPECT_SAYS(with([](auto& o) { o.minutes = std::nan(""); }), "minutes is nan");
  EXPECT_SAYS(with([](auto& o) { o.checkpoint = "/dev/null/x"; }), "/dev/null/x");
}

TEST_F(Trainer, ALossThatExplodesEndsTheTraining) {
  const auto net = fresh_net();
  Regression task(*net, std::numeric_limits<double>::infinity());
  const auto error = error_of([&] { train(*net, task, options_); });
  EXPECT_SAYS(error, "20 steps up to step 20");
}

TEST(InterruptTest, FirstSignalIsAFlagAndTheHandlerComesBack) {
  static volatile sig_atomic_t handled = 0;
  const auto before = ::signal(SIGINT, [](int) { handled = handled + 1; });
  {
    Interrupt guard;
    EXPECT_FALSE(Interrupt::requested());
    ::raise(SIGINT);
    EXPECT_TRUE(Interrupt::requested());
    EXPECT_EQ(handled, 0);
    ::raise(SIGINT);
    EXPECT_EQ(handled, 1) << "the second signal acts as without the guard";
  }
  ::raise(SIGINT);
  EXPECT_EQ(handled, 2);
  {
    Interrupt guard;
    EXPECT_FALSE(Interrupt::requested()) << "a new guard starts clean";
  }
  ::signal(SIGINT, SIG_IGN);
  {
    Interrupt guard;
    ::raise(SIGINT);
    EXPECT_FALSE(Interrupt::requested()) << "nohup";
  }
  ::signal(SIGINT, before);
}

}  // namespace
