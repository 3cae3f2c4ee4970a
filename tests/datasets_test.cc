// apps/pictures/datasets.cc: folders of classes, IDX files, pictures with masks, lists of classes; what is missing,
// broken or does not fit.
#include "apps/pictures/datasets.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>
#include <string>
#include <vector>

#include "libtorch/files.h"
#include "said.h"

namespace heed::pictures {
namespace {

namespace fs = std::filesystem;
using heed::tests::error_of;

class Datasets : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "heed-datasets-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    fs::create_directories((dir_ / name).parent_path());
    nn::write_file(path(name), bytes);
    return path(name);
  }
  // A picture whose every byte is `value`.
  std::string picture(const std::string& name, uint8_t value = 0, int64_t width = 2, int64_t height = 2) const {
    return write(name,
                 encode_png({width, height, 1, std::vector<uint8_t>(static_cast<size_t>(width * height), value)}));
  }

  fs::path dir_;
};

// ---- A folder per class ----

TEST_F(Datasets, ClassFolders) {
  picture("dog/b.png", 1);
  picture("dog/a.PNG", 2);
  picture("cat/2020/deep/c", 3);  // by its content
  write("cat/broken.jpg", "not a picture, but called one");
  write("cat/notes.txt", "no picture");
  picture("cat/.hidden.png");
  picture(".trash/x.png");
  picture("beside.png");
  fs::create_symlink(path("dog"), path("ape"));
  fs::create_symlink(path("cat"), path("dog/loop"));
  const ClassFolders found = find_class_folders(dir_);
  EXPECT_EQ(found.classes, (std::vector<std::string>{"ape", "cat", "dog"}));
  std::vector<std::string> files;
  for (const LabelledFile& file : found.files) {
    files.push_back(fs::relative(file.path, dir_).string() + " " + std::to_string(file.label));
  }
  // fs::relative resolves the link.
  EXPECT_EQ(files, (std::vector<std::string>{"dog/a.PNG 0", "dog/b.png 0", "cat/2020/deep/c 1", "cat/broken.jpg 1",
                                             "dog/a.PNG 2", "dog/b.png 2"}));
  EXPECT_EQ(found.summary(),
            "6 pictures in 3 classes; 1 file that is not a picture was ignored; 1 picture beside the class folders is "
            "in no class");

  const LabelledPictures read = read_pictures(found.files);
  EXPECT_EQ(read.labels, (std::vector<int64_t>{0, 0, 1, 2, 2}));
  ASSERT_EQ(read.pictures.size(), 5u);
  EXPECT_EQ(read.pictures[0].bytes[0], 2);
  EXPECT_EQ(read.pictures[2].bytes[0], 3);
  ASSERT_EQ(read.skipped.size(), 1u);
  EXPECT_EQ(read.skipped[0].path, path("cat/broken.jpg"));
  EXPECT_SAYS(summary(read.skipped),
              "1 file could not be read and was left out: " + path("cat/broken.jpg") + " is not");

  // Prepared on the way; what `prepare` throws is not a damaged file.
  const LabelledPictures grey = read_pictures(found.files, {}, [](Picture p) { return with_channels(p, 1); });
  EXPECT_EQ(grey.pictures[4].bytes.size(), 4u);
  EXPECT_EQ(error_of([&] { read_pictures(found.files, {}, [](Picture) -> Picture { throw Error("no"); }); }), "no");

  // A model's classes, in its order.
  fs::remove(path("ape"));
  const ClassFolders known = find_class_folders(dir_, {"dog", "emu", "cat"});
  EXPECT_EQ(known.classes, (std::vector<std::string>{"dog", "emu", "cat"}));
  EXPECT_EQ(known.files.front().path, path("dog/a.PNG"));
  EXPECT_EQ(known.files.back().label, 2);
  EXPECT_SAYS(error_of([&] {
                find_class_folders(dir_, {"dog", "emu"});
              }),
              "the folder " + path("cat") + " is none of the 2 known classes (dog, emu)");
}

TEST_F(Datasets, ClassFolderErrors) {
  const auto error = [&] { return error_of([&] { find_class_folders(dir_); }); };
  EXPECT_SAYS(error_of([&] { find_class_folders(path("none")); }), "there is no folder " + path("none"));
  EXPECT_SAYS(error_of([&] { find_class_folders(write("file", "")); }), "file is a file; a folder");
  EXPECT_SAYS(error(), "has no folder for any class");
  picture("cat/a.png");
  EXPECT_SAYS(error(), "has one class only, cat; put");
  fs::create_directory(path("dog"));
  EXPECT_SAYS(error(), "the class folder " + path("dog") + " has no picture");
  EXPECT_EQ(error_of([&] { find_class_folders(dir_, {"cat", "dog"}); }), "no error");
  picture("\xff/a.png");
  picture("dog/a.png");
  EXPECT_SAYS(error(), "not UTF-8");
  const std::string broken = write("broken.png", "x");
  EXPECT_SAYS(error_of([&] {
                read_pictures(std::vector<LabelledFile>{{broken, 0}});
              }),
              "none of 1 picture could be read; the first: " + broken);
  EXPECT_SAYS(error_of([&] { read_pictures({}); }), "no pictures");
}

TEST_F(Datasets, SkippedFiles) {
  EXPECT_EQ(summary(std::vector<Skipped>()), "");
  EXPECT_EQ(summary({{"a", "a is bad"}, {"b", "b is bad"}, {"c", "c is bad"}}, 2),
            "3 files could not be read and were left out: a is bad; b is bad; ...");
}

// ---- IDX ----

std::string big_endian(uint32_t n) {
  return {static_cast<char>(n >> 24), static_cast<char>(n >> 16), static_cast<char>(n >> 8), static_cast<char>(n)};
}

std::string idx_header(std::vector<uint32_t> sizes) {
  std::string header = big_endian(0x800 + static_cast<uint32_t>(sizes.size()));
  for (const uint32_t size : sizes) header += big_endian(size);
  return header;
}

std::string gzipped(const std::string& name, const std::string& bytes) {
  const gzFile file = gzopen(name.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
  return name;
}

TEST_F(Datasets, Idx) {
  const std::string pictures = idx_header({2, 2, 3}) + "abcdefghijkl", labels = idx_header({2}) + "\x07\x09";
  write("train-images-idx3-ubyte", pictures);
  gzipped(path("train-labels.idx1-ubyte.gz"), labels);
  const IdxFiles files = find_idx(dir_, "train");
  EXPECT_EQ(files.labels, path("train-labels.idx1-ubyte.gz"));
  const LabelledPictures read = read_idx(files);
  ASSERT_EQ(read.pictures.size(), 2u);
  EXPECT_EQ(read.pictures[1].width, 3);
  EXPECT_EQ(read.pictures[1].height, 2);
  EXPECT_EQ(read.pictures[1].channels, 1);
  EXPECT_EQ(std::string(read.pictures[1].bytes.begin(), read.pictures[1].bytes.end()), "ghijkl");
  EXPECT_EQ(read.labels, (std::vector<int64_t>{7, 9}));

  const auto error = [&](const std::string& bytes, int64_t most = 1 << 20) {
    return error_of([&] { read_idx({write("x", bytes), files.labels}, most); });
  };
  EXPECT_SAYS(error_of([&] { find_idx(dir_, "t10k"); }),
              "has no file t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz");
  EXPECT_SAYS(error(labels),
              "x begins with the number 2049; an IDX file of pictures has 16 or more and begins with 2051");
  EXPECT_SAYS(error("ab"), "x has 2 bytes; an IDX file of pictures");
  EXPECT_SAYS(error(pictures.substr(0, 20)), "x is cut off: it has 4 of the 12 bytes that it announces");
  EXPECT_SAYS(error(pictures + "m"), "x has more than the 12 bytes");
  EXPECT_SAYS(error(idx_header({3, 1, 1}) + "abc"), "x has 3 pictures, but " + files.labels + " has 2 labels");
  EXPECT_SAYS(error(idx_header({2, 0, 1})), "dimension 1 is 0");
  EXPECT_SAYS(error(idx_header({0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF})), "more than the 1048576 bytes allowed");
  EXPECT_SAYS(error(idx_header({1 << 10, 1 << 10, 1}) + "abc"), "it has 3 of the 1048576 bytes");
  EXPECT_SAYS(error(pictures, 11), "more than the 11 bytes");
  EXPECT_SAYS(error_of([&] { read_idx({path("none"), files.labels}); }), "there is no file");
  EXPECT_SAYS(error_of([&] { read_idx({dir_, files.labels}); }), "directory");
  // Compressed data that ends too early, and a checksum that is not the data's.
  std::string packed = nn::read_file(gzipped(path("z.gz"), pictures));
  EXPECT_SAYS(error(packed.substr(0, packed.size() - 12)), "cut off");
  packed[packed.size() - 6] = static_cast<char>(packed[packed.size() - 6] ^ 1);
  EXPECT_SAYS(error(packed), "damaged (gzip");
}

TEST(FashionMnist, DebiansFiles) {
  const std::string folder = "/usr/share/datasets/fashion-mnist";
  if (!fs::exists(folder)) GTEST_SKIP() << "no " << folder << " (apt-get install dataset-fashion-mnist)";
  const LabelledPictures read = read_idx(find_idx(folder, "t10k"));
  EXPECT_EQ(read.pictures.size(), 10000u);
  EXPECT_EQ(read.pictures[0].width, 28);
  std::vector<int64_t> counts(10);
  for (const int64_t label : read.labels) counts.at(static_cast<size_t>(label))++;
  EXPECT_EQ(counts, std::vector<int64_t>(10, 1000));
}

// ---- Classes ----

TEST_F(Datasets, ClassFiles) {
  const Classes numbered =
      read_classes(write("a", "\xEF\xBB\xBFSky\r\n# a comment\n\nroad side\nvoid\tignored\tvalue 255\ncar\n"));
  ASSERT_EQ(numbered.classes.size(), 3u);
  EXPECT_EQ(numbered.classes[0].name, "Sky");
  EXPECT_EQ(numbered.classes[1].name, "road side");
  EXPECT_EQ(numbered.classes[2].value, 3);  // its line's, though the one before has another
  EXPECT_EQ(numbered.ignored.at(0).value, 255);
  EXPECT_FALSE(numbered.painted());

  const Classes painted = read_classes(write("b", "ground\t#000000\ncell\t200 0  16\nborder\t#E0e0c0\tignored\n"));
  EXPECT_TRUE(painted.painted());
  EXPECT_EQ(painted.classes.at(1).colour, (Colour{200, 0, 16}));
  EXPECT_EQ(painted.ignored.at(0).colour, (Colour{0xE0, 0xE0, 0xC0}));

  const auto error = [&](const std::string& text) { return error_of([&] { read_classes(write("c", text)); }); };
  EXPECT_SAYS(error("a\nb\t#12345\n"), "c, line 2: \"#12345\" is none of: a colour");
  EXPECT_SAYS(error("a\nb\t#12345g\n"), "\"#12345g\" is none of");
  EXPECT_SAYS(error("a\nb\t1 2 256\n"), "\"1 2 256\" is none of");
  EXPECT_SAYS(error("a\nb\t1 2 3 4\n"), "is none of");
  EXPECT_SAYS(error("a\nb\tvalue x\n"), "\"value x\" has no number from 0 to 65535");
  EXPECT_SAYS(error("a\nb\na\n"), "line 3: the class a is there already");
  EXPECT_SAYS(error("a\tvalue 1\nb\n"), "line 2: the value 1 belongs to another");
  EXPECT_SAYS(error("a\t#000000\nb\t0 0 0\n"), "line 2: its colour belongs");
  EXPECT_SAYS(error("a\t#000000\nb\n"), "line 2: it has no colour and the classes before have one");
  EXPECT_SAYS(error("a\nb\t#000000\n"), "line 2: it has a colour and the classes before have none");
  EXPECT_SAYS(error("a\n\t#000000\n"), "line 2: the class has no name");
  EXPECT_SAYS(error("a\n\xff\n"), "line 2: it is not UTF-8");
  EXPECT_SAYS(error("a\nb\tignored\n"), "lists 1 classes that are not ignored");
  EXPECT_SAYS(error(""), "lists 0 classes");
  EXPECT_SAYS(error(std::string(2 << 20, 'a')), "2097152 bytes");
  EXPECT_SAYS(error_of([&] { read_classes(path("none")); }), "there is no file");
  EXPECT_SAYS(error_of([&] { read_classes(dir_); }), "directory");
}

// ---- Pictures and masks ----

TEST_F(Datasets, MaskPairs) {
  picture("p/a.png");
  picture("p/deep/b.png");
  write("p/c.jpg", "broken");
  picture("p/alone.png");
  write("p/readme.txt", "");
  picture("m/a.bmp", 1);
  picture("m/deep/b.png", 0);
  picture("m/c.png", 0);
  picture("m/left.png", 0);
  for (const char* end : {"", "/"}) {
    const MaskPairs found = find_mask_pairs(path("p") + end, path("m") + end);
    ASSERT_EQ(found.pairs.size(), 3u);
    EXPECT_EQ(fs::path(found.pairs[2].mask).lexically_normal(), path("m/deep/b.png"));
    EXPECT_EQ(found.pictures_without_mask.size(), 1u);
    EXPECT_EQ(found.masks_without_picture.size(), 1u);
    if (*end) continue;
    EXPECT_EQ(found.summary(), "3 pictures with masks; 1 picture has no mask: " + path("p/alone.png") +
                                   "; 1 mask has no picture: " + path("m/left.png") +
                                   "; 1 file that is not a picture was ignored");
  }
  const MaskPairs found = find_mask_pairs(path("p"), path("m"));
  const Classes classes = read_classes(write("classes", "ground\nthing\n"));
  const MaskedPictures read = read_mask_pairs(found.pairs, classes);
  ASSERT_EQ(read.masks.size(), 2u);
  EXPECT_EQ(read.masks[0].values, (std::vector<uint16_t>{1, 1, 1, 1}));
  EXPECT_EQ(read.skipped.at(0).path, path("p/c.jpg"));
  const MaskedPictures small = read_mask_pairs(found.pairs, classes, {}, [](Picture& p, Labels& labels) {
    p = with_channels(p, 1);
    labels.values[0] = 9;
  });
  EXPECT_EQ(small.pictures[0].channels, 1);
  EXPECT_EQ(small.masks[1].values[0], 9);

  // Mistakes that more files would share are errors, the first one's.
  picture("m/deep/b.png", 5, 2, 3);
  EXPECT_SAYS(error_of([&] { read_mask_pairs(found.pairs, classes); }),
              path("m/deep/b.png") + " has the value 5 at (0, 0), which is none of the 2 classes nor ignored");
  picture("m/deep/b.png", 0, 2, 3);
  EXPECT_SAYS(error_of([&] { read_mask_pairs(found.pairs, classes); }),
              path("p/deep/b.png") + " has 2 x 2 pixels, but its mask " + path("m/deep/b.png") + " has 2 x 3;");

  picture("p/a.jpg");
  EXPECT_SAYS(error_of([&] { find_mask_pairs(path("p"), path("m")); }),
              path("p/a.jpg") + " and " + path("p/a.png") + " differ in their ending only");
  EXPECT_SAYS(error_of([&] { find_mask_pairs(path("m"), path("p/deep")); }),
              "no picture has a mask of the same name: of pictures " + path("m") + " has " + path("m/a.bmp"));
  EXPECT_SAYS(error_of([&] { find_mask_pairs(path("none"), path("m")); }), "there is no folder");
}

TEST_F(Datasets, MasksByTheirClasses) {
  const Classes numbered = read_classes(write("n", "void\tignored\na\nb\tvalue 700\n"));
  const std::string mask = path("m.png");
  const std::vector<Colour> palette = {{9, 9, 9}, {1, 0, 0}, {0, 2, 0}};
  write_labels(mask, {3, 1, {0, 1, 0}}, palette);
  EXPECT_EQ(read_mask(mask, numbered).values, (std::vector<uint16_t>{kIgnoredLabel, 0, kIgnoredLabel}));
  write_labels(mask, {3, 1, {0, 1, 2}}, palette);
  EXPECT_SAYS(error_of([&] { read_mask(mask, numbered); }),
              mask + " has the value 2 at (2, 0), which is none of the 2");
  // Painted: the colours count, not the indices.
  const Classes painted = read_classes(write("p", "b\t0 2 0\na\t1 0 0\nvoid\t9 9 9\tignored\n"));
  EXPECT_EQ(read_mask(mask, painted).values, (std::vector<uint16_t>{kIgnoredLabel, 1, 0}));
  const Classes other = read_classes(write("o", "b\t0 2 0\na\t1 0 0\n"));
  EXPECT_SAYS(error_of([&] { read_mask(mask, other); }),
              mask + " has the colour #090909 at (0, 0), which is none of the 2");
}

std::string shared_data(const std::string& name) {
  const char* folder = std::getenv("HEED_SHARED");
  return std::string(folder != nullptr ? folder : HEED_SHARED_DIR) + "/data/" + name;
}

TEST_F(Datasets, CamVid) {
  const std::string folder = shared_data("camvid");
  if (!fs::exists(folder)) GTEST_SKIP() << "no " << folder;
  const MaskPairs pairs = find_mask_pairs(folder + "/val", folder + "/valannot");
  EXPECT_EQ(pairs.summary(), "101 pictures with masks");
  const Classes classes = read_classes(write(
      "c",
      "Sky\nBuilding\nPole\nRoad\nPavement\nTree\nSignSymbol\nFence\nCar\nPedestrian\nBicyclist\nVoid\tignored\n"));
  const MaskedPictures read = read_mask_pairs(pairs.pairs, classes);
  EXPECT_EQ(read.masks.size(), 101u);
  EXPECT_TRUE(read.skipped.empty());
  EXPECT_EQ(read.masks[0].width, 240);
  EXPECT_SAYS(
      error_of([&] { read_mask_pairs(find_mask_pairs(folder + "/val", folder + "/valannot_480x360").pairs, classes); }),
      "pixels, but its mask");
}

TEST_F(Datasets, Nuclei) {
  const std::string folder = shared_data("nuclei");
  if (!fs::exists(folder)) GTEST_SKIP() << "no " << folder;
  const MaskPairs pairs = find_mask_pairs(folder + "/images", folder + "/masks");
  EXPECT_EQ(pairs.pairs.size(), 267u);
  const MaskedPictures read =
      read_mask_pairs(std::span(pairs.pairs).first(20), read_classes(write("c", "ground\nnucleus\n")));
  EXPECT_EQ(read.masks.size(), 20u);
}

}  // namespace
}  // namespace heed::pictures
