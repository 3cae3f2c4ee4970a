// The classes' colours, and a picture under them.
#include "apps/segment/colours.h"

#include <algorithm>

#include "apps/pictures/overlay.h"

namespace heed::segment {

using pictures::Labels;
using pictures::Picture;

std::vector<pictures::Colour> palette_of(const pictures::Classes& classes) {
  std::vector<pictures::Colour> palette = pictures::distinct_colours(static_cast<int64_t>(classes.classes.size()));
  for (size_t i = 0; i < palette.size(); ++i) palette[i] = classes.classes[i].colour.value_or(palette[i]);
  return palette;
}

Picture overlay_of(const Picture& picture, const Labels& labels, const pictures::Classes& classes, double opacity) {
  const auto background = std::find_if(classes.classes.begin(), classes.classes.end(),
                                       [](const pictures::Class& c) { return c.name == "background"; });
  Labels shown = labels;
  if (background != classes.classes.end()) {
    const auto hidden = static_cast<uint16_t>(background - classes.classes.begin());
    std::replace(shown.values.begin(), shown.values.end(), hidden, pictures::kIgnoredLabel);
  }
  return pictures::label_overlay(picture, shown, palette_of(classes), opacity);
}

}  // namespace heed::segment
