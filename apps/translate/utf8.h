// Unicode text as UTF-8: checking, decoding, trimming, and the character classes the translate app needs.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace heed::translate {

// True if the bytes are well-formed UTF-8 (no overlong forms, no surrogates, nothing above U+10FFFF).
bool is_utf8(std::string_view text);

// Code points of the text. A byte that is not part of well-formed UTF-8 becomes U+FFFD; nothing throws.
std::u32string decode_utf8(std::string_view text);

// Appends one code point as UTF-8; surrogates and values above U+10FFFF are written as U+FFFD.
void append_utf8(std::string& out, char32_t c);
std::string encode_utf8(std::u32string_view text);

// The character that begins at text[i] and its number of bytes; text must be UTF-8.
char32_t character_at(std::string_view text, size_t i, size_t& size);

// The text without the ASCII white space around it; a no-break space is kept, it may be wanted.
std::string_view trimmed(std::string_view text);

// The code points at which Python's str.split() cuts; sacrebleu's scores depend on exactly this set (no U+200B).
bool is_space(char32_t c);

// A letter, ideograph or combining mark. Exact for ASCII and Latin-1; above that everything outside the blocks of
// punctuation, symbols, private use and emoji counts as a letter, which is what comparing sentences needs.
bool is_letter(char32_t c);

// Chinese characters and kana, which are words or parts of words without spaces between them.
bool is_ideograph(char32_t c);

// Lower case as Python's str.lower() gives it (Unicode 14): one-to-one mappings, U+0130 as two code points, and a
// capital sigma at the end of a word as the final form.
std::u32string lower(std::u32string_view text);
std::string lower(std::string_view text);

}  // namespace heed::translate
