// BMP, decoded here: Windows and OS/2 headers, palettes, 16, 24 and 32 bits, without run-length compression.
//
// Not through stb_image, which does not say when a file is cut off (it reads zeros), takes palettes of OS/2 headers to
// be four colours shorter than they are, and paints indices beyond a palette with memory nobody set.
#include <heed/attention.h>

#include <array>
#include <bit>

#include "apps/pictures/formats.h"

namespace heed::pictures {
namespace {

// The file's bytes as integers, the lowest byte first.
class Bytes {
 public:
  explicit Bytes(const Source& source) : source_(source) {}

  uint32_t number(int64_t at, int64_t n) const {
    if (at + n > size()) throw_damaged(source_, "BMP", "it ends too early");
    uint32_t value = 0;
    for (int64_t i = 0; i < n; ++i) value |= uint32_t{byte(at + i)} << (8 * i);
    return value;
  }
  uint8_t byte(int64_t at) const { return static_cast<uint8_t>(source_.bytes[static_cast<size_t>(at)]); }
  int64_t size() const { return static_cast<int64_t>(source_.bytes.size()); }

 private:
  const Source& source_;
};

struct Header {
  int64_t width = 0, height = 0;
  bool top_down = false;
  int64_t pixels_at = 0;   // the place of the first row
  int64_t palette_at = 0;  // as many bytes in front of the pixels hold colours of colour_bytes each
  int64_t colour_bytes = 4;
  int64_t bits = 0;                 // of a pixel
  std::array<uint32_t, 4> masks{};  // of 16 and 32 bits, for red, green, blue and alpha
};

Header read_header(const Source& source) {
  enum : uint32_t { plain = 0, bit_fields = 3, alpha_bit_fields = 6 };
  const Bytes bytes(source);
  Header header;
  header.pixels_at = bytes.number(10, 4);
  const int64_t size = bytes.number(14, 4);
  header.palette_at = 14 + size;
  if (size == 12) {  // OS/2
    header.width = bytes.number(18, 2);
    header.height = bytes.number(20, 2);
    header.bits = bytes.number(24, 2);
    header.colour_bytes = 3;
  } else {
    const auto height = static_cast<int32_t>(bytes.number(22, 4));
    header.width = static_cast<int32_t>(bytes.number(18, 4));
    header.height = height < 0 ? -int64_t{height} : height;
    header.top_down = height < 0;
    header.bits = bytes.number(28, 2);
    const uint32_t compression = bytes.number(30, 4);
    const bool fields = compression == bit_fields || compression == alpha_bit_fields;
    if (compression != plain && !fields) {
      throw Error(source.name + " is a compressed BMP (method " + std::to_string(compression) +
                  "), which cannot be read; save it as PNG");
    }
    if (header.bits == 16) header.masks = {31u << 10, 31u << 5, 31u, 0};
    if (header.bits == 32) header.masks = {255u << 16, 255u << 8, 255u, 0};
    if (fields) {
      const size_t stored = compression == alpha_bit_fields || size >= 56 ? 4 : 3;
      for (size_t c = 0; c < stored; ++c) header.masks[c] = bytes.number(54 + 4 * static_cast<int64_t>(c), 4);
    }
  }
  if (header.width < 1 || header.height < 1) throw_damaged(source, "BMP", "its width or height is not positive");
  if (header.bits != 1 && header.bits != 4 && header.bits != 8 && header.bits != 16 && header.bits != 24 &&
      header.bits != 32) {
    throw_damaged(source, "BMP", "a pixel cannot have " + std::to_string(header.bits) + " bits");
  }
  return header;
}

// The colours of the palette, RGB.
std::vector<std::array<uint8_t, 3>> read_palette(const Source& source, const Header& header) {
  const Bytes bytes(source);
  std::vector<std::array<uint8_t, 3>> palette;
  int64_t at = header.palette_at;
  for (int64_t i = 0; i < int64_t{1} << header.bits && at + header.colour_bytes <= header.pixels_at; ++i) {
    palette.push_back({bytes.byte(at + 2), bytes.byte(at + 1), bytes.byte(at)});
    at += header.colour_bytes;
  }
  return palette;
}

// The bits of a mask as a value from 0 to 255, rounded down as Pillow does.
uint8_t field(uint32_t pixel, uint32_t mask) {
  if (mask == 0) return 0;
  const uint64_t most = mask >> std::countr_zero(mask);
  return static_cast<uint8_t>(((pixel & mask) >> std::countr_zero(mask)) * uint64_t{255} / most);
}

}  // namespace

Raster decode_bmp(const Source& source) {
  const Bytes bytes(source);
  const Header header = read_header(source);
  check_size(source, header.width, header.height);
  const int64_t bits = header.bits, row = (header.width * bits + 31) / 32 * 4;
  const int64_t needed = header.pixels_at + row * (header.height - 1) + (header.width * bits + 7) / 8;
  if (needed > bytes.size()) {
    throw_damaged(source, "BMP",
                  "it ends after " + std::to_string(bytes.size()) + " of " + std::to_string(needed) + " bytes");
  }
  const auto palette = bits <= 8 ? read_palette(source, header) : std::vector<std::array<uint8_t, 3>>();
  Raster raster{header.width, header.height, header.masks[3] != 0 ? 4 : 3};
  raster.bytes.resize(static_cast<size_t>(raster.width * raster.height * raster.channels));
  uint8_t* to = raster.bytes.data();
  for (int64_t y = 0; y < header.height; ++y) {
    const int64_t from = header.pixels_at + row * (header.top_down ? y : header.height - 1 - y);
    for (int64_t x = 0; x < header.width; ++x) {
      if (bits <= 8) {
        const int64_t shift = 8 - bits - x * bits % 8;
        const size_t index = bytes.byte(from + x * bits / 8) >> shift & ((1 << bits) - 1);
        if (index >= palette.size()) {
          throw_damaged(
              source, "BMP",
              "a pixel has colour " + std::to_string(index) + " of a palette of " + std::to_string(palette.size()));
        }
        for (const uint8_t value : palette[index]) *to++ = value;
      } else if (bits == 24) {
        for (int64_t c = 2; c >= 0; --c) *to++ = bytes.byte(from + 3 * x + c);
      } else {
        const uint32_t pixel = bytes.number(from + x * bits / 8, bits / 8);
        for (int64_t c = 0; c < raster.channels; ++c) *to++ = field(pixel, header.masks[static_cast<size_t>(c)]);
      }
    }
  }
  return raster;
}

}  // namespace heed::pictures
