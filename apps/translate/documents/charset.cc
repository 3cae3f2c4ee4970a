// Conversions between UTF-8 and other charsets.
#include "apps/translate/documents/charset.h"

#include <heed/attention.h>
#include <iconv.h>

#include <algorithm>
#include <cerrno>

#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

std::shared_ptr<void> open(const std::string& to, const std::string& from, const std::string& charset,
                           const std::string& file) {
  iconv_t handle = iconv_open(to.c_str(), from.c_str());
  if (handle == reinterpret_cast<iconv_t>(-1)) {
    throw Error(file + ": its charset is \"" + charset + "\", which iconv cannot convert to UTF-8.");
  }
  return {handle, [](void* h) { iconv_close(static_cast<iconv_t>(h)); }};
}

std::optional<std::string> convert(void* handle, std::string_view bytes) {
  const auto converter = static_cast<iconv_t>(handle);
  iconv(converter, nullptr, nullptr, nullptr, nullptr);
  char* in = const_cast<char*>(bytes.data());  // iconv's prototype lacks the const; it does not write
  size_t left = bytes.size();
  std::string out;
  char buffer[4096];
  for (bool flush = false;;) {
    char* to = buffer;
    size_t room = sizeof buffer;
    const size_t code = iconv(converter, flush ? nullptr : &in, flush ? nullptr : &left, &to, &room);
    out.append(buffer, static_cast<size_t>(to - buffer));
    if (code == static_cast<size_t>(-1)) {
      if (errno != E2BIG) return std::nullopt;
    } else if (code > 0) {
      return std::nullopt;  // something was replaced by something else
    } else if (flush) {
      return out;
    } else {
      flush = true;
    }
  }
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

}  // namespace

Charset::Charset(const std::string& charset, const std::string& file)
    : kind_(charset == "UTF-8"                            ? Kind::utf8
            : charset == "ASCII" || charset == "US-ASCII" ? Kind::ascii
                                                          : Kind::other) {
  if (kind_ != Kind::other) return;
  from_ = open("UTF-8", charset, charset, file);
  to_ = open(charset, "UTF-8", charset, file);
}

std::optional<std::string> Charset::to_utf8(std::string_view bytes) const {
  if (kind_ == Kind::other) return convert(from_.get(), bytes);
  // UTF-8 under the name of ASCII is read, too: that is how it happens.
  return is_utf8(bytes) ? std::optional<std::string>(bytes) : std::nullopt;
}

std::optional<std::string> Charset::from_utf8(std::string_view text) const {
  if (kind_ == Kind::other) return convert(to_.get(), text);
  if (kind_ == Kind::ascii && !is_ascii(text)) return std::nullopt;
  return is_utf8(text) ? std::optional<std::string>(text) : std::nullopt;
}

}  // namespace heed::translate
