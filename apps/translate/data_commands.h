// `heed data messages` and `heed data split`: sentence pairs from Debian's catalogues, and pairs set aside for
// measuring.
#pragma once

#include "apps/program.h"

namespace heed::translate {

void add_data_commands(app::Program& program);

}  // namespace heed::translate
