// Text in the charsets that files name: to UTF-8 and back, by iconv.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace heed::translate {

class Charset {
 public:
  // Throws heed::Error, naming the file, when iconv does not know the charset. "ASCII" is what it says: nothing else
  // can be written in it.
  Charset(const std::string& charset, const std::string& file);

  // Nothing when the bytes are not text in the charset.
  std::optional<std::string> to_utf8(std::string_view bytes) const;
  // Nothing when the text has a character that the charset lacks.
  std::optional<std::string> from_utf8(std::string_view text) const;

 private:
  enum class Kind { utf8, ascii, other };
  Kind kind_;
  std::shared_ptr<void> from_, to_;  // iconv_t
};

}  // namespace heed::translate
