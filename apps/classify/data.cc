// Labelled pictures in memory: where they come from, and what of them goes into the network.
#include "apps/classify/data.h"

#include <heed/attention.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "apps/pictures/datasets.h"

namespace heed::classify {
namespace {

namespace fs = std::filesystem;
using pictures::LabelledFile;
using pictures::LabelledPictures;
using pictures::Picture;
using pictures::Preprocess;

constexpr int64_t kLargestSide = 128;  // that is chosen without being asked for
constexpr int64_t kLooked = 32;        // pictures that are looked at to choose
constexpr int64_t kSkippedNamed = 10;  // files that could not be read and are called by name

Preprocess square(int64_t side, int64_t channels) {
  Preprocess p = Preprocess::defaults(Preprocess::Kind::vit);
  p.resize = pictures::Size{side, side};
  p.mean = p.std = std::vector<double>(static_cast<size_t>(channels), 0.5);
  return p;
}

// The shorter side of the smallest of some pictures all over the list.
int64_t fitting_side(const std::vector<LabelledFile>& files) {
  int64_t side = kLargestSide;
  const auto n = static_cast<int64_t>(files.size()), looked = std::min(n, kLooked);
  for (int64_t i = 0; i < looked; ++i) {
    try {
      const Picture picture = pictures::read_picture(files[static_cast<size_t>(i * n / looked)].path);
      side = std::min({side, picture.width, picture.height});
    } catch (const Error&) {
      // Told when all are read.
    }
  }
  return side;
}

// A class for each number up to the largest label.
std::vector<std::string> classes_of(const std::vector<int64_t>& labels, const std::vector<std::string>& names,
                                    const std::string& folder) {
  const int64_t count = *std::max_element(labels.begin(), labels.end()) + 1;
  if (std::set<int64_t>(labels.begin(), labels.end()).size() < 2) {
    throw Error(folder + " has pictures of one class only, number " + std::to_string(count - 1) +
                "; two classes at least are needed");
  }
  if (!names.empty()) {
    if (static_cast<int64_t>(names.size()) < count) {
      throw Error(folder + " has labels from 0 to " + std::to_string(count - 1) + ", and there are names for " +
                  std::to_string(names.size()) + " classes; give each class one");
    }
    return names;
  }
  std::vector<std::string> numbers;
  for (int64_t i = 0; i < count; ++i) numbers.push_back(std::to_string(i));
  return numbers;
}

void check_labels(const std::vector<int64_t>& labels, const std::vector<std::string>& classes,
                  const std::string& folder) {
  const int64_t largest = *std::max_element(labels.begin(), labels.end());
  if (largest < static_cast<int64_t>(classes.size())) return;
  throw Error(folder + " has the label " + std::to_string(largest) + ", and the model knows " +
              std::to_string(classes.size()) + " classes, numbered from 0");
}

void check_each_read(const std::vector<int64_t>& labels, const std::vector<std::string>& classes,
                     const std::string& folder) {
  const std::set<int64_t> read(labels.begin(), labels.end());
  for (size_t i = 0; i < classes.size(); ++i) {
    if (read.count(static_cast<int64_t>(i)) > 0) continue;
    throw Error("no picture of the class " + classes[i] + " in " + folder +
                " could be read; mend one or remove the folder");
  }
}

// Lays the pictures one behind the other. They are of one size, since they were prepared.
void lay_out(LabelledPictures&& read, PictureSet& set) {
  set.height = read.pictures.front().height;
  set.width = read.pictures.front().width;
  const auto size = static_cast<size_t>(set.height * set.width * set.channels);
  set.bytes.reserve(read.pictures.size() * size);
  for (Picture& picture : read.pictures) {
    if (picture.bytes.size() != size || picture.width != set.width) {
      throw Error("the pictures come out in different sizes, " + std::to_string(set.width) + " x " +
                  std::to_string(set.height) + " and " + std::to_string(picture.width) + " x " +
                  std::to_string(picture.height) +
                  "; preprocessor_config.json must resize or crop them to one height and width");
    }
    set.bytes.insert(set.bytes.end(), picture.bytes.begin(), picture.bytes.end());
    picture.bytes = {};
  }
  set.labels = std::move(read.labels);
}

}  // namespace

// ---- Reading ----

std::span<const uint8_t> PictureSet::picture(int64_t i) const {
  const auto size = static_cast<size_t>(height * width * channels);
  return {bytes.data() + static_cast<size_t>(i) * size, size};
}

bool holds_idx(const std::string& folder, const std::string& split) {
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name.starts_with(split + "-images") && name.find("idx3-ubyte") != std::string::npos) return true;
  }
  return false;
}

PictureSet read_data(const std::string& folder, const DataOptions& options) {
  PictureSet set;
  LabelledPictures read;
  if (holds_idx(folder, "train") || holds_idx(folder, "t10k")) {
    read = pictures::read_idx(pictures::find_idx(folder, options.training ? "train" : "t10k"));
    set.classes = options.classes.empty() ? classes_of(read.labels, options.names, folder) : options.classes;
    check_labels(read.labels, set.classes, folder);
    set.channels = options.channels > 0 ? options.channels : 1;
    const Picture& first = read.pictures.front();
    const int64_t side = options.size > 0 ? options.size : std::max(first.width, first.height);
    set.preprocess = options.preprocess ? *options.preprocess : square(side, set.channels);
    for (Picture& picture : read.pictures) {
      picture = pictures::prepare(pictures::with_channels(std::move(picture), set.channels), set.preprocess);
    }
  } else {
    const pictures::ClassFolders found = pictures::find_class_folders(folder, options.classes);
    set.classes = found.classes;
    set.channels = options.channels > 0 ? options.channels : 3;
    set.notes.push_back(found.summary());
    if (options.preprocess) {
      set.preprocess = *options.preprocess;
    } else {
      set.preprocess = square(options.size > 0 ? options.size : fitting_side(found.files), set.channels);
    }
    read = pictures::read_pictures(found.files, {.channels = set.channels},
                                   [&](const Picture& picture) { return pictures::prepare(picture, set.preprocess); });
    if (!read.skipped.empty()) set.notes.push_back(pictures::summary(read.skipped, kSkippedNamed));
    if (options.classes.empty()) check_each_read(read.labels, set.classes, folder);
  }
  lay_out(std::move(read), set);
  return set;
}

// ---- Batches ----

namespace {

// What happens to one picture.
struct Change {
  int64_t down = 0, right = 0;  // where the picture's content moves
  bool flip = false;
  int64_t top = 0, left = 0, bottom = 0, end = 0;  // the erased rectangle: rows top..bottom - 1, columns left..end - 1
  bool erased(int64_t y, int64_t x) const { return y >= top && y < bottom && x >= left && x < end; }
};

constexpr int64_t kDraws = 8;  // numbers in [0, 1) that decide about a picture

Change change_of(const double* chance, const Augmentation& a, int64_t height, int64_t width) {
  const auto whole = [](double u, int64_t choices) {  // 0, 1, ... choices - 1
    return std::min(static_cast<int64_t>(u * static_cast<double>(choices)), choices - 1);
  };
  Change change;
  change.down = whole(chance[0], 2 * a.crop + 1) - a.crop;
  change.right = whole(chance[1], 2 * a.crop + 1) - a.crop;
  change.flip = a.flip && chance[2] < 0.5;
  if (chance[3] < a.erase) {
    // Area and shape as in the paper; what would not fit is made to, where the paper draws again.
    const double area = (0.02 + 0.31 * chance[4]) * static_cast<double>(height * width);
    const double shape = 0.3 * std::pow(1 / 0.3 / 0.3, chance[5]);
    const auto side = [](double pixels, int64_t most) {
      return std::clamp<int64_t>(std::llround(std::sqrt(pixels)), 1, most);
    };
    const int64_t rows = side(area * shape, height), columns = side(area / shape, width);
    change.top = whole(chance[6], height - rows + 1);
    change.left = whole(chance[7], width - columns + 1);
    change.bottom = change.top + rows;
    change.end = change.left + columns;
  }
  return change;
}

}  // namespace

torch::Tensor make_batch(const PictureSet& set, std::span<const int64_t> rows, const Augmentation& augmentation) {
  const auto tables = pictures::numbers_of(set.preprocess, set.channels);
  const auto count = static_cast<int64_t>(rows.size());
  const bool changes = augmentation.crop > 0 || augmentation.flip || augmentation.erase > 0;
  const torch::Tensor chances = changes ? torch::rand({count, kDraws}, torch::kFloat64) : torch::Tensor();
  torch::Tensor batch = torch::empty({count, set.channels, set.height, set.width}, torch::kFloat32);
  float* out = batch.data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* in = set.picture(rows[static_cast<size_t>(i)]).data();
    const Change change =
        changes ? change_of(chances.data_ptr<double>() + i * kDraws, augmentation, set.height, set.width) : Change{};
    for (int64_t c = 0; c < set.channels; ++c) {
      const std::array<float, 256>& table = tables[static_cast<size_t>(c)];
      for (int64_t y = 0; y < set.height; ++y) {
        for (int64_t x = 0; x < set.width; ++x) {
          const int64_t from_y = y - change.down;
          const int64_t from_x = (change.flip ? set.width - 1 - x : x) - change.right;
          const bool inside = from_y >= 0 && from_y < set.height && from_x >= 0 && from_x < set.width;
          const uint8_t byte = inside ? in[(from_y * set.width + from_x) * set.channels + c] : uint8_t{0};
          *out++ = change.erased(y, x) ? 0.0f : table[byte];
        }
      }
    }
  }
  return batch;
}

}  // namespace heed::classify
