// Sentences to batches, batches through beam search, ids back to text.
#include "apps/translate/infer.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "apps/translate/marian.h"
#include "apps/translate/search.h"
#include "apps/translate/utf8.h"
#include "libtorch/attention.h"

namespace heed::translate {
namespace {

// The longest translation unless SearchOptions::max_length says otherwise.
constexpr int64_t kLongest = 256;
// The widest beam that constraints may ask for.
constexpr int64_t kWidest = 24;

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
  at_least("nbest", options.nbest, 1);
  if (options.nbest > options.beam) {
    throw Error("nbest is " + std::to_string(options.nbest) + " and beam " + std::to_string(options.beam) +
                "; a beam finds no more translations than it is wide");
  }
  if (options.beam > 1000) throw Error("beam is " + std::to_string(options.beam) + "; more than 1000 is not useful");
  if (!std::isfinite(options.length_penalty)) throw Error("length_penalty must be a finite number");
  if (!(options.coverage_penalty >= 0 && std::isfinite(options.coverage_penalty)))
    throw Error("coverage_penalty is " + std::to_string(options.coverage_penalty) + "; it must be 0 or more");
}

// Letters of scripts that put spaces between words and nothing but punctuation between a word and a suffix that is not
// its own: up to Armenian. Chinese puts no spaces, Korean adds its particles to whatever stands before.
bool joins(char32_t c) { return (c >= U'0' && c <= U'9') || (c < 0x590 && is_letter(c)); }

Joints joints_of(const Vocab& vocab) {
  Joints joints;
  for (int id = 0; id < vocab.size(); ++id) {
    const std::string piece = vocab.piece(id);
    if (piece.size() == 6 && piece.starts_with("<0x")) {  // one byte of a character that has no piece
      const auto byte = static_cast<unsigned char>(std::stoi(piece.substr(3, 2), nullptr, 16));
      const bool ascii = byte < 0x80 && joins(byte);
      joints.begins.push_back(ascii || (byte >= 0xC3 && byte <= 0xD5));  // U+00C0 to U+057F
      joints.ends.push_back(ascii);
      continue;
    }
    const std::u32string text = decode_utf8(piece);
    joints.begins.push_back(!text.empty() && joins(text.front()));
    joints.ends.push_back(!text.empty() && joins(text.back()));
  }
  return joints;
}

// A sentence on its way through the search.
struct Source {
  std::vector<int> ids;              // with </s>; empty for a sentence without pieces
  int64_t left_out = 0;              // pieces that did not fit
  std::vector<Constraint> required;  //
  int64_t required_tokens = 0;       //
  int64_t beam = 1;                  // what the constraints need of it
};

// The ways a text may be spelt within a translation: behind a space and, unless it begins with a letter or digit, which
// would grow onto the word before, without one.
Constraint constraint(const Vocab& vocab, const std::string& text) {
  const std::vector<int> ids = vocab.encode(text);
  if (ids.empty()) return {};
  Constraint result{{ids}};
  static const std::string space = "\u2581";
  const auto first = static_cast<unsigned char>(text.front());
  std::string piece = vocab.piece(ids.front());
  if (std::isalnum(first) == 0 && first < 0x80 && piece.starts_with(space)) {
    piece.erase(0, space.size());
    std::vector<int> glued(ids.begin() + 1, ids.end());
    if (!piece.empty()) glued.insert(glued.begin(), vocab.id(piece));
    if (!glued.empty() && (piece.empty() || vocab.piece(glued.front()) == piece))
      result.spellings.push_back(std::move(glued));
  }
  return result;
}

// The pieces that bytes begin to end of the text have become. Their lengths are counted in pieces' letters, since the
// vocabulary changes the text before it cuts it.
std::pair<int64_t, int64_t> places(const Vocab& vocab, const std::vector<int>& ids, const std::string& before,
                                   const std::string& through) {
  const auto length = [&vocab](const std::vector<int>& of) {
    size_t sum = 0;
    for (const int id : of) sum += vocab.piece(id).size();
    return sum;
  };
  const size_t begin = length(vocab.encode(before)), end = length(vocab.encode(through));
  int64_t from = 0, to = 0;
  size_t at = 0;
  for (const int id : ids) {
    const size_t next = at + vocab.piece(id).size();
    if (next <= begin) ++from;
    if (at < end) ++to;
    at = next;
  }
  return {std::min(from, to), to};
}

Source read(const Vocab& vocab, const Vocab& target, const ModelConfig& config, const Request& request, int64_t beam) {
  const auto text = [&config](const std::string& t) { return config.lowercase ? lower(t) : t; };
  Source source{vocab.encode(text(request.text)), 0, {}, 0, beam};
  if (source.ids.empty()) return source;
  const int64_t pieces = static_cast<int64_t>(source.ids.size());
  source.left_out = std::max<int64_t>(0, pieces + 1 - config.max_positions);
  source.ids.resize(static_cast<size_t>(pieces - source.left_out));
  for (const Required& required : request.required) {
    Constraint wanted = constraint(target, text(required.text));
    if (wanted.spellings.empty()) continue;
    const std::vector<int>& first = wanted.spellings[0];
    if (std::find(first.begin(), first.end(), target.unk()) != first.end()) continue;
    source.required_tokens += static_cast<int64_t>(first.size());
    wanted.apart = required.apart;
    if (required.begin < required.end && required.end <= request.text.size()) {
      std::tie(wanted.from, wanted.to) = places(vocab, source.ids, text(request.text.substr(0, required.begin)),
                                                text(request.text.substr(0, required.end)));
    }
    source.required.push_back(std::move(wanted));
  }
  source.ids.push_back(static_cast<int>(config.tokens.eos));
  source.beam = std::max(beam, std::min<int64_t>(kWidest, source.required_tokens + 1));
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
  std::shared_ptr<Model> model = load_model(dir);
  const auto [source, target] = load_vocabs(dir, model->config());
  try {
    return Translator(std::move(model), source, target);
  } catch (const Error& error) {
    throw Error(dir + ": " + error.what());
  }
}

Translator::Translator(std::shared_ptr<Model> model, std::shared_ptr<const Vocab> vocab)
    : Translator(std::move(model), vocab, vocab) {}

Translator::Translator(std::shared_ptr<Model> model, std::shared_ptr<const Vocab> source,
                       std::shared_ptr<const Vocab> target)
    : model_(std::move(model)), source_(std::move(source)), target_(std::move(target)) {
  if (model_ == nullptr || source_ == nullptr || target_ == nullptr) {
    throw Error("a Translator needs a model and a vocabulary");
  }
  const ModelConfig& config = model_->config();
  check_vocab(*source_, config.tokens, config.vocab);
  check_vocab(*target_, config.tokens, config.target_vocab);
  model_->eval();
}

std::vector<Translation> Translator::translate(std::span<const std::string> sentences, const SearchOptions& options,
                                               const std::function<void(int64_t)>& progress) const {
  std::vector<Request> requests;
  requests.reserve(sentences.size());
  for (const std::string& sentence : sentences) requests.push_back({sentence, {}});
  return translate(std::span<const Request>(requests), options, progress);
}

std::vector<Translation> Translator::translate(std::span<const Request> requests, const SearchOptions& options,
                                               const std::function<void(int64_t)>& progress) const {
  check(options);
  const ModelConfig& config = model_->config();
  std::vector<Translation> results(requests.size());
  std::vector<Source> sources;
  std::vector<size_t> order;  // of the sentences that are not empty
  sources.reserve(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    sources.push_back(read(*source_, *target_, config, requests[i], options.beam));
    results[i].left_out = sources[i].left_out;
    if (!sources[i].ids.empty()) order.push_back(i);
  }
  // The longest first: if memory does not suffice, that shows at once. Equal lengths in one batch waste nothing. A
  // batch has one beam, so that sentences whose constraints need a wider one do not widen the others'.
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(sources[a].beam, sources[a].ids.size()) > std::pair(sources[b].beam, sources[b].ids.size());
  });
  const bool apart = std::any_of(sources.begin(), sources.end(), [](const Source& source) {
    return std::any_of(source.required.begin(), source.required.end(), [](const Constraint& c) { return c.apart; });
  });
  const Joints joints = apart ? joints_of(*target_) : Joints();
  auto done = static_cast<int64_t>(requests.size() - order.size());
  if (progress && done > 0) progress(done);

  const auto translation = [&](size_t i, const Hypothesis& hypothesis) {
    Translation result;
    result.text = target_->decode(hypothesis.tokens);
    // The vocabulary has a piece for every byte, a line's end among them; a translation is one line.
    std::replace_if(
        result.text.begin(), result.text.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    result.score = hypothesis.score;
    result.confidence = std::exp(hypothesis.log_probability / static_cast<double>(hypothesis.tokens.size()));
    result.source_pieces = pieces_of(*source_, sources[i].ids);
    result.target_pieces = pieces_of(*target_, hypothesis.tokens);
    result.attention = rows_of(hypothesis.attention);
    if (config.alignment.next && result.attention.size() > 1) {
      result.attention.erase(result.attention.begin());
      result.attention.push_back(result.attention.back());  // nothing has read the last token: its own step's
    }
    result.left_out = sources[i].left_out;
    result.missing = lacking(result.text, texts_of(requests[i].required));
    return result;
  };

  std::vector<std::pair<size_t, size_t>> batches;  // of `order`
  for (size_t begin = 0, end; begin < order.size(); begin = end) {
    const Source& widest = sources[order[begin]];
    const auto longest = static_cast<int64_t>(widest.ids.size());
    const auto fit = static_cast<size_t>(std::max<int64_t>(1, options.batch_tokens / (longest * widest.beam)));
    for (end = begin; end < order.size() && end - begin < fit && sources[order[end]].beam == widest.beam;) ++end;
    batches.emplace_back(begin, end);
  }

  std::mutex progress_lock;
  const auto translate_batch = [&](const std::pair<size_t, size_t>& batch) {
    const auto [begin, end] = batch;
    const Source& widest = sources[order[begin]];
    const auto longest = static_cast<int64_t>(widest.ids.size());
    BeamOptions beam;
    beam.beam = widest.beam;
    beam.nbest = options.nbest;
    beam.length_penalty = options.length_penalty;
    beam.coverage_penalty = options.coverage_penalty;
    beam.attention = options.attention;
    if (apart) beam.joints = &joints;
    std::vector<int64_t> lengths;
    bool constrained = false;
    torch::Tensor ids = torch::full({static_cast<int64_t>(end - begin), longest}, config.tokens.pad, torch::kInt64);
    for (size_t i = begin; i < end; ++i) {
      const Source& source = sources[order[i]];
      std::copy(source.ids.begin(), source.ids.end(),
                ids.data_ptr<int64_t>() + static_cast<int64_t>(i - begin) * longest);
      const auto length = static_cast<int64_t>(source.ids.size());
      lengths.push_back(length);
      const int64_t wanted = options.max_length > 0
                                 ? options.max_length
                                 : std::min(kLongest, 2 * (length - 1) + 10 + source.required_tokens);
      beam.max_steps.push_back(std::min(wanted, config.max_positions));
      beam.required.push_back(source.required);
      constrained = constrained || !source.required.empty();
    }
    if (!constrained) beam.required.clear();
    const std::vector<std::vector<Hypothesis>> found = beam_search(*model_, ids, lengths, beam);
    for (size_t i = begin; i < end; ++i) {
      const std::vector<Hypothesis>& best = found[i - begin];
      Translation& result = results[order[i]];
      result = translation(order[i], best.front());
      for (size_t n = 1; n < best.size(); ++n) result.alternatives.push_back(translation(order[i], best[n]));
    }
    const std::lock_guard lock(progress_lock);
    done += static_cast<int64_t>(end - begin);
    if (progress) progress(done);
  };
  // A step of a search is many small products, and threads that share one wait for each other more than they compute;
  // so each takes a batch of its own where there are several. One batch is shared.
  auto task = [&](int64_t i) { translate_batch(batches[static_cast<size_t>(i)]); };
  nn::torch_executor().run(
      static_cast<int64_t>(batches.size()),
      [](void* context, int64_t i) { (*static_cast<decltype(task)*>(context))(i); }, &task);
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
