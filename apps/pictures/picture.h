// Pictures and masks in memory, and the files they come from and go to. Needs no LibTorch.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace heed::pictures {

struct Colour {
  uint8_t red = 0, green = 0, blue = 0;
  bool operator==(const Colour&) const = default;
};

// Rows from top to bottom, pixels from left to right, the channels of a pixel side by side.
struct Picture {
  int64_t width = 0, height = 0;
  int64_t channels = 3;             // 3: red, green, blue; 1: grey
  std::vector<uint8_t> bytes = {};  // height * width * channels
};

// A label for every pixel, in the order of a picture's pixels.
struct Labels {
  int64_t width = 0, height = 0;
  std::vector<uint16_t> values = {};  // height * width
};

// The label of pixels that neither train nor count, once the classes are known (datasets.h). A file's 65535 is also
// this.
inline constexpr uint16_t kIgnoredLabel = 65535;

struct ReadOptions {
  int64_t channels = 3;              // what is wanted, whatever the file holds: 3, or 1 for grey
  int64_t max_pixels = 200'000'000;  // width * height; checked in the header, before anything of that size is allocated
  Colour ground = {255, 255, 255};   // what shows through where a picture is transparent
};

// Reads PNG, JPEG, WebP or BMP, told by the content and not by the name:
// - 16 bits become the nearest 8 (v / 257, as libpng scales); the gamma and colour profiles of a file are not applied.
// - Alpha, and the colour a PNG declares transparent, are laid over `ground`.
// - CMYK becomes RGB without a profile, and is taken to be stored inverted, as Adobe does and everybody since.
// - The rotation that cameras write (EXIF orientation, in JPEG, PNG and WebP) is carried out.
// - Grey from colour is ITU-R 601 luma, as Pillow's convert("L").
// Throws heed::Error, naming the file, when it is missing, a directory, empty, in another format, too large, damaged or
// cut off, or an animation. Of a JPEG's damages one is let pass, as every viewer does, because no pixel suffers: bytes
// between two markers that belong to neither.
Picture read_picture(const std::string& path, const ReadOptions& options = {});

// The same for the bytes of a file; `name` is what errors call it.
Picture decode_picture(std::string_view bytes, const std::string& name, const ReadOptions& options = {});

// Reads a mask: the values as the file holds them, without its palette. PNG with a palette (the indices) or grey, with
// 1 to 16 bits; PNG in colour, WebP and BMP if every pixel is grey. Transparency is ignored; EXIF orientation is
// carried out. Throws heed::Error as read_picture, and for colours and JPEG, whose compression changes values.
Labels read_labels(const std::string& path, int64_t max_pixels = ReadOptions{}.max_pixels);

// The mask that a picture in colour means: pixel by pixel the place of its colour in `colours`. Throws heed::Error
// naming `name`, the pixel and its colour when that is not among them.
Labels labels_of_colours(const Picture& picture, std::span<const Colour> colours, const std::string& name);

// Whether these first bytes of a file (18 are enough) begin a PNG, JPEG, WebP or BMP.
bool begins_picture(std::string_view bytes);

// The picture with 1 or 3 channels; grey as read_picture makes it.
Picture with_channels(Picture picture, int64_t channels);

// Throws heed::Error unless the picture has 1 or 3 channels, at least one pixel, and as many bytes as they take.
void check_picture(const Picture& picture);
void check_labels(const Labels& labels);

// A PNG with 8 bits, RGB or grey. write_png writes it whole or not at all (libtorch/files.h). Both throw heed::Error.
std::string encode_png(const Picture& picture);
void write_png(const std::string& path, const Picture& picture);

// A PNG with 8 bits whose pixels are the labels and whose palette says how viewers paint them: read_labels reads back
// what was written. Throws heed::Error when a label has no colour, and for more than 256 colours.
std::string encode_labels(const Labels& labels, std::span<const Colour> palette);
void write_labels(const std::string& path, const Labels& labels, std::span<const Colour> palette);

}  // namespace heed::pictures
