// What the commands on pictures share: which model and pictures they are given, and what they write about each.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "apps/pictures/picture.h"

namespace heed::pictures {

// The model's folder that the user named before the pictures, taken out of `files`, or that of the model in the box,
// models/BOXED. Throws app::UsageError or heed::Error if there is none, or no picture. verb: "classify" or "segment".
std::string take_model(std::vector<std::string>& files, const std::string& boxed, const std::string& verb);

// Reads each file and gives it to `work`. One that cannot be read is named on standard error, and counted at the end.
// Returns the exit code: app::kFailed if there was such a one.
int each_picture(const std::vector<std::string>& files, int64_t channels,
                 const std::function<void(const std::string& file, const Picture& picture)>& work);

// Names for what is written about each picture: its own without the ending, or NAME-2 and so on where pictures of
// several folders have one name.
class Names {
 public:
  std::string of(const std::string& picture);

 private:
  std::set<std::string> taken_;
};

}  // namespace heed::pictures
