// Reading sentence pairs from TSV, line-aligned files, catalogues and translation memories; splitting them without
// leakage.
#include "apps/translate/pairs.h"

#include <heed/attention.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "apps/translate/documents/tmx_file.h"
#include "apps/translate/gettext.h"
#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

namespace fs = std::filesystem;

// A file read through zlib, which passes plain files through as they are.
class ByteStream {
 public:
  explicit ByteStream(const std::string& path) : path_(path), buffer_(1 << 16) {
    std::error_code ec;
    const auto kind = fs::status(path, ec).type();
    if (kind == fs::file_type::not_found) throw Error(path + ": there is no such file.");
    if (kind == fs::file_type::directory) throw Error(path + " is a directory; a file is needed.");
    errno = 0;
    file_ = gzopen(path.c_str(), "rbe");
    if (file_ == nullptr) {
      throw Error(path + ": cannot be opened: " + (errno ? std::strerror(errno) : "out of memory") + ".");
    }
    gzbuffer(file_, 1 << 17);
  }
  ~ByteStream() { gzclose(file_); }
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  // The next bytes; empty at the end.
  std::string_view read() {
    const int n = gzread(file_, buffer_.data(), static_cast<unsigned>(buffer_.size()));
    if (n <= 0) {
      int code = Z_OK;
      const char* why = gzerror(file_, &code);
      if (code == Z_ERRNO) throw Error(path_ + ": reading failed: " + std::strerror(errno) + ".");
      if (code == Z_BUF_ERROR) throw Error(path_ + ": the compressed data ends too early; the file is cut off.");
      if (n < 0) throw Error(path_ + ": the compressed data is damaged (" + (why ? why : "unknown") + ").");
      return {};
    }
    return {buffer_.data(), static_cast<size_t>(n)};
  }

 private:
  std::string path_;
  std::vector<char> buffer_;
  gzFile file_;
};

enum class LineState { kGood, kEmpty, kLong, kUtf8 };

// Lines of a file, without their ends and white space around. Keeps at most kMaxLineBytes of a line.
class LineReader {
 public:
  explicit LineReader(const std::string& path) : path_(path), stream_(path) {}

  // False at the end of the file. The line is valid until the next call.
  bool next() {
    line_.clear();
    bool too_long = false, any = false;
    for (;;) {
      if (rest_.empty()) {
        rest_ = stream_.read();
        if (rest_.empty()) break;
        if (std::exchange(first_, false)) check_start();
      }
      any = true;
      const size_t end = rest_.find('\n');
      const std::string_view part = rest_.substr(0, end);
      // One byte more than allowed, for a carriage return.
      const size_t room = static_cast<size_t>(kMaxLineBytes) + 1 - line_.size();
      too_long = too_long || part.size() > room;
      line_.append(part.substr(0, room));
      rest_.remove_prefix(end == std::string_view::npos ? rest_.size() : end + 1);
      if (end != std::string_view::npos) break;
    }
    if (!any) return false;
    if (number_ == 0 && line_.starts_with("\xEF\xBB\xBF")) line_.erase(0, 3);
    number_++;
    if (!line_.empty() && line_.back() == '\r') line_.pop_back();
    const bool is_long = too_long || line_.size() > static_cast<size_t>(kMaxLineBytes);
    state_ = is_long                                                     ? LineState::kLong
             : line_.find_first_not_of(" \t\r\v\f") == std::string::npos ? LineState::kEmpty
             : line_.find('\0') != std::string::npos || !is_utf8(line_)  ? LineState::kUtf8
                                                                         : LineState::kGood;
    return true;
  }

  const std::string& line() const { return line_; }
  LineState state() const { return state_; }
  int64_t number() const { return number_; }

 private:
  void check_start() const {
    if (rest_.starts_with("\xFF\xFE") || rest_.starts_with("\xFE\xFF")) {
      throw Error(path_ + " is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8.");
    }
  }

  std::string path_;
  ByteStream stream_;
  std::string_view rest_;
  std::string line_;
  LineState state_ = LineState::kEmpty;
  int64_t number_ = 0;
  bool first_ = true;
};

// Counts a line that cannot be used; true if it can.
bool usable(LineState state, LineCounts& counts) {
  switch (state) {
    case LineState::kGood:
      return true;
    case LineState::kEmpty:
      counts.skipped_empty++;
      break;
    case LineState::kLong:
      counts.skipped_long++;
      break;
    case LineState::kUtf8:
      counts.skipped_utf8++;
      break;
  }
  return false;
}

std::string with_commas(int64_t n) {
  std::string text = std::to_string(n);
  for (int at = static_cast<int>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

// "3 were empty, 1 not UTF-8"
std::string skip_list(const LineCounts& c) {
  const std::pair<int64_t, std::string> kinds[] = {
      {c.skipped_empty, "empty"},
      {c.skipped_utf8, "not UTF-8 text"},
      {c.skipped_long, "longer than " + with_commas(kMaxLineBytes) + " bytes"},
      {c.skipped_columns, "without a tab"},
      {c.skipped_unfit, "unfit for training"}};
  std::string text;
  for (const auto& [count, what] : kinds) {
    if (count == 0) continue;
    text += (text.empty() ? "" : ", ") + with_commas(count) + " " + what;
  }
  return text;
}

std::string summarise(size_t kept, const char* noun, const LineCounts& counts) {
  std::string text = with_commas(static_cast<int64_t>(kept)) + " " + noun + (kept == 1 ? "" : "s");
  if (counts.skipped() > 0) text += " of " + with_commas(counts.lines) + " read; skipped: " + skip_list(counts);
  return text;
}

void check_any(size_t kept, const LineCounts& counts, const std::string& path, const char* noun) {
  if (counts.lines == 0) throw Error(path + " is empty.");
  if (kept > 0) return;
  if (counts.skipped_utf8 > 0 && counts.skipped_utf8 + counts.skipped_empty == counts.lines) {
    throw Error(path + ": none of its " + with_commas(counts.skipped_utf8) +
                " lines is UTF-8 text; if it is text in another encoding, convert it with iconv -t UTF-8.");
  }
  throw Error(path + " holds no usable " + noun + ": of " + with_commas(counts.lines) + " lines, " + skip_list(counts) +
              ".");
}

PairFile read_catalogue(const std::string& path, bool binary) {
  const std::string bytes = read_bytes(path, kMaxCatalogueBytes);
  if (bytes.empty()) throw Error(path + " is empty.");
  const Catalogue catalogue = binary ? parse_mo(bytes, path) : parse_po(bytes, path);
  CleanCounts cleaned;
  PairFile file;
  file.pairs = clean_messages(catalogue.messages, &cleaned);
  file.lines = catalogue.entries;
  file.skipped_empty = catalogue.untranslated;
  file.skipped_utf8 = catalogue.invalid;
  file.skipped_unfit = file.lines - file.skipped_empty - file.skipped_utf8 - static_cast<int64_t>(file.pairs.size());
  if (file.pairs.empty()) {
    throw Error(path + " holds no usable pair: of " + with_commas(file.lines) + " entries " +
                with_commas(file.skipped_empty) + " are not translated and " + with_commas(file.skipped_unfit) +
                " are unfit for training.");
  }
  return file;
}

PairFile read_memory(const std::string& path, const Languages& given) {
  const TmxFile memory(read_bytes(path, kMaxTmxBytes), path);
  const Languages languages = choose_languages(memory, given);
  PairFile file;
  for (const TmxUnit& unit : memory.units()) {
    file.lines++;
    const auto source = find_variant(unit, languages.source), target = find_variant(unit, languages.target);
    if (!source || !target || source == target) {
      file.skipped_empty++;
      continue;
    }
    Pair pair{memory.plain_text(unit.variants[*source]), memory.plain_text(unit.variants[*target])};
    if (pair.source.empty() || pair.target.empty()) {
      file.skipped_empty++;
    } else if (pair.source.find('\0') != std::string::npos || pair.target.find('\0') != std::string::npos) {
      file.skipped_utf8++;
    } else if (static_cast<int64_t>(std::max(pair.source.size(), pair.target.size())) > kMaxLineBytes) {
      file.skipped_long++;
    } else {
      file.pairs.push_back(std::move(pair));
    }
  }
  if (file.pairs.empty()) {
    throw Error(path + " holds no usable pair: of " + with_commas(file.lines) + " units " +
                with_commas(file.skipped_empty) + " have no text in " + languages.source + " or in " +
                languages.target + ".");
  }
  return file;
}

}  // namespace

std::string PairFile::summary() const { return summarise(pairs.size(), "pair", *this); }
std::string SentenceFile::summary() const { return summarise(sentences.size(), "sentence", *this); }

std::string read_bytes(const std::string& path, int64_t max_bytes) {
  ByteStream stream(path);
  std::string bytes;
  for (std::string_view part = stream.read(); !part.empty(); part = stream.read()) {
    if (static_cast<int64_t>(bytes.size() + part.size()) > max_bytes) {
      throw Error(path + " is larger than the " + with_commas(max_bytes) + " bytes allowed here.");
    }
    bytes += part;
  }
  return bytes;
}

PairFile read_tsv(const std::string& path) {
  LineReader reader(path);
  PairFile file;
  int64_t first_without_tab = 0;
  while (reader.next()) {
    file.lines++;
    if (!usable(reader.state(), file)) continue;
    const std::string_view line = reader.line();
    const size_t tab = line.find('\t');
    if (tab == std::string_view::npos) {
      file.skipped_columns++;
      if (first_without_tab == 0) first_without_tab = reader.number();
      continue;
    }
    const std::string_view behind = line.substr(tab + 1);
    Pair pair{std::string(trimmed(line.substr(0, tab))), std::string(trimmed(behind.substr(0, behind.find('\t'))))};
    if (pair.source.empty() || pair.target.empty()) {
      file.skipped_empty++;
    } else {
      file.pairs.push_back(std::move(pair));
    }
  }
  if (file.pairs.empty() && first_without_tab > 0) {
    throw Error(path + " line " + std::to_string(first_without_tab) +
                " has 1 column; a pair needs source, a tab and target.");
  }
  check_any(file.pairs.size(), file, path, "pair");
  return file;
}

PairFile read_lines(const std::string& source_path, const std::string& target_path) {
  LineReader source(source_path), target(target_path);
  PairFile file;
  int64_t source_lines = 0, target_lines = 0;
  for (;;) {
    const bool more_source = source.next(), more_target = target.next();
    source_lines += more_source;
    target_lines += more_target;
    if (!more_source && !more_target) break;
    if (!more_source || !more_target) continue;  // only counting now
    file.lines++;
    if (!usable(source.state(), file) || !usable(target.state(), file)) continue;
    file.pairs.push_back({std::string(trimmed(source.line())), std::string(trimmed(target.line()))});
  }
  if (source_lines == 0) throw Error(source_path + " is empty.");
  if (target_lines == 0) throw Error(target_path + " is empty.");
  if (source_lines != target_lines) {
    throw Error(source_path + " has " + with_commas(source_lines) + " lines and " + target_path + " has " +
                with_commas(target_lines) + "; line-aligned files need the same number.");
  }
  check_any(file.pairs.size(), file, source_path + " with " + target_path, "pair");
  return file;
}

PairFile read_pairs(const std::string& path, const Languages& languages) {
  std::string name = lower(std::string_view(path));
  if (name.ends_with(".gz")) name.resize(name.size() - 3);
  if (name.ends_with(".tsv") || name.ends_with(".txt")) return read_tsv(path);
  if (name.ends_with(".po")) return read_catalogue(path, false);
  if (name.ends_with(".mo")) return read_catalogue(path, true);
  if (name.ends_with(".tmx")) return read_memory(path, languages);
  throw Error(path + ": pairs are read from files ending in .tsv, .txt, .po, .mo or .tmx, each also with .gz behind.");
}

SentenceFile read_sentences(const std::string& path) {
  LineReader reader(path);
  SentenceFile file;
  while (reader.next()) {
    file.lines++;
    if (usable(reader.state(), file)) file.sentences.emplace_back(trimmed(reader.line()));
  }
  check_any(file.sentences.size(), file, path, "sentence");
  return file;
}

std::string split_key(std::string_view source) {
  const std::u32string text = lower(decode_utf8(source));
  std::string letters, all;
  for (const char32_t c : text) {
    if (is_letter(c)) append_utf8(letters, c);
    if (!is_space(c)) append_utf8(all, c);
  }
  return letters.empty() ? all : letters;
}

Split split_pairs(std::span<const Pair> pairs, double fraction, uint64_t salt) {
  if (!(fraction >= 0 && fraction <= 1)) {
    throw Error("The part to hold out is " + std::to_string(fraction) + "; it must be between 0 and 1.");
  }
  Split split;
  for (const Pair& pair : pairs) {
    // FNV-1a, then the finaliser of MurmurHash3 because FNV's high bits are poor for short keys.
    uint64_t h = 0xcbf29ce484222325 ^ salt;
    for (const char c : split_key(pair.source)) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    h = (h ^ h >> 33) * 0xff51afd7ed558ccd;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53;
    h ^= h >> 33;
    const bool out = static_cast<double>(h >> 11) * 0x1p-53 < fraction;
    (out ? split.held_out : split.train).push_back(pair);
  }
  return split;
}

}  // namespace heed::translate
