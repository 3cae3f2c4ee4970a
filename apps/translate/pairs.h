// Sentence pairs: reading them from the files people have, and holding some out for measuring.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace heed::translate {

struct Pair {
  std::string source, target;  // UTF-8, one line, no white space around
  bool operator==(const Pair&) const = default;
};

// A line longer than this many bytes is skipped: it is a paragraph or a broken file, not a sentence.
inline constexpr int64_t kMaxLineBytes = 5000;

// What a reader met and left out. Every line is counted in exactly one place.
struct LineCounts {
  int64_t lines = 0;            // lines (or catalogue entries) met
  int64_t skipped_empty = 0;    // nothing on the line, or nothing on one side of the pair
  int64_t skipped_utf8 = 0;     // not UTF-8, or with a NUL byte
  int64_t skipped_long = 0;     // longer than kMaxLineBytes
  int64_t skipped_columns = 0;  // TSV: no tab on the line
  int64_t skipped_unfit = 0;    // catalogues: fuzzy, obsolete, or dropped by clean_messages (gettext.h)

  int64_t skipped() const { return skipped_empty + skipped_utf8 + skipped_long + skipped_columns + skipped_unfit; }
};

struct PairFile : LineCounts {
  std::vector<Pair> pairs;

  // "29,000 pairs" or "28,995 pairs; of 29,000 lines 3 were empty and 2 not UTF-8"
  std::string summary() const;
};

struct SentenceFile : LineCounts {
  std::vector<std::string> sentences;
  std::string summary() const;  // as PairFile's
};

// The readers. A name ending in .gz is decompressed on the way. A byte order mark, CR LF and NUL bytes are dealt with;
// lines are streamed, so a huge line costs no memory. Each throws heed::Error, naming the file, when it is missing, a
// directory, empty, damaged, UTF-16, or when no line of it can be used.

// Lines of source TAB target; further columns (Tatoeba's attribution) are ignored.
PairFile read_tsv(const std::string& path);

// Line i of one file with line i of the other. Different numbers of lines are an error that names both. A line that one
// side makes unusable is left out on both.
PairFile read_lines(const std::string& source_path, const std::string& target_path);

// The languages of a file that may have several; empty: those that the file leaves no doubt about (tmx_file.h).
struct Languages {
  std::string source, target;
};

// By the name's ending: .tsv and .txt as read_tsv; .po and .mo as message catalogues, cleaned (gettext.h); .tmx as
// translation memories, without their inline elements; each of them also with .gz behind.
PairFile read_pairs(const std::string& path, const Languages& languages = {});

// One sentence per line.
SentenceFile read_sentences(const std::string& path);

// The whole file, decompressed if its name ends in .gz. Throws heed::Error as above, and when it is larger than
// max_bytes.
std::string read_bytes(const std::string& path, int64_t max_bytes);

// What two sources have in common when they differ only in case, digits, punctuation and spaces: their letters, lower
// case; or all characters but white space where there are no letters.
std::string split_key(std::string_view source);

struct Split {
  std::vector<Pair> train, held_out;
};

// Holds out about `fraction` of the pairs. Which ones depends on a hash of split_key(source) and nothing else, so it is
// the same on every machine, does not change for old pairs when new ones are added, and sources that are nearly the
// same never fall on different sides. To split again what a split has left, take another salt: with the same one
// nothing more would be held out. Throws heed::Error unless 0 <= fraction <= 1.
Split split_pairs(std::span<const Pair> pairs, double fraction, uint64_t salt = 0);

}  // namespace heed::translate
