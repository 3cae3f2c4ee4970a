// Data sets on disk: finding the files, reading them on all threads, and checking masks against their classes.
#include "apps/pictures/datasets.h"

#include <ATen/Parallel.h>
#include <heed/attention.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>

#include "apps/translate/utf8.h"
#include "libtorch/files.h"

// at::parallel_for is a template: without OpenMP switched on in this file it would run everything on one thread.
#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile apps/pictures/datasets.cc with -fopenmp: this LibTorch runs its threads through OpenMP"
#endif

namespace heed::pictures {
namespace {

namespace fs = std::filesystem;
using translate::trimmed;

std::string count(int64_t n, const std::string& what) { return std::to_string(n) + " " + what + (n == 1 ? "" : "s"); }

// The first few of a list, and that there are more.
std::string first_of(const std::vector<std::string>& names, size_t most = 3) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), most); ++i) text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > most) text += " and " + std::to_string(names.size() - most) + " more";
  return text;
}

std::string ignored_files(int64_t n) {
  if (n == 0) return {};
  return "; " + count(n, "file") + (n == 1 ? " that is not a picture was" : " that are not pictures were") + " ignored";
}

// ---- Finding pictures ----

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

bool may_be_picture(const fs::path& path) {
  std::string ending = path.extension().string();
  for (char& c : ending) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  for (const char* known : {".png", ".jpg", ".jpeg", ".webp", ".bmp"}) {
    if (ending == known) return true;
  }
  std::array<char, 32> start{};
  std::ifstream file(path, std::ios::binary);
  file.read(start.data(), start.size());
  return begins_picture({start.data(), static_cast<size_t>(file.gcount())});
}

void check_folder(const std::string& folder) {
  std::error_code ignored;
  const fs::file_status status = fs::status(folder, ignored);
  if (!fs::exists(status)) throw Error("there is no folder " + folder);
  if (!fs::is_directory(status)) throw Error(folder + " is a file; a folder with pictures is needed");
}

// What lies directly in a folder, sorted, without what is hidden.
std::vector<fs::path> entries(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> paths;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    if (!is_hidden(at->path())) paths.push_back(at->path());
  }
  if (error) throw Error("cannot read the folder " + folder.string() + ": " + error.message());
  std::sort(paths.begin(), paths.end(), [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  return paths;
}

// The pictures below a folder, at any depth, sorted folder by folder. Links to folders are not followed: they may lead
// in circles.
void find_pictures(const fs::path& folder, std::vector<std::string>& found, int64_t& ignored) {
  for (const fs::path& path : entries(folder)) {
    std::error_code error;
    if (fs::is_directory(path, error)) {
      if (!fs::is_symlink(path, error)) find_pictures(path, found, ignored);
    } else if (fs::is_regular_file(path, error) && may_be_picture(path)) {
      found.push_back(path.string());
    } else {
      ignored++;
    }
  }
}

// ---- Reading many ----

// Calls read(i) for every i below n, on all threads.
template <class Read>
void for_all(size_t n, const Read& read) {
  at::parallel_for(0, static_cast<int64_t>(n), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) read(static_cast<size_t>(i));
  });
}

void check_any_left(size_t read, const std::vector<Skipped>& skipped) {
  if (read > 0) return;
  if (skipped.empty()) throw Error("there are no pictures to read");
  throw Error("none of " + count(static_cast<int64_t>(skipped.size()), "picture") +
              " could be read; the first: " + skipped[0].reason);
}

// ---- IDX ----

constexpr int64_t kIdxUnsignedBytes = 0x800;  // the magic number is this plus the number of dimensions

class GzipFile {
 public:
  explicit GzipFile(const std::string& path) : path_(path) {
    std::error_code ignored;
    const fs::file_status status = fs::status(path, ignored);
    if (!fs::exists(status)) throw Error("there is no file " + path);
    if (fs::is_directory(status)) throw Error("cannot read " + path + ": it is a directory, not a file");
    errno = 0;
    file_ = gzopen(path.c_str(), "rbe");
    if (file_ == nullptr) throw Error("cannot read " + path + ": " + std::strerror(errno != 0 ? errno : ENOMEM));
  }
  ~GzipFile() { gzclose(file_); }
  GzipFile(const GzipFile&) = delete;
  GzipFile& operator=(const GzipFile&) = delete;

  // Up to n bytes; fewer only at the end.
  size_t read(uint8_t* to, size_t n) {
    size_t filled = 0;
    while (filled < n) {
      const int got = gzread(file_, to + filled, static_cast<unsigned>(std::min<size_t>(n - filled, 1 << 30)));
      if (got > 0) {
        filled += static_cast<size_t>(got);
        continue;
      }
      int code = Z_OK;
      const char* why = gzerror(file_, &code);
      if (code == Z_ERRNO) throw Error("cannot read " + path_ + ": " + std::strerror(errno));
      if (code == Z_BUF_ERROR) throw Error(path_ + " is cut off: its compressed data ends too early; get it again");
      if (got < 0) throw Error(path_ + " is damaged (gzip: " + why + "); get it again");
      break;
    }
    return filled;
  }

 private:
  const std::string& path_;
  gzFile file_;
};

struct Idx {
  std::vector<int64_t> sizes;
  std::vector<uint8_t> bytes;
};

Idx read_idx_file(const std::string& path, size_t dimensions, int64_t max_bytes) {
  GzipFile file(path);
  uint8_t header[16];
  const size_t header_size = 4 + 4 * dimensions;
  const size_t got = file.read(header, header_size);
  const auto number = [&](size_t at) {
    return int64_t{header[at]} << 24 | header[at + 1] << 16 | header[at + 2] << 8 | header[at + 3];
  };
  const int64_t magic = kIdxUnsignedBytes + static_cast<int64_t>(dimensions);
  if (got < header_size || number(0) != magic) {
    throw Error(path +
                (got < 4 ? " has " + count(static_cast<int64_t>(got), "byte")
                         : " begins with the number " + std::to_string(number(0))) +
                "; an IDX file of " + (dimensions == 3 ? "pictures" : "labels") + " has " +
                std::to_string(header_size) + " or more and begins with " + std::to_string(magic));
  }
  Idx idx;
  int64_t promised = 1;
  for (size_t d = 0; d < dimensions; ++d) {
    idx.sizes.push_back(number(4 + 4 * d));
    if (idx.sizes.back() == 0)
      throw Error(path + " says that its dimension " + std::to_string(d) + " is 0; it is empty");
    if (idx.sizes.back() > max_bytes / promised) {
      throw Error(path + " says that it holds more than the " + std::to_string(max_bytes) +
                  " bytes allowed here; it is damaged or too large");
    }
    promised *= idx.sizes.back();
  }
  // Piece by piece: a small file that promises much costs no memory.
  constexpr size_t kPiece = 1 << 24;
  while (idx.bytes.size() < static_cast<size_t>(promised)) {
    const size_t have = idx.bytes.size(), piece = std::min(kPiece, static_cast<size_t>(promised) - have);
    idx.bytes.resize(have + piece);
    const size_t read = file.read(idx.bytes.data() + have, piece);
    if (read < piece) {
      throw Error(path + " is cut off: it has " + std::to_string(have + read) + " of the " + std::to_string(promised) +
                  " bytes that it announces; get it again");
    }
  }
  uint8_t more = 0;
  if (file.read(&more, 1) != 0) {
    throw Error(path + " has more than the " + std::to_string(promised) + " bytes that it announces; get it again");
  }
  return idx;
}

// ---- Files that list classes ----

bool parse_number(std::string_view text, int64_t most, int64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= 0 && value <= most;
}

// The parts between separators; one more than there are separators.
std::vector<std::string_view> parts_of(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t end = text.find(separator); end != std::string_view::npos; end = text.find(separator)) {
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  parts.push_back(text);
  return parts;
}

// "#rrggbb", or "r g b" from 0 to 255.
std::optional<Colour> parse_colour(std::string_view text) {
  std::array<uint8_t, 3> channels{};
  if (text.starts_with('#')) {
    uint32_t value = 0;
    const auto [end, error] = std::from_chars(text.data() + 1, text.data() + text.size(), value, 16);
    if (text.size() != 7 || error != std::errc() || end != text.data() + text.size()) return {};
    return Colour{static_cast<uint8_t>(value >> 16), static_cast<uint8_t>(value >> 8), static_cast<uint8_t>(value)};
  }
  size_t n = 0;
  for (const std::string_view part : parts_of(text, ' ')) {
    int64_t value = 0;
    if (part.empty()) continue;  // two spaces
    if (n == 3 || !parse_number(part, 255, value)) return {};
    channels[n++] = static_cast<uint8_t>(value);
  }
  if (n < 3) return {};
  return Colour{channels[0], channels[1], channels[2]};
}

// ---- Masks ----

// A mask as its file has it.
using StoredMask = std::variant<Picture, Labels>;

StoredMask read_stored_mask(const std::string& path, const Classes& classes, int64_t max_pixels) {
  if (classes.painted()) return read_picture(path, {.max_pixels = max_pixels});
  return read_labels(path, max_pixels);
}

// Whatever the classes do not know is an error.
Labels labels_of(const StoredMask& mask, const Classes& classes, const std::string& path) {
  std::vector<Class> all = classes.classes;
  all.insert(all.end(), classes.ignored.begin(), classes.ignored.end());
  const auto label_of = [&](size_t place) {
    return place < classes.classes.size() ? static_cast<uint16_t>(place) : kIgnoredLabel;
  };
  if (const Picture* picture = std::get_if<Picture>(&mask)) {
    std::vector<Colour> colours;
    for (const Class& known : all) colours.push_back(known.colour.value());
    Labels labels = labels_of_colours(*picture, colours, path);
    for (uint16_t& label : labels.values) label = label_of(label);
    return labels;
  }
  std::vector<int32_t> label_by_value(65536, -1);
  for (size_t i = 0; i < all.size(); ++i) label_by_value[static_cast<uint16_t>(all[i].value)] = label_of(i);
  Labels labels = std::get<Labels>(mask);
  for (size_t i = 0; i < labels.values.size(); ++i) {
    const int32_t label = label_by_value[labels.values[i]];
    if (label < 0) {
      throw Error(path + " has the value " + std::to_string(labels.values[i]) + " at (" +
                  std::to_string(static_cast<int64_t>(i) % labels.width) + ", " +
                  std::to_string(static_cast<int64_t>(i) / labels.width) + "), which is none of the " +
                  std::to_string(classes.classes.size()) +
                  " classes nor ignored; add it to the classes or mend the mask");
    }
    labels.values[i] = static_cast<uint16_t>(label);
  }
  return labels;
}

}  // namespace

std::string summary(const std::vector<Skipped>& skipped, int64_t most) {
  if (skipped.empty()) return {};
  std::string text = count(static_cast<int64_t>(skipped.size()), "file") + " could not be read and " +
                     (skipped.size() == 1 ? "was" : "were") + " left out: ";
  for (size_t i = 0; i < skipped.size() && static_cast<int64_t>(i) < most; ++i) {
    text += (i > 0 ? "; " : "") + skipped[i].reason;
  }
  return text + (static_cast<int64_t>(skipped.size()) > most ? "; ..." : "");
}

// ---- A folder per class ----

std::string ClassFolders::summary() const {
  std::string text = count(static_cast<int64_t>(files.size()), "picture") + " in " + std::to_string(classes.size()) +
                     " classes" + ignored_files(ignored);
  if (beside > 0)
    text +=
        "; " + count(beside, "picture") + " beside the class folders " + (beside == 1 ? "is" : "are") + " in no class";
  return text;
}

ClassFolders find_class_folders(const std::string& folder, const std::vector<std::string>& classes) {
  check_folder(folder);
  ClassFolders result;
  result.classes = classes;
  for (const fs::path& path : entries(folder)) {
    std::error_code error;
    if (!fs::is_directory(path, error)) {
      (fs::is_regular_file(path, error) && may_be_picture(path) ? result.beside : result.ignored)++;
      continue;
    }
    const std::string name = path.filename().string();
    if (!translate::is_utf8(name))
      throw Error("the folder " + path.string() + " has a name that is not UTF-8; rename it");
    if (classes.empty()) result.classes.push_back(name);
    const auto place = std::find(result.classes.begin(), result.classes.end(), name);
    if (place == result.classes.end()) {
      throw Error("the folder " + path.string() + " is none of the " + std::to_string(classes.size()) +
                  " known classes (" + first_of(classes, 5) + "); rename or remove it");
    }
    std::vector<std::string> found;
    find_pictures(path, found, result.ignored);
    if (found.empty() && classes.empty()) {
      throw Error("the class folder " + path.string() + " has no picture; put pictures into it or remove it");
    }
    for (std::string& file : found) result.files.push_back({std::move(file), place - result.classes.begin()});
  }
  if (result.classes.size() < 2) {
    throw Error(
        folder +
        (result.classes.empty() ? " has no folder for any class" : " has one class only, " + result.classes[0]) +
        "; put the pictures of each class into a folder of its own, of two classes at least");
  }
  if (result.files.empty()) throw Error(folder + " has no picture in the folders of its classes");
  // Given classes may stand in another order than their folders.
  std::stable_sort(result.files.begin(), result.files.end(),
                   [](const LabelledFile& a, const LabelledFile& b) { return a.label < b.label; });
  return result;
}

LabelledPictures read_pictures(std::span<const LabelledFile> files, const ReadOptions& options,
                               const std::function<Picture(Picture)>& prepare) {
  std::vector<Picture> pictures(files.size());
  std::vector<std::string> errors(files.size());
  for_all(files.size(), [&](size_t i) {
    try {
      pictures[i] = read_picture(files[i].path, options);
    } catch (const Error& error) {
      errors[i] = error.what();
      return;
    }
    if (prepare) pictures[i] = prepare(std::move(pictures[i]));
  });
  LabelledPictures result;
  for (size_t i = 0; i < files.size(); ++i) {
    if (!errors[i].empty()) {
      result.skipped.push_back({files[i].path, errors[i]});
      continue;
    }
    result.pictures.push_back(std::move(pictures[i]));
    result.labels.push_back(files[i].label);
  }
  check_any_left(result.pictures.size(), result.skipped);
  return result;
}

// ---- IDX ----

IdxFiles find_idx(const std::string& folder, const std::string& split) {
  check_folder(folder);
  const auto find = [&](const std::string& kind, const std::string& format) {
    for (const char* join : {"-", "."}) {
      for (const char* ending : {"", ".gz"}) {
        const fs::path path = fs::path(folder) / (split + "-" + kind + join + format + ending);
        std::error_code ignored;
        if (fs::is_regular_file(path, ignored)) return path.string();
      }
    }
    throw Error(folder + " has no file " + split + "-" + kind + "-" + format + " or " + split + "-" + kind + "-" +
                format + ".gz");
  };
  return {find("images", "idx3-ubyte"), find("labels", "idx1-ubyte")};
}

LabelledPictures read_idx(const IdxFiles& files, int64_t max_bytes) {
  const Idx pictures = read_idx_file(files.pictures, 3, max_bytes);
  const Idx labels = read_idx_file(files.labels, 1, max_bytes);
  const int64_t n = pictures.sizes[0], height = pictures.sizes[1], width = pictures.sizes[2];
  if (labels.sizes[0] != n) {
    throw Error(files.pictures + " has " + count(n, "picture") + ", but " + files.labels + " has " +
                count(labels.sizes[0], "label") + "; each picture needs one");
  }
  LabelledPictures result;
  result.labels.assign(labels.bytes.begin(), labels.bytes.end());
  for (int64_t i = 0; i < n; ++i) {
    const auto begin = pictures.bytes.begin() + i * height * width;
    result.pictures.push_back({width, height, 1, std::vector<uint8_t>(begin, begin + height * width)});
  }
  return result;
}

// ---- Classes and masks ----

Classes read_classes(const std::string& path) {
  std::error_code ignored;
  const uintmax_t size = fs::is_regular_file(path, ignored) ? fs::file_size(path, ignored) : 0;
  if (!ignored && size > 1 << 20) {
    throw Error(path + " has " + std::to_string(size) + " bytes; a file that lists classes has at most 1048576");
  }
  const std::string text = nn::read_file(path);
  std::string_view rest = text;
  if (rest.starts_with("\xEF\xBB\xBF")) rest.remove_prefix(3);

  Classes classes;
  std::set<std::string> names;
  std::set<int64_t> values;
  std::set<std::array<uint8_t, 3>> colours;
  int64_t number = 0, value = 0;
  for (const std::string_view line : parts_of(rest, '\n')) {
    number++;
    if (trimmed(line).empty() || line.starts_with('#')) continue;
    const auto fail = [&](const std::string& what) {
      throw Error(path + ", line " + std::to_string(number) + ": " + what);
    };
    if (!translate::is_utf8(line)) fail("it is not UTF-8; save the file as UTF-8");
    const std::vector<std::string_view> fields = parts_of(line, '\t');
    Class read{std::string(trimmed(fields[0])), {}, value++};
    bool is_ignored = false;
    for (size_t i = 1; i < fields.size(); ++i) {
      const std::string_view field = trimmed(fields[i]);
      if (field.empty()) continue;
      if (field == "ignored") {
        is_ignored = true;
      } else if (field.starts_with("value ")) {
        if (!parse_number(trimmed(field.substr(6)), 65535, read.value)) {
          fail("\"" + std::string(field) + "\" has no number from 0 to 65535");
        }
      } else {
        read.colour = parse_colour(field);
        if (!read.colour) {
          fail("\"" + std::string(field) +
               "\" is none of: a colour as #rrggbb or as three numbers from 0 to 255, \"ignored\", \"value N\"");
        }
      }
    }
    if (read.name.empty()) fail("the class has no name");
    if (!names.insert(read.name).second) fail("the class " + read.name + " is there already");
    if (!values.insert(read.value).second) {
      fail("the value " + std::to_string(read.value) + " belongs to another class already");
    }
    if (read.colour && !colours.insert({read.colour->red, read.colour->green, read.colour->blue}).second) {
      fail("its colour belongs to another class already");
    }
    if (!colours.empty() && colours.size() != names.size()) {
      fail(read.colour ? "it has a colour and the classes before have none; give all classes one, or none"
                       : "it has no colour and the classes before have one; give all classes one, or none");
    }
    (is_ignored ? classes.ignored : classes.classes).push_back(std::move(read));
  }
  if (classes.classes.size() < 2 || classes.classes.size() >= kIgnoredLabel) {
    throw Error(path + " lists " + std::to_string(classes.classes.size()) + " classes that are not ignored; 2 to " +
                std::to_string(kIgnoredLabel - 1) + " are needed, one a line");
  }
  return classes;
}

std::string classes_text(const Classes& classes) {
  std::string text;
  const auto line = [&](const Class& c, bool is_ignored) {
    text += c.name;
    if (c.colour) {
      char colour[8];
      std::snprintf(colour, sizeof colour, "#%02x%02x%02x", c.colour->red, c.colour->green, c.colour->blue);
      text += "\t" + std::string(colour);
    }
    if (is_ignored) text += "\tignored";
    text += "\tvalue " + std::to_string(c.value) + "\n";
  };
  for (const Class& c : classes.classes) line(c, false);
  for (const Class& c : classes.ignored) line(c, true);
  return text;
}

std::string MaskPairs::summary() const {
  std::string text = count(static_cast<int64_t>(pairs.size()), "picture") + " with masks";
  const auto add = [&](const std::vector<std::string>& paths, const std::string& one, const std::string& other) {
    if (paths.empty()) return;
    text += "; " + count(static_cast<int64_t>(paths.size()), one) + (paths.size() == 1 ? " has no " : " have no ") +
            other + ": " + first_of(paths);
  };
  add(pictures_without_mask, "picture", "mask");
  add(masks_without_picture, "mask", "picture");
  return text + ignored_files(ignored);
}

MaskPairs find_mask_pairs(const std::string& picture_folder, const std::string& mask_folder) {
  MaskPairs result;
  // By their path below the folder, without the ending.
  const auto find = [&](const std::string& folder) {
    check_folder(folder);
    std::vector<std::string> found;
    find_pictures(folder, found, result.ignored);
    std::map<std::string, std::string> by_stem;
    for (const std::string& path : found) {
      const std::string stem = fs::path(path).lexically_relative(folder).replace_extension().string();
      const auto [other, added] = by_stem.emplace(stem, path);
      if (!added) throw Error(other->second + " and " + path + " differ in their ending only; keep one of them");
    }
    return by_stem;
  };
  const std::map<std::string, std::string> pictures = find(picture_folder);
  std::map<std::string, std::string> masks = find(mask_folder);
  for (const auto& [stem, path] : pictures) {
    const auto mask = masks.find(stem);
    if (mask == masks.end()) {
      result.pictures_without_mask.push_back(path);
    } else {
      result.pairs.push_back({path, mask->second});
      masks.erase(mask);
    }
  }
  for (const auto& [stem, path] : masks) result.masks_without_picture.push_back(path);
  if (result.pairs.empty()) {
    const auto found = [](const std::string& folder, const std::vector<std::string>& paths) {
      return folder + " has " + (paths.empty() ? "none" : first_of(paths, 1));
    };
    throw Error("no picture has a mask of the same name: of pictures " +
                found(picture_folder, result.pictures_without_mask) + ", of masks " +
                found(mask_folder, result.masks_without_picture) +
                "; name each mask as its picture, but for the ending");
  }
  return result;
}

Labels read_mask(const std::string& path, const Classes& classes, int64_t max_pixels) {
  return labels_of(read_stored_mask(path, classes, max_pixels), classes, path);
}

MaskedPictures read_mask_pairs(std::span<const MaskPair> pairs, const Classes& classes, const ReadOptions& options,
                               const std::function<void(Picture&, Labels&)>& prepare) {
  std::vector<Picture> pictures(pairs.size());
  std::vector<Labels> masks(pairs.size());
  std::vector<Skipped> skipped(pairs.size());
  std::vector<std::string> mistakes(pairs.size());
  for_all(pairs.size(), [&](size_t i) {
    const MaskPair& pair = pairs[i];
    StoredMask stored;
    skipped[i].path = pair.picture;
    try {
      pictures[i] = read_picture(pair.picture, options);
      skipped[i].path = pair.mask;
      stored = read_stored_mask(pair.mask, classes, options.max_pixels);
    } catch (const Error& error) {
      skipped[i].reason = error.what();
      return;
    }
    try {
      masks[i] = labels_of(stored, classes, pair.mask);
    } catch (const Error& error) {
      mistakes[i] = error.what();
      return;
    }
    const auto sizes = [](const auto& x) { return std::to_string(x.width) + " x " + std::to_string(x.height); };
    if (sizes(pictures[i]) != sizes(masks[i])) {
      mistakes[i] = pair.picture + " has " + sizes(pictures[i]) + " pixels, but its mask " + pair.mask + " has " +
                    sizes(masks[i]) + "; resize one of them to the other's size";
      return;
    }
    if (prepare) prepare(pictures[i], masks[i]);
  });
  MaskedPictures result;
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (!mistakes[i].empty()) throw Error(mistakes[i]);
    if (!skipped[i].reason.empty()) {
      result.skipped.push_back(std::move(skipped[i]));
      continue;
    }
    result.pictures.push_back(std::move(pictures[i]));
    result.masks.push_back(std::move(masks[i]));
  }
  check_any_left(result.pictures.size(), result.skipped);
  return result;
}

}  // namespace heed::pictures
