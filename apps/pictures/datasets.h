// Data sets on disk: a folder per class, IDX files, pictures with masks, and the files that list classes. Needs no
// LibTorch but its threads.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "apps/pictures/picture.h"

namespace heed::pictures {

// A file that could not be read, and the error that says why.
struct Skipped {
  std::string path, reason;
};

// "2 files could not be read and were left out: <reason>; <reason>", the first `most` of them; empty for none.
std::string summary(const std::vector<Skipped>& skipped, int64_t most = 3);

// ---- A folder per class ----

struct LabelledFile {
  std::string path;
  int64_t label = 0;  // a place in the classes
};

struct ClassFolders {
  std::vector<std::string> classes;  // the names of the folders, sorted by their bytes
  std::vector<LabelledFile> files;   // by class, then by path
  int64_t ignored = 0;               // other files met: not pictures, neither by their ending nor by their content
  int64_t beside = 0;                // pictures that lie beside the class folders, so in no class; left out, too

  std::string summary() const;  // "2750 pictures in 10 classes; 3 files that are not pictures were ignored"
};

// Finds the pictures under folder/CLASS/, at any depth. A file is one when its name ends as one's (.png .jpg .jpeg
// .webp .bmp, in any case) or its content begins as one's; whether it can be decoded shows when it is read. Hidden
// files and folders are passed over, links to files and to class folders followed. Throws heed::Error when the folder
// is missing, when there are fewer than two classes, and when a class has no picture. With `classes` (a model's, for
// its other data) labels are places in those, some may be missing or empty, and a folder with another name is an error.
ClassFolders find_class_folders(const std::string& folder, const std::vector<std::string>& classes = {});

struct LabelledPictures {
  std::vector<Picture> pictures;
  std::vector<int64_t> labels;   // of each picture
  std::vector<Skipped> skipped;  // in the order of the files
};

// Reads the files on LibTorch's threads and hands each picture to `prepare` (from several threads at a time), which
// makes of it what is kept: thousands of photographs fit in memory only when made small. A file that cannot be read is
// left out and told in `skipped`. What `prepare` throws is thrown on. Throws heed::Error when no file can be read.
LabelledPictures read_pictures(std::span<const LabelledFile> files, const ReadOptions& options = {},
                               const std::function<Picture(Picture)>& prepare = {});

// ---- IDX: MNIST, Fashion-MNIST, EMNIST (yann.lecun.com/exdb/mnist) ----

struct IdxFiles {
  std::string pictures, labels;
};

// The files of a split ("train" or "t10k") in a folder: SPLIT-images-idx3-ubyte and SPLIT-labels-idx1-ubyte, also with
// .gz, and with a dot before idx. Throws heed::Error naming what is missing.
IdxFiles find_idx(const std::string& folder, const std::string& split);

// Grey pictures and their labels, compressed by gzip or not (told by the content). Throws heed::Error, naming the file,
// when a header is not that of unsigned bytes with 3 and 1 dimensions, when more or fewer bytes follow than it says or
// more than max_bytes, and when there are not as many labels as pictures.
LabelledPictures read_idx(const IdxFiles& files, int64_t max_bytes = int64_t{1} << 31);

// ---- Classes and masks ----

struct Class {
  std::string name;
  std::optional<Colour> colour = {};  // in masks that are painted
  int64_t value = 0;                  // in masks that are numbered
};

struct Classes {
  std::vector<Class> classes;  // a label is a place in this list
  std::vector<Class> ignored;  // what masks hold but neither trains nor counts

  bool painted() const { return !classes.empty() && classes[0].colour.has_value(); }
};

// One class a line, UTF-8: a name, and behind tabs, where wanted, its colour (#rrggbb, or r g b from 0 to 255) and the
// word "ignored" for what shall neither train nor count. The value in numbered masks is the line's number, counted from
// 0 without empty lines; another stands behind a tab as "value 255". Lines that begin with # are comments. Either all
// lines have a colour, then masks are painted ones, or none. Example:
//     background TAB #000000
//     cell TAB #c80000
//     border TAB #e0e0c0 TAB ignored TAB value 255
// Throws heed::Error, naming the line, for anything else, for names, colours and values that come twice, and when
// fewer than two classes remain.
Classes read_classes(const std::string& path);

// The text of such a file: read_classes reads back what was written.
std::string classes_text(const Classes& classes);

struct MaskPair {
  std::string picture, mask;
};

struct MaskPairs {
  std::vector<MaskPair> pairs;  // by the picture's path
  std::vector<std::string> pictures_without_mask, masks_without_picture;
  int64_t ignored = 0;  // other files met

  std::string summary() const;  // "367 pictures with masks; 2 pictures have no mask: a.jpg, b.jpg"
};

// Pairs pictures with masks of the same path below their folders, without the ending: train/a/1.jpg with masks/a/1.png.
// What counts as a picture is said at find_class_folders. Throws heed::Error when a folder is missing, when two files
// of one folder differ in the ending only, and when no pair is found.
MaskPairs find_mask_pairs(const std::string& picture_folder, const std::string& mask_folder);

// A mask as labels of `classes`: painted or numbered, as these are, and what they ignore as kIgnoredLabel. Throws
// heed::Error naming the file, the pixel, the value or colour, and the number of classes when it is none of theirs.
Labels read_mask(const std::string& path, const Classes& classes, int64_t max_pixels = ReadOptions{}.max_pixels);

struct MaskedPictures {
  std::vector<Picture> pictures;
  std::vector<Labels> masks;     // of the same size as its picture
  std::vector<Skipped> skipped;  // pairs of which a file could not be read
};

// As read_pictures. A damaged file is skipped; but a mask of another size than its picture or with values that are not
// the classes' is thrown as heed::Error, since more of them would follow.
MaskedPictures read_mask_pairs(std::span<const MaskPair> pairs, const Classes& classes, const ReadOptions& options = {},
                               const std::function<void(Picture&, Labels&)>& prepare = {});

}  // namespace heed::pictures
