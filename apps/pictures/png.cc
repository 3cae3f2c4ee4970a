// PNG, through libpng: pixels, labels as they are stored, and writing both.
#include <heed/attention.h>
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <exception>
#include <utility>

#include "apps/pictures/formats.h"
#include "libtorch/files.h"

namespace heed::pictures {
namespace {

// libpng reports errors by longjmp, which may not leave a frame that has something to destroy. So the steps handed to
// `guarded` call libpng and hold plain values only; what has a destructor lives outside.
template <class Step>
bool guarded(png_structp png, const Step& step) {
  if (setjmp(png_jmpbuf(png)) != 0) return false;
  step();
  return true;
}

struct Failure {
  char message[160] = "";
};

void fail(png_structp png, png_const_charp message) {
  auto* failure = static_cast<Failure*>(png_get_error_ptr(png));
  std::snprintf(failure->message, sizeof failure->message, "%s", message);
  png_longjmp(png, 1);
}

// Warnings are about chunks that are not used here, or about what becomes an error later.
void ignore_warning(png_structp, png_const_charp) {}

class Reader {
 public:
  explicit Reader(const Source& source) : source_(source), left_(source.bytes) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, &failure_, fail, ignore_warning);
    info_ = png_ != nullptr ? png_create_info_struct(png_) : nullptr;
    if (info_ == nullptr) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      throw Error("cannot read " + source.name + ": libpng did not start, probably for want of memory");
    }
  }
  ~Reader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Reads as far as the pixels and checks their number.
  void read_header() {
    run([this] {
      png_set_read_fn(png_, &left_, read_bytes);
      png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // check_size is the limit, and speaks for itself
      // Profiles and texts can be compressed a thousandfold; of all that is beside the pixels only EXIF is of use.
      png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
      png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_AS_DEFAULT, reinterpret_cast<png_const_bytep>("eXIf"), 1);
      png_read_info(png_, info_);
    });
    check_size(source_, width(), height());
  }

  // Begins the pixels once the transformations are set; the bytes of a row are known from here on.
  void begin_rows() {
    run([this] {
      passes_ = png_set_interlace_handling(png_);
      png_read_update_info(png_, info_);
    });
  }

  // All rows, into row_bytes() * height() bytes, and what follows them.
  void read_rows(uint8_t* bytes) {
    const size_t row = row_bytes();
    const int64_t rows = height();
    run([this, bytes, row, rows] {
      for (int pass = 0; pass < passes_; ++pass) {
        for (int64_t y = 0; y < rows; ++y) png_read_row(png_, bytes + static_cast<size_t>(y) * row, nullptr);
      }
      png_read_end(png_, info_);
    });
  }

  template <class Step>
  void run(const Step& step) {
    if (!guarded(png_, step)) throw_damaged(source_, "PNG", failure_.message);
  }

  png_structp png() const { return png_; }
  int64_t width() const { return png_get_image_width(png_, info_); }
  int64_t height() const { return png_get_image_height(png_, info_); }
  int64_t channels() const { return png_get_channels(png_, info_); }
  int bit_depth() const { return png_get_bit_depth(png_, info_); }
  int colour_type() const { return png_get_color_type(png_, info_); }
  size_t row_bytes() const { return png_get_rowbytes(png_, info_); }

  int orientation() const {
    png_uint_32 size = 0;
    png_bytep exif = nullptr;
    if (png_get_eXIf_1(png_, info_, &size, &exif) == 0) return 1;
    return exif_orientation({reinterpret_cast<const char*>(exif), size});
  }

 private:
  static void read_bytes(png_structp png, png_bytep to, size_t n) {
    auto* left = static_cast<std::string_view*>(png_get_io_ptr(png));
    if (left->size() < n) png_error(png, "it ends too early");
    std::memcpy(to, left->data(), n);
    left->remove_prefix(n);
  }

  const Source& source_;
  std::string_view left_;
  Failure failure_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  int passes_ = 1;
};

class Writer {
 public:
  Writer() {
    png_ = png_create_write_struct(PNG_LIBPNG_VER_STRING, &failure_, fail, ignore_warning);
    info_ = png_ != nullptr ? png_create_info_struct(png_) : nullptr;
    if (info_ == nullptr) {
      png_destroy_write_struct(&png_, nullptr);
      throw Error("cannot write a PNG: libpng did not start, probably for want of memory");
    }
  }
  ~Writer() { png_destroy_write_struct(&png_, &info_); }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // Rows of 8-bit samples; a palette goes with PNG_COLOR_TYPE_PALETTE.
  std::string encode(int64_t width, int64_t height, int colour_type, const std::vector<png_color>& palette,
                     const std::vector<uint8_t>& rows) {
    const size_t row = rows.size() / static_cast<size_t>(height);
    const bool good = guarded(png_, [&] {
      png_set_write_fn(png_, &out_, write_bytes, nullptr);
      png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
      png_set_IHDR(png_, info_, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), 8, colour_type,
                   PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
      if (!palette.empty()) png_set_PLTE(png_, info_, palette.data(), static_cast<int>(palette.size()));
      png_write_info(png_, info_);
      for (int64_t y = 0; y < height; ++y) png_write_row(png_, rows.data() + static_cast<size_t>(y) * row);
      png_write_end(png_, info_);
    });
    if (!good) throw Error(std::string("cannot write a PNG: ") + failure_.message);
    return std::move(out_);
  }

 private:
  static void write_bytes(png_structp png, png_bytep from, size_t n) {
    try {  // no exception may cross libpng
      static_cast<std::string*>(png_get_io_ptr(png))->append(reinterpret_cast<const char*>(from), n);
      return;
    } catch (const std::exception&) {
    }
    png_error(png, "there is not enough memory");
  }

  std::string out_;
  Failure failure_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
};

}  // namespace

Raster decode_png(const Source& source) {
  Reader reader(source);
  reader.read_header();
  reader.run([&] {
    png_set_expand(reader.png());    // palettes to RGB, a transparent colour to alpha, 1 to 4 bits to 8
    png_set_scale_16(reader.png());  // to the nearest; Pillow drops the lower byte
  });
  reader.begin_rows();
  Raster raster{reader.width(), reader.height(), reader.channels()};
  raster.bytes.resize(static_cast<size_t>(raster.width * raster.height * raster.channels));
  reader.read_rows(raster.bytes.data());
  raster.orientation = reader.orientation();
  return raster;
}

std::optional<StoredLabels> decode_png_labels(const Source& source) {
  Reader reader(source);
  reader.read_header();
  if (reader.colour_type() != PNG_COLOR_TYPE_PALETTE && (reader.colour_type() & PNG_COLOR_MASK_COLOR) != 0) return {};
  reader.run([&] {
    png_set_packing(reader.png());  // 1 to 4 bits to a byte, values unchanged
    png_set_strip_alpha(reader.png());
  });
  reader.begin_rows();
  StoredLabels stored;
  stored.labels = {reader.width(), reader.height(), {}};
  const size_t pixels = static_cast<size_t>(stored.labels.width * stored.labels.height);
  const bool two_bytes = reader.bit_depth() == 16;
  std::vector<uint8_t> rows(pixels * (two_bytes ? 2 : 1));
  reader.read_rows(rows.data());
  stored.labels.values.assign(rows.begin(), rows.begin() + static_cast<int64_t>(two_bytes ? 0 : pixels));
  if (two_bytes) {
    stored.labels.values.resize(pixels);
    for (size_t i = 0; i < pixels; ++i) {
      stored.labels.values[i] = static_cast<uint16_t>(rows[2 * i] << 8 | rows[2 * i + 1]);
    }
  }
  stored.orientation = reader.orientation();
  return stored;
}

std::string encode_png(const Picture& picture) {
  check_picture(picture);
  return Writer().encode(picture.width, picture.height,
                         picture.channels == 3 ? PNG_COLOR_TYPE_RGB : PNG_COLOR_TYPE_GRAY, {}, picture.bytes);
}

std::string encode_labels(const Labels& labels, std::span<const Colour> palette) {
  check_labels(labels);
  if (palette.empty() || palette.size() > 256) {
    throw Error("the palette has " + std::to_string(palette.size()) + " colours; a PNG's has 1 to 256");
  }
  for (size_t i = 0; i < labels.values.size(); ++i) {
    if (labels.values[i] >= palette.size()) {
      throw Error("the label at (" + std::to_string(static_cast<int64_t>(i) % labels.width) + ", " +
                  std::to_string(static_cast<int64_t>(i) / labels.width) + ") is " + std::to_string(labels.values[i]) +
                  ", but the palette has " + std::to_string(palette.size()) +
                  " colours; give every label a colour of its own");
    }
  }
  std::vector<png_color> colours;
  for (const Colour& colour : palette) colours.push_back({colour.red, colour.green, colour.blue});
  return Writer().encode(labels.width, labels.height, PNG_COLOR_TYPE_PALETTE, colours,
                         std::vector<uint8_t>(labels.values.begin(), labels.values.end()));
}

void write_png(const std::string& path, const Picture& picture) { nn::write_file(path, encode_png(picture)); }

void write_labels(const std::string& path, const Labels& labels, std::span<const Colour> palette) {
  nn::write_file(path, encode_labels(labels, palette));
}

}  // namespace heed::pictures
