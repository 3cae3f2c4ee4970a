// What the decoders of the formats share: the bytes of a file go in, its pixels as they are stored come out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/pictures/picture.h"

namespace heed::pictures {

struct Source {
  std::string_view bytes;
  const std::string& name;  // for errors
  int64_t max_pixels = 0;
};

struct Raster {
  int64_t width = 0, height = 0;
  int64_t channels = 0;             // 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha
  std::vector<uint8_t> bytes = {};  // height * width * channels
  int orientation = 1;              // EXIF's, 1 to 8: how the picture is to be turned
};

// Throws heed::Error when the picture is larger than the source allows. To be asked before memory is.
void check_size(const Source& source, int64_t width, int64_t height);

[[noreturn]] void throw_damaged(const Source& source, const std::string& format, const std::string& why);

// The orientation that EXIF data (a TIFF structure, perhaps behind "Exif\0\0") asks for; 1 when it has none or makes no
// sense.
int exif_orientation(std::string_view exif);

Raster decode_png(const Source& source);
Raster decode_jpeg(const Source& source);
Raster decode_webp(const Source& source);
Raster decode_bmp(const Source& source);

// The indices or grey values of a PNG as they are stored; nothing for one in colour.
struct StoredLabels {
  Labels labels;
  int orientation = 1;
};
std::optional<StoredLabels> decode_png_labels(const Source& source);

}  // namespace heed::pictures
