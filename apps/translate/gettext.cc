// Catalogues as messages: .po by po_file.h, .mo here. Cleaning for training is in clean_messages.cc.
#include "apps/translate/gettext.h"

#include <heed/attention.h>

#include <utility>

#include "apps/translate/documents/charset.h"
#include "apps/translate/documents/po_file.h"

namespace heed::translate {
namespace {

// ASCII is a part of UTF-8, which is also what a header without a charset most likely means.
std::string charset_to_read(std::string charset) {
  return charset.empty() || charset == "ASCII" || charset == "US-ASCII" ? "UTF-8" : charset;
}

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

Catalogue parse_po(std::string_view bytes, const std::string& name) {
  const PoFile file{std::string(bytes), name};
  Catalogue catalogue;
  catalogue.charset = charset_to_read(file.named_charset());
  if (file.first_bad_line() > 0 && catalogue.charset != "UTF-8") {
    throw Error(name + " line " + std::to_string(file.first_bad_line()) +
                " holds bytes that are not text in its charset \"" + catalogue.charset + "\".");
  }
  catalogue.obsolete = file.obsolete();
  catalogue.entries = static_cast<int64_t>(file.entries().size()) + catalogue.obsolete;
  for (const PoEntry& entry : file.entries()) {
    if (entry.id.empty() || entry.forms.front().empty()) {
      catalogue.untranslated++;
    } else if (entry.has_flag("fuzzy")) {
      catalogue.fuzzy++;
    } else if (!entry.is_text) {
      catalogue.invalid++;
    } else {
      catalogue.messages.push_back({entry.context, entry.id, entry.forms.front()});
    }
  }
  return catalogue;
}

Catalogue parse_mo(std::string_view bytes, const std::string& name) {
  MoFile file(bytes, name);
  Catalogue catalogue;
  catalogue.charset = "UTF-8";
  std::vector<std::pair<std::string_view, std::string_view>> raw;
  raw.reserve(file.count());
  for (uint32_t i = 0; i < file.count(); i++) {
    const std::string_view source = file.source(i), target = file.target(i);
    if (source.empty()) {
      catalogue.charset = charset_to_read(header_charset(target));
    } else {
      raw.emplace_back(source, target);
    }
  }
  const Charset charset(catalogue.charset, name);
  for (auto [source, target] : raw) {
    catalogue.entries++;
    // Plural forms follow each other, a NUL between them.
    source = source.substr(0, source.find('\0'));
    target = target.substr(0, target.find('\0'));
    auto id = charset.to_utf8(source), str = charset.to_utf8(target);
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
