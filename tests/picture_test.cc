// apps/pictures/picture.cc and the four formats: the pixels Pillow sees, masks as they are stored, what is broken or
// too large, and writing.
#include "apps/pictures/picture.h"

#include <gtest/gtest.h>
#include <jpeglib.h>
#include <sys/resource.h>
#include <zlib.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "libtorch/files.h"
#include "said.h"

namespace heed::pictures {
namespace {

namespace fs = std::filesystem;
using heed::tests::error_of;
using nlohmann::json;

const json& goldens() {
  static const json all = json::parse(nn::read_file(HEED_TEST_DATA "/pictures_goldens.json"));
  return all;
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

std::string golden_file(const std::string& name) {
  for (const json& golden : goldens()["pictures"]) {
    if (golden["name"] == name) return from_hex(golden["file"]);
  }
  ADD_FAILURE() << "there is no golden " << name;
  return {};
}

std::string text(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

class PictureFiles : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "heed-pictures-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    nn::write_file(path(name), bytes);
    return path(name);
  }

  fs::path dir_;
};

// ---- What is read ----

TEST(Picture, PixelsArePillows) {
  for (const json& golden : goldens()["pictures"]) {
    SCOPED_TRACE(golden["name"].get<std::string>());
    const Picture picture = decode_picture(from_hex(golden["file"]), "x");
    EXPECT_EQ(picture.width, golden["width"]);
    EXPECT_EQ(picture.height, golden["height"]);
    EXPECT_EQ(picture.channels, 3);
    EXPECT_TRUE(text(picture.bytes) == from_hex(golden["pixels"]));
  }
}

TEST(Picture, MasksKeepTheirValues) {
  const std::string file = (fs::temp_directory_path() / ("heed-mask-" + std::to_string(::getpid()))).string();
  for (const json& golden : goldens()["masks"]) {
    SCOPED_TRACE(golden["name"].get<std::string>());
    nn::write_file(file, from_hex(golden["file"]));
    const Labels labels = read_labels(file);
    EXPECT_EQ(labels.width, 11);
    EXPECT_EQ(labels.height, 7);
    EXPECT_EQ(json(labels.values), golden["values"]);
  }
  fs::remove(file);
}

TEST(Picture, GroundShowsThrough) {
  const std::string file = golden_file("png palette with alpha");  // index 0 is transparent, 1 half so, 2 opaque
  const Picture white = decode_picture(file, "x"), red = decode_picture(file, "x", {.ground = {200, 0, 0}});
  int64_t transparent = 0, opaque = 0;
  for (size_t i = 0; i < white.bytes.size(); i += 3) {
    transparent += red.bytes[i] == 200 && red.bytes[i + 1] == 0 && white.bytes[i] == 255 && white.bytes[i + 1] == 255;
    opaque += std::equal(&white.bytes[i], &white.bytes[i] + 3, &red.bytes[i]);
  }
  EXPECT_GT(transparent, 5);
  EXPECT_GT(opaque, 5);
  EXPECT_LT(transparent + opaque, 77);
  // Grey with alpha takes the ground's colour.
  const Picture grey = decode_picture(golden_file("png grey and alpha"), "x", {.ground = {0, 0, 255}});
  EXPECT_EQ(grey.channels, 3);
  EXPECT_GT(grey.bytes[2], grey.bytes[0]);
}

TEST(Picture, Greys) {
  // Pillow: Image.new("RGB", (1, 1), colour).convert("L")
  const struct {
    std::vector<uint8_t> colour;
    uint8_t grey;
  } cases[] = {{{255, 0, 0}, 76}, {{0, 255, 0}, 150}, {{0, 0, 255}, 29}, {{255, 255, 255}, 255}, {{10, 20, 30}, 18}};
  for (const auto& [colour, grey] : cases) {
    EXPECT_EQ(with_channels({1, 1, 3, colour}, 1).bytes, std::vector<uint8_t>{grey});
  }
  EXPECT_EQ(with_channels({1, 1, 1, {7}}, 3).bytes, (std::vector<uint8_t>{7, 7, 7}));
  const Picture grey = decode_picture(golden_file("png grey"), "x", {.channels = 1});
  EXPECT_EQ(grey.channels, 1);
  EXPECT_EQ(with_channels(grey, 3).bytes, decode_picture(golden_file("png grey"), "x").bytes);
  EXPECT_SAYS(error_of([] { decode_picture(golden_file("png grey"), "x", {.channels = 4}); }), "4 channels");
}

// YCCK, which Pillow does not write: four channels, of which libjpeg turns the first three as it does YCbCr.
TEST(Picture, JpegYcck) {
  jpeg_compress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* out = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &out, &size);
  info.image_width = info.image_height = 8;
  info.input_components = 4;
  info.in_color_space = JCS_CMYK;
  jpeg_set_defaults(&info);
  jpeg_set_colorspace(&info, JCS_YCCK);
  jpeg_set_quality(&info, 100, TRUE);
  jpeg_start_compress(&info, TRUE);
  std::vector<uint8_t> row;
  for (int x = 0; x < 8; ++x) row.insert(row.end(), {200, 100, 50, 128});  // inverted: much red light, half of it kept
  JSAMPROW rows[] = {row.data()};
  for (int y = 0; y < 8; ++y) jpeg_write_scanlines(&info, rows, 1);
  jpeg_finish_compress(&info);
  const Picture picture = decode_picture({reinterpret_cast<char*>(out), size}, "x");
  jpeg_destroy_compress(&info);
  std::free(out);
  EXPECT_NEAR(picture.bytes[0], 200 * 128 / 255, 3);
  EXPECT_NEAR(picture.bytes[1], 100 * 128 / 255, 3);
  EXPECT_NEAR(picture.bytes[2], 50 * 128 / 255, 3);
}

// ---- What is not ----

TEST_F(PictureFiles, ErrorsSayWhatIsWrong) {
  const auto error = [&](const std::string& file) { return error_of([&] { read_picture(file); }); };
  EXPECT_SAYS(error(path("none.png")), "there is no file " + path("none.png"));
  EXPECT_SAYS(error(dir_), "directory");
  EXPECT_SAYS(error("/dev/zero"), "device");
  EXPECT_SAYS(error(write("empty.png", "")), "empty.png is empty");
  EXPECT_SAYS(error(write("a.png", "a text")), "a.png is not a picture in a known format; save it as PNG, JPEG");
  EXPECT_SAYS(error(write("bm.png", "BM is how this text begins")), "not a picture");
  EXPECT_SAYS(error(write("page.jpg", "<html>404")), "web page");
  EXPECT_SAYS(error(write("a.gif", from_hex(goldens()["refused"]["gif"]))), "is a GIF");
  EXPECT_SAYS(error(write("a.tif", from_hex(goldens()["refused"]["tiff"]))), "is a TIFF");
  EXPECT_SAYS(error(write("a.webp", from_hex(goldens()["refused"]["animation"]))), "is an animation");
  // The name does not count.
  EXPECT_EQ(error(write("jpeg.png", golden_file("jpeg baseline"))), "no error");
}

TEST_F(PictureFiles, MasksInColour) {
  const auto error = [&](const std::string& file) { return error_of([&] { read_labels(file); }); };
  EXPECT_SAYS(error(write("a.png", golden_file("png rgb"))), "a.png has colours (#");
  EXPECT_SAYS(error(write("a.jpg", golden_file("jpeg grey"))), "a.jpg is a JPEG, whose compression changes");
  const Picture painted{2, 1, 3, {1, 2, 3, 255, 0, 16}};
  const Colour colours[] = {{255, 0, 16}, {1, 2, 3}};
  EXPECT_EQ(labels_of_colours(painted, colours, "m").values, (std::vector<uint16_t>{1, 0}));
  EXPECT_SAYS(error_of([&] { labels_of_colours(painted, std::span(colours).subspan(1), "m.png"); }),
              "m.png has the colour #ff0010 at (1, 0), which is none of the 1 that");
}

// However much of a file is missing: the error names it; never a picture with holes.
TEST(Picture, CutOff) {
  for (const json& golden : goldens()["pictures"]) {
    SCOPED_TRACE(golden["name"].get<std::string>());
    const std::string file = from_hex(golden["file"]);
    for (size_t size = 0; size < file.size(); ++size) {
      Picture picture;
      const std::string error = error_of([&] { picture = decode_picture({file.data(), size}, "cut.png"); });
      if (error == "no error") {  // padding behind the last pixel
        EXPECT_TRUE(text(picture.bytes) == from_hex(golden["pixels"])) << size << " of " << file.size();
      } else {
        EXPECT_EQ(error.find("cut.png "), 0u) << error;
      }
    }
  }
}

TEST(Picture, JpegDamage) {
  const std::string file = golden_file("jpeg baseline");
  // Bytes between two markers are let pass, as every viewer does; a wrong byte in the coefficients is not.
  std::string extra = file;
  extra.insert(file.size() - 2, "xy");
  EXPECT_EQ(decode_picture(extra, "x").bytes, decode_picture(file, "x").bytes);
  std::string hole = file;
  hole.replace(file.size() - 40, 30, 30, '\xFF');
  EXPECT_SAYS(error_of([&] { decode_picture(hole, "hole.jpg"); }), "hole.jpg is damaged or cut off (JPEG: ");
}

std::string big_endian(uint32_t n, int bytes = 4) {
  std::string out;
  for (int i = bytes - 1; i >= 0; --i) out += static_cast<char>(n >> (8 * i));
  return out;
}

std::string chunk(const std::string& kind, const std::string& data) {
  const std::string checked = kind + data;
  const auto crc = ::crc32(0, reinterpret_cast<const Bytef*>(checked.data()), static_cast<uInt>(checked.size()));
  return big_endian(static_cast<uint32_t>(data.size())) + checked + big_endian(static_cast<uint32_t>(crc));
}

int64_t peak_megabytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

// Each format with a header that says 20000 x 20000 or more: refused before anything of that size is allocated.
TEST(Picture, TooLarge) {
  const int64_t before = peak_megabytes();
  std::string png = golden_file("png rgb");
  png.replace(8, 25, chunk("IHDR", big_endian(50000) + big_endian(50000) + std::string("\x08\x02\0\0\0", 5)));
  EXPECT_EQ(error_of([&] { decode_picture(png, "big.png"); }),
            "big.png has 50000 x 50000 pixels, more than the limit of 200000000; make it smaller or cut it into parts");
  png.replace(8, 25, chunk("IHDR", big_endian(0x7FFFFFFF) + big_endian(0x7FFFFFFF) + std::string("\x08\x02\0\0\0", 5)));
  EXPECT_SAYS(error_of([&] { decode_picture(png, "big.png"); }), "2147483647 x 2147483647");
  std::string jpeg = golden_file("jpeg progressive");
  const size_t frame = jpeg.find("\xFF\xC2");
  ASSERT_NE(frame, std::string::npos);
  jpeg.replace(frame + 5, 4, big_endian(20000, 2) + big_endian(20000, 2));
  EXPECT_SAYS(error_of([&] { decode_picture(jpeg, "big.jpg"); }), "20000 x 20000 pixels, more than the limit");
  std::string webp = golden_file("webp lossy");
  const size_t start = webp.find("\x9D\x01\x2A");
  ASSERT_NE(start, std::string::npos);
  webp.replace(start + 3, 4, "\xFF\x3F\xFF\x3F");
  EXPECT_SAYS(error_of([&] { decode_picture(webp, "big.webp"); }), "16383 x 16383 pixels, more than the limit");
  std::string bmp = golden_file("bmp 24 bits");
  bmp.replace(18, 8, std::string("\0\0\0\x7F\0\0\0\x80", 8));
  EXPECT_SAYS(error_of([&] { decode_picture(bmp, "big.bmp"); }), "2130706432 x 2147483648 pixels");
  EXPECT_LT(peak_megabytes() - before, 100);
  // The limit is the caller's.
  EXPECT_SAYS(error_of([&] { decode_picture(golden_file("png rgb"), "x", {.max_pixels = 76}); }), "limit of 76");
  EXPECT_EQ(decode_picture(golden_file("png rgb"), "x", {.max_pixels = 77}).width, 11);
}

// zlib makes 64 MB of zeros from 64 kB, and a profile or a text may be such a thing.
TEST(Picture, Bombs) {
  z_stream stream{};
  ASSERT_EQ(deflateInit(&stream, 9), Z_OK);
  std::vector<Bytef> zeros(1 << 20), out(1 << 20);
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  for (int i = 0; i < 64; ++i) {
    stream.next_in = zeros.data();
    stream.avail_in = static_cast<uInt>(zeros.size());
    ASSERT_EQ(deflate(&stream, i == 63 ? Z_FINISH : Z_NO_FLUSH), i == 63 ? Z_STREAM_END : Z_OK);
  }
  const std::string bomb(reinterpret_cast<const char*>(out.data()), stream.total_out);
  deflateEnd(&stream);
  const int64_t before = peak_megabytes();
  const std::string file = golden_file("png rgb"), beside = std::string("x\0\0", 3) + bomb;
  std::string loaded = file;
  loaded.insert(33,
                chunk("iCCP", beside) + chunk("zTXt", beside) + chunk("iTXt", std::string("x\0\1\0\0\0", 6) + bomb));
  EXPECT_EQ(decode_picture(loaded, "x").bytes, decode_picture(file, "x").bytes);
  // As pixels: more of them than the header says.
  std::string long_data = file.substr(0, 33) + chunk("IDAT", bomb) + chunk("IEND", "");
  error_of([&] { decode_picture(long_data, "x"); });
  EXPECT_LT(peak_megabytes() - before, 30);
}

// Wrong bytes anywhere: a picture or an error, nothing else. Run it under AddressSanitizer, too.
TEST(Picture, RandomDamage) {
  std::mt19937 random(1);
  int64_t errors = 0, read = 0;
  for (const json& golden : goldens()["pictures"]) {
    const std::string file = from_hex(golden["file"]);
    for (int round = 0; round < 80; ++round) {
      std::string damaged = file;
      for (uint32_t n = 1 + random() % 4; n > 0; --n) damaged[random() % file.size()] = static_cast<char>(random());
      const std::string error = error_of([&] {
        check_picture(decode_picture(damaged, "damaged", {.max_pixels = 100'000}));
        read++;
      });
      if (error == "no error") continue;
      errors++;
      EXPECT_SAYS(error, "damaged");
    }
  }
  EXPECT_GT(errors, 1000);
  EXPECT_GT(read, 500);
}

// ---- What is written ----

TEST_F(PictureFiles, PngsComeBack) {
  for (const int64_t channels : {1, 3}) {
    Picture picture{5, 4, channels};
    for (int64_t i = 0; i < 20 * channels; ++i) picture.bytes.push_back(static_cast<uint8_t>(i * 7));
    write_png(path("a.png"), picture);
    const Picture back = read_picture(path("a.png"), {.channels = channels});
    EXPECT_EQ(back.width, 5);
    EXPECT_EQ(back.height, 4);
    EXPECT_EQ(back.bytes, picture.bytes);
  }
  const std::string old = nn::read_file(path("a.png"));
  EXPECT_SAYS(error_of([&] {
                write_png(path("a.png"), {2, 2, 3, {1, 2, 3}});
              }),
              "2 x 2 pixels with 3 channels has 3 b");
  EXPECT_SAYS(error_of([&] { write_png(path("a.png"), {1, 1, 2, {1, 2}}); }), "2 channels; it needs 1 or 3");
  EXPECT_SAYS(error_of([&] { write_png(path("a.png"), {int64_t{1} << 62, 1, 3, {1, 2, 3}}); }), "has 3 bytes");
  EXPECT_EQ(nn::read_file(path("a.png")), old);
  EXPECT_SAYS(error_of([&] { write_png(path("none/a.png"), {1, 1, 1, {1}}); }), "cannot write");
}

TEST_F(PictureFiles, LabelsComeBack) {
  const Labels labels{3, 2, {0, 1, 2, 2, 1, 0}};
  const std::vector<Colour> palette = {{0, 0, 0}, {200, 30, 5}, {1, 2, 3}};
  write_labels(path("m.png"), labels, palette);
  EXPECT_EQ(read_labels(path("m.png")).values, labels.values);
  const Picture seen = read_picture(path("m.png"));
  EXPECT_EQ(std::vector<uint8_t>(seen.bytes.begin() + 3, seen.bytes.begin() + 9),
            (std::vector<uint8_t>{200, 30, 5, 1, 2, 3}));
  EXPECT_EQ(labels_of_colours(seen, palette, "m").values, labels.values);
  EXPECT_SAYS(error_of([&] { write_labels(path("m.png"), labels, std::span(palette).first(2)); }),
              "the label at (2, 0) is 2, but the palette has 2 colours");
  EXPECT_SAYS(error_of([&] { write_labels(path("m.png"), labels, std::vector<Colour>(257)); }), "257 colours");
  EXPECT_SAYS(error_of([&] { write_labels(path("m.png"), {2, 2, {1}}, palette); }), "2 x 2 pixels has 1 labels");
}

}  // namespace
}  // namespace heed::pictures
