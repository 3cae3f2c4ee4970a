// A JSON object from a file, read key by key, with errors that name the file, the key and what it holds.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace heed::app {

// Sizes above this are a damaged file, not a model; it keeps products of two sizes far from overflow.
inline constexpr int64_t kLargestSize = int64_t{1} << 24;

// Every function takes what a key means when the file does not say it: without that, the key must be there. A null is
// as good as no key: Hugging Face writes it for what is not set. All throw heed::Error.
class JsonKeys {
 public:
  // `file` is the name in errors.
  JsonKeys(nlohmann::json object, std::string file);
  static JsonKeys read(const std::string& path);

  bool says(const char* key) const;
  const nlohmann::json& at(const char* key) const;

  int64_t whole(const char* key, int64_t least, int64_t most, std::optional<int64_t> without = {}) const;
  int64_t size(const char* key, std::optional<int64_t> without = {}) const;  // from 1 to kLargestSize
  std::vector<int64_t> sizes(const char* key) const;                         // a list of them
  int64_t side(const char* key) const;                                       // a size, or the same one twice: [n, n]
  double number(const char* key, std::optional<double> without = {}) const;  // at least 0 and finite
  double share(const char* key, std::optional<double> without = {}) const;   // at least 0 and below 1
  bool flag(const char* key, std::optional<bool> without = {}) const;
  std::string text(const char* key, std::optional<std::string> without = {}) const;

  const nlohmann::json& object() const { return object_; }
  const std::string& file() const { return file_; }
  // `config.json's "key" is 7; it must be ...`
  [[noreturn]] void refuse(const char* key, const std::string& wanted) const;

 private:
  nlohmann::json object_;
  std::string file_;
};

// JSON on one line, for an error: not all of it if it is long.
std::string quoted(const nlohmann::json& value);

}  // namespace heed::app
