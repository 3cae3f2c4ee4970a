// Training end to end: it learns, it survives Ctrl-C, kill -9 and full disks, and a good model is never damaged.
#include "apps/translate/train.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "apps/translate/alignment.h"
#include "apps/translate/batches.h"
#include "apps/translate/infer.h"
#include "libtorch/files.h"
#include "libtorch/processes.h"
#include "said.h"

namespace fs = std::filesystem;
using namespace heed::translate;
using heed::nn::read_file;
using heed::nn::write_file;

namespace {

using heed::tests::error_of;

// Sentences of number words and their reversal: attention is what solves it.
constexpr const char* kWords[] = {"one", "two", "six", "ten", "red", "cat", "dog", "sun"};
std::vector<Pair> reversals(int n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Pair> pairs;
  for (int i = 0; i < n; ++i) {
    Pair pair;
    for (unsigned k = 0, length = 2 + random() % 4; k < length; ++k) {
      const std::string word = kWords[random() % 8];
      pair.source += (k > 0 ? " " : "") + word;
      pair.target = word + (k > 0 ? " " : "") + pair.target;
    }
    pairs.push_back(pair);
  }
  return pairs;
}

TrainOptions small(const std::string& out, const std::string& arch) {
  TrainOptions o;
  o.out = out;
  o.model.arch = arch;
  o.model.vocab = 300;
  o.model.dim = 32;
  o.model.hidden = 32;
  o.model.heads = 2;
  o.model.layers = arch == "rnn" ? 1 : 2;
  o.model.ffn = 64;
  o.batch_tokens = 300;
  o.learning_rate = 5e-3;
  o.warmup = 20;
  o.steps = 40;
  o.validate_every = 10;
  o.checkpoint_seconds = 0;
  o.patience = 0;
  return o;
}

std::string weights_of(const std::string& out) { return read_file(out + "/model.safetensors"); }

class Train : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    torch::set_num_threads(2);  // the same bits must come from several threads, too
    std::string name = (fs::temp_directory_path() / "heed-train-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }

  const std::vector<Pair> pairs_ = reversals(400, 1), validation_ = reversals(40, 2);
  fs::path dir_;
};

using TrainBoth = Train;
INSTANTIATE_TEST_SUITE_P(Arch, TrainBoth, testing::Values("rnn", "transformer"),
                         [](const auto& info) { return info.param; });

TEST_P(TrainBoth, LearnsToReverse) {
  torch::set_num_threads(1);  // the tensors are too small for more
  TrainOptions o = small(path("m"), GetParam());
  o.steps = GetParam() == "rnn" ? 300 : 500;
  o.validate_every = 100;
  o.checkpoint_seconds = 30;
  o.model.dropout = 0;
  o.model.vocab = 4000;
  o.label_smoothing = 0;
  double last_fraction = -1;
  int64_t validations = 0;
  const TrainResult result = train(pairs_, validation_, o, [&](const TrainProgress& p) {
    EXPECT_GE(p.fraction, last_fraction);
    last_fraction = p.fraction;
    validations += p.validated != nullptr;
  });
  EXPECT_LT(result.best_valid_loss, 0.3) << "chance is about " << std::log(8.0) * 0.8;
  EXPECT_EQ(last_fraction, 1);
  EXPECT_EQ(validations, static_cast<int64_t>(result.curve.size()));
  EXPECT_EQ(result.steps, o.steps);
  EXPECT_EQ(result.train_pairs, 400);
  EXPECT_EQ(result.validation_pairs, 40);
  EXPECT_GT(result.parameters, 10000);
  EXPECT_FALSE(result.notes.empty()) << "the text has fewer than 4000 pieces";
  EXPECT_FALSE(fs::exists(path("m/checkpoint")));

  // The folder is a model whose validation loss is the one reported.
  const auto model = load_model(path("m"));
  const Vocab vocab = Vocab::load(path("m/source.spm"));
  EXPECT_EQ(vocab.bytes(), read_file(path("m/target.spm")));
  EXPECT_EQ(model->config().vocab, vocab.size());
  const Examples examples = encode_pairs(validation_, vocab, vocab);
  double sum = 0;
  int64_t tokens = 0;
  torch::NoGradGuard no_grad;
  for (const auto& indices : make_batches(examples.examples, 100, 0, 0)) {
    const Batch batch = make_batch(examples.examples, indices);
    std::vector<torch::Tensor> targets;
    for (size_t i = 0; i < indices.size(); ++i) {
      targets.push_back(batch.target_out[static_cast<int64_t>(i)].narrow(0, 0, batch.target_lengths[i]));
    }
    sum += torch::nn::functional::cross_entropy(model->logits(batch), torch::cat(targets),
                                                torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kSum))
               .item<double>();
    tokens += batch.target_tokens();
  }
  EXPECT_NEAR(sum / static_cast<double>(tokens), result.best_valid_loss, 1e-4);

  // The attention that was chosen to tell what a word comes from tells it: word k from word n - 1 - k.
  const Translator translator = Translator::load(path("m"));
  int64_t right = 0, words = 0;
  std::mt19937_64 random(7);
  for (int i = 0; i < 30; ++i) {
    std::vector<std::string> different(std::begin(kWords), std::end(kWords));
    std::shuffle(different.begin(), different.end(), random);
    const std::string sentence = different[0] + " " + different[1] + " " + different[2] + " " + different[3];
    const Translation t = translator.translate(std::vector<std::string>{sentence}, {.attention = true})[0];
    const WordAlignment a = align_words({t.source_pieces, t.target_pieces, t.attention});
    for (size_t k = 0; k < a.target.size(); ++k) {
      ++words;
      for (const auto& link : a.links) {
        right += link.target == static_cast<int64_t>(k) && a.source[static_cast<size_t>(link.source)] == a.target[k];
      }
    }
  }
  EXPECT_GT(right, words * 8 / 10) << right << " of " << words;

  const auto log = nlohmann::json::parse(read_file(path("m/training.json")));
  EXPECT_EQ(log.at("curve").size(), result.curve.size());
  EXPECT_EQ(log.at("steps"), o.steps);
}

TEST_P(TrainBoth, CtrlCSavesAndGoesOnToTheSameBytes) {
  const TrainOptions whole = small(path("whole"), GetParam());
  train(pairs_, validation_, whole);
  TrainOptions o = small(path("pieces"), GetParam());
  for (const int64_t stop : {1, 13, 20, 33}) {
    const TrainResult result = train(pairs_, validation_, o, [&](const TrainProgress& p) {
      if (p.step == stop) ::raise(SIGINT);
    });
    EXPECT_TRUE(result.interrupted);
    EXPECT_EQ(result.steps, stop);
    EXPECT_FALSE(fs::exists(path("pieces/model.safetensors")));
    EXPECT_TRUE(fs::exists(path("pieces/checkpoint")));
  }
  EXPECT_FALSE(train(pairs_, validation_, o).interrupted);
  EXPECT_EQ(weights_of(path("pieces")), weights_of(path("whole")));
}

TEST_F(Train, LeavesMergesOutAndGoesOnToTheSameBytes) {
  TrainOptions whole = small(path("whole"), "transformer");
  whole.bpe_dropout = 0.3;
  const TrainResult result = train(pairs_, validation_, whole);
  TrainOptions o = whole;
  o.out = path("pieces");
  for (const int64_t stop : {5, 29}) {
    train(pairs_, validation_, o, [&](const TrainProgress& p) {
      if (p.step == stop) ::raise(SIGINT);
    });
  }
  EXPECT_FALSE(train(pairs_, validation_, o).interrupted);
  EXPECT_EQ(weights_of(path("pieces")), weights_of(path("whole")));
  const TrainOptions plain = small(path("plain"), "transformer");
  const TrainResult before = train(pairs_, validation_, plain);
  EXPECT_EQ(result.train_pairs, before.train_pairs);
  EXPECT_NE(weights_of(path("plain")), weights_of(path("whole")));
}

TEST_F(Train, EachPassLeavesOutOtherMerges) {
  const auto tokens = [&](double dropout, int64_t epochs) {
    TrainOptions o = small(path("m"), "rnn");
    o.bpe_dropout = dropout;
    o.steps = 0;
    o.epochs = epochs;
    o.resume = false;
    fs::remove_all(path("m"));
    return train(pairs_, validation_, o).target_tokens;
  };
  const int64_t plain = tokens(0, 1), once = tokens(0.3, 1);
  EXPECT_EQ(tokens(0, 2), 2 * plain);
  EXPECT_GT(once, plain);
  EXPECT_NE(tokens(0.3, 2), 2 * once);
}

TEST_P(TrainBoth, GoesOnFromAModel) {
  torch::set_num_threads(1);
  TrainOptions first = small(path("first"), GetParam());
  first.steps = 60;
  const TrainResult before = train(pairs_, validation_, first);

  // So slowly that it stays what it was: its losses are those of the first model, and its shape and pieces, too.
  TrainOptions slow = small(path("slow"), GetParam());
  slow.from = first.out;
  slow.steps = 2;
  slow.learning_rate = 1e-9;
  slow.model.arch = "rnn";
  slow.model.dim = slow.model.hidden = 64;
  slow.model.vocab = 290;
  slow.model.dropout = 0.3;
  const TrainResult same = train(pairs_, validation_, slow);
  EXPECT_NEAR(same.best_valid_loss, before.best_valid_loss, 1e-5);
  EXPECT_EQ(same.parameters, before.parameters);
  auto config = load_model(slow.out)->config();
  EXPECT_EQ(config.dropout, 0.3);
  EXPECT_EQ(config.dim, 32);
  for (const char* file :
       {"source.spm", "target.spm", "vocab.json", "tokenizer_config.json", "generation_config.json"}) {
    ASSERT_EQ(fs::exists(first.out + "/" + file), fs::exists(slow.out + "/" + file)) << file;
    if (fs::exists(first.out + "/" + file)) {
      EXPECT_EQ(read_file(first.out + "/" + file), read_file(slow.out + "/" + file));
    }
  }

  // In earnest it gets better; and into the model's own folder, in pieces, it comes to the same bytes.
  TrainOptions more = small(path("more"), GetParam());
  more.from = first.out;
  const TrainResult better = train(pairs_, validation_, more);
  EXPECT_LT(better.best_valid_loss, before.best_valid_loss);
  TrainOptions within = more;
  within.out = first.out;
  for (const int64_t stop : {5, 23}) {
    const TrainResult part = train(pairs_, validation_, within, [&](const TrainProgress& p) {
      if (p.step == stop) ::raise(SIGINT);
    });
    EXPECT_EQ(part.steps, stop);
    EXPECT_TRUE(fs::exists(first.out + "/model.safetensors")) << "it stays until the end";
  }
  EXPECT_FALSE(train(pairs_, validation_, within).interrupted);
  EXPECT_EQ(weights_of(within.out), weights_of(more.out));
}

TEST_F(Train, GoesOnFromTheModelItBeganWith) {
  TrainOptions first = small(path("first"), "rnn");
  first.steps = 2;
  train(pairs_, validation_, first);
  TrainOptions o = small(path("m"), "rnn");
  o.from = first.out;
  const auto stop = [](const TrainProgress& p) {
    if (p.step == 3) ::raise(SIGINT);
  };
  train(pairs_, validation_, o, stop);
  fs::remove_all(first.out);
  EXPECT_SAYS(error_of([&] { train(pairs_, validation_, o); }), "first");
  first.model.vocab = 280;
  train(pairs_, validation_, first);
  EXPECT_SAYS(error_of([&] { train(pairs_, validation_, o); }), "another than the training in");
  o.resume = false;
  EXPECT_EQ(train(pairs_, validation_, o).steps, 40);
  o.from = path("nowhere");
  o.resume = true;
  EXPECT_SAYS(error_of([&] { train(pairs_, validation_, o); }), "nowhere");
}

// Models of transformers number their pieces themselves, one begins with padding, and "separate" has two vocabularies.
TEST_F(Train, TeachesAModelFromElsewhere) {
  const std::string marian = HEED_TEST_DATA "/marian/";
  const std::string text = ">>deu<< the dog sees the man";
  torch::set_num_threads(1);
  for (const auto& [name, taught] : {std::pair<std::string, std::string>{"opus", "der Mann sieht den Hund"},
                                     {"separate", "eine Katze"}}) {  // begins with random weights
    TrainOptions o = small(path(name), "transformer");
    o.from = marian + name;
    o.model.dropout = 0;
    o.checkpoint_seconds = 30;
    o.steps = 1;
    o.learning_rate = 1e-9;
    const auto translated = [&](const std::string& dir) {
      return Translator::load(dir).translate(std::vector<std::string>{text}, {.beam = 4, .max_length = 23})[0].text;
    };
    const std::vector<Pair> pairs(20, {text, taught});
    train(pairs, pairs, o);
    EXPECT_EQ(translated(o.out), translated(o.from));
    EXPECT_NE(translated(o.out), taught);
    for (const auto& entry : fs::directory_iterator(o.from)) {
      const std::string file = entry.path().filename();
      if (file.starts_with("goldens") || file == "config.json" || file == "model.safetensors") continue;
      EXPECT_EQ(read_file(entry.path()), read_file(o.out + "/" + file));
    }
    o.out = path(name + "-taught");
    o.steps = 100;
    o.learning_rate = 3e-3;
    train(pairs, pairs, o);
    EXPECT_EQ(translated(o.out), taught) << name;
    o.out = path(name + "-dropout");
    o.bpe_dropout = 0.1;
    EXPECT_SAYS(error_of([&] { train(pairs, pairs, o); }), "numbering of its own");
  }
}

// Runs in a process of its own, started by the test below: see start_child.
TEST(TrainChild, DISABLED_Run) {
  const char* out = std::getenv("HEED_TRAIN_CHILD_OUT");
  const char* arch = std::getenv("HEED_TRAIN_CHILD_ARCH");
  if (out == nullptr || arch == nullptr) GTEST_SKIP() << "only a part of the test KillAtAnyMoment";
  torch::set_num_threads(2);
  TrainOptions o = small(out, arch);
  o.steps = 80;
  o.validate_every = 8;
  train(reversals(400, 1), reversals(40, 2), o);
}

// A rank but 0 of SeveralProcessesTakeTheStepsOfOne.
TrainOptions shared_out(const std::string& out, const std::string& arch) {
  TrainOptions o = small(out, arch);
  o.model.dropout = 0;
  o.batch_tokens = 12;  // often fewer rows than processes
  o.learning_rate = 2e-3;
  if (const char* from = std::getenv("HEED_TRAIN_CHILD_FROM")) o.from = from;
  return o;
}

TEST(TrainChild, DISABLED_Rank) {
  const auto place = heed::nn::child_place();
  if (!place) GTEST_SKIP() << "only a part of the test SeveralProcessesTakeTheStepsOfOne";
  torch::set_num_threads(1);
  heed::nn::Processes group({*place, "", 0, 60});
  TrainOptions o = shared_out("/nowhere/at/all", std::getenv("HEED_TRAIN_CHILD_ARCH"));  // rank 0's affair
  o.processes = &group;
  train(reversals(400, 1), reversals(40, 2), o);
}

pid_t start_child(const std::string& out, const std::string& arch) {
  ::setenv("HEED_TRAIN_CHILD_OUT", out.c_str(), 1);  // before the fork: behind it, memory must not be allocated
  ::setenv("HEED_TRAIN_CHILD_ARCH", arch.c_str(), 1);
  const pid_t child = ::fork();
  if (child != 0) return child;
  const int null = ::open("/dev/null", O_WRONLY);
  ::dup2(null, STDOUT_FILENO);
  ::execl("/proc/self/exe", "train_test", "--gtest_also_run_disabled_tests", "--gtest_filter=TrainChild.DISABLED_Run",
          static_cast<char*>(nullptr));
  ::_exit(127);
}

TEST_P(TrainBoth, KillAtAnyMoment) {
  int status = 0;
  ::waitpid(start_child(path("whole"), GetParam()), &status, 0);
  ASSERT_EQ(status, 0);

  const unsigned seed = std::random_device()();
  RecordProperty("seed", static_cast<int>(seed));
  std::mt19937 random(seed);
  const std::string out = path("killed"), checkpoint = out + "/checkpoint/checkpoint.safetensors";
  int kills = 0;
  for (int round = 0; round < 4; ++round) {
    const pid_t child = start_child(out, GetParam());
    const auto stamp = [&] {
      std::error_code absent;
      return fs::last_write_time(checkpoint, absent);
    };
    const auto before = stamp();
    pid_t done = 0;
    while (stamp() == before && (done = ::waitpid(child, &status, WNOHANG)) == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (done == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 150'000));
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
    }
    if (WIFSIGNALED(status)) ++kills;
    EXPECT_TRUE(!WIFEXITED(status) || WEXITSTATUS(status) == 0);
  }
  EXPECT_GE(kills, 1);
  ::waitpid(start_child(out, GetParam()), &status, 0);
  ASSERT_EQ(status, 0);
  EXPECT_EQ(weights_of(out), weights_of(path("whole"))) << "seed " << seed << ", " << kills << " kills";
  EXPECT_EQ(read_file(out + "/source.spm"), read_file(path("whole/source.spm")));
  EXPECT_EQ(read_file(out + "/config.json"), read_file(path("whole/config.json")));
  EXPECT_FALSE(fs::exists(out + "/checkpoint"));
  for (const auto& entry : fs::directory_iterator(out)) EXPECT_NE(entry.path().filename().string()[0], '.');
}

TEST_P(TrainBoth, SeveralProcessesTakeTheStepsOfOne) {
  torch::set_num_threads(1);
  TrainResult one = train(pairs_, validation_, shared_out(path("1"), GetParam()));
  ::setenv("HEED_TRAIN_CHILD_ARCH", GetParam().c_str(), 1);
  for (const int world : {2, 3}) {
    if (world == 3) {  // and from a model
      ::setenv("HEED_TRAIN_CHILD_FROM", path("1").c_str(), 1);
      one = train(pairs_, validation_, shared_out(path("again"), GetParam()));
    }
    heed::nn::Children children(world, {"train_test", "--gtest_also_run_disabled_tests", "--gtest_brief=1",
                                        "--gtest_filter=TrainChild.DISABLED_Rank"});
    TrainOptions o = shared_out(path(std::to_string(world)), GetParam());
    TrainResult many;
    {
      heed::nn::Processes group({children.place(), "", 0, 60}, &children);
      o.processes = &group;
      many = train(pairs_, validation_, o);
    }
    EXPECT_EQ(children.join(), "");
    EXPECT_EQ(many.target_tokens, one.target_tokens);
    ASSERT_EQ(many.curve.size(), one.curve.size());
    for (size_t i = 0; i < one.curve.size(); ++i) {
      EXPECT_NEAR(many.curve[i].train_loss, one.curve[i].train_loss, 1e-4);
      EXPECT_NEAR(many.curve[i].valid_loss, one.curve[i].valid_loss, 1e-4);
    }
    EXPECT_EQ(load_model(o.out)->config().dim, 32);
  }
  ::unsetenv("HEED_TRAIN_CHILD_FROM");
}

TEST_F(Train, AFullDiskLeavesTheOldModelAndGoesOnLater) {
  TrainOptions o = small(path("m"), "rnn");
  o.steps = 5;
  train(pairs_, validation_, o);
  const std::string good = weights_of(o.out), config = read_file(o.out + "/config.json");

  o.model.dim = 128;
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  std::string error;
  for (const rlim_t bytes : {1'000, 400'000}) {  // too small for the vocabulary; for the checkpoint
    rlimit limit{bytes, before.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    error = error_of([&] { train(pairs_, validation_, o); });
    ::setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_SAYS(error, o.out + "/checkpoint/");
    EXPECT_EQ(weights_of(o.out), good);
    EXPECT_EQ(read_file(o.out + "/config.json"), config);
    EXPECT_EQ(load_model(o.out)->config().dim, 32);
  }
  EXPECT_SAYS(error, "checkpoint.safetensors: File too large");
  ::signal(SIGXFSZ, handler);
  train(pairs_, validation_, o);
  EXPECT_EQ(load_model(o.out)->config().dim, 128);
}

TEST_F(Train, AnOldModelStaysUntilTheNewOneIsWhole) {
  TrainOptions o = small(path("m"), "rnn");
  o.steps = 5;
  train(pairs_, validation_, o);
  const std::string good = weights_of(o.out);
  o.seed = 2;
  EXPECT_TRUE(train(pairs_, validation_, o, [](const TrainProgress& p) {
                if (p.step == 3) ::raise(SIGINT);
              }).interrupted);
  EXPECT_EQ(weights_of(o.out), good);
  train(pairs_, validation_, o);
  EXPECT_NE(weights_of(o.out), good);
}

TEST_F(Train, AMoveThatWasCutOffIsFinished) {
  TrainOptions o = small(path("m"), "rnn");
  o.steps = 5;
  const TrainResult first = train(pairs_, validation_, o);
  const std::string good = weights_of(o.out), work = o.out + "/checkpoint";
  fs::create_directories(work + "/model");  // as a kill between two renames leaves it
  write_file(work + "/complete.json", read_file(o.out + "/training.json"));
  for (const char* name : {"model.safetensors", "config.json", "training.json"}) {
    fs::rename(o.out + "/" + name, work + "/model/" + name);
  }
  int64_t steps = 0;
  const TrainResult again = train(pairs_, validation_, o, [&](const TrainProgress&) { ++steps; });
  EXPECT_EQ(steps, 0);
  EXPECT_EQ(again.best_valid_loss, first.best_valid_loss);
  EXPECT_EQ(again.curve.size(), first.curve.size());
  EXPECT_EQ(weights_of(o.out), good);
  EXPECT_NO_THROW(load_model(o.out));
  EXPECT_FALSE(fs::exists(work));
}

TEST_F(Train, OtherOptionsOrDataAreRefusedUntilToldToStartOver) {
  TrainOptions o = small(path("m"), "rnn");
  const auto stop = [](const TrainProgress& p) {
    if (p.step == 2) ::raise(SIGINT);
  };
  train(pairs_, validation_, o, stop);
  TrainOptions other = o;
  other.learning_rate = 0.002;
  EXPECT_SAYS(error_of([&] { train(pairs_, validation_, other); }), "learning_rate 0.005, and now it is 0.002");
  auto fewer = pairs_;
  fewer.pop_back();
  EXPECT_SAYS(error_of([&] { train(fewer, validation_, o); }), "400 (checksum");
  EXPECT_SAYS(error_of([&] { train(fewer, validation_, o); }), "399 (checksum");
  other = o;
  other.steps = 4;  // when to stop may change
  EXPECT_EQ(train(pairs_, validation_, other).steps, 4);

  train(pairs_, validation_, o, stop);
  other = o;
  other.seed = 5;
  other.resume = false;
  other.steps = 4;
  EXPECT_EQ(train(pairs_, validation_, other).steps, 4);
}

TEST_F(Train, HoldsOutItsOwnValidation) {
  TrainOptions o = small(path("m"), "rnn");
  o.steps = 2;
  o.valid_pairs = 30;
  const TrainResult result = train(pairs_, {}, o);
  EXPECT_GT(result.validation_pairs, 5);
  EXPECT_LT(result.validation_pairs, 80);
  EXPECT_EQ(result.train_pairs + result.validation_pairs, 400);
  o.out = path("few");  // too much alike for a split by content
  EXPECT_EQ(train({{"cat", "dog"}, {"cat", "dog"}, {"cat", "dog"}}, {}, o).validation_pairs, 1);
  EXPECT_SAYS(error_of([&] { train({{"cat", "dog"}}, {}, o); }), "1 pairs");
  EXPECT_SAYS(error_of([&] { train({}, validation_, o); }), "no pairs");
}

TEST_F(Train, TakesAVocabularyThatLiesInTheFolder) {
  TrainOptions o = small(path("m"), "rnn");
  o.steps = 2;
  VocabOptions vocab_options;
  vocab_options.size = 275;
  fs::create_directories(o.out);
  const Vocab vocab = Vocab::train(std::vector<std::string>(50, "one two six ten red cat dog sun"), vocab_options,
                                   o.out + "/source.spm");
  train(pairs_, validation_, o);
  EXPECT_EQ(read_file(o.out + "/source.spm"), vocab.bytes());
  EXPECT_EQ(load_model(o.out)->config().vocab, vocab.size());
}

TEST_F(Train, OptionsThatDoNotFit) {
  const auto with = [&](const std::function<void(TrainOptions&)>& change) {
    TrainOptions o = small(path("m"), "rnn");
    change(o);
    return error_of([&] { train(pairs_, validation_, o); });
  };
  EXPECT_SAYS(with([](auto& o) { o.out = ""; }), "no folder");
  EXPECT_SAYS(with([](auto& o) { o.out = "/dev/null"; }), "/dev/null");
  EXPECT_SAYS(with([](auto& o) { o.batch_tokens = 0; }), "batch_tokens is 0");
  EXPECT_SAYS(with([](auto& o) { o.label_smoothing = 1; }), "label_smoothing is 1");
  EXPECT_SAYS(with([](auto& o) { o.valid_pairs = 0; }), "valid_pairs is 0");
  EXPECT_SAYS(with([](auto& o) { o.bpe_dropout = 1; }), "bpe_dropout is 1");
  EXPECT_SAYS(with([](auto& o) { o.steps = 0; }), "never end");
  EXPECT_SAYS(with([](auto& o) { o.schedule = "linear"; }), "schedule is linear; it must be cosine or inverse-sqrt");
  EXPECT_SAYS(with([](auto& o) { o.model.arch = "lstm"; }), "lstm");
  EXPECT_SAYS(with([](auto& o) { o.model.hidden = 0; }), "hidden is 0");
  EXPECT_FALSE(fs::exists(path("m"))) << "nothing is made before the options are good";
}

}  // namespace
