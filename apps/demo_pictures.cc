// The demo's pictures, in the order a reader sees them: train, measure, look.
#include "apps/demo_pictures.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <filesystem>
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
#include "apps/terminal.h"

namespace heed::app {
namespace {

namespace fs = std::filesystem;
using pictures::Picture;

constexpr const char* kPackage = "dataset-fashion-mnist";
constexpr const char* kFolder = "usr/share/datasets/fashion-mnist";
// The dataset's own order (Xiao, Rasul, Vollgraf 2017, table 2).
const std::vector<std::string> kClothes = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                                           "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};
constexpr int64_t kMeasured = 2000;  // pictures; enough for 1% to show, few enough to take seconds
constexpr int64_t kShown = 12;
constexpr int64_t kAnswers = 3;
constexpr int64_t kEnlarged = 8;  // times, so that a map over 28 x 28 pixels can be seen

std::string percent(double share) { return fixed(100 * share, 1) + "%"; }

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
  bar.done(thousands(measured.pictures) + " test pictures: " + percent(measured.accuracy()) + " told rightly");
  return percent(measured.accuracy());
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

}  // namespace heed::app
