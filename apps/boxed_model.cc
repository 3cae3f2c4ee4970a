// Where the models that come with the program are.
#include "apps/boxed_model.h"

#include <filesystem>
#include <system_error>

namespace heed::app {

std::string boxed_model(const std::string& name) {
  namespace fs = std::filesystem;
  std::error_code failed;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  for (const char* place : {"share/heed/models", "models"}) {
    const fs::path folder = program.parent_path().parent_path() / place / name;
    if (!failed && fs::exists(folder / "config.json", failed)) return folder.string();
  }
  return "";
}

}  // namespace heed::app
