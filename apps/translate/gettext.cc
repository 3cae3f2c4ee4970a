// Parsers for .po and .mo. Cleaning for training is in clean_messages.cc.
#include "apps/translate/gettext.h"

#include <heed/attention.h>
#include <iconv.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

// The charset that a catalogue's header entry names, in capitals; "UTF-8" when it names none.
std::string header_charset(std::string_view header) {
  constexpr std::string_view kKey = "charset=";
  const auto same = [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a + 32 : a) == b; };
  const auto found = std::search(header.begin(), header.end(), kKey.begin(), kKey.end(), same);
  std::string charset;
  if (found != header.end()) {
    for (auto at = found + kKey.size(); at != header.end(); ++at) {
      const char c = *at;
      const bool fits = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                        std::strchr("-_.:+", c) != nullptr;
      if (!fits || c == '\0') break;
      charset.push_back(c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c);
    }
  }
  // "CHARSET" is what msginit leaves in a template. ASCII is a part of UTF-8.
  if (charset.empty() || charset == "CHARSET" || charset == "UTF8" || charset == "ASCII" || charset == "US-ASCII") {
    return "UTF-8";
  }
  return charset;
}

// Converts from one charset to UTF-8.
class Converter {
 public:
  Converter(const std::string& charset, const std::string& name) : utf8_(charset == "UTF-8") {
    if (utf8_) return;
    iconv_ = iconv_open("UTF-8", charset.c_str());
    if (iconv_ == reinterpret_cast<iconv_t>(-1)) {
      throw Error(name + ": its charset is \"" + charset + "\", which iconv cannot convert to UTF-8.");
    }
  }
  ~Converter() {
    if (!utf8_) iconv_close(iconv_);
  }
  Converter(const Converter&) = delete;
  Converter& operator=(const Converter&) = delete;

  // Nothing when the bytes are not text in the charset.
  std::optional<std::string> convert(std::string_view bytes) const {
    if (utf8_) return is_utf8(bytes) ? std::optional<std::string>(bytes) : std::nullopt;
    iconv(iconv_, nullptr, nullptr, nullptr, nullptr);
    char* in = const_cast<char*>(bytes.data());  // iconv's prototype lacks the const; it does not write
    size_t left = bytes.size();
    std::string out;
    char buffer[4096];
    for (bool flush = false;;) {
      char* to = buffer;
      size_t room = sizeof buffer;
      const size_t code = iconv(iconv_, flush ? nullptr : &in, flush ? nullptr : &left, &to, &room);
      out.append(buffer, static_cast<size_t>(to - buffer));
      if (code == static_cast<size_t>(-1)) {
        if (errno != E2BIG) return std::nullopt;
      } else if (flush) {
        return out;
      } else {
        flush = true;
      }
    }
  }

 private:
  bool utf8_;
  iconv_t iconv_ = nullptr;
};

// ---- .po ----

class PoParser {
 public:
  PoParser(std::string_view bytes, const std::string& name) : text_(bytes), name_(name) {}

  Catalogue parse() {
    if (text_.starts_with("\xEF\xBB\xBF")) text_.remove_prefix(3);
    if (text_.starts_with("\xFF\xFE") || text_.starts_with("\xFE\xFF")) {
      throw Error(name_ + " is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8.");
    }
    // The header names the charset of the whole file, and in some charsets (Shift-JIS, GBK) half of a character looks
    // like a backslash: so the text is converted before it is parsed. The header itself is ASCII.
    catalogue_.charset = header_charset(header_text());
    std::string converted;
    if (catalogue_.charset != "UTF-8") {
      const auto all = Converter(catalogue_.charset, name_).convert(text_);
      if (!all) throw Error(name_ + " holds bytes that are not text in its charset \"" + catalogue_.charset + "\".");
      converted = *all;
      text_ = converted;
    }
    while (!text_.empty()) {
      const size_t end = text_.find('\n');
      std::string_view line = text_.substr(0, end);
      text_.remove_prefix(end == std::string_view::npos ? text_.size() : end + 1);
      number_++;
      parse_line(strip(line));
    }
    finish_entry();
    return std::move(catalogue_);
  }

 private:
  struct Entry {
    std::string context, id, plural, str, other_forms;
    bool has_id = false, has_str = false, fuzzy = false;
  };

  static std::string_view strip(std::string_view line) {
    const size_t first = line.find_first_not_of(" \t\r\v\f");
    if (first == std::string_view::npos) return {};
    return line.substr(first, line.find_last_not_of(" \t\r\v\f") - first + 1);
  }

  // The part of the text that holds the header entry: from the first empty msgid to the next entry.
  std::string_view header_text() const {
    const size_t start = text_.find("msgid \"\"");
    if (start == std::string_view::npos) return {};
    const size_t end = text_.find("\nmsgid ", start);
    return text_.substr(start, end == std::string_view::npos ? end : end - start);
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(name_ + " line " + std::to_string(number_) + ": " + what + ".");
  }

  void parse_line(std::string_view line) {
    if (line.empty()) return;
    if (line.front() == '#') {
      parse_comment(line);
      return;
    }
    if (line.front() == '"') {
      if (into_ == nullptr) fail("a string stands here without msgid or msgstr before it");
      unquote(line, *into_);
      return;
    }
    const size_t word_end = line.find_first_of(" \t\"[");
    const std::string_view word = line.substr(0, word_end);
    std::string_view rest = word_end == std::string_view::npos ? std::string_view() : line.substr(word_end);
    if (word == "msgctxt") {
      finish_entry();
      into_ = &entry_.context;
    } else if (word == "msgid") {
      if (entry_.has_id) finish_entry();
      entry_.has_id = true;
      into_ = &entry_.id;
    } else if (word == "msgid_plural") {
      if (!entry_.has_id) fail("msgid_plural without a msgid before it");
      into_ = &entry_.plural;
    } else if (word == "msgstr") {
      if (!entry_.has_id) fail("msgstr without a msgid before it");
      into_ = entry_.has_str ? &entry_.other_forms : &entry_.str;
      entry_.has_str = true;
      if (rest.starts_with('[')) {
        const size_t close = rest.find(']');
        if (close == std::string_view::npos) fail("msgstr[ without a closing bracket");
        if (strip(rest.substr(1, close - 1)) != "0") into_ = &entry_.other_forms;
        rest.remove_prefix(close + 1);
      }
    } else {
      fail("msgid, msgstr, msgctxt, a comment or a quoted string is expected, not \"" +
           encode_utf8(decode_utf8(line.substr(0, 30))) + "\"");
    }
    rest = strip(rest);
    if (rest.empty()) fail(std::string(word) + " without a quoted string");
    unquote(rest, *into_);
  }

  void parse_comment(std::string_view line) {
    if (line.starts_with("#~")) {
      finish_entry();
      // "#~| msgid" is the previous source of an obsolete entry.
      if (strip(line.substr(2)).starts_with("msgid") && !strip(line.substr(2)).starts_with("msgid_plural")) {
        catalogue_.obsolete++;
        catalogue_.entries++;
      }
      return;
    }
    // Comments stand before their entry, so one after a msgstr opens the next entry.
    if (entry_.has_str) finish_entry();
    if (line.starts_with("#,")) {
      for (std::string_view flags = line.substr(2); !flags.empty();) {
        const size_t comma = flags.find(',');
        if (strip(flags.substr(0, comma)) == "fuzzy") entry_.fuzzy = true;
        flags.remove_prefix(comma == std::string_view::npos ? flags.size() : comma + 1);
      }
    }
  }

  // Appends the text of one "..." to out, undoing C's escapes.
  void unquote(std::string_view text, std::string& out) const {
    if (text.size() < 2 || text.front() != '"') fail("a string in double quotes is expected");
    size_t i = 1;
    for (; i < text.size() && text[i] != '"'; i++) {
      if (text[i] != '\\') {
        out.push_back(text[i]);
        continue;
      }
      if (++i == text.size()) break;
      constexpr std::string_view kFrom = "ntrabfv", kTo = "\n\t\r\a\b\f\v";
      const char c = text[i];
      if (const size_t at = kFrom.find(c); at != std::string_view::npos) {
        out.push_back(kTo[at]);
      } else if (c == 'x') {
        i = number(text, i + 1, 16, 2, out);
      } else if (c >= '0' && c <= '7') {
        i = number(text, i, 8, 3, out);
      } else {
        out.push_back(c);  // \" \\ and whatever else stands for itself
      }
    }
    if (i >= text.size()) fail("the string has no closing quote");
    if (i + 1 != text.size()) fail("there is text behind the closing quote");
  }

  // Reads up to `most` digits from text[i] on, appends that byte and returns the place of the last digit.
  static size_t number(std::string_view text, size_t i, unsigned base, int most, std::string& out) {
    const auto value = [&](char c) -> unsigned {
      if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
      if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
      if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
      return 99;
    };
    unsigned n = 0;
    for (; most > 0 && i < text.size() && value(text[i]) < base; most--, i++) n = n * base + value(text[i]);
    out.push_back(static_cast<char>(n & 0xFF));
    return i - 1;
  }

  void finish_entry() {
    Entry entry = std::exchange(entry_, Entry());
    into_ = nullptr;
    if (!entry.has_id) return;
    if (!entry.has_str) fail("the entry that ends here has a msgid and no msgstr");
    if (entry.id.empty() && entry.context.empty()) return;  // the header
    catalogue_.entries++;
    if (entry.str.empty() || entry.id.empty()) {
      catalogue_.untranslated++;
    } else if (entry.fuzzy) {
      catalogue_.fuzzy++;
    } else if (!is_utf8(entry.context) || !is_utf8(entry.id) || !is_utf8(entry.str)) {
      catalogue_.invalid++;
    } else {
      catalogue_.messages.push_back({std::move(entry.context), std::move(entry.id), std::move(entry.str)});
    }
  }

  std::string_view text_;
  const std::string& name_;
  int64_t number_ = 0;
  Catalogue catalogue_;
  Entry entry_;
  std::string* into_ = nullptr;  // the field of entry_ that a further "..." line belongs to
};

// ---- .mo ----

class MoFile {
 public:
  MoFile(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {
    if (bytes.size() < 28) {
      fail("has " + std::to_string(bytes.size()) + " bytes; the header of a .mo file alone has 28");
    }
    const auto* p = reinterpret_cast<const unsigned char*>(bytes.data());
    const uint32_t magic = uint32_t{p[0]} | uint32_t{p[1]} << 8 | uint32_t{p[2]} << 16 | uint32_t{p[3]} << 24;
    if (magic != 0x950412de && magic != 0xde120495) fail("is not a .mo file: it does not start with its magic number");
    big_endian_ = magic == 0xde120495;
    if (const uint32_t major = word(4) >> 16; major > 1) {
      fail("has the .mo format's version " + std::to_string(major) + "; versions 0 and 1 can be read");
    }
    count_ = word(8);
    sources_ = word(12);
    targets_ = word(16);
    const uint64_t table = uint64_t{count_} * 8;
    if (sources_ + table > bytes.size() || targets_ + table > bytes.size()) {
      fail("says it has " + std::to_string(count_) + " messages, more than fit into its " +
           std::to_string(bytes.size()) + " bytes; it is cut off or damaged");
    }
  }

  uint32_t count() const { return count_; }
  std::string_view source(uint32_t i) { return string(sources_ + uint64_t{i} * 8); }
  std::string_view target(uint32_t i) { return string(targets_ + uint64_t{i} * 8); }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Error(name_ + " " + what + "."); }

  // The number at `at`, which the caller has checked to be inside.
  uint32_t word(uint64_t at) const {
    const auto* p = reinterpret_cast<const unsigned char*>(bytes_.data()) + at;
    return big_endian_ ? uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | uint32_t{p[3]}
                       : uint32_t{p[3]} << 24 | uint32_t{p[2]} << 16 | uint32_t{p[1]} << 8 | uint32_t{p[0]};
  }

  std::string_view string(uint64_t descriptor) {
    const uint64_t length = word(descriptor), offset = word(descriptor + 4);
    if (offset + length >= bytes_.size() || bytes_[offset + length] != '\0') {
      fail("has a message of " + std::to_string(length) + " bytes at " + std::to_string(offset) +
           " which does not end inside its " + std::to_string(bytes_.size()) + " bytes; it is cut off or damaged");
    }
    // Messages may share text, but a file in which all of them are the same large piece is made to eat memory.
    read_ += length;
    if (read_ > 8 * static_cast<uint64_t>(bytes_.size())) fail("has messages that overlap; it is damaged");
    return bytes_.substr(offset, length);
  }

  std::string_view bytes_;
  const std::string& name_;
  bool big_endian_ = false;
  uint32_t count_ = 0;
  uint64_t sources_ = 0, targets_ = 0;
  uint64_t read_ = 0;
};

}  // namespace

Catalogue parse_po(std::string_view bytes, const std::string& name) { return PoParser(bytes, name).parse(); }

Catalogue parse_mo(std::string_view bytes, const std::string& name) {
  MoFile file(bytes, name);
  Catalogue catalogue;
  catalogue.charset = "UTF-8";
  std::vector<std::pair<std::string_view, std::string_view>> raw;
  raw.reserve(file.count());
  for (uint32_t i = 0; i < file.count(); i++) {
    const std::string_view source = file.source(i), target = file.target(i);
    if (source.empty()) {
      catalogue.charset = header_charset(target);
    } else {
      raw.emplace_back(source, target);
    }
  }
  const Converter converter(catalogue.charset, name);
  for (auto [source, target] : raw) {
    catalogue.entries++;
    // Plural forms follow each other, a NUL between them.
    source = source.substr(0, source.find('\0'));
    target = target.substr(0, target.find('\0'));
    auto id = converter.convert(source), str = converter.convert(target);
    if (!id || !str) {
      catalogue.invalid++;
      continue;
    }
    Message message{"", std::move(*id), std::move(*str)};
    if (const size_t mark = message.source.find('\4'); mark != std::string::npos) {
      message.context = message.source.substr(0, mark);
      message.source.erase(0, mark + 1);
    }
    if (message.source.empty() || message.target.empty()) {
      catalogue.untranslated++;
    } else {
      catalogue.messages.push_back(std::move(message));
    }
  }
  return catalogue;
}

}  // namespace heed::translate
