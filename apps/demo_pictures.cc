// The demo's pictures, in the order a reader sees them: train, measure, look.
#include "apps/demo_pictures.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <memory>
#include <numeric>
#include <system_error>
#include <utility>
#include <vector>

#include "apps/boxed_model.h"
#include "apps/classify/commands.h"
#include "apps/classify/data.h"
#include "apps/classify/measure.h"
#include "apps/classify/model.h"
#include "apps/classify/train.h"
#include "apps/debian_package.h"
#include "apps/output.h"
#include "apps/pictures/datasets.h"
#include "apps/pictures/overlay.h"
#include "apps/pictures/resize.h"
#include "apps/progress.h"
#include "apps/segment/colours.h"
#include "apps/segment/commands.h"
#include "apps/segment/infer.h"
#include "apps/segment/measure.h"
#include "apps/segment/model.h"
#include "apps/segment/scenes.h"
#include "apps/segment/train.h"
#include "apps/terminal.h"
#include "libtorch/files.h"
#include "libtorch/splitmix.h"

namespace heed::app {
namespace {

namespace fs = std::filesystem;
using pictures::Picture;

constexpr const char* kPackage = "dataset-fashion-mnist";
constexpr const char* kFolder = "usr/share/datasets/fashion-mnist";
const std::vector<std::string> kClothes(std::begin(segment::kFashionClasses), std::end(segment::kFashionClasses));
constexpr int64_t kMeasured = 2000;  // pictures; enough for 1% to show, few enough to take seconds
constexpr int64_t kShown = 12;
constexpr int64_t kAnswers = 3;
constexpr int64_t kEnlarged = 8;  // times, so that a map over 28 x 28 pixels can be seen

constexpr int64_t kSceneSide = 64;  // pixels
constexpr int64_t kScenes = 6000, kTestScenes = 100, kShownScenes = 6;

std::string measure_first(classify::Model& model, const classify::PictureSet& set) {
  std::vector<int64_t> rows(static_cast<size_t>(std::min(kMeasured, set.count())));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  Progress bar("Measuring");
  const classify::Measured measured = classify::measure(model, set, rows, [&](int64_t done) {
    bar.update([&] {
      return ProgressState{static_cast<double>(done) / static_cast<double>(rows.size()),
                           {thousands(done) + " pictures"}};
    });
  });
  bar.done(thousands(measured.pictures) + " test pictures: " + percent(measured.accuracy(), 1) + " told rightly");
  return percent(measured.accuracy(), 1);
}

// Views of the first test pictures: as they are, and where the network looked.
std::vector<PagePicture> look(classify::Model& model, const classify::PictureSet& set) {
  const torch::NoGradGuard no_grad;
  std::vector<PagePicture> shown;
  for (int64_t i = 0; i < std::min(kShown, set.count()); ++i) {
    const classify::Seen seen = model.forward(classify::make_batch(set, {&i, 1}), /*want_attention=*/true);
    const auto bytes = set.picture(i);
    const Picture small{set.width, set.height, set.channels, {bytes.begin(), bytes.end()}};
    const Picture large =
        pictures::resize(small, kEnlarged * small.width, kEnlarged * small.height, pictures::Filter::nearest);
    PagePicture picture;
    picture.images = {
        {pictures::encode_png(small), set.classes[static_cast<size_t>(set.labels[static_cast<size_t>(i)])]},
        {pictures::encode_png(pictures::heat_overlay(large, seen.attention[0])), "where it looked"}};
    const auto [shares, places] = seen.logits[0].to(torch::kFloat64).softmax(0).topk(kAnswers);
    for (int64_t k = 0; k < kAnswers; ++k) {
      picture.answers.push_back(
          {model.labels()[static_cast<size_t>(places[k].item<int64_t>())], shares[k].item<double>()});
    }
    shown.push_back(std::move(picture));
  }
  return shown;
}

}  // namespace

std::string fashion_folder(const std::string& work) {
  std::error_code ignored;
  const fs::path installed = fs::path("/") / kFolder;
  if (fs::is_directory(installed, ignored)) return installed.string();
  return (fs::path(fetch_debian(kPackage, work).folder) / kFolder).string();
}

std::optional<PagePictures> demo_classify(const PicturesDemo& demo) {
  classify::TrainOptions options;
  options.out = (fs::path(demo.work) / "clothes").string();
  options.minutes = demo.minutes;
  options.seed = demo.seed;
  options.resume = false;  // each demo is a whole one
  options.patience = 0;    // the time is the limit
  // For less than a minute: a quarter of the default's arithmetic, and many small steps.
  options.network.width = 16;
  options.batch = 32;
  options.augmentation = {.crop = 0, .flip = true, .erase = 0};
  options.valid_pictures = 500;
  options.validate_every = 100;

  classify::PictureSet set = classify::read_data(demo.data, {.training = true, .names = kClothes});
  const classify::PictureSet test = classify::read_data(demo.data, {.classes = kClothes});
  Progress bar("Training");
  const classify::TrainResult result = classify::train(std::move(set), options, classify::show_training(bar));
  bar.done(classify::training_summary(result, options));
  if (result.interrupted) return std::nullopt;

  PagePictures page;
  const std::shared_ptr<classify::Model> model = classify::load_model(options.out);
  page.scores.push_back({"Heed, trained just now", measure_first(*model, test)});
  if (const std::string boxed = boxed_model("fashion"); !boxed.empty()) {
    const std::shared_ptr<classify::Model> trained = classify::load_model(boxed);
    page.scores.push_back({"The model in the box", measure_first(*trained, test)});
  }
  page.pictures = look(*model, test);
  page.title = "What is it?";
  page.note = "A convolutional network with CBAM (Woo et al. 2018) in each block, " + thousands(result.parameters) +
              " parameters, saw " + thousands(result.seen) + " of Fashion-MNIST’s " + thousands(result.train_pictures) +
              " training pictures in " + duration(result.seconds) + ". Accuracy is on " +
              thousands(std::min(kMeasured, test.count())) + " of its test pictures. Below are the first " +
              std::to_string(kShown) +
              " of these with the right name, the last spatial gate’s map (the lighter, the more it let through), and "
              "the three likeliest answers.";
  for (const nn::TrainPoint& p : result.curve) page.curve.push_back({p.seconds, p.train_loss, p.valid_loss});
  page.unit = "picture";
  return page;
}

// ---- Segment ----

namespace {

// Scenes of the items of a split, which no two seeds give twice.
segment::MaskedSet compose(const std::string& data, const std::string& split, int64_t count, uint64_t seed) {
  const pictures::LabelledPictures items = pictures::read_idx(pictures::find_idx(data, split));
  segment::MaskedSet set;
  set.classes.classes.push_back({"background", {}, 0});
  for (const std::string& name : kClothes) {
    set.classes.classes.push_back({name, {}, static_cast<int64_t>(set.classes.classes.size())});
  }
  for (int64_t i = 0; i < count; ++i) {
    segment::Scene scene = segment::compose_scene(items, kSceneSide, nn::splitmix(seed, static_cast<uint64_t>(i)));
    set.pictures.push_back(std::move(scene.picture));
    set.masks.push_back(std::move(scene.labels));
  }
  return set;
}

}  // namespace

std::optional<PagePictures> demo_segment(const PicturesDemo& demo) {
  segment::TrainOptions options;
  options.out = (fs::path(demo.work) / "scenes").string();
  options.minutes = demo.minutes;
  options.seed = demo.seed;
  options.resume = false;
  options.patience = 0;
  options.network.width = 16;
  options.augmentation = {.flip = true, .colour = 0.1};
  options.valid_pictures = 50;
  options.validate_every = 100;

  const segment::MaskedSet test = compose(demo.data, "t10k", kTestScenes, demo.seed + 1);
  Progress bar("Training");
  const segment::TrainResult result =
      segment::train(compose(demo.data, "train", kScenes, demo.seed), options, segment::show_training(bar));
  bar.done(segment::training_summary(result, options));
  if (result.interrupted) return std::nullopt;

  const std::shared_ptr<segment::Model> model = segment::load_model(options.out);
  const std::vector<pictures::Colour> palette = segment::palette_of(test.classes);
  const auto over = [&](const Picture& picture, const pictures::Labels& labels) {
    return pictures::encode_png(segment::overlay_of(picture, labels, test.classes, 0.75));
  };
  segment::Agreement agreement(model->count());
  PagePictures page;
  for (size_t i = 0; i < test.pictures.size(); ++i) {
    const Picture& picture = test.pictures[i];
    const bool shown = static_cast<int64_t>(i) < kShownScenes;
    const segment::Segmented found = segment::segment(*model, picture, 0, 0, {.attention = shown});
    agreement.add(found.labels, test.masks[i]);
    if (!shown) continue;
    page.pictures.push_back({{{pictures::encode_png(picture), "scene"},
                              {over(picture, test.masks[i]), "right"},
                              {over(picture, found.labels), "found"},
                              {pictures::encode_png(pictures::heat_overlay(picture, found.maps[0].map[0])), "gate"}}});
  }
  print(thousands(kTestScenes) + " test scenes: mean IoU " + percent(agreement.mean_iou(), 1) + ", " +
        percent(agreement.accuracy(), 1) + " of the pixels told rightly\n");
  page.title = "Where is what?";
  page.note = "A U-Net with attention gates (Oktay et al. 2018), " + thousands(result.parameters) +
              " parameters, saw " + thousands(result.seen) + " scenes of " + std::to_string(kSceneSide) + " x " +
              std::to_string(kSceneSide) + " pixels in " + duration(result.seconds) +
              ", composed of Fashion-MNIST’s training pictures on cluttered grounds. It is measured on " +
              thousands(kTestScenes) +
              " scenes of test pictures: mean IoU over the eleven classes. Below are the first " +
              std::to_string(kShownScenes) +
              " of these, with what is right, what it found, and what its finest gate let through.";
  page.scores = {{"mean IoU, trained just now", percent(agreement.mean_iou(), 1)},
                 {"pixels told rightly", percent(agreement.accuracy(), 1)}};
  for (size_t i = 1; i < palette.size(); ++i) {
    page.legend.push_back({test.classes.classes[i].name, palette[i].red, palette[i].green, palette[i].blue});
  }
  for (const nn::TrainPoint& p : result.curve) page.curve.push_back({p.seconds, p.train_loss, p.valid_loss});
  page.unit = "pixel";
  return page;
}

// ---- Pictures to try ----

namespace {

// Blurred ellipses of many brightnesses on a dark, noisy ground.
Picture cells(uint64_t seed) {
  constexpr int64_t kSide = 256, kCells = 24;
  uint64_t drawn = 0;
  const auto lot = [&](double low, double high) {
    return low + (high - low) * static_cast<double>(nn::splitmix(seed, drawn++) >> 11) * 0x1p-53;
  };
  std::vector<double> light(kSide * kSide, 8);
  for (int64_t cell = 0; cell < kCells; ++cell) {
    const double x = lot(0, kSide), y = lot(0, kSide), angle = lot(0, M_PI), brightness = lot(50, 170);
    const double rx = lot(8, 14), ry = rx * lot(0.6, 1);
    for (int64_t v = 0; v < kSide; ++v) {
      for (int64_t u = 0; u < kSide; ++u) {
        const double dx = static_cast<double>(u) - x, dy = static_cast<double>(v) - y;
        const double along = dx * std::cos(angle) + dy * std::sin(angle);
        const double across = dy * std::cos(angle) - dx * std::sin(angle);
        const double distance = (std::sqrt(along * along / rx / rx + across * across / ry / ry) - 1) * rx;  // pixels
        double& at = light[static_cast<size_t>(v * kSide + u)];
        at = std::max(at, brightness / (1 + std::exp(1.5 * distance)));
      }
    }
  }
  Picture picture{kSide, kSide, 1, {}};
  for (const double value : light) {
    picture.bytes.push_back(static_cast<uint8_t>(std::clamp(value + lot(-1.5, 1.5), 0.0, 255.0)));
  }
  return picture;
}

}  // namespace

SamplePictures write_samples(const std::string& data, const std::string& folder) {
  nn::make_folder(folder);
  SamplePictures samples;
  const auto path = [&](const std::string& name) { return (fs::path(folder) / (name + ".png")).string(); };
  const pictures::LabelledPictures items = pictures::read_idx(pictures::find_idx(data, "t10k"));
  for (size_t i = 0; i < std::min<size_t>(5, items.pictures.size()); ++i) {
    samples.clothes.push_back(path("clothes-" + std::to_string(i + 1)));
    pictures::write_png(samples.clothes.back(), items.pictures[i]);
  }
  for (uint64_t i = 1; i <= 2; ++i) {
    samples.cells.push_back(path("cells-" + std::to_string(i)));
    pictures::write_png(samples.cells.back(), cells(i));
  }
  return samples;
}

}  // namespace heed::app
