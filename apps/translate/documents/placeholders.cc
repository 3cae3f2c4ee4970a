// Scanners for placeholders, one for each family, tried in order at every byte.
#include "apps/translate/documents/placeholders.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <utility>

#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

using Kind = Placeholder::Kind;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_alpha(char c) { return is_lower(c) || is_upper(c); }
bool is_alnum(char c) { return is_alpha(c) || is_digit(c); }
bool is_name(char c) { return is_alnum(c) || c == '_'; }
bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool one_of(char c, const char* set) { return c != '\0' && std::strchr(set, c) != nullptr; }

// Chinese, Japanese and Korean begin here: a name or an address may follow them without a space.
constexpr char32_t kUnspaced = 0x2E80;

class Scanner {
 public:
  Scanner(std::string_view text, const Formats& formats) : text_(text), formats_(formats) {}

  std::vector<Placeholder> scan() {
    std::vector<Placeholder> found;
    for (size_t i = 0; i < text_.size();) {
      Kind kind = Kind::printf;
      const size_t length = match(i, kind);
      if (length > 0) found.push_back({i, i + length, kind});
      i += std::max<size_t>(length, 1);
    }
    return found;
  }

 private:
  char at(size_t i) const { return i < text_.size() ? text_[i] : '\0'; }

  // Whether a letter beyond ASCII ends before text_[i], or begins there. Quotes and dashes beyond ASCII are none.
  bool letter_before(size_t i) const {
    size_t begin = i;
    while (begin > 0 && i - begin < 4 && (static_cast<unsigned char>(text_[--begin]) & 0xC0) == 0x80) {
    }
    return begin < i && static_cast<unsigned char>(text_[i - 1]) >= 0x80 && letter_at(begin);
  }
  bool letter_at(size_t i) const {
    if (static_cast<unsigned char>(at(i)) < 0x80) return false;
    size_t size = 0;
    const char32_t c = character_at(text_, i, size);
    return is_letter(c) && c < kUnspaced;
  }

  // Whether no word or number runs into text_[i].
  bool fresh(size_t i) const { return i == 0 || !(is_name(text_[i - 1]) || letter_before(i)); }

  // The length of the placeholder at i; 0 if there is none.
  size_t match(size_t i, Kind& kind) const {
    const auto is = [&](Kind k, size_t length) {
      if (length > 0) kind = k;
      return length;
    };
    size_t n = 0;
    switch (text_[i]) {
      case '\x1b':
        return is(Kind::escape, colour(i));
      case '%':
        if (!formats_.c && (n = is(Kind::variable, between_percents(i))) > 0) return n;
        if ((n = is(Kind::printf, directive(i))) > 0) return n;
        return is(Kind::variable, percent_name(i));
      case '{':
        return is(Kind::brace, brace(i));
      case '}':
        return is(Kind::brace, formats_.brace ? (at(i + 1) == '}' ? 2 : 1) : 0);
      case '$':
        return is(Kind::variable, variable(i));
      case '<':
        return is(Kind::tag, tag(i));
      case '&':
        return is(Kind::entity, entity(i));
      case '\\':
        return is(Kind::escape, one_of(at(i + 1), "nrt\"'\\") ? 2 : 0);
      case '~':
        if (formats_.lisp) return is(Kind::printf, lisp(i));
        return fresh(i) && at(i + 1) == '/' ? is(Kind::path, path(i)) : 0;
      case '@':
        return is(Kind::variable, fresh(i) && is_alpha(at(i + 1)) ? 1 + names(i + 1) : 0);
      case '-':
        return is(Kind::option, option(i));
      case '.':
      case '/':
        return fresh(i) ? is(Kind::path, path(i)) : 0;
      default:
        break;
    }
    if (!is_name(text_[i]) || !fresh(i)) return 0;
    if ((n = is(Kind::url, url(i))) > 0) return n;
    if ((n = is(Kind::email, email(i))) > 0) return n;
    if ((n = is(Kind::path, path(i))) > 0) return n;
    return is(Kind::identifier, identifier(i));
  }

  size_t names(size_t i) const {
    size_t end = i;
    while (is_name(at(end))) ++end;
    return end - i;
  }

  size_t digits(size_t i) const {
    size_t end = i;
    while (is_digit(at(end))) ++end;
    return end - i;
  }

  size_t colour(size_t i) const {
    if (at(i + 1) != '[') return 0;
    size_t end = i + 2;
    while (is_digit(at(end)) || at(end) == ';') ++end;
    return is_alpha(at(end)) ? end + 1 - i : 0;
  }

  // printf's directives and their relatives.
  size_t directive(size_t i) const {
    size_t p = i + 1;
    if (at(p) == '%') return 2;
    if (at(p) == '(' || at(p) == '{' || at(p) == '<') {  // %(name)s, %{name}, %<PRIu64> and Ruby's %<name>d
      const char close = at(p) == '(' ? ')' : at(p) == '{' ? '}' : '>';
      size_t end = p + 1;
      while (is_name(at(end)) || one_of(at(end), ".- ")) ++end;
      if (end == p + 1 || at(end) != close) return formats_.gcc ? 2 : 0;
      ++end;
      if (close == '}') return end - i;
      const size_t conversion = modifiers(flags(end));
      if (one_of(at(conversion), "diouxXeEfFgGaAcrsb")) return conversion + 1 - i;
      return close == '>' ? end - i : 0;
    }
    const size_t first = p;
    if (const size_t n = digits(p); n > 0 && at(p + n) == '$') p += n + 1;
    if (const size_t n = digits(p); n > 0 && at(p + n) == ':' && is_alpha(at(p + n + 1)))
      return p + n + 2 - i;  // Pascal
    p = flags(p);
    p = modifiers(p);
    if (at(p) == '<') {  // %-10<PRIu64>
      size_t end = p + 1;
      while (is_name(at(end))) ++end;
      if (at(end) == '>' && end > p + 1) return end + 1 - i;
    }
    const bool plain = p == first;  // nothing between % and the letter
    const char* letters = formats_.c ? "diouxXeEfFgGaAcsCSpnmrb@" : "diouxXeEfFgGaAcsCSpnm@";
    if (one_of(at(p), letters) && (formats_.c || may_be_directive(i, p, plain))) return p + 1 - i;
    if ((formats_.gcc || at(i + 1) == 'q') && p < text_.size() && !is_blank(at(p))) {  // %qD, %q+T, %<
      size_t end = i + 1;
      while (one_of(at(end), "+#q")) ++end;
      if (is_alpha(at(end)) || one_of(at(end), "<>'")) return end + 1 - i;
    }
    return qt_or_date(i);
  }

  size_t flags(size_t p) const {
    while (one_of(at(p), "-+#0'") || (formats_.c && at(p) == ' ')) ++p;
    return p;
  }

  size_t number_or_star(size_t p) const {
    if (at(p) != '*') return p + digits(p);
    ++p;
    const size_t n = digits(p);
    return n > 0 && at(p + n) == '$' ? p + n + 1 : p;
  }

  // Width, precision and size.
  size_t modifiers(size_t p) const {
    p = number_or_star(p);
    if (at(p) == '.') p = number_or_star(p + 1);
    if (at(p) == 'h' || at(p) == 'l') return p + (at(p + 1) == at(p) ? 2 : 1);
    return one_of(at(p), "LqjztZ") ? p + 1 : p;
  }

  // "100%ig", "50%-ige" and "3 %d" (which nobody writes): behind a digit only a bare directive that ends its word.
  bool may_be_directive(size_t i, size_t letter, bool plain) const {
    if (i == 0 || !is_digit(text_[i - 1])) {
      // %PRODUCTNAME is a name, %Extra something else than %E.
      return !(plain && is_upper(at(letter)) && is_upper(at(letter + 1)) && names(letter) > 2);
    }
    return (plain || at(letter - 1) == '$') && !is_alpha(at(letter + 1)) && !letter_at(letter + 1);
  }

  // %1 %99 %L1 %n, boost's %1%, and %Y of a date.
  size_t qt_or_date(size_t i) const {
    const size_t p = at(i + 1) == 'L' && is_digit(at(i + 2)) ? i + 2 : i + 1;
    if (const size_t n = std::min<size_t>(digits(p), 2); n > 0 && at(p) != '0') {
      const size_t end = p + n;
      return end - i + (at(end) == '%' && !is_alnum(at(end + 1)) && at(end + 1) != '%' ? 1 : 0);
    }
    if (i > 0 && is_digit(text_[i - 1])) return 0;
    return one_of(at(i + 1), "YmdHMSIpBbAaZzyjeRTDFklP") && !is_alpha(at(i + 2)) ? 2 : 0;
  }

  // %path%, but not the "%lld%" of "%lld%s".
  size_t between_percents(size_t i) const {
    const size_t n = names(i + 1);
    const bool directive = modifiers(i + 1) + 1 == i + 1 + n;
    return n >= 3 && !directive && !is_digit(at(i + 1)) && at(i + 1 + n) == '%' && !is_name(at(i + 2 + n)) ? n + 2 : 0;
  }

  // %PRODUCTNAME and %FILE_NAME.
  size_t percent_name(size_t i) const {
    const size_t n = names(i + 1);
    if (n < 3 || is_digit(at(i + 1)) || (i > 0 && is_digit(text_[i - 1]))) return 0;
    const std::string_view name = text_.substr(i + 1, n);
    return std::none_of(name.begin(), name.end(), is_lower) ? n + 1 : 0;
  }

  size_t brace(size_t i) const {
    if (formats_.brace && at(i + 1) == '{') return 2;
    size_t end = i;
    int depth = 0;
    bool blank = false;
    do {
      if (at(end) == '{') ++depth;
      if (at(end) == '}') --depth;
      blank = blank || is_blank(at(end));
      ++end;
    } while (depth > 0 && end < text_.size());
    if (depth > 0) return formats_.brace ? 1 : 0;
    if (!blank || formats_.brace) return end - i;
    // ICU's {count, plural, ...}: which words in it are text is a language of its own.
    const size_t n = names(i + 1);
    const std::string_view rest = text_.substr(i + 1 + n, 12);
    if (n > 0 && rest.starts_with(",")) return end - i;
    return at(i + 1) == '{' && at(end - 1) == '}' && at(end - 2) == '}' ? end - i : 0;  // {{ x }}
  }

  size_t variable(size_t i) const {
    if (at(i + 1) == '{' || at(i + 1) == '(') {
      const char close = at(i + 1) == '{' ? '}' : ')';
      size_t end = i + 2;
      while (end < text_.size() && at(end) != close && !is_blank(at(end))) ++end;
      return at(end) == close && end > i + 2 ? end + 1 - i : 0;
    }
    const size_t n = names(i + 1);
    return n > 0 ? n + 1 : 0;
  }

  size_t tag(size_t i) const {
    const std::string_view rest = text_.substr(i);
    for (const auto& [open, close] : {std::pair{"<!--", "-->"}, std::pair{"<![CDATA[", "]]>"}}) {
      if (!rest.starts_with(open)) continue;
      const size_t end = rest.find(close);
      return end == std::string_view::npos ? 0 : end + 3;
    }
    const size_t name = at(i + 1) == '/' ? i + 2 : i + 1;
    if (is_digit(at(name))) {  // <0>...</0>
      size_t end = name + digits(name);
      if (at(end) == '/') ++end;
      return at(end) == '>' ? end + 1 - i : 0;
    }
    if (!is_alpha(at(name)) && !one_of(at(name), "!?")) return 0;
    char quote = '\0';
    for (size_t end = name; end < text_.size(); ++end) {
      const char c = at(end);
      if (quote != '\0') {
        if (c == quote) quote = '\0';
      } else if ((c == '"' || c == '\'') && at(end - 1) == '=') {
        quote = c;
      } else if (c == '>') {
        return end + 1 - i;
      } else if (c == '<') {
        return 0;
      }
    }
    return 0;
  }

  size_t entity(size_t i) const {
    if (at(i + 1) == '&') return 2;
    size_t end = i + 1;
    if (at(end) == '#') {
      ++end;
      if (at(end) == 'x' || at(end) == 'X') ++end;
    }
    while (is_alnum(at(end))) ++end;
    return at(end) == ';' && end > i + 1 ? end + 1 - i : 0;
  }

  size_t lisp(size_t i) const {
    size_t end = i + 1;
    while (is_digit(at(end)) || one_of(at(end), ",'#:@-+")) end += at(end) == '\'' ? 2 : 1;
    return end < text_.size() ? end + 1 - i : 0;
  }

  size_t option(size_t i) const {
    const bool after_other = i > 0 && static_cast<unsigned char>(text_[i - 1]) >= 0x80 && !letter_before(i);  // a quote
    if (i > 0 && !(is_blank(text_[i - 1]) || after_other || one_of(text_[i - 1], "('\"`[|,/="))) return 0;
    if (at(i + 1) == '-') {
      if (!is_alpha(at(i + 2))) return 0;
      size_t end = i + 2;
      while (is_name(at(end)) || (at(end) == '-' && is_alnum(at(end + 1)))) ++end;
      if (at(end) == '=' && (is_alnum(at(end + 1)) || one_of(at(end + 1), "</"))) {
        ++end;
        while (is_alnum(at(end)) || one_of(at(end), "_-./<>")) ++end;
        while (one_of(at(end - 1), ".-")) --end;
      }
      return end - i;
    }
    return is_alnum(at(i + 1)) && !is_name(at(i + 2)) && at(i + 2) != '-' && !is_digit(at(i + 1)) && !letter_at(i + 2)
               ? 2
               : 0;
  }

  // Where the address or path that begins at i ends: before blanks, quotes, brackets, and what closes a sentence. Of
  // what is not ASCII, letters may be in it, but not those of scripts that put no space before an address.
  size_t word_end(size_t i, const char* stop) const {
    size_t end = i;
    while (end < text_.size() && static_cast<unsigned char>(at(end)) > 0x20 && !one_of(at(end), stop)) {
      size_t size = 1;
      if (static_cast<unsigned char>(at(end)) >= 0x80) {
        const char32_t c = character_at(text_, end, size);
        if (!is_letter(c) || c >= kUnspaced) break;
      }
      end += size;
    }
    while (end > i && one_of(at(end - 1), ".,;:!?)")) {
      const std::string_view word = text_.substr(i, end - i);
      const bool matched = std::count(word.begin(), word.end(), '(') >= std::count(word.begin(), word.end(), ')');
      if (at(end - 1) == ')' && matched) break;
      --end;
    }
    return end;
  }

  size_t url(size_t i) const {
    size_t p = i;
    while (is_alnum(at(p)) || one_of(at(p), "+-.")) ++p;
    const std::string_view rest = text_.substr(i);
    const bool scheme = p > i + 1 && text_.substr(p).starts_with("://") && is_alnum(at(p + 3));
    if (!scheme && !rest.starts_with("www.") && !rest.starts_with("mailto:")) return 0;
    const size_t end = word_end(i, "<>\"'`\x7f");
    return end > i + 4 ? end - i : 0;
  }

  size_t email(size_t i) const {
    size_t p = i;
    while (is_name(at(p)) || one_of(at(p), ".+-")) ++p;
    if (at(p) != '@' || p == i) return 0;
    size_t end = p + 1, dots = 0;
    while (is_alnum(at(end)) || at(end) == '-' || (at(end) == '.' && is_alnum(at(end + 1)))) {
      dots += at(end) == '.' ? 1 : 0;
      ++end;
    }
    return end > p + 1 && dots > 0 ? end - i : 0;
  }

  size_t path(size_t i) const {
    const size_t end = word_end(i, "<>\"'`|*()[],;=%${}");
    const std::string_view word = text_.substr(i, end - i);
    if (word.size() < 2) return 0;
    if (is_alpha(word[0]) && word[1] == ':') return word.size() > 2 && word[2] == '\\' ? end - i : 0;
    const auto ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
    if (!std::all_of(word.begin(), word.end(), ascii)) return 0;
    const auto slashes = std::count(word.begin(), word.end(), '/');
    const bool rooted =
        word.starts_with("/") || word.starts_with("./") || word.starts_with("../") || word.starts_with("~/");
    if (rooted) return std::any_of(word.begin(), word.end(), is_alnum) ? end - i : 0;
    if (!is_name(word[0])) return 0;
    const bool named = has_extension(word);
    if (slashes == 0 ? named : slashes >= 2 || named) {
      const bool date = std::all_of(word.begin(), word.end(), [](char c) { return is_digit(c) || one_of(c, "/.:-"); });
      const bool choice = slashes > 0 && !named && std::none_of(word.begin(), word.end(), [](char c) {
                            return is_digit(c) || one_of(c, "._-");
                          });
      return date || choice ? 0 : end - i;  // 1/2/2020, and "open/save/close" is words
    }
    return 0;
  }

  // main.c, config.json, example.com; not "e.g", "end.Next", "1.5".
  static bool has_extension(std::string_view word) {
    const size_t dot = word.rfind('.');
    if (dot == std::string_view::npos || dot < 2) return false;
    const std::string_view extension = word.substr(dot + 1);
    if (extension.empty() || extension.size() > 5 || is_upper(extension[0])) return false;
    const bool letters = std::any_of(extension.begin(), extension.end(), is_lower);
    return letters && std::all_of(extension.begin(), extension.end(), is_alnum);
  }

  // Names of programs' things: lock_file, FILE_NAME, _GNU_SOURCE, main(). "Sen_d" is a word with an accelerator.
  size_t identifier(size_t i) const {
    const size_t n = names(i);
    if (letter_at(i + n)) return 0;
    if (at(i + n) == '(' && at(i + n + 1) == ')' && !is_digit(text_[i])) return n + 2;
    const std::string_view word = text_.substr(i, n);
    const size_t bar = word.find('_', 1);
    if (bar == std::string_view::npos || word.find_first_not_of('_') == std::string_view::npos) return 0;
    if (word.front() != '_' && bar + 1 == word.size()) return 0;
    const bool like_sen_d =
        is_upper(word[0]) && is_lower(at(i + bar + 1)) && word.find('_', bar + 1) == std::string_view::npos;
    return like_sen_d ? 0 : n;
  }

  std::string_view text_;
  const Formats& formats_;
};

// Takes its value from a list, so that its place among the others counts.
bool in_order(std::string_view directive) {
  if (!directive.starts_with("%") || directive == "%%" || directive.find('$') != std::string_view::npos) return false;
  const char second = directive[1];
  if (second == '(' || second == '{') return false;
  return !(is_digit(directive.back()) || directive.back() == '%');  // Qt's and boost's have numbers
}

std::string tag_name(std::string_view tag) {
  size_t i = 1;
  while (i < tag.size() && (is_name(tag[i]) || tag[i] == '-' || tag[i] == ':')) ++i;
  return std::string(tag.substr(1, i - 1));
}

// Whether every closing tag closes the last one open; tags that nobody closes (<br>) do not matter.
bool nested(std::string_view text, std::span<const Placeholder> placeholders) {
  std::vector<std::string> open;
  for (const Placeholder& p : placeholders) {
    if (p.kind != Kind::tag) continue;
    const std::string_view tag = text.substr(p.begin, p.end - p.begin);
    if (tag.starts_with("</")) {
      const std::string name = tag_name(tag.substr(1));
      while (!open.empty() && open.back() != name) open.pop_back();
      if (open.empty()) return false;
      open.pop_back();
    } else if (!tag.starts_with("<!") && !tag.ends_with("/>")) {
      open.push_back(tag_name(tag));
    }
  }
  return true;
}

}  // namespace

Formats Formats::of(std::span<const std::string> flags) {
  Formats formats;
  for (const std::string& flag : flags) {
    formats.brace = formats.brace || flag == "python-brace-format";
    for (const char* like_c : {"c-format", "objc-format", "python-format", "php-format", "perl-format", "awk-format",
                               "sh-printf-format", "lua-format", "tcl-format", "librep-format", "ruby-format",
                               "elisp-format", "gfc-internal-format", "c++-format", "go-format", "javascript-format"}) {
      formats.c = formats.c || flag == like_c;
    }
    formats.java = formats.java || flag == "java-format";
    formats.lisp = formats.lisp || flag == "lisp-format" || flag == "scheme-format";
    formats.gcc = formats.gcc || flag == "gcc-internal-format";
  }
  return formats;
}

std::vector<Placeholder> find_placeholders(std::string_view text, const Formats& formats) {
  return Scanner(text, formats).scan();
}

std::vector<std::string> texts(std::string_view text, std::span<const Placeholder> placeholders) {
  std::vector<std::string> list;
  for (const Placeholder& p : placeholders) list.emplace_back(text.substr(p.begin, p.end - p.begin));
  return list;
}

bool intact(std::string_view source, std::string_view target, const Formats& formats) {
  const auto in_source = find_placeholders(source, formats), in_target = find_placeholders(target, formats);
  std::vector<std::string> a = texts(source, in_source), b = texts(target, in_target);
  if (directives_in_order(source, formats) != directives_in_order(target, formats)) return false;
  std::sort(a.begin(), a.end());
  std::sort(b.begin(), b.end());
  if (a != b) return false;
  if (formats.java && std::count(target.begin(), target.end(), '\'') % 2 != 0) return false;
  return !nested(source, in_source) || nested(target, in_target);
}

std::vector<std::string> directives_in_order(std::string_view text, const Formats& formats) {
  std::vector<std::string> all = texts(text, find_placeholders(text, formats));
  std::erase_if(all, [](const std::string& each) { return !in_order(each); });
  return all;
}

}  // namespace heed::translate
