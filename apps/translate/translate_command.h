// `heed translate`.
#pragma once

#include "apps/program.h"
#include "apps/translate/infer.h"

namespace heed::translate {

void add_translate(app::Program& program);

// Options of search, which `heed eval translate` has, too.
void add_search_options(CLI::App* command, SearchOptions& options);

}  // namespace heed::translate
