// A scene, from back to front: gradient, blobs, items, noise; and the folder of many.
#include "apps/segment/scenes.h"

#include <heed/attention.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <optional>
#include <string_view>
#include <system_error>

#include "libtorch/files.h"
#include "libtorch/splitmix.h"

namespace heed::segment {
namespace {

namespace fs = std::filesystem;
using pictures::Colour;
using pictures::LabelledPictures;
using pictures::Picture;

// ---- What is drawn by lot ----

class Lots {
 public:
  explicit Lots(uint64_t seed) : seed_(seed) {}

  // A whole number from low to high, both included; their difference is below 2^31.
  int64_t between(int64_t low, int64_t high) {
    const auto lot = static_cast<int64_t>(nn::splitmix(seed_, drawn_++) >> 33);  // 31 bits
    return low + (lot * (high - low + 1) >> 31);
  }
  Colour colour(int64_t darkest) {
    Colour c;
    for (uint8_t* channel : {&c.red, &c.green, &c.blue}) *channel = static_cast<uint8_t>(between(darkest, 255));
    return c;
  }

 private:
  uint64_t seed_, drawn_ = 0;
};

// ---- The ground ----

// The colour at `share` / 256 of its brightness.
Colour shaded(const Colour& colour, int64_t share) {
  const auto part = [&](uint8_t channel) { return static_cast<uint8_t>(channel * share >> 8); };
  return {part(colour.red), part(colour.green), part(colour.blue)};
}

void paint(Picture& picture, int64_t pixel, const Colour& colour) {
  uint8_t* at = picture.bytes.data() + 3 * pixel;
  at[0] = colour.red, at[1] = colour.green, at[2] = colour.blue;
}

// From corner to corner.
Picture gradient(int64_t size, Lots& lots) {
  Colour corners[4];
  for (Colour& corner : corners) corner = lots.colour(0);
  Picture picture{size, size, 3, std::vector<uint8_t>(static_cast<size_t>(3 * size * size))};
  const int64_t last = size - 1;
  for (int64_t y = 0; y < size; ++y) {
    for (int64_t x = 0; x < size; ++x) {
      const auto mixed = [&](uint8_t Colour::*channel) {
        const int64_t above = corners[0].*channel * (last - x) + corners[1].*channel * x;
        const int64_t below = corners[2].*channel * (last - x) + corners[3].*channel * x;
        return static_cast<uint8_t>((above * (last - y) + below * y) / (last * last));
      };
      paint(picture, y * size + x, {mixed(&Colour::red), mixed(&Colour::green), mixed(&Colour::blue)});
    }
  }
  return picture;
}

// An ellipse or a rectangle, about as large as an item and shaded as one, of one colour or in stripes of two: neither
// colour nor texture nor an edge alone tells an item. Its measures are in 1/1024 of the scene.
void add_blob(Picture& picture, Lots& lots) {
  const bool ellipse = lots.between(0, 1) == 0, striped = lots.between(0, 1) == 0;
  const int64_t cx = lots.between(0, 1023), cy = lots.between(0, 1023);
  const int64_t rx = lots.between(40, 260), ry = lots.between(40, 260);
  const int64_t across = lots.between(-4, 4), down = lots.between(1, 4);  // the way from stripe to stripe
  const int64_t period = lots.between(100, 400);
  const Colour colours[] = {lots.colour(0), lots.colour(0)};
  for (int64_t y = 0; y < picture.height; ++y) {
    for (int64_t x = 0; x < picture.width; ++x) {
      const int64_t u = x * 1024 / picture.width, v = y * 1024 / picture.height;
      const int64_t dx = u - cx, dy = v - cy;
      const bool inside = ellipse ? dx * dx * ry * ry + dy * dy * rx * rx <= rx * rx * ry * ry
                                  : std::abs(dx) <= rx && std::abs(dy) <= ry;
      if (!inside) continue;
      const int64_t way = u * across + v * down + 4 * 1024;  // above 0
      const bool second = striped && way % period < period / 2;
      paint(picture, y * picture.width + x, shaded(colours[second], 160 + 96 * dx / rx));
    }
  }
}

void add_noise(Picture& picture, Lots& lots) {
  const int64_t most = lots.between(4, 16);
  for (uint8_t& byte : picture.bytes) {
    byte = static_cast<uint8_t>(std::clamp<int64_t>(byte + lots.between(-most, most), 0, 255));
  }
}

// ---- The items ----

constexpr int kDarkest = 25;  // a darker pixel does not belong to the item: a tenth of 255

// The picture with that width and height, by linear interpolation in 1/256 of its pixels.
Picture scaled(const Picture& grey, int64_t width, int64_t height) {
  Picture out{width, height, 1, std::vector<uint8_t>(static_cast<size_t>(width * height))};
  struct Place {
    int64_t first, second, part;  // of the second, in 1/256
  };
  // Pixels are squares, and their middles correspond.
  const auto place = [](int64_t at, int64_t from, int64_t to) {
    const int64_t middle = std::clamp<int64_t>((2 * at + 1) * from * 128 / to - 128, 0, (from - 1) * 256);
    return Place{middle / 256, std::min(middle / 256 + 1, from - 1), middle % 256};
  };
  for (int64_t y = 0; y < height; ++y) {
    const Place down = place(y, grey.height, height);
    for (int64_t x = 0; x < width; ++x) {
      const Place along = place(x, grey.width, width);
      const auto row = [&](int64_t of) {
        const uint8_t* bytes = grey.bytes.data() + of * grey.width;
        return bytes[along.first] * (256 - along.part) + bytes[along.second] * along.part;
      };
      out.bytes[static_cast<size_t>(y * width + x)] =
          static_cast<uint8_t>((row(down.first) * (256 - down.part) + row(down.second) * down.part) >> 16);
    }
  }
  return out;
}

struct ItemPixel {
  int64_t pixel;  // of the scene
  uint8_t value;
};

// Where an item with its left upper corner at (left, top) is seen, were it alone.
std::vector<ItemPixel> covered(const Picture& item, int64_t left, int64_t top, int64_t size) {
  std::vector<ItemPixel> found;
  for (int64_t y = std::max<int64_t>(0, -top); y < std::min(item.height, size - top); ++y) {
    for (int64_t x = std::max<int64_t>(0, -left); x < std::min(item.width, size - left); ++x) {
      const uint8_t value = item.bytes[static_cast<size_t>(y * item.width + x)];
      if (value >= kDarkest) found.push_back({(top + y) * size + left + x, value});
    }
  }
  return found;
}

// Which item each pixel shows, and how much of each item is still to be seen.
class Stack {
 public:
  explicit Stack(int64_t size) : top_(static_cast<size_t>(size * size), -1) {}

  // Whether half of every item stays visible under these pixels.
  bool has_room_for(const std::vector<ItemPixel>& pixels) const {
    std::vector<int64_t> left = visible_;
    for (const ItemPixel& p : pixels) {
      if (const int item = top_[static_cast<size_t>(p.pixel)]; item >= 0) left[static_cast<size_t>(item)]--;
    }
    for (size_t i = 0; i < left.size(); ++i) {
      if (2 * left[i] < whole_[i]) return false;
    }
    return true;
  }
  void put(const std::vector<ItemPixel>& pixels) {
    const auto item = static_cast<int>(whole_.size());
    for (const ItemPixel& p : pixels) {
      int& top = top_[static_cast<size_t>(p.pixel)];
      if (top >= 0) visible_[static_cast<size_t>(top)]--;
      top = item;
    }
    whole_.push_back(static_cast<int64_t>(pixels.size()));
    visible_.push_back(whole_.back());
  }

 private:
  std::vector<int> top_;  // -1: the ground
  std::vector<int64_t> whole_, visible_;
};

constexpr int kTries = 30;  // of a place for an item

// The pixels of an item at a place where it hides no other's half; none where no try found one.
std::optional<std::vector<ItemPixel>> find_place(const Picture& item, int64_t size, const Stack& stack, Lots& lots) {
  for (int i = 0; i < kTries; ++i) {
    const auto along = [&](int64_t side) { return lots.between(-side / 6, size - side + side / 6); };
    const int64_t left = along(item.width), top = along(item.height);
    std::vector<ItemPixel> pixels = covered(item, left, top, size);
    if (stack.has_room_for(pixels)) return pixels;
  }
  return {};
}

void check_items(const LabelledPictures& items) {
  if (items.pictures.empty()) throw Error("there are no items to compose a scene of; at least 1 is needed");
  if (items.pictures.size() != items.labels.size()) {
    throw Error("there are " + std::to_string(items.pictures.size()) + " items and " +
                std::to_string(items.labels.size()) + " labels; each item needs one");
  }
}

// ---- The folder of many ----

constexpr const char* kUnfinished = ".unfinished";

void check_options(const ScenesOptions& o) {
  const auto require = [](bool good, const std::string& what, int64_t value, const std::string& rule) {
    if (!good) throw Error(what + " is " + std::to_string(value) + "; it must be " + rule);
  };
  if (o.out.empty()) throw Error("the scenes need a folder; name one that is not there yet");
  require(o.count >= 1 && o.count <= 1'000'000, "count", o.count, "from 1 to 1000000");
  require(o.test >= 0 && o.test <= 1'000'000, "test", o.test, "from 0 to 1000000");
  require(o.classes.size() < 256, "the number of classes", static_cast<int64_t>(o.classes.size()), "at most 255");
}

// The folder's new content, which comes to its place as a whole or not at all.
class NewContent {
 public:
  explicit NewContent(const std::string& out) : out_(out), work_(out_ / kUnfinished) {
    std::error_code error;
    if (fs::exists(out_, error) && !fs::is_directory(out_, error)) {
      throw Error(out + " is a file; name a folder that is not there yet");
    }
    made_ = fs::create_directories(out_, error);
    if (error) throw Error("cannot make the folder " + out + ": " + error.message());
    for (fs::directory_iterator at(out_, error), end; !error && at != end; at.increment(error)) {
      if (at->path().filename() != kUnfinished) {
        throw Error("the folder " + out + " is not empty (" + at->path().filename().string() +
                    "); name another, or empty it");
      }
    }
    if (!error) fs::remove_all(work_, error);
    if (!error) fs::create_directory(work_, error);
    if (error) throw Error("cannot use the folder " + out + ": " + error.message());
  }
  ~NewContent() {
    std::error_code ignored;
    fs::remove_all(work_, ignored);
    if (made_ && !finished_) fs::remove(out_, ignored);
  }
  NewContent(const NewContent&) = delete;
  NewContent& operator=(const NewContent&) = delete;

  std::string folder(const std::string& name) const {
    std::error_code error;
    fs::create_directory(work_ / name, error);
    if (error) throw Error("cannot make a folder in " + out_.string() + ": " + error.message());
    return (work_ / name).string();
  }
  std::string file(const std::string& name) const { return (work_ / name).string(); }

  // Moves these to their places, in this order: the last says that all are there.
  void finish(const std::vector<std::string>& names) {
    finished_ = true;
    for (const std::string& name : names) {
      std::error_code error;
      fs::rename(work_ / name, out_ / name, error);
      if (error) throw Error("cannot finish the folder " + out_.string() + ": " + error.message());
    }
  }

 private:
  fs::path out_, work_;
  bool made_ = false, finished_ = false;
};

// The colours that Pascal VOC gives its labels, by which viewers know masks: the bits of a label are dealt to red,
// green and blue in turn, the highest places first. 0 is black.
std::vector<Colour> palette(size_t labels) {
  std::vector<Colour> colours(labels);
  for (size_t label = 0; label < labels; ++label) {
    const auto channel = [&](int first) {
      int value = 0;
      for (int bit = first, place = 7; bit < 8; bit += 3, --place)
        value |= (static_cast<int>(label) >> bit & 1) << place;
      return static_cast<uint8_t>(value);
    };
    colours[label] = {channel(0), channel(1), channel(2)};
  }
  return colours;
}

std::vector<std::string> names_of(const ScenesOptions& options) {
  if (options.classes.empty()) return {std::begin(kFashionClasses), std::end(kFashionClasses)};
  return options.classes;
}

LabelledPictures read_items(const std::string& folder, const std::string& split, size_t classes) {
  std::error_code ignored;
  if (folder == kFashionMnist && !fs::is_directory(folder, ignored)) {
    throw Error("there is no folder " + folder +
                "; install dataset-fashion-mnist (apt-get install), or name another folder of IDX files");
  }
  LabelledPictures items = pictures::read_idx(pictures::find_idx(folder, split));
  for (const int64_t label : items.labels) {
    if (label >= static_cast<int64_t>(classes)) {
      throw Error(folder + " has the label " + std::to_string(label) + ", and there are names for " +
                  std::to_string(classes) + " classes; give a file with the name of each label");
    }
  }
  return items;
}

std::string file_name(int64_t i) {
  const std::string number = std::to_string(i);
  return "/" + std::string(std::max<size_t>(5, number.size()) - number.size(), '0') + number + ".png";
}

}  // namespace

Scene compose_scene(const LabelledPictures& items, int64_t size, uint64_t seed) {
  check_items(items);
  if (size < 32 || size > 1024) throw Error("size is " + std::to_string(size) + "; a scene has from 32 to 1024 pixels");
  Lots lots(seed);
  Scene scene{gradient(size, lots), {size, size, std::vector<uint16_t>(static_cast<size_t>(size * size))}};
  for (int64_t n = lots.between(6, 12); n > 0; --n) add_blob(scene.picture, lots);

  Stack stack(size);
  for (int64_t n = lots.between(2, 5); n > 0; --n) {
    const auto drawn = static_cast<size_t>(lots.between(0, static_cast<int64_t>(items.pictures.size()) - 1));
    const Picture& grey = items.pictures[drawn];
    const int64_t label = items.labels[drawn];
    pictures::check_picture(grey);
    if (grey.channels != 1) throw Error("an item has 3 channels; it must have 1, light on black");
    if (label < 0 || label > 254) {
      throw Error("an item has the label " + std::to_string(label) + "; it must be from 0 to 254");
    }
    const int64_t side = lots.between(7 * size / 30, 7 * size / 15), longer = std::max(grey.width, grey.height);
    const Colour tint = lots.colour(60);
    const Picture item = scaled(grey, std::max<int64_t>(1, grey.width * side / longer),
                                std::max<int64_t>(1, grey.height * side / longer));
    const auto pixels = find_place(item, size, stack, lots);
    if (!pixels) continue;
    stack.put(*pixels);
    for (const ItemPixel& p : *pixels) {
      paint(scene.picture, p.pixel, shaded(tint, 64 + p.value * 192 / 255));
      scene.labels.values[static_cast<size_t>(p.pixel)] = static_cast<uint16_t>(label + 1);
    }
  }
  add_noise(scene.picture, lots);
  return scene;
}

void write_scenes(const ScenesOptions& options, const std::function<void(int64_t done)>& progress) {
  check_options(options);
  NewContent content(options.out);
  const std::vector<std::string> names = names_of(options);
  std::string classes = "background\n";
  for (const std::string& name : names) classes += name + "\n";
  nn::write_file(content.file("classes.txt"), classes);
  pictures::read_classes(content.file("classes.txt"));  // throws where a name comes twice or is "background"

  const std::vector<Colour> colours = palette(names.size() + 1);
  int64_t done = 0;
  std::vector<std::string> finished;
  const auto write = [&](const std::string& split, const std::string& before, int64_t count, uint64_t stream) {
    if (count == 0) return;
    const LabelledPictures items = read_items(options.from, split, names.size());
    const std::string images = content.folder(before + "images"), masks = content.folder(before + "masks");
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t seed = nn::splitmix(nn::splitmix(options.seed, stream), static_cast<uint64_t>(i));
      const Scene scene = compose_scene(items, options.size, seed);
      pictures::write_png(images + file_name(i), scene.picture);
      pictures::write_labels(masks + file_name(i), scene.labels, colours);
      if (progress) progress(++done);
    }
    finished.insert(finished.end(), {before + "images", before + "masks"});
  };
  write("t10k", "test-", options.test, 1);
  write("train", "", options.count, 0);
  finished.push_back("classes.txt");
  content.finish(finished);
}

}  // namespace heed::segment
