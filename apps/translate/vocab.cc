// Subword vocabularies over SentencePiece.
#include "apps/translate/vocab.h"

#include <heed/attention.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "apps/translate/pairs.h"
#include "apps/translate/pieces.h"

namespace heed::translate {

struct Vocab::Model {
  std::unique_ptr<Pieces> pieces;
  std::string bytes;
};

struct Vocab::Numbering {
  std::unordered_map<std::string, int> ids;
  std::vector<std::string> pieces;  // by id; empty where the file has no piece
  int pad = -1, unk = -1, eos = -1;

  int id(const std::string& piece) const {
    const auto found = ids.find(piece);
    return found == ids.end() ? unk : found->second;
  }
};

namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxModelBytes = int64_t{64} << 20;
constexpr int kLargestId = 999'999;
constexpr int kByteIds = 256;
constexpr int kSpecialIds = 4;

// The lines that are not blank, in order; if there are more than max_lines, that many of them by chance.
std::vector<size_t> choose_lines(std::span<const std::string> lines, const VocabOptions& options) {
  std::vector<size_t> order;
  for (size_t i = 0; i < lines.size(); i++) {
    if (lines[i].find_first_not_of(" \t\r\n") != std::string::npos) order.push_back(i);
  }
  const size_t most = static_cast<size_t>(options.max_lines);
  if (order.size() <= most) return order;
  // Selection sampling with the generator's bits alone: the standard's distributions differ between libraries.
  std::mt19937_64 random(options.seed);
  std::vector<size_t> chosen;
  chosen.reserve(most);
  for (size_t i = 0; i < order.size() && chosen.size() < most; i++) {
    if (random() % (order.size() - i) < most - chosen.size()) chosen.push_back(order[i]);
  }
  return chosen;
}

// With a point in every locale, unlike std::to_string.
std::string as_text(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

void check(const VocabOptions& o) {
  if (o.model_type != "bpe" && o.model_type != "unigram") {
    throw Error("The vocabulary's type is \"" + o.model_type + "\"; it must be bpe or unigram.");
  }
  const char* known[] = {"nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"};
  if (std::none_of(std::begin(known), std::end(known), [&](const char* n) { return o.normalization == n; })) {
    throw Error("The vocabulary's normalization is \"" + o.normalization +
                "\"; it must be nmt_nfkc, nfkc, nmt_nfkc_cf, nfkc_cf or identity.");
  }
  if (!(o.coverage >= 0.98 && o.coverage <= 1)) {
    throw Error("The vocabulary's coverage is " + as_text(o.coverage) + "; it must be between 0.98 and 1.");
  }
  if (o.size <= kByteIds + kSpecialIds || o.size > 1'000'000) {
    throw Error("The vocabulary's size is " + std::to_string(o.size) + "; it must be between " +
                std::to_string(kByteIds + kSpecialIds + 1) + " (4 special pieces, 256 bytes) and 1000000.");
  }
  if (o.max_lines < 1) throw Error("max_lines is " + std::to_string(o.max_lines) + "; it must be at least 1.");
}

// All of the bytes under the name, or the old file as it was.
void write_whole(const std::string& path, const std::string& bytes) {
  const std::string part = path + ".part-" + std::to_string(getpid());
  std::error_code ec;
  bool good;
  {
    std::ofstream out(part, std::ios::binary);
    out << bytes;
    out.close();
    good = out.good();
  }
  if (good) fs::rename(part, path, ec);
  if (!good || ec) {
    const std::string why = ec ? ec.message() : std::strerror(errno);
    fs::remove(part, ec);
    throw Error(path + ": the vocabulary cannot be written: " + why + ".");
  }
}

}  // namespace

Vocab Vocab::train(std::span<const std::string> lines, const VocabOptions& options, const std::string& spm_path) {
  check(options);
  const std::vector<size_t> order = choose_lines(lines, options);
  if (order.empty()) {
    throw Error("A vocabulary needs text: " + std::to_string(lines.size()) + " lines were given and all are blank.");
  }
  std::string bytes;
  const std::unordered_map<std::string, std::string> arguments = {
      {"model_type", options.model_type},
      {"vocab_size", std::to_string(options.size)},
      {"character_coverage", as_text(options.coverage)},
      {"normalization_rule_name", options.normalization},
      {"pad_id", std::to_string(kPad)},
      {"unk_id", std::to_string(kUnk)},
      {"bos_id", std::to_string(kBos)},
      {"eos_id", std::to_string(kEos)},
      {"byte_fallback", "true"},
      {"hard_vocab_limit", "false"},     // fewer pieces rather than an error when the text is small
      {"max_sentence_length", "65536"},  // bytes; longer lines are left out
      {"num_threads", "4"},              // fixed: the sums of the unigram model depend on it
      {"minloglevel", "3"}};             // SentencePiece logs to stderr; what matters comes back as a status
  const std::string why = pieces_module().train(arguments, lines, order, bytes);
  if (!why.empty()) {
    if (why.find("required_chars") != std::string::npos || why.find("Vocabulary size") != std::string::npos) {
      throw Error(
          "A vocabulary of " + std::to_string(options.size) +
          " pieces is too small: with 4 special pieces and 256 bytes it has no room for the characters of the " +
          "text; ask for a larger one, or a smaller coverage than " + as_text(options.coverage) + ".");
    }
    throw Error("SentencePiece cannot train a vocabulary on these " + std::to_string(order.size()) + " lines: " + why +
                ".");
  }
  Vocab vocab = from_bytes(bytes, spm_path);
  if (vocab.size() < options.size) {
    vocab.note_ = "The text gives a vocabulary of " + std::to_string(vocab.size()) + " pieces, not " +
                  std::to_string(options.size) + ".";
  }
  write_whole(spm_path, bytes);
  return vocab;
}

Vocab Vocab::load(const std::string& path) { return from_bytes(read_bytes(path, kMaxModelBytes), path); }

Vocab Vocab::from_bytes(std::string_view bytes, const std::string& name) {
  auto model = std::make_shared<Model>();
  model->bytes = bytes;
  // An empty model would parse: every field of it is optional.
  if (!bytes.empty()) model->pieces = pieces_module().load(model->bytes);
  if (!model->pieces) {
    throw Error(name + " is not a SentencePiece model, or is damaged (" + std::to_string(bytes.size()) + " bytes).");
  }
  return Vocab(std::move(model));
}

Vocab Vocab::numbered_by(const std::string& path, int64_t size) const {
  const auto table = nlohmann::json::parse(read_bytes(path, kMaxModelBytes), nullptr, /*allow_exceptions=*/false);
  if (!table.is_object()) throw Error(path + " is not a JSON object of pieces and their numbers.");
  auto numbering = std::make_shared<Numbering>();
  for (const auto& [piece, id] : table.items()) {
    if (!id.is_number_integer() || id < 0 || id > kLargestId) {
      throw Error(path + " numbers \"" + piece + "\" " + id.dump() + "; ids are whole numbers from 0 to " +
                  std::to_string(kLargestId) + ".");
    }
    const auto at = id.get<size_t>();
    if (at >= numbering->pieces.size()) numbering->pieces.resize(at + 1);
    if (!numbering->pieces[at].empty()) {
      throw Error(path + " gives both \"" + numbering->pieces[at] + "\" and \"" + piece + "\" the number " +
                  std::to_string(at) + ".");
    }
    numbering->pieces[at] = piece;
    numbering->ids.emplace(piece, static_cast<int>(at));
  }
  const auto special = [&](const char* piece) {
    const auto found = numbering->ids.find(piece);
    if (found == numbering->ids.end()) throw Error(path + " has no number for " + piece + ".");
    return found->second;
  };
  numbering->pad = special("<pad>");
  numbering->unk = special("<unk>");
  numbering->eos = special("</s>");
  numbering->pieces.resize(std::max(numbering->pieces.size(), static_cast<size_t>(std::max<int64_t>(0, size))));
  Vocab result(model_);
  result.note_ = note_;
  bool same = has_fixed_ids() && static_cast<int>(numbering->ids.size()) == model_->pieces->size();
  for (int i = 0; same && i < model_->pieces->size(); ++i) same = numbering->id(model_->pieces->piece(i)) == i;
  if (!same) result.numbering_ = std::move(numbering);
  return result;
}

std::string Vocab::numbering_json() const {
  nlohmann::ordered_json table = nlohmann::ordered_json::object();
  // By id, where ordered_json's own search for a key that is there already would take a second.
  auto& pairs = table.get_ref<nlohmann::ordered_json::object_t&>();
  for (int i = 0; i < size(); ++i) pairs.emplace_back(piece(i), i);
  return table.dump(1) + "\n";
}

std::vector<int> Vocab::encode(std::string_view text) const {
  std::vector<int> ids;
  if (numbering_ != nullptr) {
    for (const std::string& piece : pieces(text)) ids.push_back(numbering_->id(piece));
    return ids;
  }
  const std::string why = model_->pieces->encode(text, ids);
  if (!why.empty()) throw Error("SentencePiece cannot encode the text: " + why);
  return ids;
}

std::vector<std::vector<int>> Vocab::sample(std::span<const std::string_view> texts, double dropout,
                                            uint64_t seed) const {
  if (numbering_ != nullptr) throw Error("A vocabulary that a vocab.json numbers cannot be drawn from for training.");
  std::vector<std::vector<int>> ids;
  // All bits of 0xFFFFFFFF would mean "no seed" to SentencePiece.
  const std::string why = model_->pieces->sample(texts, dropout, static_cast<unsigned>(seed % 0xFFFFFFFFu), ids);
  if (!why.empty()) throw Error("SentencePiece cannot encode the text: " + why);
  return ids;
}

std::vector<std::string> Vocab::pieces(std::string_view text) const {
  std::vector<std::string> out;
  std::string language;
  // Only what is known: elsewhere ">>" may begin an ordinary line.
  if (numbering_ != nullptr && text.starts_with(">>")) {
    if (const size_t end = text.find("<<"); end != std::string_view::npos) language = text.substr(0, end + 2);
    if (numbering_->ids.count(language) == 0) language.clear();
    text.remove_prefix(language.size());
  }
  const std::string why = model_->pieces->encode(text, out);
  if (!why.empty()) throw Error("SentencePiece cannot encode the text: " + why);
  if (!language.empty()) out.insert(out.begin(), language);
  return out;
}

std::string Vocab::decode(std::span<const int> ids) const {
  for (const int id : ids) piece(id);  // checks
  std::string text;
  if (numbering_ != nullptr) {
    std::vector<std::string> words;
    for (const int id : ids) {
      const bool special = id == numbering_->pad || id == numbering_->unk || id == numbering_->eos;
      if (!special && !piece(id).empty()) words.push_back(piece(id));
    }
    return decode(words);
  }
  const std::string why = model_->pieces->decode(ids, text);
  if (!why.empty()) throw Error("SentencePiece cannot decode the ids: " + why);
  return text;
}

std::string Vocab::decode(std::span<const std::string> pieces) const {
  std::string text;
  const std::string why = model_->pieces->decode(pieces, text);
  if (!why.empty()) throw Error("SentencePiece cannot decode the pieces: " + why);
  if (numbering_ == nullptr) return text;
  // SentencePiece leaves the mark of a space in pieces that it does not know: here those of the other language.
  static const std::string space = "\u2581", blank = " \t\r\n";
  for (size_t at = 0; (at = text.find(space, at)) != std::string::npos;) text.replace(at, space.size(), " ");
  const size_t begin = text.find_first_not_of(blank);
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(blank) + 1 - begin);
}

int Vocab::size() const {
  return numbering_ != nullptr ? static_cast<int>(numbering_->pieces.size()) : model_->pieces->size();
}

std::string Vocab::piece(int id) const {
  if (id < 0 || id >= size()) {
    throw Error("There is no piece " + std::to_string(id) + "; the vocabulary has " + std::to_string(size()) + ".");
  }
  return numbering_ != nullptr ? numbering_->pieces[static_cast<size_t>(id)] : model_->pieces->piece(id);
}

int Vocab::id(const std::string& piece) const {
  return numbering_ != nullptr ? numbering_->id(piece) : model_->pieces->id(piece);
}

int Vocab::pad() const { return numbering_ != nullptr ? numbering_->pad : model_->pieces->pad_id(); }
int Vocab::unk() const { return numbering_ != nullptr ? numbering_->unk : model_->pieces->unk_id(); }
int Vocab::eos() const { return numbering_ != nullptr ? numbering_->eos : model_->pieces->eos_id(); }

bool Vocab::has_fixed_ids() const {
  const Pieces& p = *model_->pieces;
  return numbering_ == nullptr && p.pad_id() == kPad && p.unk_id() == kUnk && p.bos_id() == kBos && p.eos_id() == kEos;
}

const std::string& Vocab::bytes() const { return model_->bytes; }

}  // namespace heed::translate
