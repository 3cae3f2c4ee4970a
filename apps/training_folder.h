// The folder a model is trained into, for every task: the work in progress apart, and a whole new model that takes the
// place of an older one at the end.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace heed::app {

class TrainingFolder {
 public:
  // Throws heed::Error if `out` is empty or a file. Makes nothing yet.
  explicit TrainingFolder(std::string out);
  ~TrainingFolder();
  TrainingFolder(const TrainingFolder&) = delete;
  TrainingFolder& operator=(const TrainingFolder&) = delete;

  std::string work() const;      // out/checkpoint: where everything is until the end
  std::string finished() const;  // out/checkpoint/model: where to save the finished model for finish()

  // Makes the work folder ready, empty if it shall not `resume`. If a training with this identity had ended and was cut
  // off while its model moved to its place, completes that and returns what finish() was given. The folder is this
  // object's from then on: two trainings in one would write over each other. Throws heed::Error if another has it, a
  // checkpoint is of another identity (nn::check_identity), or the folder cannot be made.
  std::optional<nlohmann::json> open(const nlohmann::json& identity, bool resume);

  // Writes training.json, `result` and the identity, to the model saved in finished(), moves all of it to `out` and
  // removes the work folder. A kill leaves the old model, or what the next open() completes.
  void finish(const nlohmann::json& result, const nlohmann::json& identity) const;

 private:
  std::string complete() const;  // a file that says that finished() is whole
  void install() const;
  void lock();

  std::string out_;
  int locked_ = -1;  // the folder, open
};

}  // namespace heed::app
