// apps/segment/scenes.cc: what a scene's labels mean, that its bytes are the same everywhere, and the folder of many.
#include "apps/segment/scenes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "libtorch/files.h"
#include "said.h"

namespace heed::segment {
namespace {

namespace fs = std::filesystem;
using heed::tests::error_of;
using pictures::LabelledPictures;
using pictures::Picture;

Picture flat(uint8_t value, int64_t width = 28, int64_t height = 28) {
  return {width, height, 1, std::vector<uint8_t>(static_cast<size_t>(width * height), value)};
}

// The same picture under many labels, so that a scene seldom draws one twice.
LabelledPictures many(const Picture& picture) {
  LabelledPictures items;
  for (int64_t label = 0; label < 200; ++label) {
    items.pictures.push_back(picture);
    items.labels.push_back(label);
  }
  return items;
}

// What a label covers, and the range of its colours.
struct Region {
  int64_t left = 1 << 20, top = 1 << 20, right = 0, bottom = 0, pixels = 0;
  int low[3] = {255, 255, 255}, high[3] = {0, 0, 0};

  int64_t width() const { return right - left + 1; }
  int64_t height() const { return bottom - top + 1; }
  bool rectangle() const { return pixels == width() * height(); }
  bool at_edge(int64_t size) const { return left == 0 || top == 0 || right == size - 1 || bottom == size - 1; }
  int colours() const {
    int most = 0;
    for (int c = 0; c < 3; ++c) most = std::max(most, high[c] - low[c]);
    return most;
  }
};

std::map<int, Region> regions(const Scene& scene) {
  std::map<int, Region> found;
  for (size_t i = 0; i < scene.labels.values.size(); ++i) {
    Region& region = found[scene.labels.values[i]];
    const int64_t x = static_cast<int64_t>(i) % scene.labels.width, y = static_cast<int64_t>(i) / scene.labels.width;
    region.left = std::min(region.left, x), region.right = std::max(region.right, x);
    region.top = std::min(region.top, y), region.bottom = std::max(region.bottom, y);
    region.pixels++;
    for (size_t c = 0; c < 3; ++c) {
      region.low[c] = std::min<int>(region.low[c], scene.picture.bytes[3 * i + c]);
      region.high[c] = std::max<int>(region.high[c], scene.picture.bytes[3 * i + c]);
    }
  }
  return found;
}

constexpr int kMostNoise = 2 * 16;

TEST(Scenes, LabelsAreOfWhatIsVisible) {
  const LabelledPictures items = many(flat(255));
  int64_t overlaps = 0, at_edge = 0, mixed = 0, narrowest = 96, widest = 0;
  std::map<size_t, int> scenes_with;  // so many items
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Scene scene = compose_scene(items, 96, seed);
    auto found = regions(scene);
    ASSERT_EQ(scene.picture.bytes.size(), 3u * 96 * 96);
    EXPECT_GT(found[0].pixels, 96 * 96 / 20) << "the ground is to be seen, too";
    EXPECT_GT(found[0].colours(), 2 * kMostNoise) << "and is not of one colour";
    found.erase(0);
    scenes_with[found.size()]++;
    for (const auto& [label, region] : found) {
      mixed += region.colours() > kMostNoise;
      // Half of the smallest item, of which a sixth each way may be outside.
      EXPECT_GE(region.pixels, 19 * 19 / 2) << "label " << label << " of seed " << seed << " is hidden";
      overlaps += !region.rectangle();
      at_edge += region.at_edge(96);
      if (region.rectangle() && region.width() == region.height() && !region.at_edge(96)) {  // nothing hides a side
        narrowest = std::min(narrowest, region.width());
        widest = std::max(widest, region.width());
      }
    }
  }
  EXPECT_LE(mixed, 10) << "a label has one tint, unless it was drawn twice";
  EXPECT_GT(overlaps, 40);
  EXPECT_GT(at_edge, 40);
  EXPECT_EQ(scenes_with.begin()->first, 2u);
  EXPECT_EQ(scenes_with.rbegin()->first, 5u);
  EXPECT_GT(scenes_with[2], 20);
  EXPECT_GT(scenes_with[5], 10);
  EXPECT_LE(narrowest, 24);
  EXPECT_GE(narrowest, 22) << "0.8 times 28";
  EXPECT_LE(widest, 44) << "1.6 times 28";
  EXPECT_GE(widest, 40);
}

TEST(Scenes, HolesAndDarkEdgesAreGround) {
  Picture ring = flat(255);
  for (int64_t y = 8; y < 20; ++y) {
    for (int64_t x = 8; x < 20; ++x) ring.bytes[static_cast<size_t>(y * 28 + x)] = 0;
  }
  const LabelledPictures items = many(ring);
  int64_t whole = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const Scene scene = compose_scene(items, 96, seed);
    for (const auto& [label, region] : regions(scene)) {
      if (label == 0 || region.width() != region.height() || region.at_edge(96)) continue;
      whole++;
      const int64_t x = (region.left + region.right) / 2, y = (region.top + region.bottom) / 2;
      EXPECT_NE(scene.labels.values[static_cast<size_t>(y * 96 + x)], label) << seed;
    }
  }
  EXPECT_GT(whole, 50);
  EXPECT_EQ(regions(compose_scene({{flat(24)}, {0}, {}}, 96, 1)).size(), 1u) << "too dark to be seen";
  EXPECT_EQ(regions(compose_scene({{flat(25)}, {0}, {}}, 96, 1)).size(), 2u);
}

TEST(Scenes, ItemsKeepTheirShape) {
  Picture wedge = flat(0, 40, 10);  // its left half
  for (size_t y = 0; y < 10; ++y) std::fill_n(wedge.bytes.begin() + static_cast<ptrdiff_t>(40 * y), 20, 255);
  const LabelledPictures items = many(wedge);
  int64_t seen = 0, good = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    for (const auto& [label, region] : regions(compose_scene(items, 240, seed))) {
      if (label == 0 || !region.rectangle() || region.at_edge(240)) continue;
      seen++;
      EXPECT_LE(region.width(), 112 / 2 + 1);
      // But for those of which another hides a side.
      good += std::abs(region.width() - 2 * region.height()) <= 2 && region.width() >= 56 / 2;  // 7/30 of 240
    }
  }
  EXPECT_GT(seen, 20);
  EXPECT_GT(good, seen * 3 / 4);
}

TEST(Scenes, TheSameBytesEverywhere) {
  LabelledPictures items;
  for (int64_t i = 0; i < 5; ++i) {
    items.pictures.push_back(flat(0));
    for (size_t p = 0; p < items.pictures.back().bytes.size(); ++p) {
      items.pictures.back().bytes[p] = static_cast<uint8_t>(p * (7 + static_cast<size_t>(i)));
    }
    items.labels.push_back(i);
  }
  const auto hash = [&](uint64_t seed) {
    const Scene scene = compose_scene(items, 64, seed);
    uint64_t h = 0xCBF29CE484222325u;
    for (const uint8_t byte : scene.picture.bytes) h = (h ^ byte) * 0x100000001B3u;
    for (const uint16_t label : scene.labels.values) h = (h ^ label) * 0x100000001B3u;
    return h;
  };
  EXPECT_EQ(hash(1), hash(1));
  EXPECT_NE(hash(1), hash(2));
  EXPECT_EQ(hash(1), 5370485724390602950u) << "what it was on x86-64, with GCC 12";
}

TEST(Scenes, SaysWhatDoesNotFit) {
  const LabelledPictures items = many(flat(255));
  EXPECT_SAYS(error_of([&] { compose_scene({}, 96, 1); }), "no items");
  EXPECT_SAYS(error_of([&] { compose_scene({{flat(1)}, {}, {}}, 96, 1); }), "1 items and 0 labels");
  EXPECT_SAYS(error_of([&] { compose_scene(items, 31, 1); }), "size is 31; a scene has from 32");
  EXPECT_SAYS(error_of([&] {
                compose_scene({{flat(1)}, {255}, {}}, 96, 1);
              }),
              "the label 255; it must be from 0 to 254");
  EXPECT_SAYS(error_of([&] { compose_scene({{{1, 1, 3, {1, 2, 3}}}, {0}, {}}, 96, 1); }), "3 channels");
}

// ---- The folder ----

class SceneFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "heed-scenes-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    options_.out = path("scenes");
    options_.from = path("idx");
    options_.classes = {"box", "plate"};
    options_.count = 3;
    options_.test = 2;
    options_.size = 32;
    fs::create_directory(options_.from);
    write_idx("train", 0);
    write_idx("t10k", 1);
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string path(const std::string& name) const { return (dir_ / name).string(); }

  // Two bright pictures with this label.
  void write_idx(const std::string& split, char label) const {
    using namespace std::string_literals;
    nn::write_file(path("idx/" + split + "-images-idx3-ubyte"),
                   "\0\0\x08\x03\0\0\0\x02\0\0\0\x04\0\0\0\x04"s + std::string(32, '\xFF'));
    nn::write_file(path("idx/" + split + "-labels-idx1-ubyte"), "\0\0\x08\x01\0\0\0\x02"s + std::string(2, label));
  }

  fs::path dir_;
  ScenesOptions options_;
};

TEST_F(SceneFolder, IsReadAsPicturesWithMasks) {
  int64_t told = 0;
  write_scenes(options_, [&](int64_t done) { EXPECT_EQ(done, ++told); });
  EXPECT_EQ(told, 5);
  const pictures::Classes classes = pictures::read_classes(path("scenes/classes.txt"));
  ASSERT_EQ(classes.classes.size(), 3u);
  EXPECT_FALSE(classes.painted());
  EXPECT_EQ(classes.classes[0].name, "background");
  EXPECT_EQ(classes.classes[2].name, "plate");
  std::vector<std::vector<uint8_t>> seen;
  for (const std::string before : {"", "test-"}) {
    const pictures::MaskPairs found =
        pictures::find_mask_pairs(path("scenes/" + before + "images"), path("scenes/" + before + "masks"));
    EXPECT_EQ(found.summary(), before.empty() ? "3 pictures with masks" : "2 pictures with masks");
    EXPECT_TRUE(found.pairs[0].picture.ends_with("/00000.png"));
    const pictures::MaskedPictures read = pictures::read_mask_pairs(found.pairs, classes);
    ASSERT_EQ(read.masks.size(), found.pairs.size());
    for (size_t i = 0; i < read.masks.size(); ++i) {
      EXPECT_EQ(read.pictures[i].width, 32);
      for (const uint16_t label : read.masks[i].values) {
        EXPECT_TRUE(label == 0 || label == (before.empty() ? 1 : 2)) << before << ": " << label;
      }
      const auto& values = read.masks[i].values;
      EXPECT_GT(std::count_if(values.begin(), values.end(), [](uint16_t v) { return v != 0; }), 0);
      EXPECT_EQ(std::count(seen.begin(), seen.end(), read.pictures[i].bytes), 0) << "no two scenes are the same";
      seen.push_back(read.pictures[i].bytes);
      // What viewers show of the mask.
      const Picture painted = pictures::read_picture(found.pairs[i].mask);
      for (size_t p = 0; p < values.size(); ++p) {
        const std::vector<uint8_t> colour(painted.bytes.begin() + static_cast<ptrdiff_t>(3 * p),
                                          painted.bytes.begin() + static_cast<ptrdiff_t>(3 * p + 3));
        const std::vector<uint8_t> expected[] = {{0, 0, 0}, {128, 0, 0}, {0, 128, 0}};
        ASSERT_EQ(colour, expected[values[p]]);
      }
    }
  }
}

TEST_F(SceneFolder, TakesTheSeedAndWhatAKillLeft) {
  const auto first = [&] { return nn::read_file(options_.out + "/images/00000.png"); };
  options_.test = 0;
  write_scenes(options_);
  EXPECT_FALSE(fs::exists(path("scenes/test-images")));
  const std::string one = first();
  options_.out = path("again");
  fs::create_directories(path("again/.unfinished/images"));
  nn::write_file(path("again/.unfinished/images/77777.png"), "half");
  write_scenes(options_);
  EXPECT_EQ(first(), one);
  EXPECT_FALSE(fs::exists(path("again/images/77777.png")));
  EXPECT_FALSE(fs::exists(path("again/.unfinished")));
  options_.out = path("other");
  options_.seed = 2;
  write_scenes(options_);
  EXPECT_NE(first(), one);
}

TEST_F(SceneFolder, SaysWhatDoesNotFitAndLeavesNothing) {
  const auto said = [&](const std::function<void(ScenesOptions&)>& edit) {
    ScenesOptions options = options_;
    edit(options);
    const std::string error = error_of([&] { write_scenes(options); });
    EXPECT_FALSE(fs::exists(path("scenes")));
    return error;
  };
  EXPECT_SAYS(said([](auto& o) { o.count = 0; }), "count is 0; it must be from 1");
  EXPECT_SAYS(said([](auto& o) { o.test = -1; }), "test is -1; it must be from 0");
  EXPECT_SAYS(said([](auto& o) { o.size = 5000; }), "size is 5000");
  EXPECT_SAYS(said([](auto& o) { o.classes = {"box"}; }), "has the label 1, and there are names for 1 classes");
  EXPECT_SAYS(said([](auto& o) { o.classes = {"box", "background"}; }), "the class background is there already");
  EXPECT_SAYS(said([&](auto& o) { o.from = path("nowhere"); }), "there is no folder " + path("nowhere"));
  EXPECT_SAYS(said([](auto& o) { o.out.clear(); }), "need a folder");
  fs::remove(path("idx/train-images-idx3-ubyte"));  // met when the test scenes are written
  EXPECT_SAYS(said([](auto&) {}), "has no file train-images-idx3-ubyte");

  nn::write_file(path("file"), "x");
  EXPECT_SAYS(said([&](auto& o) { o.out = path("file"); }), "is a file");
  fs::create_directory(path("full"));
  nn::write_file(path("full/mine.txt"), "x");
  EXPECT_SAYS(said([&](auto& o) { o.out = path("full"); }), "is not empty (mine.txt); name another, or empty it");
  EXPECT_EQ(nn::read_file(path("full/mine.txt")), "x");
  EXPECT_EQ(std::distance(fs::directory_iterator(path("full")), {}), 1);
}

}  // namespace
}  // namespace heed::segment
