// Several processes: the same sums everywhere, the steps of one process, and clear words when one is gone.
#include "libtorch/processes.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "libtorch/adamw.h"
#include "libtorch/trainer.h"
#include "said.h"

namespace fs = std::filesystem;
using namespace heed::nn;

namespace {

using heed::tests::error_of;

double seconds_of(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// What each rank does in a test; rank 0 is the test itself, the others are this program again, told a name.
std::map<std::string, std::function<void(Processes&)>>& roles() {
  static std::map<std::string, std::function<void(Processes&)>> all;
  return all;
}

struct Role {
  Role(const std::string& name, std::function<void(Processes&)> work) { roles()[name] = std::move(work); }
};

constexpr double kJoin = 30;

TEST(Child, DISABLED_Plays) {
  const char* name = std::getenv("HEED_TEST_ROLE");
  if (name == nullptr) GTEST_SKIP() << "only a part of other tests";
  if (std::string(name) == "leaves") ::_exit(0);
  if (std::string(name) == "exits") ::_exit(3);
  Processes group({*child_place(), "", 0, kJoin});
  roles().at(name)(group);
}

// Starts the ranks of a test. Those that fail an expectation end with exit code 1, which join() tells.
class Crew {
 public:
  Crew(const std::string& name, int world) {
    ::setenv("HEED_TEST_ROLE", name.c_str(), 1);
    children_ = std::make_unique<Children>(
        world, std::vector<std::string>{"processes_test", "--gtest_also_run_disabled_tests",
                                        "--gtest_filter=Child.DISABLED_Plays", "--gtest_brief=1"});
  }
  Children* operator*() const { return children_.get(); }
  Rendezvous rendezvous(double seconds = kJoin) const { return {children_->place(), "", 0, seconds}; }

 private:
  std::unique_ptr<Children> children_;
};

// Every rank plays the role, and none fails.
void all_play(const std::string& name, int world) {
  Crew crew(name, world);
  {
    Processes group(crew.rendezvous(), *crew);
    EXPECT_EQ(group.rank(), 0);
    EXPECT_EQ(group.world(), world);
    roles().at(name)(group);
  }
  EXPECT_EQ((*crew)->join(), "");
}

// Throws in every rank unless all have the same bits.
void expect_same(Processes& group, const torch::Tensor& tensor) {
  const auto bytes = tensor.detach().contiguous();
  const std::string text(static_cast<const char*>(bytes.data_ptr()), bytes.nbytes());
  group.agree({{"bits", std::hash<std::string>()(text)}});
}

// ---- Sums and words ----

const Role kSums("sums", [](Processes& group) {
  for (const int64_t n : {1, 7, 100'001}) {
    torch::Tensor mine, expected = torch::zeros({n}, torch::kFloat64);
    for (int r = 0; r < group.world(); ++r) {
      const auto theirs = torch::randn({n}, at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(r)));
      if (r == group.rank()) mine = theirs.clone();
      expected += theirs;
    }
    group.sum(mine);
    EXPECT_LT((mine - expected).abs().max().item<double>(), 1e-6);
    expect_same(group, mine);
  }
  double numbers[] = {1, static_cast<double>(group.rank())};
  group.sum(numbers);
  EXPECT_EQ(numbers[0], group.world());
  EXPECT_EQ(numbers[1], group.world() * (group.world() - 1) / 2);
  auto word = torch::full({3}, group.rank() + 5, torch::kInt64);
  group.broadcast(word);
  EXPECT_EQ(word.sum().item<int64_t>(), 15);
  EXPECT_EQ(group.tell(group.rank() == 0 ? "from the first" : "not heard"), "from the first");
});

TEST(ProcessesTest, SumsHaveTheSameBitsEverywhere) {
  all_play("sums", 2);
  all_play("sums", 3);
}

// A rank that writes to one that died gets an error, not the signal.
TEST(ProcessesTest, ABrokenPipeEndsNobody) {
  ::signal(SIGPIPE, SIG_DFL);
  all_play("sums", 2);
  ::raise(SIGPIPE);

  static int heard = 0;
  ::signal(SIGPIPE, [](int) { ++heard; });
  all_play("sums", 2);
  ::raise(SIGPIPE);
  EXPECT_EQ(heard, 1) << "a program's own handler stays";
  ::signal(SIGPIPE, SIG_DFL);
}

const Role kDiffers("differs", [](Processes& group) {
  const std::string error = error_of([&] {
    group.agree({{"batch_tokens", 100}, {"vocab", group.rank() == 2 ? 999 : 300}});
  });
  if (group.rank() == 2) {
    EXPECT_SAYS(error, "vocab is 999 in rank 2 and 300 in rank 0");
    group.last_words(error);
  } else {
    EXPECT_SAYS(error, "rank 2 of 3 ended: vocab is 999 in rank 2");
  }
});

TEST(ProcessesTest, WhatDiffersIsSaidByAll) { all_play("differs", 3); }

const Role kKilled("killed", [](Processes& group) {
  double numbers[] = {1};
  group.sum(numbers);
  if (group.rank() == 1) ::raise(SIGKILL);
  std::string error;
  const double took = seconds_of([&] { error = error_of([&] { group.sum(numbers); }); });
  EXPECT_SAYS(error, "rank 1 of 3 (process ");
  EXPECT_SAYS(error, ") was killed by signal 9 (Killed)");
  EXPECT_LT(took, 10);
  EXPECT_NE(error_of([&] { group.sum(numbers); }), "no error") << "it stays lost";
});

TEST(ProcessesTest, AKilledOneIsNamed) {
  Crew crew("killed", 3);
  {
    Processes group(crew.rendezvous(), *crew);
    roles().at("killed")(group);
  }
  EXPECT_SAYS((*crew)->join(), "signal 9") << "and the third, which saw it too, ended well";
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a zombie";
}

const Role kQuits("quits", [](Processes& group) {
  if (group.rank() == 1) return group.last_words("no space left");
  double numbers[] = {1};
  EXPECT_SAYS(error_of([&] { group.sum(numbers); }), "rank 1 of 2 ended: no space left");
});

TEST(ProcessesTest, LastWordsReachThoseThatWaitForNumbers) { all_play("quits", 2); }

TEST(ProcessesTest, WhoDoesNotComeIsNamed) {
  const Crew leavers("leaves", 3);
  std::string error = error_of([&] { Processes group(leavers.rendezvous(1), *leavers); });
  EXPECT_SAYS(error, "ranks 1 and 2 of 3 did not come within 1 s");
  const Crew crew("exits", 2);
  error = error_of([&] { Processes group(crew.rendezvous(), *crew); });
  EXPECT_SAYS(error, "rank 1 of 2 (process ");
  EXPECT_SAYS(error, ") ended with exit code 3");
}

TEST(ProcessesTest, Addresses) {
  Rendezvous r;
  parse_rendezvous("tcp://node-1:29500", r);
  EXPECT_EQ(r.host, "node-1");
  EXPECT_EQ(r.port, 29500);
  parse_rendezvous("tcp://[fe80::1]:1", r);
  EXPECT_EQ(r.host, "fe80::1");
  EXPECT_EQ(r.port, 1);
  for (const char* bad : {"", "tcp://", "tcp://:1", "tcp://a", "tcp://a:", "tcp://a:0", "tcp://a:65536", "tcp://a:1x",
                          "tcp://fe80::1:1", "a:1", "udp://a:1", "tcp://a:99999999999", "tcp://[]:1", "tcp://a/b:1"}) {
    EXPECT_SAYS(error_of([&] { parse_rendezvous(bad, r); }), "tcp://HOST:PORT") << bad;
  }
  const auto joins = [](const std::string& host, int port, int rank, int world) {
    return error_of([&] { Processes({{rank, world, ""}, host, port, 1}); });
  };
  EXPECT_SAYS(joins("192.0.2.1", 29511, 0, 2), "not an address of this machine");
  EXPECT_SAYS(joins("no-such-host.invalid", 29511, 0, 2), "no address for no-such-host.invalid");
  EXPECT_SAYS(joins("127.0.0.1", 1, 1, 2), "nobody answers at 127.0.0.1:1 within 1 s (Connection refused)");
  EXPECT_SAYS(joins("127.0.0.1", 29511, 2, 2), "no rank 2 among 2");
}

// ---- The trainer ----

struct Net : torch::nn::Module {
  explicit Net(double dropout) {
    first = register_module("first", torch::nn::Linear(6, 16));
    drop = register_module("drop", torch::nn::Dropout(dropout));
    last = register_module("last", torch::nn::Linear(16, 1));
    idle = register_module("idle", torch::nn::Linear(2, 2));  // the loss never reaches it
  }
  torch::Tensor forward(const torch::Tensor& x) { return last(drop(torch::tanh(first(x)))).squeeze(1); }
  torch::nn::Linear first{nullptr}, last{nullptr}, idle{nullptr};
  torch::nn::Dropout drop{nullptr};
};

// Rows are dealt out unevenly, and in every third step there are fewer than processes.
class Regression : public TrainingTask {
 public:
  Regression(Net& net, Processes* group) : net_(net), group_(group) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(9);
    x_ = torch::randn({96, 6}, generator);
    y_ = x_.select(1, 0) - 2 * x_.select(1, 1);
  }
  int64_t start_epoch(int64_t) override { return 6; }
  StepLoss loss(int64_t index) override {
    const int64_t begin = index * 10, rows = index % 3 == 2 ? 1 : 10;
    std::vector<int64_t> mine;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t owner = i < 5 ? 0 : i % 3;
      if (group_ == nullptr || owner % group_->world() == group_->rank()) mine.push_back(begin + i);
    }
    if (mine.empty()) return {};
    const auto at = torch::tensor(mine);
    const auto loss = torch::mse_loss(net_.forward(x_.index_select(0, at)), y_.index_select(0, at));
    const auto n = static_cast<int64_t>(mine.size());
    return {loss, loss.item<double>() * static_cast<double>(n), n};
  }
  double validate() override {
    return torch::mse_loss(net_.forward(x_.narrow(0, 64, 32)), y_.narrow(0, 64, 32)).item<double>();
  }

 private:
  Net& net_;
  Processes* group_;
  torch::Tensor x_, y_;
};

torch::Tensor all_weights(const torch::nn::Module& module) {
  std::vector<torch::Tensor> flat;
  for (const auto& [name, tensor] : weights(module)) flat.push_back(tensor.detach().flatten());
  return torch::cat(flat);
}

struct Trained {
  TrainSummary summary;
  torch::Tensor weights;
};

struct Course {
  double dropout = 0;
  int signal = 0;      // that rank 1 gets after step 9
  bool drift = false;  // rank 1's weights move on their own after step 13
};

Trained train_here(Processes* group, const Course& course) {
  torch::manual_seed(5);
  const int rank = group != nullptr ? group->rank() : 0;
  Net net(course.dropout);
  if (rank > 0) {  // what rank 0 has is what counts
    torch::NoGradGuard no_grad;
    net.first->weight.zero_();
  }
  Regression task(net, group);
  TrainerOptions options;
  options.steps = 24;
  options.learning_rate = 0.02;
  options.warmup = 3;
  options.optimizer.clip = 0.5;  // bites: the norm must be that of the whole step
  options.optimizer.weight_decay = 0.1;
  options.checkpoint = std::getenv("HEED_TEST_FOLDER");
  options.processes = group;
  Trained result;
  result.summary = train(net, task, options, [&](const TrainProgress& p) {
    const bool apart = course.drift && p.step > 13 && p.step < 18;  // the validation after step 18 sets it right
    if (group != nullptr && !apart) expect_same(*group, all_weights(net));
    if (p.step == 13 && rank == 1 && course.drift) {
      torch::NoGradGuard no_grad;
      net.first->weight += 1e-3;
    }
    if (p.step == 9 && rank == 1 && course.signal != 0) ::raise(course.signal);
  });
  if (group != nullptr) expect_same(*group, all_weights(net));
  result.weights = all_weights(net);
  return result;
}

class Training : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "heed-processes-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    ::setenv("HEED_TEST_FOLDER", (dir_ / "work").c_str(), 1);
  }
  void TearDown() override { fs::remove_all(dir_); }
  void start_over() { fs::remove_all(dir_ / "work"); }

  static Trained crew(const std::string& role, int world, const Course& course) {
    Crew crew(role, world);
    Trained result;
    {
      Processes group(crew.rendezvous(), *crew);
      result = train_here(&group, course);
    }
    EXPECT_EQ((*crew)->join(), "");
    return result;
  }
  fs::path dir_;
};

const Course kPlain{}, kStopped{0, SIGINT}, kDrops{0.3, 0}, kDropsStopped{0.3, SIGINT}, kKilled9{0, SIGKILL},
    kDrifts{0, 0, true};
const Role kPlainRole("plain", [](Processes& group) { train_here(&group, kPlain); });
const Role kStoppedRole("stopped", [](Processes& group) { train_here(&group, kStopped); });
const Role kDropsRole("drops", [](Processes& group) { train_here(&group, kDrops); });
const Role kDropsStoppedRole("drops, stopped", [](Processes& group) { train_here(&group, kDropsStopped); });
const Role kDriftsRole("drifts", [](Processes& group) { train_here(&group, kDrifts); });
const Role kKilled9Role("killed in training", [](Processes& group) { train_here(&group, kKilled9); });

double difference(const Trained& a, const Trained& b) { return (a.weights - b.weights).abs().max().item<double>(); }

TEST_F(Training, TakesTheStepsOfOneProcess) {
  const Trained one = train_here(nullptr, kPlain);
  for (const int world : {2, 3}) {
    start_over();
    const Trained many = crew("plain", world, kPlain);
    EXPECT_LT(difference(one, many), 1e-5) << world;
    EXPECT_EQ(one.summary.units, many.summary.units);
    ASSERT_EQ(one.summary.curve.size(), many.summary.curve.size());
    for (size_t i = 0; i < one.summary.curve.size(); ++i) {
      EXPECT_NEAR(one.summary.curve[i].train_loss, many.summary.curve[i].train_loss, 1e-5);
      EXPECT_NEAR(one.summary.curve[i].valid_loss, many.summary.curve[i].valid_loss, 1e-5);
    }
  }
}

TEST_F(Training, CtrlCInOneStopsAllAndAnyNumberGoesOn) {
  const Trained whole = train_here(nullptr, kPlain);
  for (const int next : {1, 2, 3}) {
    start_over();
    const Trained stopped = crew("stopped", 2, kStopped);
    EXPECT_TRUE(stopped.summary.interrupted);
    EXPECT_EQ(stopped.summary.steps, 10) << "all end after the step in which it was seen";
    const Trained rest = next == 1 ? train_here(nullptr, kPlain) : crew("plain", next, kPlain);
    EXPECT_TRUE(rest.summary.resumed);
    EXPECT_EQ(rest.summary.steps, 24);
    EXPECT_LT(difference(whole, rest), 1e-5) << next;
  }
}

TEST_F(Training, ResumesToTheSameBitsWithDropout) {
  const Trained whole = crew("drops", 2, kDrops);
  start_over();
  EXPECT_TRUE(crew("drops, stopped", 2, kDropsStopped).summary.interrupted);
  EXPECT_TRUE(torch::equal(whole.weights, crew("drops", 2, kDrops).weights));
}

// As between processors that round differently.
TEST_F(Training, WeightsThatDriftApartAreSetRight) { crew("drifts", 2, kDrifts); }

TEST_F(Training, ADeathTellsWhereToGoOn) {
  Crew crew("killed in training", 2);
  {
    Processes group(crew.rendezvous(), *crew);
    const std::string error = error_of([&] { train_here(&group, kKilled9); });
    EXPECT_SAYS(error, "was killed by signal 9");
    EXPECT_SAYS(error, "; the checkpoint of step 6 in " + (dir_ / "work").string() + " is whole");
  }
  (*crew)->join();
  EXPECT_EQ(train_here(nullptr, kPlain).summary.steps, 24);
}

}  // namespace
