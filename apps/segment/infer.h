// The label map of a picture of any size, in bounded memory.
#pragma once

#include <cstdint>
#include <vector>

#include "apps/pictures/picture.h"
#include "apps/segment/model.h"

namespace heed::segment {

struct InferOptions {
  int64_t tile = 768;     // pixels both ways: larger pictures, as the network gets them, are cut into tiles
  int64_t overlap = 128;  // of neighbouring tiles; each is believed up to the middle of it
  bool attention = false;
};

struct Segmented {
  pictures::Labels labels = {};         // places in the classes; of the height and width asked for
  std::vector<AttentionMap> maps = {};  // [1, h, w], if asked for
};

// Gives each pixel the class whose logit, bilinear between the network's, is the largest. height and width are those of
// the label map: the picture's, or those of a mask it is compared with; 0: the picture's. The model is put into eval
// mode; no gradient. Memory is that of the picture, of the labels and of one tile; the attention of a picture in tiles
// is asked of a smaller copy of it. Throws heed::Error for a tile or overlap that do not fit, or channels that are not
// the model's.
Segmented segment(Model& model, const pictures::Picture& picture, int64_t height = 0, int64_t width = 0,
                  const InferOptions& options = {});

// The largest of logits [classes, h, w] at each place of a height x width grid over them, bilinear, corners not
// aligned, without making the logits of that size.
pictures::Labels labels_of(const torch::Tensor& logits, int64_t height, int64_t width);

}  // namespace heed::segment
