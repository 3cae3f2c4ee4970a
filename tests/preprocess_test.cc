// apps/pictures/preprocess.cc: preprocessor_config.json of every age, and what is refused.
#include "apps/pictures/preprocess.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "said.h"

namespace heed::pictures {
namespace {

using heed::tests::error_of;
using nlohmann::json;
using Kind = Preprocess::Kind;

Preprocess read(const json& j) { return Preprocess::from_json({j, "preprocessor_config.json"}); }
std::string said_of(const json& j) {
  return error_of([&] { read(j); });
}

TEST(Preprocess, FilesOfThisYear) {  // as transformers 5.24 wrote them beside the goldens
  const std::string data = HEED_TEST_DATA;
  EXPECT_EQ(Preprocess::load(data + "/vit/base"), Preprocess::defaults(Kind::vit));
  EXPECT_EQ(Preprocess::load(data + "/vit/deit"), Preprocess::defaults(Kind::deit));
  Preprocess expected = Preprocess::defaults(Kind::segformer);
  expected.reduce_labels = true;
  EXPECT_EQ(Preprocess::load(data + "/segformer/base"), expected);
  expected.reduce_labels = false;
  expected.resize = {40, 30};
  EXPECT_EQ(Preprocess::load(data + "/segformer/odd"), expected);
}

TEST(Preprocess, FilesOfOtherYears) {
  // facebook/deit-base-distilled-patch16-224's: one number means both edges.
  const Preprocess deit = read({{"crop_size", 224},
                                {"do_center_crop", true},
                                {"do_normalize", true},
                                {"do_resize", true},
                                {"feature_extractor_type", "DeiTFeatureExtractor"},
                                {"image_mean", {0.485, 0.456, 0.406}},
                                {"image_std", {0.229, 0.224, 0.225}},
                                {"resample", 3},
                                {"size", 256}});
  Preprocess expected = Preprocess::defaults(Kind::deit);
  expected.mean = {0.485, 0.456, 0.406};
  expected.std = {0.229, 0.224, 0.225};
  EXPECT_EQ(deit, expected);
  EXPECT_EQ(deit.resize, (Size{256, 256}));
  EXPECT_EQ(deit.resample, Resample::bicubic);

  const Preprocess segformer = read({{"feature_extractor_type", "SegformerFeatureExtractor"},
                                     {"reduce_labels", true},
                                     {"size", 1024},
                                     {"image_std", nullptr}});
  EXPECT_TRUE(segformer.reduce_labels);
  EXPECT_EQ(segformer.resize, (Size{1024, 1024}));
  EXPECT_EQ(segformer.std, (std::vector<double>{0.229, 0.224, 0.225}));
  EXPECT_EQ(segformer.rescale, 1.0 / 255);

  const Preprocess edge = read({{"image_processor_type", "ViTImageProcessorFast"},
                                {"size", {{"shortest_edge", 96}}},
                                {"do_center_crop", true},
                                {"crop_size", {{"height", 64}, {"width", 80}}}});
  EXPECT_EQ(edge.resize, (Size{.shortest_edge = 96}));
  EXPECT_EQ(edge.crop, (Size{64, 80}));
}

TEST(Preprocess, StepsThatAreNotDone) {
  const Preprocess none = read({{"image_processor_type", "DeiTImageProcessorPil"},
                                {"do_resize", false},
                                {"do_center_crop", false},
                                {"do_rescale", false},
                                {"do_normalize", false}});
  EXPECT_FALSE(none.resize || none.crop || none.rescale);
  EXPECT_TRUE(none.mean.empty() && none.std.empty());
  EXPECT_FALSE(read({{"image_processor_type", "ViTImageProcessor"}, {"crop_size", 5}}).crop) << "a size and no wish";
}

TEST(Preprocess, SurvivesWriting) {
  const auto dir = std::filesystem::temp_directory_path() / ("heed_preprocess_test_" + std::to_string(::getpid()));
  std::filesystem::create_directories(dir);
  std::vector<Preprocess> all;
  for (const Kind kind : {Kind::vit, Kind::deit, Kind::segformer}) all.push_back(Preprocess::defaults(kind));
  all.push_back({.kind = Kind::deit});
  all.push_back({.kind = Kind::segformer,
                 .resize = Size{.shortest_edge = 17},
                 .resample = Resample::hamming,
                 .crop = Size{3, 4},
                 .rescale = 0.5,
                 .mean = {1, 2},
                 .std = {3, 4},
                 .reduce_labels = true});
  for (const Preprocess& p : all) {
    p.save(dir.string());
    EXPECT_EQ(Preprocess::load(dir.string()), p);
  }
  std::filesystem::remove_all(dir);
  EXPECT_SAYS(error_of([&] { Preprocess::load(dir.string()); }), "no preprocessor_config.json");
}

TEST(Preprocess, SaysWhatIsWrong) {
  const auto says = [](const char* key, const json& value, const std::string& part) {
    json j = {{"image_processor_type", "ViTImageProcessor"}};
    j[key] = value;
    const std::string said = said_of(j);
    EXPECT_SAYS(said, part);
    EXPECT_SAYS(said, key);
    EXPECT_SAYS(said, "preprocessor_config.json");
  };
  EXPECT_SAYS(said_of({{"size", 224}}), "no key \"feature_extractor_type\"");
  says("image_processor_type", "CLIPImageProcessor", "that of ViT, DeiT or Segformer");
  says("size", {{"longest_edge", 3}}, "\"shortest_edge\"");
  says("size", {{"height", 3}, {"width", 0}}, "from 1 to");
  says("size", {{"height", 3}, {"width", 3}, {"shortest_edge", 3}}, "or one number");
  says("size", -5, "from 1 to");
  says("crop_size", {{"shortest_edge", 5}}, "or one number");
  says("resample", 6, "from 0 to 5");
  says("rescale_factor", "1/255", "a number");
  says("image_mean", {0.5, "x", 0.5}, "a list of numbers");
  says("image_std", {0.5, 0, 0.5}, "above 0");
  says("do_resize", 1, "true or false");
  EXPECT_SAYS(said_of({{"image_processor_type", "ViTImageProcessor"}, {"image_mean", {0.5}}}),
              "1 means and 3 deviations");
  EXPECT_SAYS(said_of({{"image_processor_type", "ViTImageProcessor"}, {"do_center_crop", true}}), "no \"crop_size\"");
  EXPECT_SAYS(said_of(json::array()), "does not hold a JSON object");
}

}  // namespace
}  // namespace heed::pictures
