// Which required texts a translation lacks.
#include "apps/translate/required.h"

#include <map>

namespace heed::translate {

std::vector<std::string> texts_of(std::span<const Required> required) {
  std::vector<std::string> texts;
  for (const Required& each : required) texts.push_back(each.text);
  return texts;
}

int64_t occurrences(std::string_view text, std::string_view part) {
  int64_t n = 0;
  for (size_t at = 0; !part.empty() && (at = text.find(part, at)) != std::string_view::npos; at += part.size()) ++n;
  return n;
}

std::vector<std::string> lacking(std::string_view text, std::span<const std::string> wanted) {
  std::map<std::string, int64_t> counts;
  for (const std::string& each : wanted) ++counts[each];
  std::vector<std::string> missing;
  for (const auto& [each, count] : counts) {
    for (int64_t n = occurrences(text, each); n < count && !each.empty(); ++n) missing.push_back(each);
  }
  return missing;
}

}  // namespace heed::translate
