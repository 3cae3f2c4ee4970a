// What Vocab needs of SentencePiece, behind a border that a library loaded at run time can stand behind.
//
// Debian's libsentencepiece carries and exports Protocol Buffers 3.14, LibTorch needs libprotobuf 3.21: in one process
// each would call into the other's functions of the same names, and it dies before main. So SentencePiece is in a
// module of its own (pieces_module.cc), loaded with RTLD_LOCAL | RTLD_DEEPBIND: the module sees its own names first,
// and nobody else sees them.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace heed::translate {

// One SentencePiece model. Functions that can fail return why, or nothing.
class Pieces {
 public:
  virtual ~Pieces() = default;
  virtual std::string encode(std::string_view text, std::vector<int>& ids) const = 0;
  virtual std::string encode(std::string_view text, std::vector<std::string>& pieces) const = 0;
  // All texts, each merge of a BPE model left out with the probability `dropout`.
  virtual std::string sample(std::span<const std::string_view> texts, double dropout, unsigned seed,
                             std::vector<std::vector<int>>& ids) const = 0;
  virtual std::string decode(std::span<const int> ids, std::string& text) const = 0;
  virtual std::string decode(std::span<const std::string> pieces, std::string& text) const = 0;
  virtual int size() const = 0;
  virtual std::string piece(int id) const = 0;
  virtual int id(const std::string& piece) const = 0;
  virtual int pad_id() const = 0;
  virtual int unk_id() const = 0;
  virtual int bos_id() const = 0;
  virtual int eos_id() const = 0;
};

struct PiecesModule {
  // nullptr if the bytes are not a model.
  std::unique_ptr<Pieces> (*load)(std::string_view bytes);
  // Trains on lines[order[0]], lines[order[1]], ...; leaves the model's bytes in `model`.
  std::string (*train)(const std::unordered_map<std::string, std::string>& arguments,
                       std::span<const std::string> lines, std::span<const size_t> order, std::string& model);
};

// The module, loaded at the first call. Throws heed::Error if it cannot be loaded.
const PiecesModule& pieces_module();

}  // namespace heed::translate
