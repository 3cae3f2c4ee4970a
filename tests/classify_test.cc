// apps/classify and apps/training_folder: networks against their formulas, folders that come back, pictures as they are
// read and changed, training that learns and goes on to the same bytes, and errors in words.
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <signal.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>

#include "apps/classify/data.h"
#include "apps/classify/measure.h"
#include "apps/classify/model.h"
#include "apps/classify/train.h"
#include "apps/pictures/tensors.h"
#include "apps/training_folder.h"
#include "libtorch/files.h"
#include "said.h"
#include "tests/vision_goldens.h"

namespace heed::classify {
namespace {

namespace fs = std::filesystem;
using heed::tests::error_of;
using heed::tests::json;
using heed::tests::pixels;
using heed::tests::TemporaryFolder;
using nn::read_file;
using nn::write_file;
using pictures::Picture;
using pictures::Preprocess;
using torch::Tensor;

// ---- Pictures to learn from: stripes that lie, and stripes that stand ----

constexpr int64_t kSide = 12;

Picture stripes(bool standing, std::mt19937& random, int64_t channels = 1) {
  Picture p{kSide, kSide, channels, {}};
  const unsigned phase = random() % 4;
  for (unsigned y = 0; y < kSide; ++y) {
    for (unsigned x = 0; x < kSide; ++x) {
      const bool light = ((standing ? x : y) + phase) % 4 < 2;
      for (int64_t c = 0; c < channels; ++c) {
        p.bytes.push_back(static_cast<uint8_t>((light ? 180 : 20) + static_cast<int>(random() % 50)));
      }
    }
  }
  return p;
}

Preprocess square() {
  Preprocess p = Preprocess::defaults(Preprocess::Kind::vit);
  p.resize = pictures::Size{kSide, kSide};
  p.mean = p.std = {0.5};
  return p;
}

PictureSet forty(std::vector<std::string> classes = {"lying", "standing"}) {
  std::mt19937 random(3);
  PictureSet set{.classes = std::move(classes), .preprocess = square(), .height = kSide, .width = kSide};
  for (int i = 0; i < 40; ++i) {
    const Picture p = stripes(i % 2 == 1, random);
    set.bytes.insert(set.bytes.end(), p.bytes.begin(), p.bytes.end());
    set.labels.push_back(i % 2);
  }
  return set;
}

std::vector<int64_t> all_rows(const PictureSet& set) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < set.count(); ++i) rows.push_back(i);
  return rows;
}

NetworkOptions tiny(const std::string& arch) {
  NetworkOptions o;
  o.arch = arch;
  o.width = arch == "vit" ? 16 : 8;
  o.depth = arch == "vit" ? 2 : 1;
  return o;
}

TrainOptions small(const fs::path& out, const std::string& arch) {
  TrainOptions o;
  o.out = out.string();
  o.network = tiny(arch);
  o.batch = 16;
  o.steps = 30;
  o.learning_rate = 5e-3;
  o.checkpoint_seconds = 0;
  o.patience = 0;
  return o;
}

std::string weights_of(const fs::path& out) { return read_file((out / "model.safetensors").string()); }

// A model whose tensors all differ from where they begin: biases from 0, norms from 1, statistics from both.
std::shared_ptr<Model> randomised(const std::string& arch, const std::vector<std::string>& labels = {"a", "b", "c"}) {
  torch::manual_seed(5);
  const auto model = make_model(tiny(arch), 1, square(), labels);
  const torch::NoGradGuard no_grad;
  for (Tensor& t : model->parameters()) t.add_(0.2 * torch::randn_like(t));
  for (Tensor& t : model->buffers()) {
    if (t.is_floating_point()) t.add_(torch::rand_like(t));
  }
  model->eval();
  return model;
}

class Classify : public testing::Test {
 protected:
  void SetUp() override { torch::set_num_threads(1); }
  fs::path path(const std::string& name) const { return folder_.path / name; }
  void write(const std::string& name, const Picture& picture) {
    fs::create_directories(path(name).parent_path());
    pictures::write_png(path(name).string(), picture);
  }
  void write_folders(int of_each = 6) {
    std::mt19937 random(1);
    for (int i = 0; i < of_each; ++i) {
      for (const bool standing : {false, true}) {
        write(std::string("data/") + (standing ? "standing/" : "lying/") + std::to_string(i) + ".png",
              stripes(standing, random, 3));
      }
    }
  }
  // IDX files with pictures of 3 rows and 2 columns, whose bytes are the label.
  void write_idx(const std::string& folder, const std::string& split, const std::vector<uint8_t>& labels) {
    fs::create_directories(path(folder));
    const auto n = static_cast<char>(labels.size());
    std::string images = {0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 3, 0, 0, 0, 2}, names = {0, 0, 8, 1, 0, 0, 0, n};
    for (const uint8_t label : labels) {
      images += std::string(6, static_cast<char>(label));
      names += static_cast<char>(label);
    }
    write_file(path(folder + "/" + split + "-images-idx3-ubyte").string(), images);
    write_file(path(folder + "/" + split + "-labels-idx1-ubyte").string(), names);
  }

  TemporaryFolder folder_;
};

class ClassifyAll : public Classify, public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Arch, ClassifyAll, testing::Values("cnn-cbam", "cnn", "vit"),
                         [](const auto& info) { return std::string(info.param) == "cnn-cbam" ? "cbam" : info.param; });

// ---- The networks ----

// The network in LibTorch's plain operators, by the names of its tensors.
class Plain {
 public:
  explicit Plain(const torch::nn::Module& net) {
    for (const auto& item : net.named_parameters()) at_[item.key()] = item.value();
    for (const auto& item : net.named_buffers()) at_[item.key()] = item.value();
  }
  bool has(const std::string& name) const { return at_.count(name) > 0; }
  Tensor conv(const std::string& name, const Tensor& x, int64_t stride) const {
    const Tensor& kernel = at_.at(name + ".weight");
    return torch::conv2d(x, kernel, {}, stride, kernel.size(2) / 2);
  }
  Tensor norm(const std::string& name, const Tensor& x) const {
    const auto of = [&](const char* what) { return at_.at(name + what).view({1, -1, 1, 1}); };
    return (x - of(".running_mean")) / torch::sqrt(of(".running_var") + 1e-5) * of(".weight") + of(".bias");
  }
  Tensor linear(const std::string& name, const Tensor& x) const {
    return x.matmul(at_.at(name + ".weight").t()) + at_.at(name + ".bias");
  }

 private:
  std::map<std::string, Tensor> at_;
};

TEST_F(Classify, TheNetworkIsItsFormula) {
  for (const char* arch : {"cnn-cbam", "cnn"}) {
    const auto model = randomised(arch);
    const Plain net(*model->children().front());
    const torch::NoGradGuard no_grad;
    const Tensor pictures = pixels({2, 1, kSide, kSide});
    Tensor x = torch::relu(net.norm("stem_bn", net.conv("stem", pictures, 1))), map;
    for (const auto& [block, stride] : {std::pair("blocks.0", 1), {"blocks.1", 2}, {"blocks.2", 2}}) {
      const std::string b = std::string(block) + ".";
      Tensor y = torch::relu(net.norm(b + "bn1", net.conv(b + "conv1", x, stride)));
      y = net.norm(b + "bn2", net.conv(b + "conv2", y, 1));
      EXPECT_EQ(net.has(b + "cbam.channel.fc1.weight"), std::string(arch) == "cnn-cbam");
      if (net.has(b + "cbam.channel.fc1.weight")) {
        const auto mlp = [&](const Tensor& pooled) {
          return net.linear(b + "cbam.channel.fc2", torch::relu(net.linear(b + "cbam.channel.fc1", pooled)));
        };
        y = y * torch::sigmoid(mlp(y.mean({2, 3})) + mlp(y.amax({2, 3}))).view({2, -1, 1, 1});
        const Tensor pooled = torch::cat({y.amax(1, true), y.mean(1, true)}, 1);
        map = torch::sigmoid(net.norm(b + "cbam.spatial.bn", net.conv(b + "cbam.spatial.conv", pooled, 1)));
        y = y * map;
      }
      const bool projected = net.has(b + "shortcut.weight");
      EXPECT_EQ(projected, stride == 2);
      x = torch::relu(y + (projected ? net.norm(b + "shortcut_bn", net.conv(b + "shortcut", x, stride)) : x));
    }
    const Tensor logits = net.linear("classifier", x.mean({2, 3}));
    const bool look = model->has_attention();
    const Seen seen = model->forward(pictures, look);
    EXPECT_LT((seen.logits - logits).abs().max().item<double>(), 1e-4);
    EXPECT_FALSE(model->forward(pictures).attention.defined());
    if (!look) continue;
    ASSERT_EQ(seen.attention.sizes(), torch::IntArrayRef({2, 3, 3}));
    EXPECT_LT((seen.attention - map.squeeze(1)).abs().max().item<double>(), 1e-5);
  }
}

TEST_F(Classify, TheRolloutIsThePatchesPart) {
  const auto model = randomised("vit");
  const auto vit = std::dynamic_pointer_cast<VitModel>(model->children().front());
  const torch::NoGradGuard no_grad;
  const Tensor pictures = pixels({2, 1, kSide, 16});  // not square: 3 rows and 4 columns of patches
  const Seen seen = model->forward(pictures, true);
  const Tensor rollout = vit->forward(pictures, true).encoded.attention.rollout;
  ASSERT_EQ(seen.attention.sizes(), torch::IntArrayRef({2, 3, 4}));
  EXPECT_TRUE(torch::equal(seen.attention[1][2][1], rollout[1][1 + 2 * 4 + 1]));
  EXPECT_TRUE(torch::equal(seen.attention[0][0][0], rollout[0][1]));
}

TEST_P(ClassifyAll, SavedAndLoadedItIsTheSame) {
  const auto model = randomised(GetParam());
  model->save(path("m").string());
  const auto loaded = load_model(path("m").string());
  const Tensor pictures = pixels({3, 1, kSide, kSide});
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(torch::equal(loaded->forward(pictures).logits, model->forward(pictures).logits));
  EXPECT_EQ(loaded->labels(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(loaded->arch(), GetParam());
  EXPECT_EQ(loaded->channels(), 1);
  EXPECT_EQ(loaded->preprocess(), square());
}

TEST_F(Classify, LargePicturesGetAStridedStemAndLargePatches) {
  Preprocess large = square();
  large.resize = pictures::Size{96, 96};
  for (const char* arch : {"cnn-cbam", "vit"}) {
    const auto model = make_model(tiny(arch), 1, large, {"a", "b"});
    model->save(path(arch).string());
    const auto loaded = load_model(path(arch).string());
    const torch::NoGradGuard no_grad;
    EXPECT_EQ(loaded->forward(torch::zeros({1, 1, 96, 96}), true).attention.sizes(), torch::IntArrayRef({1, 6, 6}));
  }
}

TEST_F(Classify, HuggingFacesFoldersAreModels) {
  const fs::path dir = fs::path(HEED_TEST_DATA) / "vit" / "base";
  const auto model = load_model(dir.string());
  EXPECT_EQ(model->arch(), "vit");
  heed::tests::expect_goldens(dir, [&](const Tensor& pictures) { return model->forward(pictures).logits; });
}

// ---- Pictures ----

TEST_F(Classify, ReadsAFolderPerClassAndLeavesOutWhatIsDamaged) {
  write_folders();
  const std::string good = read_file(path("data/lying/0.png").string());
  write_file(path("data/lying/cut.jpg").string(), "\xff\xd8\xff\xe0 and no more");
  write_file(path("data/standing/half.png").string(), good.substr(0, good.size() / 2));
  const PictureSet set = read_data(path("data").string(), {});
  EXPECT_EQ(set.classes, (std::vector<std::string>{"lying", "standing"}));
  EXPECT_EQ(set.count(), 12);
  EXPECT_EQ(std::count(set.labels.begin(), set.labels.end(), 1), 6);
  EXPECT_EQ(set.channels, 3);
  EXPECT_EQ(set.width, kSide) << "as large as they are";
  ASSERT_EQ(set.notes.size(), 2u);
  EXPECT_SAYS(set.notes[1], "2 files could not be read and were left out");
  EXPECT_SAYS(set.notes[1], path("data/lying/cut.jpg").string());
  EXPECT_SAYS(set.notes[1], path("data/standing/half.png").string());

  const Picture first = pictures::read_picture(path("data/lying/0.png").string());
  EXPECT_TRUE(std::equal(first.bytes.begin(), first.bytes.end(), set.picture(0).begin()));
  const std::vector<int64_t> rows = {0};
  const Tensor batch = make_batch(set, rows);
  EXPECT_LT((batch[0] - pictures::to_tensor(first)).abs().max().item<double>(), 1e-6);

  const PictureSet grey = read_data(path("data").string(), {.channels = 1, .size = 20});
  EXPECT_EQ(grey.channels, 1);
  EXPECT_EQ(grey.height, 20);
  EXPECT_EQ(make_batch(grey, rows).sizes(), torch::IntArrayRef({1, 1, 20, 20}));

  // A model's classes, in its order; not all of them need be there.
  const PictureSet other = read_data(path("data").string(), {.classes = {"standing", "round", "lying"}});
  EXPECT_EQ(std::count(other.labels.begin(), other.labels.end(), 2), 6);
}

TEST_F(Classify, PreparesAsTheFileSays) {
  Picture wide{8, 4, 1, {}};
  for (int i = 0; i < 32; ++i) wide.bytes.push_back(static_cast<uint8_t>(i % 8 < 2 || i % 8 > 5 ? 0 : 200));
  Preprocess p = square();
  p.resize = pictures::Size{.shortest_edge = 4};
  p.crop = pictures::Size{4, 4};
  const Picture middle = pictures::prepare(wide, p);
  EXPECT_EQ(middle.bytes, std::vector<uint8_t>(16, 200));
  p.resample = pictures::Resample::hamming;
  EXPECT_SAYS(error_of([&] { pictures::prepare(wide, p); }), "\"resample\": 5");
}

TEST_F(Classify, ReadsIdx) {
  write_idx("idx", "train", {0, 1, 2, 1});
  write_idx("idx", "t10k", {2, 0});
  const PictureSet train = read_data(path("idx").string(), {.training = true});
  EXPECT_EQ(train.labels, (std::vector<int64_t>{0, 1, 2, 1}));
  EXPECT_EQ(train.classes, (std::vector<std::string>{"0", "1", "2"}));
  EXPECT_EQ(train.channels, 1);
  EXPECT_EQ(train.height, 3) << "made square";
  EXPECT_EQ(train.width, 3);
  EXPECT_EQ(train.picture(2)[4], 2);
  const PictureSet test = read_data(path("idx").string(), {.classes = {"x", "y", "z"}, .channels = 3});
  EXPECT_EQ(test.labels, (std::vector<int64_t>{2, 0}));
  EXPECT_EQ(test.picture(0).size(), 27u);
  EXPECT_EQ(read_data(path("idx").string(), {.training = true, .names = {"x", "y", "z"}}).classes[2], "z");
  EXPECT_TRUE(holds_idx(path("idx").string(), "t10k"));
  EXPECT_FALSE(holds_idx(path("nowhere").string(), "t10k"));
}

TEST_F(Classify, DataThatDoesNotFit) {
  const auto says = [&](const std::string& folder, const DataOptions& options = {}) {
    return error_of([&] { read_data(path(folder).string(), options); });
  };
  EXPECT_SAYS(says("nowhere"), "there is no folder");
  std::mt19937 random(1);
  write("one/cat/a.png", stripes(false, random));
  EXPECT_SAYS(says("one"), "one class only, cat");
  fs::create_directories(path("one/dog"));
  EXPECT_SAYS(says("one"), path("one/dog").string() + " has no picture");
  write_file(path("one/dog/a.jpg").string(), "broken");
  EXPECT_SAYS(says("one"), "no picture of the class dog");
  EXPECT_SAYS(says("one", {.classes = {"cat", "cow"}}), "none of the 2 known classes");

  write_idx("same", "train", {1, 1});
  EXPECT_SAYS(says("same", {.training = true}), "one class only, number 1");
  EXPECT_SAYS(says("same"), "t10k-images");
  write_idx("idx", "train", {0, 7});
  EXPECT_SAYS(says("idx", {.training = true, .names = {"x", "y"}}), "labels from 0 to 7");
  EXPECT_SAYS(says("idx", {.training = true, .classes = {"x", "y"}}), "the label 7, and the model knows 2 classes");
  Preprocess loose = square();
  loose.resize.reset();
  write("sizes/a/a.png", stripes(false, random));
  write("sizes/b/b.png", Picture{4, 4, 1, std::vector<uint8_t>(16)});
  EXPECT_SAYS(says("sizes", {.channels = 1, .preprocess = loose}), "12 x 12 and 4 x 4");
}

TEST_F(Classify, ChangesAtRandom) {
  const PictureSet set = forty();
  const std::vector<int64_t> rows(200, 4);
  const Tensor still = make_batch(set, rows)[0][0];
  const auto same = [&](const Tensor& a, const Tensor& b) { return torch::equal(a, b); };

  torch::manual_seed(1);
  const Tensor before = torch::rand({1});
  torch::manual_seed(1);
  make_batch(set, rows);
  EXPECT_TRUE(same(torch::rand({1}), before)) << "no chance is taken where nothing may happen";

  torch::manual_seed(1);
  const Augmentation every{.crop = 3, .flip = true, .erase = 0.5};
  const Tensor once = make_batch(set, rows, every);
  torch::manual_seed(1);
  EXPECT_TRUE(same(make_batch(set, rows, every), once)) << "it is torch's generator that decides";
  EXPECT_FALSE(same(make_batch(set, rows, every), once));

  // Mirrored, or as they were; about every second one.
  int64_t flipped = 0;
  const Tensor flips = make_batch(set, rows, {.flip = true});
  for (const Tensor& picture : flips.squeeze(1).unbind()) {
    flipped += same(picture, still.flip(1));
    EXPECT_TRUE(same(picture, still.flip(1)) || same(picture, still));
  }
  EXPECT_GT(flipped, 70);
  EXPECT_LT(flipped, 130);

  // Moved by up to 2 each way, every way occurs, and black comes in.
  const Tensor framed = torch::constant_pad_nd(still, {2, 2, 2, 2}, -1);
  std::set<std::pair<int64_t, int64_t>> ways;
  for (const Tensor& picture : make_batch(set, rows, {.crop = 2}).squeeze(1).unbind()) {
    for (int64_t dy = 0; dy <= 4; ++dy) {
      for (int64_t dx = 0; dx <= 4; ++dx) {
        if (same(picture, framed.narrow(0, dy, kSide).narrow(1, dx, kSide))) ways.insert({dy, dx});
      }
    }
  }
  EXPECT_EQ(ways.size(), 25u);

  // A rectangle of 2% to 33% is 0 in about a half, all else as it was.
  int64_t erased = 0;
  for (const Tensor& picture : make_batch(set, rows, {.erase = 0.5}).squeeze(1).unbind()) {
    const Tensor changed = picture != still;
    const int64_t pixels_changed = changed.sum().item<int64_t>();
    if (pixels_changed == 0) continue;
    ++erased;
    const auto height = changed.any(1).sum().item<int64_t>(), width = changed.any(0).sum().item<int64_t>();
    EXPECT_EQ(height * width, pixels_changed) << "a rectangle";
    EXPECT_LE(pixels_changed, 0.4 * kSide * kSide);  // rounded to whole pixels
    EXPECT_TRUE((picture.masked_select(changed) == 0).all().item<bool>());
  }
  EXPECT_GT(erased, 70);
  EXPECT_LT(erased, 130);
}

// ---- What is held out ----

TEST_F(Classify, EqualPicturesAreOnOneSideAndEveryClassTrains) {
  PictureSet set = forty();
  const Split one = split(set, 2000);
  EXPECT_EQ(one.train.size() + one.held_out.size(), 40u);
  EXPECT_GE(one.held_out.size(), 1u);
  EXPECT_LE(one.held_out.size(), 10u);
  const int64_t out = one.held_out.front();  // once more, at the end
  const auto copy = std::vector<uint8_t>(set.picture(out).begin(), set.picture(out).end());
  set.bytes.insert(set.bytes.end(), copy.begin(), copy.end());
  set.labels.push_back(set.labels[static_cast<size_t>(out)]);
  const Split two = split(set, 2000);
  EXPECT_EQ(std::count(two.held_out.begin(), two.held_out.end(), 40), 1);

  set.labels = all_rows(set);  // a class for each
  set.labels.back() = out;     // but for the copy
  set.classes.resize(40);
  EXPECT_SAYS(error_of([&] { split(set, 2000); }), "41 pictures, no two different ones in any of the 40 classes");
  set.labels.back() = 0;
  set.bytes[40 * kSide * kSide] ^= 1;  // another picture
  EXPECT_EQ(split(set, 2000).held_out, (std::vector<int64_t>{40}));
}

// ---- Training ----

TEST_P(ClassifyAll, LearnsFortyPicturesByHeart) {
  TrainOptions o = small(path("m"), GetParam());
  o.steps = 60;
  o.validate_every = 20;
  o.augmentation = {};
  o.network.dropout = 0;
  o.label_smoothing = 0;
  int64_t validations = 0;
  double accuracy = 0;
  const TrainResult result = train(forty(), o, [&](const TrainProgress& p) {
    if (p.loop.validated == nullptr) return;
    ++validations;
    accuracy = std::max(accuracy, p.valid_accuracy);
  });
  EXPECT_EQ(result.steps, 60);
  EXPECT_EQ(result.train_pictures + result.validation_pictures, 40);
  EXPECT_EQ(result.learning, result.parameters);
  EXPECT_EQ(validations, 3);
  EXPECT_EQ(accuracy, 1);
  EXPECT_EQ(result.valid_accuracy, 1);

  const auto model = load_model(path("m").string());
  const PictureSet set = forty();
  const Measured measured = measure(*model, set);
  EXPECT_EQ(measured.pictures, 40);
  EXPECT_EQ(measured.right, 40);
  EXPECT_LT(measured.loss / 40, 0.2) << "chance is " << std::log(2);
  EXPECT_NEAR(measure(*model, set, split(set, 2000).held_out).loss / static_cast<double>(result.validation_pictures),
              result.best_valid_loss, 1e-5);
  EXPECT_FALSE(fs::exists(path("m/checkpoint")));
  const json log = json::parse(read_file(path("m/training.json").string()));
  EXPECT_EQ(log.at("curve").size(), 3u);
  EXPECT_EQ(log.at("options").at("arch"), GetParam());
}

TEST_F(Classify, MeasuresByClass) {
  const auto model = randomised("cnn", {"lying", "standing"});
  PictureSet set = forty();
  const Tensor answers = model->forward(make_batch(set, all_rows(set))).logits.argmax(1);
  for (int64_t i = 0; i < 40; ++i) set.labels[static_cast<size_t>(i)] = answers[i].item<int64_t>();
  set.labels[0] ^= 1;  // one mistake
  const auto wrong = static_cast<size_t>(set.labels[0]);
  const Measured measured = measure(*model, set);
  EXPECT_EQ(measured.right, 39);
  EXPECT_EQ(measured.among_five, 40);
  EXPECT_EQ(measured.answers[wrong][1 - wrong], 1);
  const int64_t has = std::count(set.labels.begin(), set.labels.end(), static_cast<int64_t>(wrong));
  const json j = measured.to_json(set.classes);
  EXPECT_NEAR(j.at("accuracy").get<double>(), 39 / 40.0, 1e-12);
  EXPECT_EQ(j.at("classes")[wrong].at("pictures"), has);
  EXPECT_NEAR(j.at("classes")[wrong].at("recall").get<double>(),
              static_cast<double>(has - 1) / static_cast<double>(has), 1e-12);
}

TEST_P(ClassifyAll, CtrlCSavesAndGoesOnToTheSameBytes) {
  torch::set_num_threads(2);
  TrainOptions o = small(path("whole"), GetParam());
  o.steps = 12;
  train(forty(), o);
  o.out = path("pieces").string();
  for (const int64_t stop : {1, 3, 8}) {  // passes have 3 steps
    const TrainResult result = train(forty(), o, [&](const TrainProgress& p) {
      if (p.loop.step == stop) ::raise(SIGINT);
    });
    EXPECT_TRUE(result.interrupted);
    EXPECT_EQ(result.steps, stop);
    EXPECT_FALSE(fs::exists(path("pieces/model.safetensors")));
  }
  EXPECT_FALSE(train(forty(), o).interrupted);
  EXPECT_EQ(weights_of(path("pieces")), weights_of(path("whole")));
  o.out = path("other").string();
  o.seed = 2;
  train(forty(), o);
  EXPECT_NE(weights_of(path("other")), weights_of(path("whole")));
}

TEST_F(Classify, OtherOptionsOrDataAreRefusedUntilToldToStartOver) {
  TrainOptions o = small(path("m"), "cnn-cbam");
  const auto stop = [](const TrainProgress& p) {
    if (p.loop.step == 2) ::raise(SIGINT);
  };
  train(forty(), o, stop);
  TrainOptions other = o;
  other.augmentation.flip = false;
  EXPECT_SAYS(error_of([&] { train(forty(), other); }), "flip true, and now it is false");
  PictureSet set = forty();
  set.bytes[0] ^= 1;
  EXPECT_SAYS(error_of([&] { train(set, o); }), "pictures \"40 (checksum");
  other = o;
  other.steps = 3;  // when to stop may change
  EXPECT_EQ(train(forty(), other).steps, 3);
  train(forty(), o, stop);
  other.seed = 5;
  other.resume = false;
  EXPECT_EQ(train(forty(), other).steps, 3);
}

TEST_F(Classify, AMoveThatWasCutOffIsFinished) {
  TrainOptions o = small(path("m"), "cnn");
  o.steps = 3;
  const TrainResult first = train(forty(), o);
  const std::string good = weights_of(path("m"));
  fs::create_directories(path("m/checkpoint/model"));  // as a kill between two renames leaves it
  write_file(path("m/checkpoint/complete.json").string(), read_file(path("m/training.json").string()));
  for (const char* name : {"model.safetensors", "config.json", "training.json"}) {
    fs::rename(path("m") / name, path("m/checkpoint/model") / name);
  }
  int64_t steps = 0;
  const TrainResult again = train(forty(), o, [&](const TrainProgress&) { ++steps; });
  EXPECT_EQ(steps, 0);
  EXPECT_EQ(again.best_valid_loss, first.best_valid_loss);
  EXPECT_EQ(again.valid_accuracy, first.valid_accuracy);
  EXPECT_EQ(weights_of(path("m")), good);
  EXPECT_NO_THROW(load_model(path("m").string()));
  EXPECT_FALSE(fs::exists(path("m/checkpoint")));
}

bool of_head(const std::string& name) { return name.find("classifier") != std::string::npos; }

TEST_P(ClassifyAll, GoesOnFromAModelWithANewHead) {
  const auto base = randomised(GetParam(), {"standing", "lying"});
  base->save(path("base").string());
  TrainOptions o = small(path("same"), GetParam());
  o.from = path("base").string();
  o.steps = 4;

  // The same classes in another order keep the head.
  EXPECT_TRUE(train(forty(), o).notes.empty());
  EXPECT_EQ(load_model(o.out)->labels(), (std::vector<std::string>{"standing", "lying"}));

  // Others get a new one; frozen, nothing else moves, neither weights nor statistics.
  o.out = path("frozen").string();
  o.freeze_backbone = true;
  o.network.dropout = 0.5;  // of no model that is there already
  const TrainResult result = train(forty({"flat", "upright"}), o);
  ASSERT_EQ(result.notes.size(), 1u);
  EXPECT_SAYS(result.notes[0], "its head was replaced");
  EXPECT_EQ(result.learning, (std::string(GetParam()) == "vit" ? 16 : 32) * 2 + 2);
  const auto frozen = load_model(o.out);
  EXPECT_EQ(frozen->labels(), (std::vector<std::string>{"flat", "upright"}));
  std::map<std::string, Tensor> was;
  for (const auto& [name, tensor] : nn::weights(*base)) was[name] = tensor;
  int64_t kept = 0, changed = 0;
  for (const auto& [name, tensor] : nn::weights(*frozen)) {
    EXPECT_EQ(torch::equal(tensor, was.at(name)), !of_head(name)) << name;
    ++(of_head(name) ? changed : kept);
  }
  EXPECT_EQ(changed, 2);
  EXPECT_GT(kept, 10);

  // Not frozen, all moves but what hides behind a ReLU of CBAM's gate that none of these pictures opens.
  o.out = path("free").string();
  o.freeze_backbone = false;
  train(forty({"flat", "upright"}), o);
  kept = changed = 0;
  for (const auto& item : load_model(o.out)->named_parameters()) {
    ++(torch::equal(item.value(), was.at(item.key())) ? kept : changed);
  }
  EXPECT_GT(changed, 9 * kept);

  // Another number of classes.
  PictureSet three = forty({"a", "b", "c"});
  three.labels[7] = three.labels[9] = 2;
  o.out = path("three").string();
  train(three, o);
  EXPECT_EQ(load_model(o.out)->labels().size(), 3u);
}

// ---- Errors ----

TEST_F(Classify, OptionsThatDoNotFit) {
  const auto with = [&](const std::function<void(TrainOptions&)>& change) {
    TrainOptions o = small(path("m"), "cnn-cbam");
    change(o);
    return error_of([&] { train(forty(), o); });
  };
  EXPECT_SAYS(with([](auto& o) { o.out = ""; }), "no folder");
  EXPECT_SAYS(with([](auto& o) { o.out = "/dev/null"; }), "/dev/null is a file");
  EXPECT_SAYS(with([](auto& o) { o.batch = 0; }), "batch is 0");
  EXPECT_SAYS(with([](auto& o) { o.label_smoothing = 1; }), "label_smoothing is 1");
  EXPECT_SAYS(with([](auto& o) { o.valid_pictures = 0; }), "valid_pictures is 0");
  EXPECT_SAYS(with([](auto& o) { o.augmentation.erase = 2; }), "erase is 2");
  EXPECT_SAYS(with([](auto& o) { o.steps = 0; }), "never end");
  EXPECT_SAYS(with([](auto& o) { o.network.arch = "rnn"; }), "\"rnn\"; there is cnn-cbam, cnn and vit");
  EXPECT_SAYS(with([](auto& o) { o.freeze_backbone = true; }), "cannot be frozen");
  EXPECT_SAYS(with([](auto& o) { o.from = "/nowhere"; }), "/nowhere does not exist");
  EXPECT_FALSE(fs::exists(path("m"))) << "nothing is made before the options are good";

  Preprocess other = square();
  other.mean = {0.4};
  torch::manual_seed(1);
  make_model(tiny("cnn"), 1, other, {"a", "b"})->save(path("base").string());
  EXPECT_SAYS(with([&](auto& o) { o.from = path("base").string(); }), "were not prepared as");
}

TEST_F(Classify, ModelsThatDoNotFit) {
  randomised("cnn-cbam")->save(path("m").string());
  heed::tests::EditedFolder folder(path("m"), [](const std::string& dir) { load_model(dir); });
  const auto set = [&](const char* key, const json& value) {
    return folder.after_config([&](json& j) { j[key] = value; });
  };
  EXPECT_EQ(folder.says(), "no error");
  EXPECT_SAYS(set("model_type", "marian"), "'heed_cnn', 'vit' and 'deit'");
  EXPECT_SAYS(set("attention", "self"), "\"cbam\" or \"none\"");
  EXPECT_SAYS(set("attention", "none"), "does not ask for");
  EXPECT_SAYS(set("hidden_sizes", json::array()), "\"hidden_sizes\"");
  EXPECT_SAYS(set("hidden_sizes", {8, 16, 64}), "config.json asks for [64, 16, 3, 3]");
  EXPECT_SAYS(set("hidden_sizes", {1 << 24, 1 << 24}), "not of one model");
  EXPECT_SAYS(set("blocks", 1 << 24), "not of one model");
  EXPECT_SAYS(set("num_channels", 2), "config.json asks for [8, 2, 3, 3]");
  EXPECT_SAYS(set("dropout", 1), "\"dropout\"");
  EXPECT_SAYS(error_of([&] { load_model("/nowhere"); }), "/nowhere does not exist");

  const auto model = load_model(path("m").string());
  EXPECT_SAYS(error_of([&] { model->forward(torch::zeros({1, 3, 8, 8})); }), "[batch, 1, height, width]");
  EXPECT_SAYS(error_of([&] { randomised("cnn")->forward(torch::zeros({1, 1, 8, 8}), true); }), "no attention");
  model->train();
  EXPECT_SAYS(error_of([&] { model->forward(torch::zeros({1, 1, 4, 4})); }), "larger batch");
}

}  // namespace
}  // namespace heed::classify
