// Opening a folder to train into, and the move of the finished model.
#include "apps/training_folder.h"

#include <fcntl.h>
#include <heed/attention.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "libtorch/files.h"
#include "libtorch/trainer.h"

namespace heed::app {

namespace fs = std::filesystem;
using nlohmann::json;

TrainingFolder::TrainingFolder(std::string out) : out_(std::move(out)) {
  if (out_.empty()) throw Error("there is no folder for the model; name one");
  std::error_code ignored;
  if (fs::exists(out_, ignored) && !fs::is_directory(out_, ignored)) {
    throw Error(out_ + " is a file; the model needs a folder");
  }
}

TrainingFolder::~TrainingFolder() {
  if (locked_ >= 0) ::close(locked_);
}

// On the folder itself, so that nothing is left behind, and gone with the process. A file system without such locks
// goes without.
void TrainingFolder::lock() {
  if (locked_ < 0) locked_ = ::open(out_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (locked_ >= 0 && ::flock(locked_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw Error("another training is at work in " + out_ + "; wait for its end, or name another folder");
  }
}

std::string TrainingFolder::work() const { return (fs::path(out_) / "checkpoint").string(); }
std::string TrainingFolder::finished() const { return work() + "/model"; }
std::string TrainingFolder::complete() const { return work() + "/complete.json"; }

std::optional<json> TrainingFolder::open(const json& identity, bool resume) {
  nn::make_folder(out_);
  lock();
  std::error_code error;
  if (!resume) fs::remove_all(work(), error);
  if (error) throw Error("cannot remove " + work() + ": " + error.message());
  nn::make_folder(work());
  if (fs::exists(complete())) {
    const json training = json::parse(nn::read_file(complete()), nullptr, /*allow_exceptions=*/false);
    install();
    if (training.is_object() && training.value("options", json()) == identity) return training;
    nn::make_folder(work());
  }
  if (fs::exists(nn::checkpoint_path(work()))) {
    // Before anything slow: other options or data should be told at once.
    nn::check_identity(nn::load_checkpoint(work()).state.value("identity", json()), identity, work());
  }
  return std::nullopt;
}

void TrainingFolder::finish(const json& result, const json& identity) const {
  json training = result;
  training["options"] = identity;
  nn::write_file(finished() + "/training.json", training.dump(2) + "\n");
  nn::write_file(complete(), training.dump());
  install();
}

// May be cut off anywhere and called again.
void TrainingFolder::install() const {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator at(finished(), error), end; !error && at != end; at.increment(error)) {
    files.push_back(at->path());
  }
  // The one that makes a folder a model comes last.
  std::sort(files.begin(), files.end());
  std::stable_partition(files.begin(), files.end(), [](const fs::path& f) { return f.filename() != "config.json"; });
  for (const fs::path& from : files) {
    fs::rename(from, fs::path(out_) / from.filename(), error);
    if (error) {
      throw Error("cannot move " + from.string() + " to " + out_ + ": " + error.message() +
                  "; mend that and run the same command again");
    }
  }
  fs::remove_all(work(), error);
}

}  // namespace heed::app
