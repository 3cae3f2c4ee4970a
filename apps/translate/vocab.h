// Subword vocabularies: SentencePiece, trained from memory and stored whole or not at all.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace heed::translate {

struct VocabOptions {
  int size = 8000;                 // pieces, the special ones and the 256 bytes included
  std::string model_type = "bpe";  // or "unigram"
  // Part of the text's characters that get a piece of their own; the rarest others are written as bytes. Nearly 1,
  // because for a rare capital umlaut a piece is cheap; below 1, because the thousands of Chinese characters that
  // occur once would push the words out.
  double coverage = 0.9999;
  // "nmt_nfkc" folds compatibility forms, full-width punctuation included, and odd white space; "identity" keeps the
  // text as it is, for Chinese or Japanese that shall come out with its own punctuation.
  std::string normalization = "nmt_nfkc";
  int64_t max_lines = 2'000'000;  // of more lines, this many are drawn
  uint64_t seed = 1;              // for drawing them
};

// A SentencePiece model. Ids of those trained here: pad 0, <unk> 1, <s> 2, </s> 3, then the 256 bytes, then pieces.
// Byte fallback is on: a character without a piece is spelt in UTF-8 bytes, so that <unk> never occurs and names,
// emoji and other scripts come through a translation unharmed; it costs 256 ids, 3% of 8000.
// Marian's models as Hugging Face keeps them number their pieces in a file of their own, vocab.json, and SentencePiece
// only cuts the text: numbered_by() makes such a vocabulary of a SentencePiece model. Two differences in use: a
// language token before the text, as in ">>fra<< Good morning", is one piece if the file knows it; a piece that the
// file does not know is <unk>, which decode leaves out.
//
// Copies share one model; all const functions may be called from several threads at once.
class Vocab {
 public:
  static constexpr int kPad = 0, kUnk = 1, kBos = 2, kEos = 3;

  // Trains on the lines (UTF-8; empty ones are skipped) and writes the model to spm_path, by way of a temporary file
  // that is renamed. The same lines and options give the same bytes, on any number of cores. When the text is too small
  // for `size` pieces there are fewer, and note() says so. Throws heed::Error for options or lines that do not fit,
  // such as a size too small for the characters of the text, and when writing fails.
  static Vocab train(std::span<const std::string> lines, const VocabOptions& options, const std::string& spm_path);

  // A model from a file or from the bytes of one. Models trained elsewhere load too, with the special ids they have:
  // see has_fixed_ids. Throws heed::Error when the file is missing or is not a SentencePiece model.
  static Vocab load(const std::string& path);
  static Vocab from_bytes(std::string_view model, const std::string& name = "the vocabulary");

  // The same pieces with the ids of a vocab.json: an object of pieces and their numbers, which has <unk>, <pad> and
  // </s>. Of the `size` tokens of a model some may be nothing: models are made up to a multiple of 8. A file that gives
  // every piece the id it has here changes nothing. Throws heed::Error for one that is missing or says something else.
  Vocab numbered_by(const std::string& path, int64_t size) const;
  bool is_numbered() const { return numbering_ != nullptr; }
  // vocab.json for the ids this vocabulary has.
  std::string numbering_json() const;

  // Subword ids of one line, without <s> and </s>.
  std::vector<int> encode(std::string_view text) const;
  // The texts with BPE-dropout (Provilkov, Emelianenko and Voita 2020), to train with: each merge is left out with the
  // probability `dropout`, so that a word comes in other pieces each time. SentencePiece does not come back to a merge
  // it has left out, as the paper's code does: its 0.05 cuts text as finely as the paper's 0.1. The same texts and seed
  // give the same pieces, in one thread whatever the cores. Only for models of type bpe with ids of their own:
  // heed::Error for numbered ones.
  std::vector<std::vector<int>> sample(std::span<const std::string_view> texts, double dropout, uint64_t seed) const;
  // The same as text: "▁Hel" "lo".
  std::vector<std::string> pieces(std::string_view text) const;
  // Text from ids, or from pieces; special ids are left out. Throws heed::Error for an id outside 0..size()-1.
  std::string decode(std::span<const int> ids) const;
  std::string decode(std::span<const std::string> pieces) const;

  int size() const;                        // one more than the largest id
  std::string piece(int id) const;         // throws heed::Error for an id outside 0..size()-1
  int id(const std::string& piece) const;  // the id of <unk> if there is no such piece
  bool has_fixed_ids() const;              // pad, <unk>, <s> and </s> are kPad, kUnk, kBos and kEos
  int pad() const;                         // -1 if there is none; so the next two
  int unk() const;
  int eos() const;

  // What train had to change ("The text gives 1,234 pieces, not 8,000."); otherwise empty.
  const std::string& note() const { return note_; }
  // The model's bytes, as in the file.
  const std::string& bytes() const;

 private:
  struct Model;
  struct Numbering;
  explicit Vocab(std::shared_ptr<const Model> model) : model_(std::move(model)) {}

  std::shared_ptr<const Model> model_;
  std::shared_ptr<const Numbering> numbering_;  // null: the model's own ids
  std::string note_;
};

}  // namespace heed::translate
