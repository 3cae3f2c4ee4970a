// Filling in what a .po or a .tmx file lacks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/translate/documents/passages.h"
#include "apps/translate/documents/po_file.h"
#include "apps/translate/documents/tmx_file.h"

namespace heed::translate {

// What became of an entry that had no translation.
struct FilledEntry {
  int64_t line = 0;                // in the file
  std::string source;              // msgid, or the segment's text
  std::vector<std::string> texts;  // the translation, with plural forms all of them; empty if there is none
  std::string why;                 // there is none: why
  Rendering::How how = Rendering::How::whole;
  double confidence = 1;  // the least of its forms'
  std::vector<std::string> missing_terms;
};

struct Filled {
  std::string bytes;                                // the file
  std::vector<FilledEntry> entries;                 // those that had no translation, in the file's order
  std::vector<std::string> notes;                   // what was assumed; whole sentences
  int64_t translated = 0, fuzzy = 0, obsolete = 0;  // entries that were not touched

  // "filled 12 of 14 untranslated entries (1 copied, 2 piece by piece); ..." and a line for each reason.
  std::vector<std::string> summary() const;
};

struct FillOptions {
  const Terms* terms = nullptr;
  double least_confidence = 0;  // what is less sure stays untranslated
  std::string prefix = "";      // as Passage's
};

// Fills each entry without any msgstr and marks it fuzzy. An entry with plural forms gets as many as the header says:
// the form for n = 1 from msgid, the others from msgid_plural; if that form serves other numbers, too (Russian's 21),
// and msgid lacks the placeholder for the number, it is translated from msgid_plural, as msgfmt -c demands.
Filled fill_po(const PoFile& file, const Engine& engine, const FillOptions& options = {});

// Fills each unit that has text in the source language and none in the target language.
Filled fill_tmx(const TmxFile& file, const Languages& languages, const Engine& engine, const FillOptions& options = {});

}  // namespace heed::translate
