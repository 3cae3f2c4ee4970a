// A TMX file (Translation Memory eXchange 1.4b) that can be filled in and stays the same elsewhere, byte for byte.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/translate/documents/charset.h"
#include "apps/translate/pairs.h"

namespace heed::translate {

inline constexpr int64_t kMaxTmxBytes = int64_t{512} << 20;

// A segment's text with its entities decoded. Inline elements (<bpt>, <ept>, <ph>, <it>, <ut> with what is in them, the
// two tags of <hi>, comments) and entities that only a DTD knows stand in it as "{1}", "{2}": numbers that the text
// does not use.
struct TmxText {
  std::string text;
  std::vector<std::pair<std::string, std::string>> inlines;  // "{1}" and the XML it stands for
  std::vector<std::pair<std::string, std::string>> before;   // of two tokens the one that must come first: <bpt>, <ept>
};

// A <tuv>: a segment in one language. Places are in the decoded text.
struct TmxVariant {
  std::string lang;                     // as the file writes it
  size_t begin = 0, end = 0;            // from "<tuv" to behind "</tuv>"
  size_t body = 0, close = 0;           // behind the opening tag; where "</tuv>" begins
  size_t seg_begin = 0, seg_end = 0;    // the <seg> element, its tags included; equal if there is none
  size_t text_begin = 0, text_end = 0;  // what is in it
  bool empty = true;                    // nothing but white space is in it
  bool empty_element = false;           // <tuv/>
};

struct TmxUnit {
  int64_t line = 0;     // of <tu>, from 1
  std::string srclang;  // its own, or the header's
  std::vector<TmxVariant> variants;
};

class TmxFile {
 public:
  // Reads UTF-8, UTF-16 with a byte order mark, and what the XML declaration names. Throws heed::Error with the line
  // number when it is not well-formed or not TMX.
  TmxFile(const std::string& bytes, std::string name);

  const std::string& name() const { return name_; }
  const std::string& source_lang() const { return source_lang_; }  // the header's; empty if it names none, or *all*
  const std::vector<TmxUnit>& units() const { return units_; }
  std::vector<std::string> languages() const;  // that variants have, in the order in which they are met

  TmxText text(const TmxVariant& variant) const;
  // The same for training: without inline elements, as one line.
  std::string plain_text(const TmxVariant& variant) const;

  struct Filling {
    size_t unit;
    std::optional<size_t> variant;  // an empty one; nothing: a new one is added
    std::string lang;               // of the new one
    TmxText inlines;                // the source's, from text()
    std::string text;               // with all its tokens
  };
  // The file's bytes with these translations. A new <tuv> is written as the unit's last one is, with
  // creationtool="heed". The units must come in order.
  std::string filled(std::span<const Filling> fillings) const;

 private:
  friend class TmxParser;
  std::string decode(const std::string& bytes);
  std::string encode(const std::string& text) const;
  std::string xml(const Filling& filling) const;

  enum class Encoding { utf8, utf16_le, utf16_be, other };
  std::string name_, text_, source_lang_, mark_;  // mark_: the byte order mark
  Encoding encoding_ = Encoding::utf8;
  std::optional<Charset> charset_;
  std::vector<TmxUnit> units_;
};

// Whether a variant in `lang` serves someone who asks for `wanted`: the same, or one of the two names a region ("en",
// "en-GB") and the other none. Case does not count, nor - or _.
bool same_language(std::string_view lang, std::string_view wanted);

// The unit's variant in the language, one with exactly its name if there is one; nothing if there is none.
std::optional<size_t> find_variant(const TmxUnit& unit, std::string_view lang);

// The two languages to translate between: those given; else as source the header's, or the first there is; as target
// the only other one. Throws heed::Error when that leaves a choice, or when no unit has the source language.
Languages choose_languages(const TmxFile& file, const Languages& given);

}  // namespace heed::translate
