// XML, as far as filling in a file needs it: tags one after the other, each with its place.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace heed::translate {

// A tag, or what else stands between < and >.
struct Markup {
  enum class Kind { open, close, empty, other, cdata } kind = Kind::other;
  std::string_view name, all;  // all: from < to behind >
  size_t begin = 0, end = 0;
};

// The value of an attribute in a tag; nothing if it has none.
std::optional<std::string> attribute(std::string_view tag, std::string_view name);

// The character an entity between & and ; stands for; nothing for those a DTD defines.
std::optional<std::string> entity(std::string_view name);

// Walks over a text from one piece of markup to the next. Its errors name the file and the line.
class XmlScanner {
 public:
  XmlScanner(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  std::optional<Markup> next();           // nothing at the end of the text
  int64_t line() const { return line_; }  // where the last markup ends
  [[noreturn]] void fail(const std::string& what) const;

 private:
  void count_lines(size_t end);
  size_t behind(std::string_view rest, std::string_view close, const char* what) const;
  size_t tag_end(size_t begin) const;
  size_t doctype_end(size_t begin) const;

  std::string_view text_;
  const std::string& name_;
  size_t at_ = 0;
  int64_t line_ = 1;
};

}  // namespace heed::translate
