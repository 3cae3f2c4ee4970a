// Where the model that comes with the program is.
#include "apps/translate/boxed_model.h"

#include <filesystem>
#include <system_error>

namespace heed::translate {

std::string boxed_model() {
  namespace fs = std::filesystem;
  std::error_code failed;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  for (const char* place : {"share/heed/models/en-de", "models/en-de"}) {
    const fs::path folder = program.parent_path().parent_path() / place;
    if (!failed && fs::exists(folder / "config.json", failed)) return folder.string();
  }
  return "";
}

}  // namespace heed::translate
