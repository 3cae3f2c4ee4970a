// TMX, on top of tags that know their places.
#include "apps/translate/documents/tmx_file.h"

#include <heed/attention.h>

#include <algorithm>
#include <cctype>

#include "apps/translate/documents/xml.h"
#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

constexpr std::string_view kBlank = " \t\r\n";

bool is_blank(std::string_view text) { return text.find_first_not_of(kBlank) == std::string_view::npos; }

std::string plain_language(std::string_view lang) {
  std::string out;
  for (const char c : lang)
    out.push_back(c == '_' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  return out;
}

std::string joined(const std::vector<std::string>& list) {
  std::string out;
  for (const std::string& each : list) out += (out.empty() ? "" : ", ") + each;
  return out;
}

}  // namespace

class TmxParser {
 public:
  explicit TmxParser(TmxFile& file) : file_(file), scanner_(file.text_, file.name_) {}

  void parse() {
    bool any = false;
    while (const auto m = scanner_.next()) {
      if (m->kind == Markup::Kind::other || m->kind == Markup::Kind::cdata) {
        if (m->kind == Markup::Kind::cdata && open_.empty()) scanner_.fail("text stands outside of <tmx>");
        continue;
      }
      if (m->kind != Markup::Kind::close && open_.empty()) {
        if (m->name != "tmx") {
          scanner_.fail("the file is not TMX: it begins with <" + std::string(m->name.substr(0, 40)) + ">, not <tmx>");
        }
        any = true;
      }
      if (m->kind == Markup::Kind::close) {
        close(*m);
      } else {
        open(*m);
        if (m->kind == Markup::Kind::empty) close(*m);
      }
    }
    if (!any) throw Error(file_.name_ + " is not TMX: it has no <tmx>");
    if (!open_.empty()) {
      scanner_.fail("the file ends, and <" + open_.back().first + "> of line " + std::to_string(open_.back().second) +
                    " is still open; the file may be cut off");
    }
  }

 private:
  TmxUnit& unit() { return file_.units_.back(); }
  TmxVariant& variant() { return unit().variants.back(); }
  bool inside(std::string_view name) const { return !open_.empty() && open_.back().first == name; }

  void open(const Markup& m) {
    if (m.name == "header" && inside("tmx")) {
      file_.source_lang_ = attribute(m.all, "srclang").value_or("");
      if (plain_language(file_.source_lang_) == "*all*") file_.source_lang_.clear();
    } else if (m.name == "tu") {
      if (in_unit_) scanner_.fail("a <tu> stands inside another");
      in_unit_ = true;
      TmxUnit unit;
      unit.line = scanner_.line() - std::count(m.all.begin(), m.all.end(), '\n');
      unit.srclang = attribute(m.all, "srclang").value_or("");
      if (unit.srclang.empty() || plain_language(unit.srclang) == "*all*") unit.srclang = file_.source_lang_;
      file_.units_.push_back(std::move(unit));
    } else if (m.name == "tuv" && inside("tu")) {
      TmxVariant variant;
      auto lang = attribute(m.all, "xml:lang");
      if (!lang) lang = attribute(m.all, "lang");
      if (!lang || lang->empty()) scanner_.fail("a <tuv> has no xml:lang; add the language it is in");
      variant.lang = *lang;
      variant.begin = m.begin;
      variant.body = m.end;
      variant.empty_element = m.kind == Markup::Kind::empty;
      unit().variants.push_back(std::move(variant));
    } else if (m.name == "seg" && inside("tuv")) {
      if (variant().seg_end > 0) scanner_.fail("a <tuv> has two <seg>");
      variant().seg_begin = m.begin;
      variant().text_begin = variant().text_end = m.end;
    }
    open_.emplace_back(m.name, scanner_.line());
  }

  void close(const Markup& m) {
    if (open_.empty()) scanner_.fail("</" + std::string(m.name.substr(0, 40)) + "> closes what was not opened");
    if (open_.back().first != m.name) {
      scanner_.fail("</" + std::string(m.name.substr(0, 40)) + "> stands where <" + open_.back().first + "> of line " +
                    std::to_string(open_.back().second) + " is still open");
    }
    open_.pop_back();
    if (m.name == "tu") {
      in_unit_ = false;
    } else if (m.name == "tuv" && inside("tu")) {
      variant().end = m.end;
      variant().close = m.kind == Markup::Kind::empty ? m.end : m.begin;
    } else if (m.name == "seg" && inside("tuv")) {
      TmxVariant& v = variant();
      v.seg_end = m.end;
      if (m.kind != Markup::Kind::empty) v.text_end = m.begin;
      v.empty = is_blank(std::string_view(file_.text_).substr(v.text_begin, v.text_end - v.text_begin));
    }
  }

  TmxFile& file_;
  XmlScanner scanner_;
  std::vector<std::pair<std::string, int64_t>> open_;  // elements and their lines
  bool in_unit_ = false;
};

TmxFile::TmxFile(const std::string& bytes, std::string name) : name_(std::move(name)) {
  text_ = decode(bytes);
  TmxParser(*this).parse();
}

std::string TmxFile::decode(const std::string& bytes) {
  const std::string_view all = bytes;
  if (all.empty()) throw Error(name_ + " is empty");
  const auto utf16 = [&](bool big, size_t mark) {
    encoding_ = big ? Encoding::utf16_be : Encoding::utf16_le;
    mark_ = all.substr(0, mark);
    if ((all.size() - mark) % 2 != 0) throw Error(name_ + " is UTF-16 and ends in half a character; it is cut off");
    const auto unit = [&](size_t i) {
      const auto a = static_cast<unsigned char>(all[i]), b = static_cast<unsigned char>(all[i + 1]);
      return static_cast<char32_t>(big ? a << 8 | b : b << 8 | a);
    };
    std::string text;
    for (size_t i = mark; i < all.size(); i += 2) {
      char32_t c = unit(i);
      if (c >= 0xD800 && c <= 0xDFFF) {
        const char32_t low = c < 0xDC00 && i + 3 < all.size() ? unit(i + 2) : 0;
        if (low < 0xDC00 || low > 0xDFFF) {
          throw Error(name_ + " is damaged: byte " + std::to_string(i) + " holds half of a UTF-16 character");
        }
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        i += 2;
      }
      append_utf8(text, c);
    }
    return text;
  };
  if (all.starts_with("\xFF\xFE")) return utf16(false, 2);
  if (all.starts_with("\xFE\xFF")) return utf16(true, 2);
  if (all.starts_with(std::string_view("<\0?\0", 4))) return utf16(false, 0);
  if (all.starts_with(std::string_view("\0<\0?", 4))) return utf16(true, 0);
  if (all.starts_with("\xEF\xBB\xBF")) mark_ = all.substr(0, 3);
  std::string text(all.substr(mark_.size()));
  std::string charset = "UTF-8";
  if (text.starts_with("<?xml")) {
    const std::string declaration = text.substr(0, text.find("?>"));
    charset = attribute(declaration + " >", "encoding").value_or("UTF-8");
    std::transform(charset.begin(), charset.end(), charset.begin(),
                   [](char c) { return static_cast<char>(std::toupper(static_cast<unsigned char>(c))); });
  }
  if (charset == "UTF-8" || charset == "UTF8" || charset.starts_with("UTF-16") || !mark_.empty()) {
    if (!is_utf8(text)) {
      int64_t line = 1;
      std::string_view rest = text;
      for (size_t end = rest.find('\n'); end != std::string_view::npos && is_utf8(rest.substr(0, end));
           end = rest.find('\n')) {
        rest.remove_prefix(end + 1);
        ++line;
      }
      throw Error(name_ + " line " + std::to_string(line) +
                  " is not UTF-8; the XML declaration must name the encoding");
    }
    return text;
  }
  encoding_ = Encoding::other;
  charset_.emplace(charset, name_);
  const auto decoded = charset_->to_utf8(text);
  if (!decoded) throw Error(name_ + " holds bytes that are not text in its encoding \"" + charset + "\"");
  if (charset_->from_utf8(*decoded) != text) {
    throw Error(name_ + " is in \"" + charset +
                "\", which cannot be written back as it was; convert it to UTF-8 first");
  }
  return *decoded;
}

std::string TmxFile::encode(const std::string& text) const {
  if (encoding_ == Encoding::utf8) return mark_ + text;
  if (encoding_ == Encoding::other) return charset_->from_utf8(text).value();  // xml() wrote nothing it lacks
  std::string out = mark_;
  const auto put = [&](char32_t unit) {
    const char high = static_cast<char>(unit >> 8), low = static_cast<char>(unit & 0xFF);
    const bool big = encoding_ == Encoding::utf16_be;
    out.push_back(big ? high : low);
    out.push_back(big ? low : high);
  };
  for (const char32_t c : decode_utf8(text)) {
    if (c < 0x10000) {
      put(c);
    } else {
      put(0xD800 + ((c - 0x10000) >> 10));
      put(0xDC00 + ((c - 0x10000) & 0x3FF));
    }
  }
  return out;
}

std::vector<std::string> TmxFile::languages() const {
  std::vector<std::string> list;
  for (const TmxUnit& unit : units_) {
    for (const TmxVariant& variant : unit.variants) {
      if (std::find(list.begin(), list.end(), variant.lang) == list.end()) list.push_back(variant.lang);
    }
  }
  return list;
}

TmxText TmxFile::text(const TmxVariant& variant) const {
  const std::string raw = text_.substr(variant.text_begin, variant.text_end - variant.text_begin);
  // First what is text and what is not, then the numbers, which must not be in the text.
  struct Run {
    bool inlined;
    std::string text;
    std::string opens, closes;  // "bpt 1" and "ept 1", for the order
  };
  std::vector<Run> runs;
  std::vector<std::string> highlights;  // <hi>s that are open
  int64_t highlight = 0;
  const auto add_text = [&](std::string_view part) {
    for (size_t i = 0; i < part.size();) {
      const size_t amp = std::min(part.find('&', i), part.size());
      runs.push_back({false, std::string(part.substr(i, amp - i)), "", ""});
      if (amp == part.size()) break;
      const size_t end = part.find(';', amp);
      const std::string_view name = part.substr(amp + 1, std::min(end, part.size()) - amp - 1);
      if (end == std::string_view::npos || name.size() > 40) {
        runs.push_back({false, "&", "", ""});  // not XML, but many write it
        i = amp + 1;
        continue;
      }
      const auto character = entity(name);
      runs.push_back({!character, character ? *character : std::string(part.substr(amp, end + 1 - amp)), "", ""});
      i = end + 1;
    }
  };
  XmlScanner scanner(raw, name_);
  size_t at = 0;
  while (const auto m = scanner.next()) {
    add_text(std::string_view(raw).substr(at, m->begin - at));
    at = m->end;
    if (m->kind == Markup::Kind::cdata) {
      runs.push_back({false, std::string(m->all.substr(9, m->all.size() - 12)), "", ""});
      continue;
    }
    Run run{true, std::string(m->all), "", ""};
    const bool code = m->name == "bpt" || m->name == "ept" || m->name == "ph" || m->name == "it" || m->name == "ut";
    if (code) {
      const std::string number = attribute(m->all, "i").value_or("");
      if (m->name == "bpt") run.opens = "bpt " + number;
      if (m->name == "ept") run.closes = "bpt " + number;
    }
    if (code && m->kind == Markup::Kind::open) {  // up to its own end
      for (int depth = 1; depth > 0;) {
        const auto inner = scanner.next();
        if (!inner) break;
        if (inner->name == m->name)
          depth += inner->kind == Markup::Kind::open ? 1 : inner->kind == Markup::Kind::close ? -1 : 0;
        at = inner->end;
      }
      run.text = raw.substr(m->begin, at - m->begin);
    } else if (!code && m->kind == Markup::Kind::open) {
      run.opens = "hi " + std::to_string(++highlight);
      highlights.push_back(run.opens);
    } else if (!code && m->kind == Markup::Kind::close && !highlights.empty()) {
      run.closes = highlights.back();
      highlights.pop_back();
    }
    runs.push_back(std::move(run));
  }
  add_text(std::string_view(raw).substr(at));

  std::string plain;
  for (const Run& run : runs) plain += run.inlined ? "" : run.text;
  TmxText out;
  std::vector<std::pair<std::string, std::string>> opened;  // what it opens, and its token
  int64_t number = 0;
  for (const Run& run : runs) {
    if (!run.inlined) {
      out.text += run.text;
      continue;
    }
    std::string token;
    do {
      token = "{" + std::to_string(++number) + "}";
    } while (plain.find(token) != std::string::npos);
    out.text += token;
    out.inlines.emplace_back(token, run.text);
    if (!run.opens.empty()) opened.emplace_back(run.opens, token);
    for (const auto& [what, first] : opened) {
      if (!run.closes.empty() && what == run.closes) out.before.emplace_back(first, token);
    }
  }
  return out;
}

std::string TmxFile::plain_text(const TmxVariant& variant) const {
  TmxText text = this->text(variant);
  for (const auto& [token, markup] : text.inlines) text.text.erase(text.text.find(token), token.size());
  std::string line;
  for (const char c : text.text) {
    const bool blank = kBlank.find(c) != std::string_view::npos;
    if (!blank) {
      line.push_back(c);
    } else if (!line.empty() && line.back() != ' ') {
      line.push_back(' ');
    }
  }
  if (line.ends_with(' ')) line.pop_back();
  return line;
}

// The translation as XML, with the inline elements where their tokens stand.
std::string TmxFile::xml(const Filling& filling) const {
  std::string out;
  const std::string_view text = filling.text;
  for (size_t i = 0; i < text.size();) {
    const auto inlined = std::find_if(filling.inlines.inlines.begin(), filling.inlines.inlines.end(),
                                      [&](const auto& each) { return text.substr(i).starts_with(each.first); });
    if (inlined != filling.inlines.inlines.end()) {
      out += inlined->second;
      i += inlined->first.size();
      continue;
    }
    size_t end = i + 1;
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
    const std::string_view character = text.substr(i, end - i);
    if (character == "&") {
      out += "&amp;";
    } else if (character == "<") {
      out += "&lt;";
    } else if (character == ">") {
      out += "&gt;";
    } else if (charset_ && !charset_->from_utf8(character)) {
      out += "&#" + std::to_string(static_cast<uint32_t>(decode_utf8(character).front())) + ";";
    } else {
      out += character;
    }
    i = end;
  }
  return out;
}

std::string TmxFile::filled(std::span<const Filling> fillings) const {
  std::string out;
  size_t copied = 0;
  const auto copy_to = [&](size_t end) {
    out.append(text_, copied, end - copied);
    copied = end;
  };
  for (const Filling& filling : fillings) {
    const TmxUnit& unit = units_.at(filling.unit);
    const std::string seg = "<seg>" + xml(filling) + "</seg>";
    if (filling.variant) {
      const TmxVariant& v = unit.variants.at(*filling.variant);
      if (v.empty_element) {  // <tuv xml:lang="de"/>
        copy_to(v.end - 2);
        out += ">" + seg + "</tuv>";
        copied = v.end;
      } else if (v.seg_end == 0) {
        copy_to(v.close);
        out += seg;
      } else {
        copy_to(v.seg_begin);
        const std::string tag = text_.substr(v.seg_begin, v.text_begin - v.seg_begin);
        out += tag.ends_with("/>") ? seg : tag + xml(filling) + "</seg>";
        copied = v.seg_end;
      }
      continue;
    }
    const TmxVariant& last = unit.variants.back();
    const auto blank_before = [&](size_t end) {
      size_t begin = end;
      while (begin > 0 && kBlank.find(text_[begin - 1]) != std::string_view::npos) --begin;
      return text_.substr(begin, end - begin);
    };
    copy_to(last.end);
    const bool old = text_.substr(last.begin, last.body - last.begin).find("xml:lang") == std::string::npos;
    out += blank_before(last.begin) + "<tuv " + (old ? "lang" : "xml:lang") + "=\"" + filling.lang +
           "\" creationtool=\"heed\">";
    if (last.seg_end == 0) {
      out += seg + "</tuv>";
    } else {
      out += blank_before(last.seg_begin) + seg + blank_before(last.close) + "</tuv>";
    }
  }
  copy_to(text_.size());
  return encode(out);
}

bool same_language(std::string_view lang, std::string_view wanted) {
  const std::string a = plain_language(lang), b = plain_language(wanted);
  return a == b || a.starts_with(b + "-") || b.starts_with(a + "-");
}

std::optional<size_t> find_variant(const TmxUnit& unit, std::string_view lang) {
  std::optional<size_t> found;
  for (size_t i = 0; i < unit.variants.size(); ++i) {
    if (plain_language(unit.variants[i].lang) == plain_language(lang)) return i;
    if (!found && same_language(unit.variants[i].lang, lang)) found = i;
  }
  return found;
}

Languages choose_languages(const TmxFile& file, const Languages& given) {
  for (const std::string* lang : {&given.source, &given.target}) {
    const auto fits = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_'; };
    if (!std::all_of(lang->begin(), lang->end(), fits)) {
      throw Error("\"" + *lang + "\" does not name a language; names are like en and pt-BR");
    }
  }
  const std::vector<std::string> all = file.languages();
  Languages languages = given;
  if (languages.source.empty()) languages.source = file.source_lang();
  if (languages.source.empty()) {
    if (all.empty()) throw Error(file.name() + " has no <tuv>, so there is nothing to translate");
    if (all.size() != 1 && !(all.size() == 2 && !given.target.empty())) {
      throw Error(file.name() + " does not say which of " + joined(all) + " is the source; say it with --source-lang");
    }
    languages.source = all.size() == 2 && same_language(all[0], given.target) ? all[1] : all[0];
  }
  const bool any =
      std::any_of(all.begin(), all.end(), [&](const auto& l) { return same_language(l, languages.source); });
  if (!any && !all.empty()) {
    throw Error(file.name() + " has nothing in the source language " + languages.source + ", only " + joined(all) +
                "; say another with --source-lang");
  }
  if (languages.target.empty()) {
    std::vector<std::string> others;
    for (const std::string& each : all) {
      if (!same_language(each, languages.source)) others.push_back(each);
    }
    if (others.size() != 1) {
      throw Error(file.name() +
                  (others.empty() ? " has no language but " + languages.source
                                  : " has " + std::to_string(others.size()) + " other languages, " + joined(others)) +
                  "; say which to translate into with --target-lang");
    }
    languages.target = others.front();
  }
  return languages;
}

}  // namespace heed::translate
