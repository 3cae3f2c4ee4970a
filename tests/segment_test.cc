// apps/segment: networks that come back from their folders, parts of pictures as they are taken, training that learns
// and goes on to the same bytes, label maps of any size, numbers against plain counts, and errors in words.
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <signal.h>
#include <torch/torch.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <random>
#include <set>

#include "apps/pictures/resize.h"
#include "apps/pictures/tensors.h"
#include "apps/segment/colours.h"
#include "apps/segment/data.h"
#include "apps/segment/infer.h"
#include "apps/segment/measure.h"
#include "apps/segment/model.h"
#include "apps/segment/train.h"
#include "libtorch/files.h"
#include "libtorch/vision/segformer.h"
#include "said.h"
#include "tests/vision_goldens.h"

namespace heed::segment {
namespace {

namespace fs = std::filesystem;
using heed::tests::error_of;
using heed::tests::TemporaryFolder;
using nn::read_file;
using nn::write_file;
using pictures::Classes;
using pictures::Labels;
using pictures::Picture;
using torch::Tensor;

// ---- Scenes: a light square or a dark one on a noisy ground ----

Classes three() { return {{{"ground", {}, 0}, {"light", {}, 7}, {"dark", {}, 9}}, {{"edge", {}, 255}}}; }

MaskedSet scenes(int64_t count, int64_t width = 40, int64_t height = 32) {
  std::mt19937 random(5);
  MaskedSet set{.classes = three()};
  for (int64_t i = 0; i < count; ++i) {
    Picture p{width, height, 3, {}};
    Labels m{width, height, {}};
    const bool light = i % 2 == 0;
    const auto left = static_cast<int64_t>(random() % 20), top = static_cast<int64_t>(random() % 12);
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const bool inside = x >= left && x < left + 16 && y >= top && y < top + 16;
        const bool edge = inside && (x == left || y == top);
        m.values.push_back(edge ? pictures::kIgnoredLabel : inside ? (light ? 1 : 2) : 0);
        for (int c = 0; c < 3; ++c) {
          p.bytes.push_back(
              static_cast<uint8_t>((inside ? (light ? 210 : 10) : 100) + static_cast<int>(random() % 30)));
        }
      }
    }
    set.pictures.push_back(p);
    set.masks.push_back(m);
  }
  return set;
}

NetworkOptions tiny(const std::string& arch) {
  return {.arch = arch, .width = 8, .depth = arch == "segformer" ? 1 : 3, .dropout = 0};
}

TrainOptions small(const fs::path& out, const std::string& arch) {
  TrainOptions o;
  o.out = out.string();
  o.network = tiny(arch);
  o.augmentation = {.scale = 0.2, .flip = true, .colour = 0.1};
  o.batch = 4;
  o.steps = 12;
  o.learning_rate = 5e-3;
  o.checkpoint_seconds = 0;
  o.patience = 0;
  return o;
}

// A model whose tensors all differ from where they begin.
std::shared_ptr<Model> randomised(const std::string& arch, int64_t channels = 3) {
  torch::manual_seed(5);
  const auto model = make_model(tiny(arch), channels, {}, three());
  const torch::NoGradGuard no_grad;
  for (Tensor& t : model->parameters()) t.add_(0.2 * torch::randn_like(t));
  for (Tensor& t : model->buffers()) {
    if (t.is_floating_point()) t.add_(0.3 * torch::rand_like(t));
  }
  model->eval();
  return model;
}

// Everything but the classifier is, number for number, what it was; more than so many tensors.
void expect_same_backbone(const Model& now, const Model& was, int64_t least) {
  std::map<std::string, Tensor> before;
  for (const auto& [name, tensor] : nn::weights(was)) before[name] = tensor;
  int64_t kept = 0;
  for (const auto& [name, tensor] : nn::weights(now)) {
    if (name.find("classifier") != std::string::npos) continue;
    EXPECT_TRUE(torch::equal(tensor, before.at(name))) << name;
    ++kept;
  }
  EXPECT_GT(kept, least);
}

class Segment : public testing::Test {
 protected:
  fs::path path(const std::string& name) const { return folder_.path / name; }

 private:
  TemporaryFolder folder_;
};
class SegmentAll : public Segment, public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Arch, SegmentAll, testing::Values("unet-ag", "unet", "segformer"),
                         [](const auto& p) { return std::string(p.param) == "unet-ag" ? "unet_ag" : p.param; });

// ---- Networks ----

TEST_P(SegmentAll, SavedAndLoadedItIsTheSame) {
  const auto model = randomised(GetParam());
  model->save(path("m").string());
  const auto again = load_model(path("m").string());
  EXPECT_EQ(again->arch(), GetParam());
  EXPECT_EQ(again->preprocess(), model->preprocess());
  EXPECT_EQ(pictures::classes_text(again->classes()), pictures::classes_text(three()));
  const torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({2, 3, 50, 37});
  EXPECT_TRUE(torch::equal(again->forward(x).logits, model->forward(x).logits));
}

TEST_F(Segment, GatesAreWhatTheNetworkLetsThrough) {
  const torch::NoGradGuard no_grad;
  const auto model = randomised("unet-ag");
  const Tensor x = torch::randn({2, 3, 40, 56});
  const Seen seen = model->forward(x, true);
  EXPECT_EQ(seen.logits.sizes(), (std::vector<int64_t>{2, 3, 20, 28}));
  ASSERT_EQ(seen.maps.size(), 2u);
  EXPECT_EQ(seen.maps[0].name, "gate1");
  EXPECT_EQ(seen.maps[0].map.sizes(), (std::vector<int64_t>{2, 20, 28}));
  EXPECT_EQ(seen.maps[1].map.sizes(), (std::vector<int64_t>{2, 10, 14}));
  for (const AttentionMap& map : seen.maps) {
    EXPECT_GT(map.map.min().item<float>(), 0);
    EXPECT_LT(map.map.max().item<float>(), 1);
  }
  EXPECT_TRUE(torch::equal(model->forward(x).logits, seen.logits));
  // Shut, nothing of the finer levels comes through: only the stem's and the deepest level's way is left.
  for (const auto& item : model->named_parameters()) {
    if (item.key().find(".psi.bias") != std::string::npos) item.value().fill_(-100);
  }
  EXPECT_LT(model->forward(x, true).maps[0].map.max().item<float>(), 1e-6);
  EXPECT_FALSE(torch::allclose(model->forward(x).logits, seen.logits, 1e-2, 1e-2));
}

TEST_F(Segment, ASegFormersStagesReceiveAllTheirAttention) {
  const torch::NoGradGuard no_grad;
  const auto model = randomised("segformer");
  const Seen seen = model->forward(torch::randn({2, 3, 64, 96}), true);
  ASSERT_EQ(seen.maps.size(), 4u);
  EXPECT_EQ(seen.maps[3].name, "stage4");
  for (const AttentionMap& map : seen.maps) {
    EXPECT_TRUE(torch::allclose(map.map.sum({1, 2}), torch::ones({2}), 1e-4, 1e-4)) << map.name;
  }
}

// ---- Parts of pictures ----

TEST_F(Segment, PartsAreCutsOfThePicture) {
  const MaskedSet set = scenes(3);
  const auto preprocess = make_model(tiny("unet"), 3, {}, three())->preprocess();
  const std::vector<int64_t> rows = {2, 0};
  torch::manual_seed(1);
  std::set<int64_t> places;
  for (int i = 0; i < 30; ++i) {
    const Batch batch = make_batch(set, rows, preprocess, {.height = 20, .width = 30});
    ASSERT_EQ(batch.pictures.sizes(), (std::vector<int64_t>{2, 3, 20, 30}));
    for (int64_t r = 0; r < 2; ++r) {
      const auto row = static_cast<size_t>(rows[static_cast<size_t>(r)]);
      const Tensor all = whole(set.pictures[row], preprocess)[0];
      const Tensor targets = pictures::to_tensor(set.masks[row]);
      int64_t found = -1;
      for (int64_t top = 0; top <= 12 && found < 0; ++top) {
        for (int64_t left = 0; left <= 10; ++left) {
          if (torch::allclose(all.narrow(1, top, 20).narrow(2, left, 30), batch.pictures[r], 1e-5, 1e-5)) {
            found = top * 100 + left;
            EXPECT_TRUE(torch::equal(targets.narrow(0, top, 20).narrow(1, left, 30), batch.targets[r]));
            break;
          }
        }
      }
      ASSERT_GE(found, 0) << "no cut of the picture";
      places.insert(found);
    }
  }
  EXPECT_GT(places.size(), 30u);
}

TEST_F(Segment, ChangesKeepLabelsOnTheirPixels) {
  // Where a pixel counts, its colour still tells its label, however the picture was scaled, mirrored and coloured.
  const MaskedSet set = scenes(4);
  const auto preprocess = make_model(tiny("unet"), 3, {}, three())->preprocess();
  const std::vector<int64_t> rows = {0, 1, 2, 3};
  torch::manual_seed(2);
  double right = 0, all = 0, ignored = 0;
  bool larger = false, smaller = false;
  for (int i = 0; i < 20; ++i) {
    const Batch batch =
        make_batch(set, rows, preprocess,
                   {.height = 32, .width = 40, .scale = 0.5, .flip = true, .flip_vertical = true, .colour = 0.1});
    const Tensor grey = batch.pictures.mean(1);
    const Tensor told =
        torch::where(grey > 0.4, torch::full_like(batch.targets, 1),
                     torch::where(grey < -0.6, torch::full_like(batch.targets, 2), torch::zeros_like(batch.targets)));
    const Tensor counts = batch.targets != pictures::kIgnoredTarget;
    right += (told.eq(batch.targets) & counts).sum().item<double>();
    all += counts.sum().item<double>();
    ignored += counts.logical_not().sum().item<double>();
    for (int64_t r = 0; r < 4; ++r) {
      const double inside = (batch.targets[r] > 0).sum().item<double>();
      larger |= inside > 300;
      smaller |= inside < 180;
    }
  }
  EXPECT_GT(right / all, 0.96);
  EXPECT_GT(ignored / (all + ignored), 0.05);  // what came in from outside, and the edges
  EXPECT_TRUE(larger && smaller);
}

TEST_F(Segment, NoiseIsOfTheSizeAskedFor) {
  MaskedSet set{.classes = three()};
  set.pictures = {Picture{64, 64, 3, std::vector<uint8_t>(64 * 64 * 3, 128)}};
  set.masks = {Labels{64, 64, std::vector<uint16_t>(64 * 64, 1)}};
  const auto preprocess = make_model(tiny("unet"), 3, {}, three())->preprocess();
  const std::vector<int64_t> rows(40, 0);
  torch::manual_seed(3);
  const Batch batch = make_batch(set, rows, preprocess, {.height = 64, .width = 64, .noise = 0.1});
  std::set<double> levels;
  double largest = 0;
  int64_t quiet = 0;
  for (int64_t i = 0; i < 40; ++i) {
    const Tensor noise = (batch.pictures[i] - (128 / 127.5 - 1)) / 2;  // as a share of white
    const double level = noise.std().item<double>();
    EXPECT_LT(std::abs(noise.mean().item<double>()), 0.005);
    quiet += level < 1e-6;
    levels.insert(level);
    largest = std::max(largest, level);
    if (level > 0.05) {
      EXPECT_GT(noise.abs().max().item<double>(), 2.5 * level);  // not uniform: sqrt(3)
    }
  }
  EXPECT_GT(quiet, 10);
  EXPECT_LT(quiet, 30);
  EXPECT_GT(levels.size(), 10u);
  EXPECT_GT(largest, 0.08);
  EXPECT_LT(largest, 0.102);
}

TEST_F(Segment, WeightsOfClasses) {
  EXPECT_EQ(weights_of({0.5, 0.3, 0.2}, 0), (std::vector<double>{1, 1, 1}));
  const std::vector<double> half = weights_of({0.64, 0.36, 0}, 0.5);
  EXPECT_DOUBLE_EQ(half[0], 1);
  EXPECT_NEAR(half[1], 0.8 / 0.6, 1e-12);
  EXPECT_DOUBLE_EQ(half[2], 10);  // a class without a pixel
  const std::vector<double> shares = shares_of(scenes(2));
  EXPECT_NEAR(shares[0] + shares[1] + shares[2], 1, 1e-12);
  EXPECT_NEAR(shares[1], 225.0 / (2 * 1280 - 2 * 31), 1e-12);  // 15 x 15 without the edges, of two pictures
}

// ---- Label maps ----

TEST_F(Segment, LabelsAreThoseOfTheUpsampledLogits) {
  torch::manual_seed(3);
  for (const auto& [height, width] : std::vector<std::pair<int64_t, int64_t>>{{40, 64}, {13, 17}, {7, 3}, {10, 16}}) {
    const Tensor logits = torch::randn({5, 10, 16});
    const Labels labels = labels_of(logits, height, width);
    const Tensor expected = nn::resized(logits.unsqueeze(0), height, width)[0].argmax(0);
    const Tensor same = pictures::to_tensor(labels).eq(expected);
    EXPECT_GT(same.to(torch::kFloat64).mean().item<double>(), 0.999) << height << " x " << width;
  }
}

TEST_F(Segment, AnySizeInAnySizeOut) {
  const auto model = randomised("unet-ag");
  std::mt19937 random(1);
  for (const auto& [width, height] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {3, 50}, {61, 47}, {200, 9}}) {
    Picture p{width, height, 3, {}};
    for (int64_t i = 0; i < width * height * 3; ++i) p.bytes.push_back(static_cast<uint8_t>(random()));
    const Segmented answer = segment(*model, p, 0, 0, {.tile = 64, .overlap = 16, .attention = true});
    EXPECT_EQ(answer.labels.width, width);
    EXPECT_EQ(answer.labels.height, height);
    EXPECT_EQ(answer.labels.values.size(), static_cast<size_t>(width * height));
    EXPECT_EQ(answer.maps.size(), 2u);
    EXPECT_EQ(segment(*model, p, 2 * height, 2 * width).labels.width, 2 * width);
  }
}

TEST_F(Segment, TilesAreThePictureButForTheirSeams) {
  const auto model = randomised("unet-ag");
  // This network sees about 60 pixels around.
  const MaskedSet set = scenes(1, 300, 250);
  Picture p = set.pictures[0];
  std::mt19937 random(1);
  for (uint8_t& byte : p.bytes) byte = static_cast<uint8_t>(byte / 2 + random() % 120);
  const Labels all = segment(*model, p).labels, tiles = segment(*model, p, 0, 0, {.tile = 160, .overlap = 128}).labels;
  double same = 0;
  for (size_t i = 0; i < all.values.size(); ++i) same += all.values[i] == tiles.values[i];
  EXPECT_GT(same / static_cast<double>(all.values.size()), 0.995);
  // Without overlap the seams show.
  const Labels bare = segment(*model, p, 0, 0, {.tile = 32, .overlap = 0}).labels;
  double bare_same = 0;
  for (size_t i = 0; i < all.values.size(); ++i) bare_same += all.values[i] == bare.values[i];
  EXPECT_LT(bare_same, same);
}

// ---- Measuring ----

TEST_F(Segment, AgreementIsAPlainCount) {
  std::mt19937 random(4);
  Agreement agreement(4);
  std::map<std::pair<int, int>, double> count;
  for (int picture = 0; picture < 3; ++picture) {
    Labels answer{11, 7, {}}, mask{11, 7, {}};
    for (int i = 0; i < 77; ++i) {
      const int truth = static_cast<int>(random() % 4), told = static_cast<int>(random() % 3);  // 3 is never answered
      answer.values.push_back(static_cast<uint16_t>(told));
      mask.values.push_back(truth == 3 ? pictures::kIgnoredLabel : static_cast<uint16_t>(truth));
      if (truth != 3) ++count[{truth, told}];
    }
    agreement.add(answer, mask);
  }
  double right = 0, all = 0, ious = 0, dices = 0;
  for (int label = 0; label < 3; ++label) {
    double mask = 0, answer = 0;
    for (int other = 0; other < 3; ++other) {
      mask += count[{label, other}];
      answer += count[{other, label}];
    }
    const double both = count[{label, label}];
    right += both;
    all += mask;
    ious += both / (mask + answer - both);
    dices += 2 * both / (mask + answer);
    EXPECT_DOUBLE_EQ(agreement.iou(label), both / (mask + answer - both));
    EXPECT_DOUBLE_EQ(agreement.dice(label), 2 * both / (mask + answer));
  }
  EXPECT_TRUE(std::isnan(agreement.iou(3)));  // in neither
  EXPECT_DOUBLE_EQ(agreement.mean_iou(), ious / 3);
  EXPECT_DOUBLE_EQ(agreement.mean_dice(), dices / 3);
  EXPECT_DOUBLE_EQ(agreement.accuracy(), right / all);
  EXPECT_EQ(agreement.pixels(), all);
  Labels four{1, 1, {4}}, zero{1, 1, {0}}, wide{2, 1, {0, 0}};
  EXPECT_SAYS(error_of([&] { agreement.add(four, zero); }), "the label 4, and there are 4 classes");
  EXPECT_SAYS(error_of([&] { agreement.add(wide, zero); }), "2 x 1 pixels cannot be compared with a mask of 1 x 1");
}

// ---- Training ----

TEST_P(SegmentAll, LearnsScenesByHeart) {
  TrainOptions o = small(path("m"), GetParam());
  const bool segformer = std::string(GetParam()) == "segformer";
  o.steps = 150;
  o.augmentation = {};
  o.average = 0;
  const TrainResult result = train(scenes(12), o);
  EXPECT_GT(result.valid_mean_iou, segformer ? 0.6 : 0.8);
  const auto model = load_model(o.out);
  Agreement agreement(3);
  const MaskedSet set = scenes(12);
  for (size_t i = 0; i < set.pictures.size(); ++i) {
    agreement.add(segment(*model, set.pictures[i]).labels, set.masks[i]);
  }
  EXPECT_GT(agreement.mean_iou(), segformer ? 0.6 : 0.8);
}

TEST_P(SegmentAll, CtrlCSavesAndGoesOnToTheSameBytes) {
  torch::set_num_threads(2);
  TrainOptions o = small(path("whole"), GetParam());
  o.steps = 8;
  train(scenes(12), o);
  o.out = path("pieces").string();
  for (const int64_t stop : {1, 3, 6}) {  // passes have 3 steps
    const TrainResult result = train(scenes(12), o, [&](const TrainProgress& p) {
      if (p.loop.step == stop) ::raise(SIGINT);
    });
    EXPECT_TRUE(result.interrupted);
    EXPECT_FALSE(fs::exists(path("pieces/model.safetensors")));
  }
  EXPECT_FALSE(train(scenes(12), o).interrupted);
  const auto bytes = [&](const char* name) { return read_file((path(name) / "model.safetensors").string()); };
  EXPECT_EQ(bytes("pieces"), bytes("whole"));
  o.out = path("other").string();
  o.seed = 2;
  train(scenes(12), o);
  EXPECT_NE(bytes("other"), bytes("whole"));
}

TEST_P(SegmentAll, GoesOnFromAModelWithANewHead) {
  const auto base = randomised(GetParam());
  base->save(path("base").string());
  TrainOptions o = small(path("same"), GetParam());
  o.from = path("base").string();
  o.steps = 2;
  EXPECT_TRUE(train(scenes(8), o).notes.empty());

  MaskedSet other = scenes(8);
  other.classes = {{{"rest", {}, 0}, {"bright", {}, 1}, {"black", {}, 2}, {"none", {}, 3}}, {}};
  o.out = path("frozen").string();
  o.freeze_backbone = true;
  const TrainResult result = train(other, o);
  ASSERT_EQ(result.notes.size(), 1u);
  EXPECT_SAYS(result.notes[0], "its head was replaced");
  const auto frozen = load_model(o.out);
  EXPECT_EQ(frozen->count(), 4);
  expect_same_backbone(*frozen, *base, 10);
  EXPECT_LT(result.learning, result.parameters / 10);
}

// A folder that transformers wrote: its backbone is taken over number for number, and what comes out is a folder of
// ours.
TEST_F(Segment, GoesOnFromAFolderOfHuggingFace) {
  const fs::path base = fs::path(HEED_TEST_DATA) / "segformer" / "base";
  TrainOptions o = small(path("frozen"), "segformer");
  o.from = base.string();
  o.freeze_backbone = true;
  o.steps = 2;
  const MaskedSet set = scenes(12, 64, 48);
  const TrainResult result = train(set, o);
  ASSERT_EQ(result.notes.size(), 1u);
  EXPECT_SAYS(result.notes[0], "knows 5 classes and these are others");
  const auto frozen = load_model(o.out), was = load_model(o.from);
  EXPECT_EQ(frozen->arch(), "segformer");
  EXPECT_EQ(pictures::classes_text(frozen->classes()), pictures::classes_text(three()));
  expect_same_backbone(*frozen, *was, 50);

  o.out = path("all").string();
  o.freeze_backbone = false;
  o.steps = 150;
  o.augmentation = {};
  o.average = 0;
  EXPECT_GT(train(set, o).valid_mean_iou, 0.5);
}

// ---- Folders and errors ----

TEST_F(Segment, ReadsPicturesWithTheirMasks) {
  const MaskedSet set = scenes(3);
  fs::create_directories(path("images"));
  fs::create_directories(path("masks"));
  const std::vector<pictures::Colour> palette(256);
  for (size_t i = 0; i < 3; ++i) {
    const std::string name = std::to_string(i) + ".png";
    pictures::write_png((path("images") / name).string(), set.pictures[i]);
    Labels values = set.masks[i];
    for (uint16_t& v : values.values) v = v == pictures::kIgnoredLabel ? 255 : v == 1 ? 7 : v == 2 ? 9 : 0;
    pictures::write_labels((path("masks") / name).string(), values, palette);
  }
  const auto read = [&](DataOptions o = {.classes = three()}) {
    return read_data(path("images").string(), path("masks").string(), o);
  };
  const MaskedSet again = read();
  ASSERT_EQ(again.count(), 3);
  EXPECT_EQ(again.pictures[1].bytes, set.pictures[1].bytes);
  EXPECT_EQ(again.masks[1].values, set.masks[1].values);
  EXPECT_EQ(read({.classes = three(), .channels = 1}).pictures[0].channels, 1);
  const MaskedSet smaller = read({.classes = three(), .shorter_side = 16});
  EXPECT_EQ(smaller.pictures[0].width, 20);
  EXPECT_EQ(smaller.masks[0].width, 20);

  // A damaged picture is named and left out; a mask with another value is an error.
  write_file((path("images") / "1.png").string(), "\x89PNG\r\n\x1a\n damaged");
  const MaskedSet two = read();
  EXPECT_EQ(two.count(), 2);
  ASSERT_EQ(two.notes.size(), 2u);
  EXPECT_SAYS(two.notes[1], "1 file could not be read");
  EXPECT_SAYS(two.notes[1], "1.png");
  Classes fewer = three();
  fewer.classes.erase(fewer.classes.begin() + 1);
  EXPECT_SAYS(error_of([&] { read({.classes = fewer}); }), "7");
}

TEST_F(Segment, SaysWhatDoesNotFit) {
  TrainOptions o = small(path("m"), "unet-ag");
  const auto said = [&](const TrainOptions& options, MaskedSet set = scenes(4)) {
    return error_of([&] { train(std::move(set), options); });
  };
  TrainOptions other = o;
  other.freeze_backbone = true;
  EXPECT_SAYS(said(other), "cannot be frozen");
  EXPECT_SAYS(said(o, scenes(1)), "there is 1 picture to train with");
  MaskedSet same = scenes(4);
  for (Picture& p : same.pictures) p = same.pictures[0];
  EXPECT_SAYS(said(o, same), "all the same");
  other = o;
  other.augmentation.height = 4;
  EXPECT_SAYS(said(other), "parts of 40 x 4 pixels are smaller than the network takes, 8");
  other = o;
  other.network.arch = "fcn";
  EXPECT_SAYS(said(other), "no network \"fcn\"");
  other = o;
  other.balance = 2;
  EXPECT_SAYS(said(other), "balance is 2");

  randomised("unet")->save(path("u").string());
  EXPECT_SAYS(error_of([&] {
                load_model(path("u").string())->forward(torch::zeros({1, 3, 32, 32}), true);
              }),
              "no attention to look at");
  write_file(path("u/classes.txt").string(), "a\nb\n");
  EXPECT_SAYS(error_of([&] { load_model(path("u").string()); }), "3 classes and classes.txt has 2");
  EXPECT_SAYS(error_of([&] { segment(*randomised("unet"), scenes(1).pictures[0], 0, 0, {.tile = 32, .overlap = 32}); }),
              "tiles of 32 pixels with an overlap of 32 do not fit");
}

}  // namespace

TEST(SegmentOverlay, ABackgroundStaysAsItIs) {
  const Picture picture = {2, 1, 3, {10, 20, 30, 10, 20, 30}};
  const Classes classes = {{{"background", {}, 0}, {"cell", pictures::Colour{210, 20, 30}, 1}}, {}};
  const Picture over = overlay_of(picture, {2, 1, {0, 1}}, classes);
  EXPECT_EQ(over.bytes, (std::vector<uint8_t>{10, 20, 30, 110, 20, 30}));
}

}  // namespace heed::segment
