// The module heed_pieces.so: SentencePiece, and nothing else of Heed's. See pieces.h.
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <mutex>
#include <thread>

#include "apps/translate/pieces.h"

namespace heed::translate {
namespace {

std::string why(const sentencepiece::util::Status& status) { return status.ok() ? "" : status.ToString(); }

class SentencePieces : public Pieces {
 public:
  bool load(std::string_view bytes) {
    return processor_.LoadFromSerializedProto({bytes.data(), bytes.size()}).ok() && processor_.status().ok() &&
           processor_.GetPieceSize() > 0;
  }
  std::string encode(std::string_view text, std::vector<int>& ids) const override {
    return why(processor_.Encode({text.data(), text.size()}, &ids));
  }
  std::string encode(std::string_view text, std::vector<std::string>& pieces) const override {
    return why(processor_.Encode({text.data(), text.size()}, &pieces));
  }
  // SentencePiece draws from a generator that each thread has and that is seeded when the thread first asks. So that a
  // seed says what comes, whatever was drawn before, a new thread does it.
  std::string sample(std::span<const std::string_view> texts, double dropout, unsigned seed,
                     std::vector<std::vector<int>>& ids) const override {
    static std::mutex one_at_a_time;
    const std::lock_guard guard(one_at_a_time);
    sentencepiece::SetRandomGeneratorSeed(seed);
    std::string reason;
    ids.assign(texts.size(), {});
    std::thread([&] {
      for (size_t i = 0; i < texts.size() && reason.empty(); ++i) {
        reason =
            why(processor_.SampleEncode({texts[i].data(), texts[i].size()}, -1, static_cast<float>(dropout), &ids[i]));
      }
    }).join();
    return reason;
  }
  std::string decode(std::span<const int> ids, std::string& text) const override {
    return why(processor_.Decode(std::vector<int>(ids.begin(), ids.end()), &text));
  }
  std::string decode(std::span<const std::string> pieces, std::string& text) const override {
    return why(processor_.Decode(std::vector<std::string>(pieces.begin(), pieces.end()), &text));
  }
  int size() const override { return processor_.GetPieceSize(); }
  std::string piece(int id) const override { return processor_.IdToPiece(id); }
  int id(const std::string& piece) const override { return processor_.PieceToId(piece); }
  int pad_id() const override { return processor_.pad_id(); }
  int unk_id() const override { return processor_.unk_id(); }
  int bos_id() const override { return processor_.bos_id(); }
  int eos_id() const override { return processor_.eos_id(); }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

class Lines : public sentencepiece::SentenceIterator {
 public:
  Lines(std::span<const std::string> lines, std::span<const size_t> order) : lines_(lines), order_(order) {}
  bool done() const override { return at_ == order_.size(); }
  void Next() override { at_++; }
  const std::string& value() const override { return lines_[order_[at_]]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::span<const std::string> lines_;
  std::span<const size_t> order_;
  size_t at_ = 0;
};

std::unique_ptr<Pieces> load(std::string_view bytes) {
  auto pieces = std::make_unique<SentencePieces>();
  if (!pieces->load(bytes)) return nullptr;
  return pieces;
}

std::string train(const std::unordered_map<std::string, std::string>& arguments, std::span<const std::string> lines,
                  std::span<const size_t> order, std::string& model) {
  Lines iterator(lines, order);
  const auto status = sentencepiece::SentencePieceTrainer::Train(arguments, &iterator, &model);
  return status.ok() ? "" : std::string(status.error_message());
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const PiecesModule heed_pieces = {load, train};

}  // namespace heed::translate
