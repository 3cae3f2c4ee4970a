// WebP, through libwebp: lossy and lossless, with and without alpha.
#include <heed/attention.h>
#include <webp/decode.h>
#include <webp/demux.h>

#include <memory>

#include "apps/pictures/formats.h"

namespace heed::pictures {
namespace {

int orientation_of(const Source& source, const WebPData& data) {
  const std::unique_ptr<WebPDemuxer, void (*)(WebPDemuxer*)> demuxer(WebPDemux(&data), WebPDemuxDelete);
  if (demuxer == nullptr) throw_damaged(source, "WebP", "its parts do not fit together, or it ends too early");
  WebPChunkIterator chunk;
  if (WebPDemuxGetChunk(demuxer.get(), "EXIF", 1, &chunk) == 0) return 1;
  const int orientation = exif_orientation({reinterpret_cast<const char*>(chunk.chunk.bytes), chunk.chunk.size});
  WebPDemuxReleaseChunkIterator(&chunk);
  return orientation;
}

}  // namespace

Raster decode_webp(const Source& source) {
  const WebPData data{reinterpret_cast<const uint8_t*>(source.bytes.data()), source.bytes.size()};
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(data.bytes, data.size, &features) != VP8_STATUS_OK) {
    throw_damaged(source, "WebP", "its header cannot be read");
  }
  if (features.has_animation) {
    throw Error(source.name + " is an animation; save one of its frames as a picture of its own");
  }
  check_size(source, features.width, features.height);
  Raster raster{features.width, features.height, features.has_alpha ? 4 : 3};
  raster.orientation = orientation_of(source, data);
  const int row = static_cast<int>(raster.width * raster.channels);
  raster.bytes.resize(static_cast<size_t>(raster.height) * static_cast<size_t>(row));
  const auto decode = features.has_alpha ? WebPDecodeRGBAInto : WebPDecodeRGBInto;
  if (decode(data.bytes, data.size, raster.bytes.data(), raster.bytes.size(), row) == nullptr) {
    throw_damaged(source, "WebP", "its pixels cannot be decoded");
  }
  return raster;
}

}  // namespace heed::pictures
