// JPEG, through libjpeg: baseline and progressive, grey, colour and CMYK.
#include <heed/attention.h>
#include <jerror.h>
#include <jpeglib.h>

#include <csetjmp>
#include <cstdio>  // jpeglib.h needs it and does not include it

#include "apps/pictures/formats.h"

namespace heed::pictures {
namespace {

// A progressive picture has a few dozen scans at most; each of a thousand would walk over all pixels.
constexpr int kMaxScans = 500;

struct Failure : jpeg_error_mgr {
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = "";
};

[[noreturn]] void fail(j_common_ptr info) {
  auto* failure = static_cast<Failure*>(info->err);
  failure->format_message(info, failure->message);
  std::longjmp(failure->jump, 1);
}

// Level -1 is a warning: the data is damaged and libjpeg would go on with guesses.
void on_message(j_common_ptr info, int level) {
  if (level >= 0) return;
  switch (info->err->msg_code) {
    case JWRN_EXTRANEOUS_DATA:  // bytes between markers; no pixel is lost
    case JWRN_JFIF_MAJOR:       // a version nobody has seen, an unknown transform, a profile in pieces: not used here
    case JWRN_ADOBE_XFORM:
    case JWRN_BOGUS_ICC:
      return;
    default:
      fail(info);
  }
}

void on_progress(j_common_ptr info) {
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= kMaxScans) return;
  auto* failure = static_cast<Failure*>(info->err);
  std::snprintf(failure->message, sizeof failure->message, "it has more than %d scans", kMaxScans);
  std::longjmp(failure->jump, 1);
}

// As in png.cc: steps call libjpeg and hold plain values only, so that its longjmp leaves nothing undone.
template <class Step>
bool guarded(Failure& failure, const Step& step) {
  if (setjmp(failure.jump) != 0) return false;
  step();
  return true;
}

struct Reader {
  explicit Reader(const Source& source) : source(source) {
    info.err = jpeg_std_error(&failure);
    failure.error_exit = fail;
    failure.emit_message = on_message;
    progress.progress_monitor = on_progress;
  }
  ~Reader() { jpeg_destroy_decompress(&info); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  template <class Step>
  void run(const Step& step) {
    if (!guarded(failure, step)) throw_damaged(source, "JPEG", failure.message);
  }

  int orientation() const {
    for (jpeg_saved_marker_ptr marker = info.marker_list; marker != nullptr; marker = marker->next) {
      const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
      if (data.starts_with("Exif")) return exif_orientation(data);
    }
    return 1;
  }

  const Source& source;
  Failure failure;
  jpeg_progress_mgr progress{};
  jpeg_decompress_struct info{};
};

// Cyan, magenta, yellow and black, stored inverted, to RGB: each colour's light times black's, rounded as Pillow does.
void cmyk_to_rgb(std::vector<uint8_t>& bytes) {
  uint8_t* to = bytes.data();
  for (size_t i = 0; i < bytes.size(); i += 4) {
    const int black = bytes[i + 3];
    for (size_t c = 0; c < 3; ++c) {
      const int product = (255 - bytes[i + c]) * black + 128;
      *to++ = static_cast<uint8_t>(black - ((product >> 8) + product) / 256);
    }
  }
  bytes.resize(bytes.size() / 4 * 3);
}

}  // namespace

Raster decode_jpeg(const Source& source) {
  Reader reader(source);
  jpeg_decompress_struct& info = reader.info;
  reader.run([&] {
    jpeg_create_decompress(&info);
    info.progress = &reader.progress;
    jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(source.bytes.data()), source.bytes.size());
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&info, TRUE);
  });
  check_size(source, info.image_width, info.image_height);
  if (info.num_components != 1 && info.num_components != 3 && info.num_components != 4) {
    throw Error(source.name + " is a JPEG with " + std::to_string(info.num_components) +
                " channels; only 1, 3 and 4 can be read, so convert it");
  }
  reader.run([&] {
    info.out_color_space = info.num_components == 1 ? JCS_GRAYSCALE : info.num_components == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_start_decompress(&info);
  });
  Raster raster{info.output_width, info.output_height, info.output_components};
  const size_t row = static_cast<size_t>(raster.width * raster.channels);
  raster.bytes.resize(row * static_cast<size_t>(raster.height));
  raster.orientation = reader.orientation();  // jpeg_finish_decompress forgets the markers
  uint8_t* const bytes = raster.bytes.data();
  reader.run([&info, bytes, row] {
    while (info.output_scanline < info.output_height) {
      JSAMPROW to = bytes + info.output_scanline * row;
      jpeg_read_scanlines(&info, &to, 1);
    }
    jpeg_finish_decompress(&info);
  });
  if (raster.channels == 4) {
    cmyk_to_rgb(raster.bytes);
    raster.channels = 3;
  }
  return raster;
}

}  // namespace heed::pictures
