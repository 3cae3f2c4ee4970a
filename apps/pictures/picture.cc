// From a file to a picture or a mask: which format it is, what lies under its alpha, how it is turned.
#include "apps/pictures/picture.h"

#include <heed/attention.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "apps/pictures/formats.h"
#include "libtorch/files.h"

namespace heed::pictures {
namespace {

namespace fs = std::filesystem;

enum class Format { png, jpeg, webp, bmp, other };

Format format_of(std::string_view bytes) {
  if (bytes.starts_with("\x89PNG\r\n\x1a\n")) return Format::png;
  if (bytes.starts_with("\xFF\xD8\xFF")) return Format::jpeg;
  if (bytes.starts_with("RIFF") && bytes.substr(0, 12).ends_with("WEBP")) return Format::webp;
  // "BM" begins many a text; a bitmap's next header is at most 124 bytes long, so three bytes of its length are 0.
  if (bytes.starts_with("BM") && bytes.size() >= 18 && bytes.substr(15, 3) == std::string_view("\0\0\0", 3)) {
    return Format::bmp;
  }
  return Format::other;
}

// What else it may be: people should not have to guess.
std::string other_format(std::string_view bytes) {
  if (bytes.starts_with("GIF8")) return "a GIF";
  if (bytes.starts_with(std::string_view("II*\0", 4)) || bytes.starts_with(std::string_view("MM\0*", 4)))
    return "a TIFF";
  if (bytes.size() >= 12 && bytes.substr(4, 4) == "ftyp") return "a HEIC, AVIF or video file";
  if (bytes.starts_with("%PDF")) return "a PDF";
  if (bytes.starts_with("<")) return "an SVG or a web page";
  return "not a picture in a known format";
}

// The bytes of a file that may hold a picture of max_pixels.
std::string bytes_of(const std::string& path, int64_t max_pixels) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  if (fs::is_character_file(status) || fs::is_block_file(status) || fs::is_socket(status)) {
    throw Error("cannot read " + path + ": it is a device, not a file");
  }
  // No picture is larger than its pixels with 16 bits for each of four channels, and what little stands beside them.
  const auto most = 8 * static_cast<uintmax_t>(max_pixels) + (1 << 24);
  if (fs::is_regular_file(status)) {
    const uintmax_t size = fs::file_size(path, ignored);
    if (!ignored && size > most) {
      throw Error(path + " has " + std::to_string(size) + " bytes, more than the " + std::to_string(most) +
                  " that a picture of " + std::to_string(max_pixels) + " pixels can have; it is not used");
    }
  }
  return nn::read_file(path);
}

Raster decode(const Source& source) {
  if (source.bytes.empty()) throw Error(source.name + " is empty; replace or remove it");
  switch (format_of(source.bytes)) {
    case Format::png:
      return decode_png(source);
    case Format::jpeg:
      return decode_jpeg(source);
    case Format::webp:
      return decode_webp(source);
    case Format::bmp:
      return decode_bmp(source);
    case Format::other:
      break;
  }
  throw Error(source.name + " is " + other_format(source.bytes) + "; save it as PNG, JPEG, WebP or BMP");
}

// Lays the picture over the ground: two channels or four become one or three. Grey over a coloured ground gets colour.
void lay_over(Raster& raster, Colour ground) {
  if (raster.channels != 2 && raster.channels != 4) return;
  const size_t from = static_cast<size_t>(raster.channels);
  const bool grey = from == 2 && ground.red == ground.green && ground.red == ground.blue;
  const size_t to = grey ? 1 : 3;
  const size_t pixels = raster.bytes.size() / from;
  const int grounds[] = {ground.red, ground.green, ground.blue};
  std::vector<uint8_t> bytes(pixels * to);
  for (size_t i = 0; i < pixels; ++i) {
    const int alpha = raster.bytes[i * from + from - 1];
    for (size_t c = 0; c < to; ++c) {
      const int value = raster.bytes[i * from + (from == 2 ? 0 : c)];
      bytes[i * to + c] = static_cast<uint8_t>((value * alpha + grounds[c] * (255 - alpha) + 127) / 255);
    }
  }
  raster.bytes = std::move(bytes);
  raster.channels = static_cast<int64_t>(to);
}

// Turns and mirrors rows of pixels as EXIF's orientation asks; width and height become those of the result.
template <class Value>
void turn(std::vector<Value>& values, int64_t& width, int64_t& height, int64_t channels, int orientation) {
  if (orientation == 1) return;
  const bool swaps = orientation >= 5;  // the first row of the result is a column of the file
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const int64_t new_width = swaps ? height : width, new_height = swaps ? width : height;
  std::vector<Value> turned(values.size());
  auto to = turned.begin();
  for (int64_t y = 0; y < new_height; ++y) {
    for (int64_t x = 0; x < new_width; ++x) {
      const int64_t column = swaps ? y : x, line = swaps ? x : y;
      const int64_t from_x = from_right ? width - 1 - column : column, from_y = from_below ? height - 1 - line : line;
      to = std::copy_n(values.begin() + (from_y * width + from_x) * channels, channels, to);
    }
  }
  values = std::move(turned);
  width = new_width;
  height = new_height;
}

std::string sizes(int64_t width, int64_t height) { return std::to_string(width) + " x " + std::to_string(height); }

std::string place(int64_t width, size_t i) {
  const auto at = static_cast<int64_t>(i);
  return "(" + std::to_string(at % width) + ", " + std::to_string(at / width) + ")";
}

std::string name_of(Colour colour) {
  constexpr char digits[] = "0123456789abcdef";
  std::string name = "#";
  for (const int value : {colour.red, colour.green, colour.blue}) {
    name += digits[value / 16];
    name += digits[value % 16];
  }
  return name;
}

}  // namespace

// ---- What the formats share (formats.h) ----

void check_size(const Source& source, int64_t width, int64_t height) {
  if (width > source.max_pixels / height) {
    throw Error(source.name + " has " + sizes(width, height) + " pixels, more than the limit of " +
                std::to_string(source.max_pixels) + "; make it smaller or cut it into parts");
  }
}

void throw_damaged(const Source& source, const std::string& format, const std::string& why) {
  throw Error(source.name + " is damaged or cut off (" + format + ": " + why + "); replace or remove it");
}

int exif_orientation(std::string_view exif) {
  if (exif.starts_with(std::string_view("Exif\0\0", 6))) exif.remove_prefix(6);
  if (exif.size() < 8 || (exif.substr(0, 2) != "II" && exif.substr(0, 2) != "MM")) return 1;
  const auto number = [&](size_t at, size_t n) {
    uint32_t value = 0;
    for (size_t i = 0; i < n; ++i) {
      value = value << 8 | static_cast<uint8_t>(exif[at + (exif[0] == 'M' ? i : n - 1 - i)]);
    }
    return value;
  };
  constexpr uint32_t kOrientation = 0x0112, kShort = 3;
  const size_t directory = number(4, 4);
  if (directory + 2 > exif.size()) return 1;
  const size_t entries = number(directory, 2);
  for (size_t i = 0; i < entries; ++i) {
    const size_t entry = directory + 2 + 12 * i;
    if (entry + 12 > exif.size()) return 1;
    if (number(entry, 2) != kOrientation || number(entry + 2, 2) != kShort) continue;
    const uint32_t orientation = number(entry + 8, 2);
    return orientation >= 1 && orientation <= 8 ? static_cast<int>(orientation) : 1;
  }
  return 1;
}

// ---- Pictures ----

bool begins_picture(std::string_view bytes) { return format_of(bytes) != Format::other; }

Picture decode_picture(std::string_view bytes, const std::string& name, const ReadOptions& options) {
  Raster raster = decode({bytes, name, options.max_pixels});
  lay_over(raster, options.ground);
  turn(raster.bytes, raster.width, raster.height, raster.channels, raster.orientation);
  return with_channels({raster.width, raster.height, raster.channels, std::move(raster.bytes)}, options.channels);
}

Picture read_picture(const std::string& path, const ReadOptions& options) {
  return decode_picture(bytes_of(path, options.max_pixels), path, options);
}

Picture with_channels(Picture picture, int64_t channels) {
  check_picture(picture);
  if (channels != 1 && channels != 3) {
    throw Error("a picture was asked for with " + std::to_string(channels) + " channels; it has 1 or 3");
  }
  if (picture.channels == channels) return picture;
  const size_t pixels = static_cast<size_t>(picture.width * picture.height);
  std::vector<uint8_t> bytes(pixels * static_cast<size_t>(channels));
  for (size_t i = 0; i < pixels; ++i) {
    if (channels == 3) {
      std::fill_n(bytes.begin() + static_cast<int64_t>(3 * i), 3, picture.bytes[i]);
    } else {
      // 0.299 red + 0.587 green + 0.114 blue, in 16 bits behind the point
      const uint8_t* from = &picture.bytes[3 * i];
      bytes[i] = static_cast<uint8_t>((from[0] * 19595 + from[1] * 38470 + from[2] * 7471 + (1 << 15)) >> 16);
    }
  }
  return {picture.width, picture.height, channels, std::move(bytes)};
}

void check_picture(const Picture& picture) {
  const int64_t bytes = static_cast<int64_t>(picture.bytes.size());
  if (picture.channels != 1 && picture.channels != 3) {
    throw Error("a picture has " + std::to_string(picture.channels) + " channels; it needs 1 or 3");
  }
  // Divided, because a product of sizes that are wrong may not fit.
  if (picture.width < 1 || picture.height < 1 || picture.width > bytes ||
      bytes % (picture.width * picture.channels) != 0 || bytes / (picture.width * picture.channels) != picture.height) {
    throw Error("a picture of " + sizes(picture.width, picture.height) + " pixels with " +
                std::to_string(picture.channels) + " channels has " + std::to_string(bytes) +
                " bytes; it needs at least one pixel and a byte for each channel of each");
  }
}

// ---- Labels ----

Labels read_labels(const std::string& path, int64_t max_pixels) {
  const std::string bytes = bytes_of(path, max_pixels);
  const Source source{bytes, path, max_pixels};
  const Format format = format_of(bytes);
  if (format == Format::jpeg) {
    throw Error(path + " is a JPEG, whose compression changes the values of a mask; save masks as PNG");
  }
  if (format == Format::png) {
    if (std::optional<StoredLabels> stored = decode_png_labels(source)) {
      Labels& labels = stored->labels;
      turn(labels.values, labels.width, labels.height, 1, stored->orientation);
      return std::move(labels);
    }
  }
  Raster raster = decode(source);
  turn(raster.bytes, raster.width, raster.height, raster.channels, raster.orientation);
  Labels labels{raster.width, raster.height, {}};
  labels.values.reserve(static_cast<size_t>(raster.width * raster.height));
  for (size_t i = 0; i < raster.bytes.size(); i += static_cast<size_t>(raster.channels)) {
    const uint8_t* pixel = &raster.bytes[i];
    if (pixel[0] != pixel[1] || pixel[0] != pixel[2]) {
      throw Error(path + " has colours (" + name_of({pixel[0], pixel[1], pixel[2]}) + " at " +
                  place(labels.width, labels.values.size()) +
                  "), so it is not a mask of numbers; give the classes' colours, or save it as a PNG with a palette");
    }
    labels.values.push_back(pixel[0]);
  }
  return labels;
}

Labels labels_of_colours(const Picture& picture, std::span<const Colour> colours, const std::string& name) {
  const Picture painted = with_channels(picture, 3);
  std::unordered_map<uint32_t, uint16_t> places;
  const auto key = [](Colour c) { return uint32_t{c.red} << 16 | uint32_t{c.green} << 8 | c.blue; };
  for (size_t i = 0; i < colours.size(); ++i) places.emplace(key(colours[i]), static_cast<uint16_t>(i));
  Labels labels{painted.width, painted.height, {}};
  labels.values.resize(static_cast<size_t>(painted.width * painted.height));
  for (size_t i = 0; i < labels.values.size(); ++i) {
    const Colour colour{painted.bytes[3 * i], painted.bytes[3 * i + 1], painted.bytes[3 * i + 2]};
    const auto found = places.find(key(colour));
    if (found == places.end()) {
      throw Error(name + " has the colour " + name_of(colour) + " at " + place(painted.width, i) +
                  ", which is none of the " + std::to_string(colours.size()) +
                  " that stand for a class; add it to the classes or mend the mask");
    }
    labels.values[i] = found->second;
  }
  return labels;
}

void check_labels(const Labels& labels) {
  const int64_t values = static_cast<int64_t>(labels.values.size());
  if (labels.width < 1 || labels.height < 1 || values % labels.width != 0 || values / labels.width != labels.height) {
    throw Error("a mask of " + sizes(labels.width, labels.height) + " pixels has " + std::to_string(values) +
                " labels; it needs at least one pixel and a label for each");
  }
}

}  // namespace heed::pictures
