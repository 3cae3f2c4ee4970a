// Other sizes of pictures and masks, and parts of them: resizing with Pillow's bytes, crops, flips. Needs no LibTorch.
#pragma once

#include <cstdint>

#include "apps/pictures/picture.h"

namespace heed::pictures {

// What weighs the pixels around. All but nearest widen when a picture gets smaller, so that every pixel counts
// (antialiasing; what torchvision calls antialias=True).
enum class Filter {
  nearest,   // the pixel in the middle; Pillow's NEAREST, 0
  box,       // a mean; BOX, 4
  bilinear,  // a triangle; BILINEAR, 2
  bicubic,   // Keys 1981 with a = -1/2; BICUBIC, 3
  lanczos,   // sinc windowed by sinc, three lobes; LANCZOS, 1
};

// The bytes are those of Pillow's Image.resize((width, height), filter) for modes "L" and "RGB". Throws heed::Error
// unless width and height are at least 1 and make at most 200 million pixels.
Picture resize(const Picture& picture, int64_t width, int64_t height, Filter filter = Filter::bilinear);

// Labels have no values in between, so theirs is nearest.
Labels resize(const Labels& labels, int64_t width, int64_t height);

// The shorter side becomes `side`, the longer one keeps the proportion, rounded down: torchvision's Resize(side).
Picture resize_shorter_side(const Picture& picture, int64_t side, Filter filter = Filter::bilinear);

// The part whose upper left pixel is (left, top). Throws heed::Error unless all of it is inside.
Picture crop(const Picture& picture, int64_t left, int64_t top, int64_t width, int64_t height);
Labels crop(const Labels& labels, int64_t left, int64_t top, int64_t width, int64_t height);

// The part in the middle, as torchvision's CenterCrop places it: of an odd rest, half to even. Throws heed::Error when
// the picture is smaller.
Picture centre_crop(const Picture& picture, int64_t width, int64_t height);
Labels centre_crop(const Labels& labels, int64_t width, int64_t height);

// Left becomes right.
Picture flip(const Picture& picture);
Labels flip(const Labels& labels);

}  // namespace heed::pictures
