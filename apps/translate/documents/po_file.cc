// Reading .po files line by line, with the place of everything that may be filled in.
#include "apps/translate/documents/po_file.h"

#include <heed/attention.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "apps/terminal.h"
#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

constexpr int kPageWidth = 79;  // gettext's default
constexpr int64_t kMostForms = 100;
constexpr std::string_view kSpace = " \t\r\v\f";

std::string_view strip(std::string_view line) {
  const size_t first = line.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return line.substr(first, line.find_last_not_of(kSpace) - first + 1);
}

std::string escaped(char32_t c) {
  constexpr std::string_view kFrom = "\n\t\r\a\b\f\v\"\\", kTo = "ntrabfv\"\\";
  if (c < 0x80) {
    if (const size_t at = kFrom.find(static_cast<char>(c)); at != std::string_view::npos) {
      return {'\\', kTo[at]};
    }
    if (c < 0x20 || c == 0x7F) {
      return {'\\', static_cast<char>('0' + (c >> 6)), static_cast<char>('0' + (c >> 3 & 7)),
              static_cast<char>('0' + (c & 7))};
    }
  }
  std::string out;
  append_utf8(out, c);
  return out;
}

}  // namespace

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
  if (charset == "CHARSET") return "";
  return charset == "UTF8" ? "UTF-8" : charset;
}

bool PoEntry::has_flag(std::string_view flag) const {
  return std::find(flags.begin(), flags.end(), flag) != flags.end();
}

bool PoEntry::untranslated() const {
  return std::all_of(forms.begin(), forms.end(), [](const std::string& form) { return form.empty(); });
}

class PoParser {
 public:
  explicit PoParser(PoFile& file) : file_(file), bytes_(file.bytes_) {}

  void parse() {
    if (bytes_.starts_with("\xFF\xFE") || bytes_.starts_with("\xFE\xFF")) {
      throw Error(file_.name_ + " is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8.");
    }
    // The header names the charset of the whole file, and in some charsets (Shift-JIS, GBK) half of a character looks
    // like a backslash: so a line is converted before it is parsed. The header itself is ASCII, and so is every entry's
    // keyword, where it stands alone on its line.
    file_.named_charset_ = header_charset(header_text());
    file_.charset_.emplace(file_.named_charset_.empty() ? "UTF-8" : file_.named_charset_, file_.name_);
    const bool utf8 = file_.named_charset_.empty() || file_.named_charset_ == "UTF-8";
    for (size_t at = bytes_.starts_with("\xEF\xBB\xBF") ? 3 : 0; at < bytes_.size();) {
      const size_t end = std::min(bytes_.find('\n', at), bytes_.size());
      const std::string_view line = bytes_.substr(at, end - at);
      line_begin_ = at;
      at = end + 1;
      number_++;
      text_line_ = true;
      if (utf8 && is_utf8(line)) {
        parse_line(line);
      } else if (const auto text = file_.charset_->to_utf8(line)) {
        parse_line(*text);
      } else {
        text_line_ = false;
        if (file_.first_bad_line_ == 0) file_.first_bad_line_ = number_;
        parse_line(line);
      }
    }
    finish_entry();
  }

 private:
  // The part of the text that holds the header entry: from the first empty msgid to the next entry.
  std::string_view header_text() const {
    const size_t start = bytes_.find("msgid \"\"");
    if (start == std::string_view::npos) return {};
    const size_t end = bytes_.find("\nmsgid ", start);
    return bytes_.substr(start, end == std::string_view::npos ? end : end - start);
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(file_.name_ + " line " + std::to_string(number_) + ": " + what + ".");
  }

  // The line without its end. Trailing white space is the line's, too.
  void parse_line(std::string_view whole) {
    const std::string_view line = strip(whole);
    if (line.empty()) return;
    indent_ = static_cast<size_t>(line.data() - whole.data());
    line_end_ = line_begin_ + indent_ + line.size();
    if (line.front() == '#') {
      parse_comment(line);
      return;
    }
    if (line.front() == '"') {
      if (into_ == nullptr) fail("a string stands here without msgid or msgstr before it");
      add(line);
      return;
    }
    const size_t word_end = line.find_first_of(" \t\"[");
    const std::string_view word = line.substr(0, word_end);
    std::string_view rest = word_end == std::string_view::npos ? std::string_view() : line.substr(word_end);
    if (word == "msgctxt") {
      finish_entry();
      begin_entry();
      into_ = &entry_.context;
    } else if (word == "msgid") {
      if (has_id_) finish_entry();
      begin_entry();
      has_id_ = true;
      entry_.line = number_;
      into_ = &entry_.id;
    } else if (word == "msgid_plural") {
      if (!has_id_) fail("msgid_plural without a msgid before it");
      entry_.has_plural = true;
      into_ = &entry_.plural;
    } else if (word == "msgstr") {
      if (!has_id_) fail("msgstr without a msgid before it");
      size_t form = 0;
      if (rest.starts_with('[')) {
        const size_t close = rest.find(']');
        if (close == std::string_view::npos) fail("msgstr[ without a closing bracket");
        form = form_number(strip(rest.substr(1, close - 1)));
        rest.remove_prefix(close + 1);
      }
      if (entry_.forms.empty()) entry_.str_begin = line_begin_ + indent_;
      if (entry_.forms.size() <= form) entry_.forms.resize(form + 1);
      into_ = &entry_.forms[form];
    } else {
      fail("msgid, msgstr, msgctxt, a comment or a quoted string is expected, not \"" +
           encode_utf8(decode_utf8(line.substr(0, 30))) + "\"");
    }
    rest = strip(rest);
    if (rest.empty()) fail(std::string(word) + " without a quoted string");
    add(rest);
  }

  size_t form_number(std::string_view text) const {
    int64_t n = text.empty() ? kMostForms : 0;
    for (const char c : text) n = c >= '0' && c <= '9' && n < kMostForms ? n * 10 + (c - '0') : kMostForms;
    if (n >= kMostForms) fail("msgstr[" + std::string(text.substr(0, 20)) + "] does not number a plural form");
    return static_cast<size_t>(n);
  }

  void parse_comment(std::string_view line) {
    if (line.starts_with("#~")) {
      finish_entry();
      // "#~| msgid" is the previous source of an obsolete entry.
      const std::string_view rest = strip(line.substr(2));
      if (rest.starts_with("msgid") && !rest.starts_with("msgid_plural")) file_.obsolete_++;
      return;
    }
    // Comments stand before their entry, so one after a msgstr opens the next entry.
    if (!entry_.forms.empty()) finish_entry();
    if (line.starts_with("#|")) begin_entry();
    if (!line.starts_with("#,")) return;
    if (!entry_.flags_at) entry_.flags_at = line_begin_ + indent_ + 2;
    for (std::string_view flags = line.substr(2); !flags.empty();) {
      const size_t comma = flags.find(',');
      entry_.flags.emplace_back(strip(flags.substr(0, comma)));
      flags.remove_prefix(comma == std::string_view::npos ? flags.size() : comma + 1);
    }
  }

  void begin_entry() {
    if (!began_) entry_.head = line_begin_;
    began_ = true;
  }

  // One "..." of the string that into_ is.
  void add(std::string_view text) {
    unquote(text, *into_);
    entry_.is_text = entry_.is_text && text_line_;
    entry_.str_end = line_end_;
    const bool header = into_ != &entry_.id && entry_.id.empty();
    // A space at the end is where a line was wrapped before a word that is too long for one.
    if (!header && app::display_width(text) > kPageWidth && text.find(' ') < text.size() - 2) file_.wrapped_ = false;
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
    PoEntry entry = std::exchange(entry_, PoEntry());
    const bool has_id = std::exchange(has_id_, false);
    into_ = nullptr;
    began_ = false;
    if (!has_id) return;
    if (entry.forms.empty()) fail("the entry that ends here has a msgid and no msgstr");
    if (entry.id.empty() && entry.context.empty()) {
      if (file_.header_.empty()) file_.header_ = std::move(entry.forms.front());
      return;
    }
    entry.is_text = entry.is_text && is_utf8(entry.context) && is_utf8(entry.id) && is_utf8(entry.plural) &&
                    std::all_of(entry.forms.begin(), entry.forms.end(), [](const auto& f) { return is_utf8(f); });
    file_.entries_.push_back(std::move(entry));
  }

  PoFile& file_;
  std::string_view bytes_;
  int64_t number_ = 0;
  size_t line_begin_ = 0, line_end_ = 0, indent_ = 0;  // of the line at hand; its end without white space
  bool text_line_ = true;                              // it is text in the charset
  PoEntry entry_;
  bool has_id_ = false, began_ = false;
  std::string* into_ = nullptr;  // the field of entry_ that a further "..." line belongs to
};

PoFile::PoFile(std::string bytes, std::string name) : bytes_(std::move(bytes)), name_(std::move(name)) {
  PoParser(*this).parse();
}

// keyword "text", or where that is too long or has several lines: keyword "", and the lines below it.
std::string PoFile::quoted(std::string_view keyword, std::string_view text, std::string_view eol,
                           std::string_view indent) const {
  std::vector<std::string> lines(1);
  std::string word;  // up to and with its space
  int width = 0, word_width = 0;
  const auto put_word = [&] {
    if (wrapped_ && width > 0 && width + word_width > kPageWidth - 2) {
      lines.emplace_back();
      width = 0;
    }
    lines.back() += word;
    width += word_width;
    word.clear();
    word_width = 0;
  };
  const std::u32string characters = decode_utf8(text);
  for (size_t i = 0; i < characters.size(); ++i) {
    const std::string piece = escaped(characters[i]);
    word += piece;
    word_width += app::display_width(piece);
    if (characters[i] == '\n') {
      put_word();
      if (i + 1 < characters.size()) {
        lines.emplace_back();
        width = 0;
      }
    } else if (characters[i] == ' ') {
      put_word();
    }
  }
  if (!word.empty()) put_word();
  std::string out(keyword);
  const bool one = lines.size() == 1 && (!wrapped_ || static_cast<int>(keyword.size()) + 3 + width <= kPageWidth);
  out += one ? " \"" + lines[0] + "\"" : " \"\"";
  for (size_t i = 0; !one && i < lines.size(); ++i) {
    out += eol;
    out += indent;
    out += "\"" + lines[i] + "\"";
  }
  return out;
}

std::string PoFile::filled(std::span<const Filling> fillings) const {
  const size_t first_end = bytes_.find('\n');
  const std::string_view eol =
      first_end != std::string::npos && first_end > 0 && bytes_[first_end - 1] == '\r' ? "\r\n" : "\n";
  std::string out;
  out.reserve(bytes_.size() + 64 * fillings.size());
  size_t copied = 0;
  const auto copy_to = [&](size_t end) {
    out.append(bytes_, copied, end - copied);
    copied = end;
  };
  for (const Filling& filling : fillings) {
    const PoEntry& entry = entries_.at(filling.entry);
    if (!entry.has_flag("fuzzy")) {
      if (entry.flags_at) {
        copy_to(*entry.flags_at);
        const bool only = entry.flags.size() == 1 && entry.flags[0].empty();
        out += only || entry.flags.empty() ? " fuzzy" : " fuzzy,";
      } else {
        copy_to(entry.head);
        out += "#, fuzzy";
        out += eol;
      }
    }
    copy_to(entry.str_begin);
    size_t line_begin = entry.str_begin;
    while (line_begin > 0 && bytes_[line_begin - 1] != '\n') --line_begin;
    const std::string indent = bytes_.substr(line_begin, entry.str_begin - line_begin);
    for (size_t i = 0; i < filling.forms.size(); ++i) {
      if (i > 0) {
        out += eol;
        out += indent;
      }
      const std::string keyword = entry.has_plural ? "msgstr[" + std::to_string(i) + "]" : "msgstr";
      const auto text = charset_->from_utf8(quoted(keyword, filling.forms[i], eol, indent));
      if (!text)
        throw Error(name_ + " line " + std::to_string(entry.line) + ": its translation does not fit the charset");
      out += *text;
    }
    copied = entry.str_end;
  }
  copy_to(bytes_.size());
  return out;
}

}  // namespace heed::translate
