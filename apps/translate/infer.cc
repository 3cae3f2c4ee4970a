// Sentences to batches, batches through beam search, ids back to text.
#include "apps/translate/infer.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/translate/search.h"
#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

// The longest translation unless SearchOptions::max_length says otherwise.
constexpr int64_t kLongest = 256;

void check(const SearchOptions& options) {
  const auto at_least = [](const char* name, int64_t value, int64_t least) {
    if (value < least) {
      throw Error(std::string(name) + " is " + std::to_string(value) + "; it must be at least " +
                  std::to_string(least));
    }
  };
  at_least("beam", options.beam, 1);
  at_least("max_length", options.max_length, 0);
  at_least("batch_tokens", options.batch_tokens, 1);
  if (options.beam > 1000) throw Error("beam is " + std::to_string(options.beam) + "; more than 1000 is not useful");
  if (!std::isfinite(options.length_penalty)) throw Error("length_penalty must be a finite number");
}

// Ids of a sentence with kEos, and how many pieces did not fit.
struct Source {
  std::vector<int> ids;
  int64_t left_out = 0;
};

Source encode(const Vocab& vocab, const std::string& sentence, int64_t most) {
  Source source{vocab.encode(sentence), 0};
  if (source.ids.empty()) return source;
  const int64_t pieces = static_cast<int64_t>(source.ids.size());
  source.left_out = std::max<int64_t>(0, pieces + 1 - most);
  source.ids.resize(static_cast<size_t>(pieces - source.left_out));
  source.ids.push_back(static_cast<int>(kEos));
  return source;
}

std::vector<std::string> pieces_of(const Vocab& vocab, const std::vector<int>& ids) {
  std::vector<std::string> pieces;
  for (const int id : ids) pieces.push_back(vocab.piece(id));
  return pieces;
}

std::vector<std::vector<float>> rows_of(const torch::Tensor& matrix) {
  std::vector<std::vector<float>> rows;
  if (!matrix.defined()) return rows;
  const torch::Tensor dense = matrix.contiguous();
  const float* data = dense.data_ptr<float>();
  for (int64_t i = 0; i < dense.size(0); ++i, data += dense.size(1)) rows.emplace_back(data, data + dense.size(1));
  return rows;
}

}  // namespace

Translator Translator::load(const std::string& dir) {
  namespace fs = std::filesystem;
  std::shared_ptr<Model> model = load_model(dir);
  const fs::path source = fs::path(dir) / "source.spm", target = fs::path(dir) / "target.spm";
  auto vocab = std::make_shared<const Vocab>(Vocab::load(source.string()));
  std::error_code ignored;
  if (fs::exists(target, ignored) && Vocab::load(target.string()).bytes() != vocab->bytes()) {
    throw Error(source.string() + " and " + target.string() +
                " differ; heed translate reads models whose two sides share one vocabulary");
  }
  try {
    return Translator(std::move(model), std::move(vocab));
  } catch (const Error& error) {
    throw Error(dir + ": " + error.what());
  }
}

Translator::Translator(std::shared_ptr<Model> model, std::shared_ptr<const Vocab> vocab)
    : model_(std::move(model)), vocab_(std::move(vocab)) {
  if (model_ == nullptr || vocab_ == nullptr) throw Error("a Translator needs a model and a vocabulary");
  if (vocab_->size() != model_->config().vocab) {
    throw Error("the vocabulary has " + std::to_string(vocab_->size()) + " pieces and the model " +
                std::to_string(model_->config().vocab) + "; they do not belong together");
  }
  if (!vocab_->has_fixed_ids()) {
    throw Error(
        "the vocabulary does not number <pad>, <unk>, <s> and </s> as 0, 1, 2 and 3; use the one the model was "
        "trained with");
  }
  model_->eval();
}

std::vector<Translation> Translator::translate(std::span<const Request> requests, const SearchOptions& options,
                                               const std::function<void(int64_t)>& progress) const {
  std::vector<std::string> sentences;
  for (const Request& request : requests) sentences.push_back(request.text);
  return translate(std::span<const std::string>(sentences), options, progress);
}

std::vector<Translation> Translator::translate(std::span<const std::string> sentences, const SearchOptions& options,
                                               const std::function<void(int64_t)>& progress) const {
  check(options);
  const int64_t most = model_->config().max_positions;
  std::vector<Translation> results(sentences.size());
  std::vector<Source> sources;
  std::vector<size_t> order;  // of the sentences that are not empty
  sources.reserve(sentences.size());
  for (size_t i = 0; i < sentences.size(); ++i) {
    sources.push_back(encode(*vocab_, model_->config().lowercase ? lower(sentences[i]) : sentences[i], most));
    results[i].left_out = sources[i].left_out;
    if (!sources[i].ids.empty()) order.push_back(i);
  }
  // The longest first: if memory does not suffice, that shows at once. Equal lengths in one batch waste nothing.
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return sources[a].ids.size() > sources[b].ids.size(); });
  auto done = static_cast<int64_t>(sentences.size() - order.size());
  if (progress && done > 0) progress(done);

  for (size_t begin = 0, end; begin < order.size(); begin = end) {
    const auto longest = static_cast<int64_t>(sources[order[begin]].ids.size());
    const int64_t fit = std::max<int64_t>(1, options.batch_tokens / (longest * options.beam));
    end = std::min(order.size(), begin + static_cast<size_t>(fit));

    BeamOptions beam;
    beam.beam = options.beam;
    beam.length_penalty = options.length_penalty;
    beam.attention = options.attention;
    std::vector<int64_t> lengths;
    torch::Tensor ids = torch::full({static_cast<int64_t>(end - begin), longest}, kPad, torch::kInt64);
    for (size_t i = begin; i < end; ++i) {
      const std::vector<int>& of_sentence = sources[order[i]].ids;
      std::copy(of_sentence.begin(), of_sentence.end(),
                ids.data_ptr<int64_t>() + static_cast<int64_t>(i - begin) * longest);
      const auto length = static_cast<int64_t>(of_sentence.size());
      lengths.push_back(length);
      const int64_t wanted = options.max_length > 0 ? options.max_length : std::min(kLongest, 2 * (length - 1) + 10);
      beam.max_steps.push_back(std::min(wanted, most));
    }
    std::vector<Hypothesis> best = beam_search(*model_, ids, lengths, beam);
    for (size_t i = begin; i < end; ++i) {
      Hypothesis& hypothesis = best[i - begin];
      Translation& result = results[order[i]];
      result.text = vocab_->decode(hypothesis.tokens);
      // The vocabulary has a piece for every byte, a line's end among them; a translation is one line.
      std::replace_if(
          result.text.begin(), result.text.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
      result.score = hypothesis.score;
      result.source_pieces = pieces_of(*vocab_, sources[order[i]].ids);
      result.target_pieces = pieces_of(*vocab_, hypothesis.tokens);
      result.attention = rows_of(hypothesis.attention);
    }
    done += static_cast<int64_t>(end - begin);
    if (progress) progress(done);
  }
  return results;
}

std::string attention_json(std::span<const Translation> translations) {
  using nlohmann::json;
  json all = json::array();
  for (const Translation& t : translations) {
    json matrix = json::array();
    for (const auto& row : t.attention) {
      json numbers = json::array();
      // Five digits: what is looked at, not computed with, and a third of the file.
      for (const float w : row) numbers.push_back(std::round(static_cast<double>(w) * 1e5) / 1e5);
      matrix.push_back(std::move(numbers));
    }
    all.push_back({{"source", t.source_pieces},
                   {"target", t.target_pieces},
                   {"text", t.text},
                   {"score", t.score},
                   {"attention", std::move(matrix)}});
  }
  return all.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace heed::translate
