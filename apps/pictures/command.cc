// The model and the pictures that a command was given.
#include "apps/pictures/command.h"

#include <heed/attention.h>

#include <filesystem>
#include <system_error>

#include "apps/boxed_model.h"
#include "apps/output.h"
#include "apps/program.h"

namespace heed::pictures {
namespace fs = std::filesystem;

std::string take_model(std::vector<std::string>& files, const std::string& boxed, const std::string& verb) {
  std::error_code ignored;
  if (fs::is_directory(files.front(), ignored)) {
    const std::string dir = files.front();
    files.erase(files.begin());
    if (files.empty()) throw app::UsageError("there is a model, " + dir + ", and no picture to " + verb);
    return dir;
  }
  const std::string dir = app::boxed_model(boxed);
  if (dir.empty()) {
    throw Error(files.front() + " is no folder of a model, and models/" + boxed +
                ", the one that comes with heed, is not there; name a model's folder first");
  }
  return dir;
}

int each_picture(const std::vector<std::string>& files, int64_t channels,
                 const std::function<void(const std::string& file, const Picture& picture)>& work) {
  size_t unread = 0;
  for (const std::string& file : files) {
    Picture picture;
    try {
      picture = read_picture(file, {.channels = channels});
    } catch (const Error& error) {
      app::say(std::string("heed: ") + error.what());
      ++unread;
      continue;
    }
    work(file, picture);
  }
  if (unread == 0) return app::kOk;
  if (files.size() > 1) {
    app::say("heed: " + std::to_string(unread) + " of " + std::to_string(files.size()) + " pictures could not be read");
  }
  return app::kFailed;
}

std::string Names::of(const std::string& picture) {
  const std::string stem = fs::path(picture).stem().string();
  std::string name = stem;
  for (int i = 2; !taken_.insert(name).second; ++i) name = stem + "-" + std::to_string(i);
  return name;
}

}  // namespace heed::pictures
