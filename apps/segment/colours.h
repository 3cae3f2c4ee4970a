// What masks and overlays are painted with.
#pragma once

#include <vector>

#include "apps/pictures/datasets.h"
#include "apps/pictures/picture.h"

namespace heed::segment {

// The colours that masks and overlays of these classes are painted with: their own, or distinct ones.
std::vector<pictures::Colour> palette_of(const pictures::Classes& classes);

// The picture with its classes laid over it in those colours. A class called background stays as it is.
pictures::Picture overlay_of(const pictures::Picture& picture, const pictures::Labels& labels,
                             const pictures::Classes& classes, double opacity = 0.5);

}  // namespace heed::segment
