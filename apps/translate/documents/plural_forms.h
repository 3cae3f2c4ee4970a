// Plural forms: what a .po header's "nplurals=2; plural=(n != 1);" says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace heed::translate {

struct PluralForms {
  int64_t count = 2;            // nplurals
  int64_t singular = 0;         // the form for n = 1
  bool singular_is_one = true;  // that form is for n = 1 only; in Russian it is for 21, too
};

// Reads the header's text (its msgstr). Nothing if it names no usable nplurals (1 to 20). If the expression behind
// plural= is missing or cannot be computed, the first form is taken for the singular.
std::optional<PluralForms> parse_plural_forms(std::string_view header);

}  // namespace heed::translate
