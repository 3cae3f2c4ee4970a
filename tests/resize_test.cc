// apps/pictures/resize.cc: Pillow's bytes (tests/data/pictures_goldens.py), crops and flips.
#include "apps/pictures/resize.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <nlohmann/json.hpp>

#include "libtorch/files.h"
#include "said.h"

namespace heed::pictures {
namespace {

using heed::tests::error_of;
using nlohmann::json;

// What the script has Pillow resize.
Picture noise(int64_t width, int64_t height, int64_t channels) {
  Picture picture{width, height, channels};
  uint32_t state = 1;
  for (int64_t i = 0; i < width * height * channels; ++i) {
    state = (state * 1103515245u + 12345u) & 0x7FFFFFFFu;
    picture.bytes.push_back(static_cast<uint8_t>(state >> 16));
  }
  return picture;
}

TEST(Resize, BytesArePillows) {
  const Filter filters[] = {Filter::nearest, Filter::lanczos, Filter::bilinear, Filter::bicubic, Filter::box};
  const json goldens = json::parse(nn::read_file(HEED_TEST_DATA "/pictures_goldens.json"))["resized"];
  EXPECT_EQ(goldens.size(), 200u);
  for (const json& golden : goldens) {
    SCOPED_TRACE(golden.dump());
    const Picture picture =
        resize(noise(golden[0], golden[1], golden[2]), golden[3], golden[4], filters[golden[5].get<size_t>()]);
    EXPECT_EQ(picture.width, golden[3]);
    EXPECT_EQ(picture.height, golden[4]);
    EXPECT_EQ(::crc32(0, picture.bytes.data(), static_cast<uInt>(picture.bytes.size())), golden[6]);
    if (golden[5] == 0 && golden[2] == 1) {  // labels are as a picture's nearest
      const Picture from = noise(golden[0], golden[1], 1);
      const Labels labels =
          resize(Labels{from.width, from.height, {from.bytes.begin(), from.bytes.end()}}, golden[3], golden[4]);
      EXPECT_EQ(labels.values, std::vector<uint16_t>(picture.bytes.begin(), picture.bytes.end()));
    }
  }
}

TEST(Resize, ShorterSide) {
  const auto size = [](int64_t width, int64_t height, int64_t side) {
    const Picture picture = resize_shorter_side(noise(width, height, 1), side);
    return std::vector<int64_t>{picture.width, picture.height};
  };
  EXPECT_EQ(size(40, 30, 20), (std::vector<int64_t>{26, 20}));  // 26.67, rounded down
  EXPECT_EQ(size(30, 40, 20), (std::vector<int64_t>{20, 26}));
  EXPECT_EQ(size(30, 30, 7), (std::vector<int64_t>{7, 7}));
  EXPECT_EQ(size(40, 30, 30), (std::vector<int64_t>{40, 30}));
}

TEST(Resize, Crops) {
  const Picture picture{3, 2, 3, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}};
  EXPECT_EQ(crop(picture, 1, 0, 2, 2).bytes, (std::vector<uint8_t>{3, 4, 5, 6, 7, 8, 12, 13, 14, 15, 16, 17}));
  EXPECT_EQ(flip(picture).bytes, (std::vector<uint8_t>{6, 7, 8, 3, 4, 5, 0, 1, 2, 15, 16, 17, 12, 13, 14, 9, 10, 11}));
  const Labels labels{3, 2, {0, 1, 2, 3, 4, 5}};
  EXPECT_EQ(crop(labels, 0, 1, 2, 1).values, (std::vector<uint16_t>{3, 4}));
  EXPECT_EQ(flip(labels).values, (std::vector<uint16_t>{2, 1, 0, 5, 4, 3}));
  // torchvision's CenterCrop((1, n)) of a row of 4 begins at 2, 1, 0 and 0: round(1.5), round(1.0), round(0.5).
  const Labels row{4, 1, {0, 1, 2, 3}};
  EXPECT_EQ(centre_crop(row, 1, 1).values, (std::vector<uint16_t>{2}));
  EXPECT_EQ(centre_crop(row, 2, 1).values, (std::vector<uint16_t>{1, 2}));
  EXPECT_EQ(centre_crop(row, 3, 1).values, (std::vector<uint16_t>{0, 1, 2}));
  EXPECT_EQ(centre_crop(picture, 1, 1).bytes, (std::vector<uint8_t>{3, 4, 5}));
}

TEST(Resize, ErrorsSayWhatIsWrong) {
  const Picture picture = noise(4, 3, 1);
  EXPECT_SAYS(error_of([&] { resize(picture, 0, 5); }), "cannot become 0 x 5 pixels");
  EXPECT_SAYS(error_of([&] { resize(picture, 65535, 65535); }), "at most 200000000");
  EXPECT_SAYS(error_of([&] { resize(picture, int64_t{1} << 62, 4); }), "1 to 65535");
  EXPECT_SAYS(error_of([&] { resize(Picture{4, 3, 1, {1}}, 2, 2); }), "has 1 bytes");
  EXPECT_SAYS(error_of([&] { resize_shorter_side(picture, 0); }), "0 x 0");
  EXPECT_SAYS(error_of([&] { crop(picture, 2, 0, 3, 1); }), "3 x 1 pixels at (2, 0) is not inside a picture of 4 x 3");
  EXPECT_SAYS(error_of([&] { crop(picture, -1, 0, 1, 1); }), "not inside");
  EXPECT_SAYS(error_of([&] { centre_crop(picture, 4, 4); }), "the middle 4 x 4 pixels of a picture of 4 x 3");
}

}  // namespace
}  // namespace heed::pictures
