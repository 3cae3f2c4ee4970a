// `heed translate`.
#pragma once

#include <optional>

#include "apps/program.h"
#include "apps/translate/infer.h"

namespace heed::translate {

void add_translate(app::Program& program);

// What a user says of search, here and to `heed eval translate`; of the rest the model's folder has something to say.
struct SearchArguments {
  std::optional<int> beam;
  std::optional<double> length_penalty;
  SearchOptions others;  // all but these two

  // For this model. A beam that nobody asked for is as wide as nbest needs.
  SearchOptions with(const Generation& folder) const;
};
void add_search_options(CLI::App* command, SearchArguments& arguments);

}  // namespace heed::translate
