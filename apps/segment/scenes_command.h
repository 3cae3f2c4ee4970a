// `heed data scenes`: pictures with masks, to learn segmentation from.
#pragma once

#include "apps/program.h"

namespace heed::segment {

void add_scenes_command(app::Program& program);

}  // namespace heed::segment
