// Tags, attributes, entities.
#include "apps/translate/documents/xml.h"

#include <heed/attention.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <utility>

#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

constexpr std::string_view kBlank = " \t\r\n";

}  // namespace

std::optional<std::string> attribute(std::string_view tag, std::string_view name) {
  size_t i = tag.find_first_of(kBlank);
  while (i < tag.size()) {
    i = tag.find_first_not_of(kBlank, i);
    if (i == std::string_view::npos) break;
    const size_t end = tag.find_first_of(" \t\r\n=/>", i);
    if (end == std::string_view::npos) break;
    const std::string_view key = tag.substr(i, end - i);
    const size_t equals = tag.find_first_not_of(kBlank, end);
    if (equals == std::string_view::npos || tag[equals] != '=') {
      i = std::max(end, i + 1);
      continue;
    }
    const size_t quote = tag.find_first_not_of(kBlank, equals + 1);
    if (quote == std::string_view::npos || (tag[quote] != '"' && tag[quote] != '\'')) break;
    const size_t close = tag.find(tag[quote], quote + 1);
    if (close == std::string_view::npos) break;
    if (key == name) return std::string(tag.substr(quote + 1, close - quote - 1));
    i = close + 1;
  }
  return std::nullopt;
}

std::optional<std::string> entity(std::string_view name) {
  constexpr std::pair<std::string_view, const char*> kNamed[] = {
      {"amp", "&"}, {"lt", "<"}, {"gt", ">"}, {"quot", "\""}, {"apos", "'"}};
  for (const auto& [known, text] : kNamed) {
    if (name == known) return text;
  }
  if (name.size() < 2 || name[0] != '#' || name.size() > 10) return std::nullopt;
  const bool hex = name[1] == 'x';
  const std::string digits(name.substr(hex ? 2 : 1));
  if (digits.empty() || std::isxdigit(static_cast<unsigned char>(digits[0])) == 0) return std::nullopt;
  char* end = nullptr;
  const unsigned long code = std::strtoul(digits.c_str(), &end, hex ? 16 : 10);
  if (*end != '\0' || code == 0 || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return std::nullopt;
  std::string text;
  append_utf8(text, static_cast<char32_t>(code));
  return text;
}

std::optional<Markup> XmlScanner::next() {
  const size_t begin = text_.find('<', at_);
  count_lines(std::min(begin, text_.size()));
  if (begin == std::string_view::npos) return std::nullopt;
  Markup m;
  m.begin = begin;
  const std::string_view rest = text_.substr(begin);
  if (rest.starts_with("<!--")) {
    m.end = behind(rest, "-->", "a comment");
  } else if (rest.starts_with("<![CDATA[")) {
    m.kind = Markup::Kind::cdata;
    m.end = behind(rest, "]]>", "a CDATA section");
  } else if (rest.starts_with("<?")) {
    m.end = behind(rest, "?>", "a processing instruction");
  } else if (rest.starts_with("<!")) {
    m.end = doctype_end(begin);
  } else {
    m.end = tag_end(begin);
    const bool closes = rest.size() > 1 && rest[1] == '/';
    const bool empty = text_[m.end - 2] == '/';
    m.kind = closes ? Markup::Kind::close : empty ? Markup::Kind::empty : Markup::Kind::open;
    const size_t first = closes ? 2 : 1;
    const size_t last = rest.find_first_of(" \t\r\n/>", first);
    m.name = rest.substr(first, last - first);
    if (m.name.empty()) fail("a \"<\" stands here that begins no tag; in text it is written &lt;");
  }
  m.all = text_.substr(m.begin, m.end - m.begin);
  count_lines(m.end);
  return m;
}

void XmlScanner::fail(const std::string& what) const {
  throw Error(name_ + " line " + std::to_string(line_) + ": " + what);
}

void XmlScanner::count_lines(size_t end) {
  line_ += std::count(text_.begin() + static_cast<ptrdiff_t>(at_), text_.begin() + static_cast<ptrdiff_t>(end), '\n');
  at_ = end;
}

size_t XmlScanner::behind(std::string_view rest, std::string_view close, const char* what) const {
  const size_t end = rest.find(close);
  if (end == std::string_view::npos) fail(std::string(what) + " begins here and does not end; the file may be cut off");
  return static_cast<size_t>(rest.data() - text_.data()) + end + close.size();
}

size_t XmlScanner::tag_end(size_t begin) const {
  char quote = '\0';
  for (size_t i = begin + 1; i < text_.size(); ++i) {
    const char c = text_[i];
    if (quote != '\0') {
      if (c == quote) quote = '\0';
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '>') {
      return i + 1;
    } else if (c == '<') {
      break;
    }
  }
  fail("a tag begins here and does not end; the file may be cut off");
}

size_t XmlScanner::doctype_end(size_t begin) const {
  int depth = 0;
  for (size_t i = begin + 1; i < text_.size(); ++i) {
    if (text_[i] == '[') ++depth;
    if (text_[i] == ']') --depth;
    if (text_[i] == '>' && depth <= 0) return i + 1;
  }
  fail("a declaration begins here and does not end; the file may be cut off");
}

}  // namespace heed::translate
