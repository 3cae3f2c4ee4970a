// `heed train classify`, `heed classify` and `heed eval classify`.
#pragma once

#include "apps/program.h"

namespace heed::classify {

// Adds the commands.
void add_commands(app::Program& program);

}  // namespace heed::classify
