// Keys of a JSON object, each checked as it is read.
#include "apps/json_keys.h"

#include <heed/attention.h>

#include <cmath>
#include <utility>

#include "libtorch/files.h"

namespace heed::app {
namespace {

using nlohmann::json;

// A fraction or a huge unsigned number must not be rounded or wrapped into something that looks fine.
bool is_whole(const json& value, int64_t least, int64_t most) {
  return value.is_number_integer() &&
         !(value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(most)) &&
         value.get<int64_t>() >= least && value.get<int64_t>() <= most;
}

bool is_size(const json& value) { return is_whole(value, 1, kLargestSize); }

std::string from_to(int64_t least, int64_t most) {
  return "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
}

}  // namespace

std::string quoted(const json& value) {
  constexpr size_t kMost = 80;
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
  if (text.size() > kMost) text = text.substr(0, kMost) + " ...";
  return text;
}

JsonKeys::JsonKeys(json object, std::string file) : object_(std::move(object)), file_(std::move(file)) {
  if (object_.is_discarded()) throw Error(file_ + " is not JSON; the file is damaged, copy the model folder again");
  if (!object_.is_object()) throw Error(file_ + " does not hold a JSON object");
}

JsonKeys JsonKeys::read(const std::string& path) {
  return {json::parse(nn::read_file(path), nullptr, /*allow_exceptions=*/false), path};
}

bool JsonKeys::says(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }

const json& JsonKeys::at(const char* key) const {
  if (!says(key)) throw Error(file_ + " has no key \"" + key + "\"");
  return object_[key];
}

void JsonKeys::refuse(const char* key, const std::string& wanted) const {
  throw Error(file_ + "'s \"" + key + "\" is " + quoted(at(key)) + "; it must be " + wanted);
}

int64_t JsonKeys::whole(const char* key, int64_t least, int64_t most, std::optional<int64_t> without) const {
  if (without && !says(key)) return *without;
  if (!is_whole(at(key), least, most)) refuse(key, from_to(least, most));
  return at(key).get<int64_t>();
}

int64_t JsonKeys::size(const char* key, std::optional<int64_t> without) const {
  return whole(key, 1, kLargestSize, without);
}

std::vector<int64_t> JsonKeys::sizes(const char* key) const {
  if (!at(key).is_array()) refuse(key, "a list of whole numbers");
  std::vector<int64_t> result;
  for (const json& value : at(key)) {
    if (!is_size(value)) refuse(key, "a list, each " + from_to(1, kLargestSize));
    result.push_back(value.get<int64_t>());
  }
  return result;
}

int64_t JsonKeys::side(const char* key) const {
  if (!at(key).is_array()) return size(key);
  const std::vector<int64_t> both = sizes(key);
  if (both.size() != 2 || both[0] != both[1]) refuse(key, "one number, or the same one twice");
  return both[0];
}

double JsonKeys::number(const char* key, std::optional<double> without) const {
  if (without && !says(key)) return *without;
  const json& value = at(key);
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() < 0)
    refuse(key, "a number, at least 0");
  return value.get<double>();
}

double JsonKeys::share(const char* key, std::optional<double> without) const {
  const double value = number(key, without);
  if (value >= 1) refuse(key, "at least 0 and below 1");
  return value;
}

bool JsonKeys::flag(const char* key, std::optional<bool> without) const {
  if (without && !says(key)) return *without;
  if (!at(key).is_boolean()) refuse(key, "true or false");
  return at(key).get<bool>();
}

std::string JsonKeys::text(const char* key, std::optional<std::string> without) const {
  if (without && !says(key)) return *without;
  if (!at(key).is_string()) refuse(key, "text in quotation marks");
  return at(key).get<std::string>();
}

}  // namespace heed::app
