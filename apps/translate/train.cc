// Training a translation model: vocabulary, data, the loop of libtorch/trainer.h, and the model folder at the end.
#include "apps/translate/train.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <tuple>
#include <utility>

#include "apps/translate/batches.h"
#include "apps/translate/choose_alignment.h"
#include "apps/translate/marian.h"
#include "apps/translate/utf8.h"
#include "apps/translate/vocab.h"
#include "libtorch/cross_entropy.h"
#include "libtorch/files.h"
#include "libtorch/require.h"
#include "libtorch/splitmix.h"

namespace heed::translate {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;
using nn::require;

void check_options(const TrainOptions& o) {
  require(o.batch_tokens >= 1, "batch_tokens", o.batch_tokens, "a batch needs room for 1 token at least");
  require(o.label_smoothing >= 0 && o.label_smoothing < 1, "label_smoothing", o.label_smoothing,
          "it must be at least 0 and below 1");
  require(o.bpe_dropout >= 0 && o.bpe_dropout < 1, "bpe_dropout", o.bpe_dropout, "it must be at least 0 and below 1");
  require(o.valid_pairs >= 1, "valid_pairs", o.valid_pairs, "at least 1 pair is needed to see whether training helps");
  require(o.model.vocab >= 1 && o.model.vocab <= (1 << 24), "vocab", o.model.vocab, "it must be from 1 to 16777216");
  require(o.model.dropout >= 0 && o.model.dropout < 1, "dropout", o.model.dropout, "it must be at least 0 and below 1");
  if (o.from.empty()) (void)o.model.to_json();  // checks the sizes
}

// Over the sides of pairs, texts or ids. `end` is what no side holds.
template <class Element, class Pairs>
std::string checksum(const Pairs& pairs, Element end) {
  uint64_t hash = app::kFnv;
  const auto add = [&](Element element) { hash = (hash ^ element) * app::kFnvPrime; };
  for (const auto& pair : pairs) {
    for (const auto* side : {&pair.source, &pair.target}) {
      for (const auto element : *side) add(static_cast<Element>(element));
      add(end);
    }
  }
  return app::with_checksum(static_cast<int64_t>(pairs.size()), hash);
}

std::string checksum(const std::vector<Pair>& pairs) { return checksum<unsigned char>(pairs, 0xFF); }  // not in UTF-8

// Notices that another SentencePiece has cut the text into other pieces.
std::string checksum(const std::vector<Example>& examples) { return checksum<uint32_t>(examples, 0xFFFFFFFFu); }

// What must be equal for a checkpoint to go on. When to stop may differ: a run may be given more time.
json identity_of(const std::vector<Pair>& pairs, const std::vector<Pair>& validation, const TrainOptions& o) {
  json identity{{"task", "translate"},
                {"pairs", checksum(pairs)},
                {"validation pairs", checksum(validation)},
                {"arch", o.model.arch},
                {"vocab", o.model.vocab},
                {"dim", o.model.dim},
                {"hidden", o.model.hidden},
                {"heads", o.model.heads},
                {"layers", o.model.layers},
                {"ffn", o.model.ffn},
                {"dropout", o.model.dropout},
                {"max_positions", o.model.max_positions},
                {"batch_tokens", o.batch_tokens},
                {"label_smoothing", o.label_smoothing},
                {"valid_pairs", validation.empty() ? o.valid_pairs : 0},
                {"bpe_dropout", o.bpe_dropout},
                {"lowercase", o.lowercase},
                {"normalization", o.normalization}};
  if (!o.from.empty()) identity["from"] = o.from;  // not otherwise: checkpoints older than the option go on
  return identity;
}

struct Data {
  std::vector<Pair> train, validation;
};

Data prepare(const std::vector<Pair>& pairs, const std::vector<Pair>& validation, const TrainOptions& options) {
  Data data{pairs, validation};
  if (validation.empty()) {
    if (pairs.size() < 2) {
      throw Error("there are " + std::to_string(pairs.size()) +
                  " pairs; training needs 2 at least, one of them to validate with");
    }
    const double n = static_cast<double>(pairs.size());
    // A salt of its own: the pairs may be what a split into training and test has left.
    Split split = split_pairs(pairs, std::min(0.1, static_cast<double>(options.valid_pairs) / n), 1);
    if (split.held_out.empty() || split.train.empty()) {  // too few, or too much alike, for a split by content
      split = {};
      const std::vector<int64_t> order = shuffled(static_cast<int64_t>(pairs.size()), options.seed);
      const size_t held_out = std::max<size_t>(1, pairs.size() / 10);
      for (size_t i = 0; i < order.size(); ++i) {
        (i < held_out ? split.held_out : split.train).push_back(pairs[static_cast<size_t>(order[i])]);
      }
    }
    data = {std::move(split.train), std::move(split.held_out)};
  } else if (pairs.empty()) {
    throw Error("there are no pairs to train on");
  }
  if (options.lowercase) {
    for (auto* side : {&data.train, &data.validation}) {
      for (Pair& pair : *side) pair = {lower(pair.source), lower(pair.target)};
    }
  }
  return data;
}

// The vocabulary of the checkpoint, or one the user has put into the folder, or a new one. That of a model that is
// already in the folder is not taken: it belongs to that model's data.
Vocab find_vocab(const app::TrainingFolder& folder, const Data& data, const TrainOptions& options) {
  const std::string kept = folder.work() + "/vocab.spm";
  if (fs::exists(nn::checkpoint_path(folder.work()))) {
    if (!fs::exists(kept)) {
      throw Error("the training in " + folder.work() + " has lost its vocab.spm; delete that folder to start over");
    }
    return Vocab::load(kept);
  }
  const fs::path out = options.out, source = out / "source.spm", target = out / "target.spm";
  if (fs::exists(source) && !fs::exists(out / "model.safetensors")) {
    Vocab vocab = Vocab::load(source.string());
    if (fs::exists(target) && Vocab::load(target.string()).bytes() != vocab.bytes()) {
      throw Error(source.string() + " and " + target.string() +
                  " differ; source and target share one vocabulary here, so remove one of them");
    }
    nn::write_file(kept, vocab.bytes());
    return vocab;
  }
  std::vector<std::string> lines;
  lines.reserve(2 * data.train.size());
  for (const Pair& pair : data.train) {
    lines.push_back(pair.source);
    lines.push_back(pair.target);
  }
  VocabOptions vocab_options;
  vocab_options.size = static_cast<int>(options.model.vocab);
  vocab_options.normalization = options.normalization;
  vocab_options.seed = options.seed;
  return Vocab::train(lines, vocab_options, kept);
}

// Among several processes rank 0 finds the vocabulary and hands it out.
Vocab shared_vocab(const app::TrainingFolder& folder, const Data& data, const TrainOptions& options) {
  nn::Processes* const group = options.processes;
  if (group == nullptr) return find_vocab(folder, data, options);
  if (group->rank() > 0) return Vocab::from_bytes(group->tell(""));
  const Vocab vocab = find_vocab(folder, data, options);
  group->tell(vocab.bytes());
  return vocab;
}

// What a training begins with: a model, and how it reads text.
struct Start {
  std::shared_ptr<Model> model;
  std::shared_ptr<const Vocab> source, target;
  std::vector<std::pair<std::string, std::string>> files;  // for the new model's folder: names and contents
};

Start start_anew(const app::TrainingFolder& folder, const Data& data, const TrainOptions& options) {
  const auto vocab = std::make_shared<const Vocab>(shared_vocab(folder, data, options));
  if (!vocab->has_fixed_ids()) {
    throw Error((fs::path(options.out) / "source.spm").string() +
                " has other ids for padding, <unk>, <s> and </s> than 0, 1, 2 and 3; remove it to have one trained");
  }
  ModelConfig config = options.model;
  config.vocab = vocab->size();
  config.lowercase = options.lowercase;
  torch::manual_seed(options.seed);
  Start start{make_model(config), vocab, vocab, transformers_files(config, *vocab)};
  for (const char* name : {"source.spm", "target.spm"}) start.files.emplace_back(name, vocab->bytes());
  return start;
}

// Every rank reads the model, and a run that goes on reads it again: it must still be the one that was begun with.
Start start_from(const app::Training& training, const TrainOptions& options) {
  Start start;
  start.model = load_model(options.from, options.model.dropout);
  const ModelConfig& config = start.model->config();
  std::tie(start.source, start.target) = load_vocabs(options.from, config);
  check_vocab(*start.source, config.tokens, config.vocab);
  check_vocab(*start.target, config.tokens, config.target_vocab);
  if (options.bpe_dropout > 0 && start.source->is_numbered()) {
    throw Error("the vocabulary of " + options.from +
                " has a numbering of its own, with which no merges can be left out; train it without bpe_dropout");
  }
  start.files = read_text_files(options.from);
  uint64_t hash = app::hashed(config.to_json().dump());
  for (const auto& [name, bytes] : start.files) hash = app::hashed(bytes, app::hashed(name, hash));
  const std::string checksum = app::with_checksum(static_cast<int64_t>(start.files.size()), hash);
  if (options.processes != nullptr) options.processes->agree({{"the model to go on from", checksum}});
  if (training.leads()) {
    const std::string work = training.folder().work(), kept = work + "/from.txt";
    if (!fs::exists(nn::checkpoint_path(work))) {
      nn::write_file(kept, checksum);
    } else if (!fs::exists(kept) || nn::read_file(kept) != checksum) {
      throw Error("the model in " + options.from + " is another than the training in " + work +
                  " began with; delete that folder to start over");
    }
  }
  torch::manual_seed(options.seed);
  return start;
}

// The targets of the positions Model::logits computes, in its order: row after row, without padding.
torch::Tensor packed_targets(const Batch& batch) {
  auto result = torch::empty({batch.target_tokens()}, torch::kInt64);
  int64_t* to = result.data_ptr<int64_t>();
  const int64_t* from = batch.target_out.data_ptr<int64_t>();
  for (const int64_t n : batch.target_lengths) {
    to = std::copy(from, from + n, to);
    from += batch.target_out.size(1);
  }
  return result;
}

class Task : public nn::TrainingTask {
 public:
  // sample(epoch): the training examples of a pass with BPE-dropout, if there is any.
  Task(Model& model, std::vector<Example> train, std::vector<Example> validation, const TrainOptions& options,
       std::function<std::vector<Example>(int64_t)> sample)
      : model_(model),
        group_(options.processes),
        train_(std::move(train)),
        validation_(std::move(validation)),
        options_(options),
        sample_(std::move(sample)) {
    validation_batches_ = make_batches(validation_, options.batch_tokens, 0, 0);
  }

  int64_t start_epoch(int64_t epoch) override {
    if (options_.bpe_dropout > 0) sampled_ = sample_(epoch);
    batches_ = make_batches(examples(), options_.batch_tokens, options_.seed, epoch);
    return static_cast<int64_t>(batches_.size());
  }

  nn::StepLoss loss(int64_t index) override {
    const std::vector<int64_t>& rows = batches_.at(static_cast<size_t>(index));
    std::vector<int64_t> share = group_ != nullptr ? share_of(examples(), rows, group_->rank(), group_->world()) : rows;
    if (share.empty()) return {};
    const Batch batch = make_batch(examples(), share, model_.config().tokens.pad);
    const auto result = nn::cross_entropy(model_.logits(batch), packed_targets(batch), options_.label_smoothing);
    return {result.loss, result.sum, batch.target_tokens()};
  }

  double validate() override {
    const size_t first = group_ != nullptr ? static_cast<size_t>(group_->rank()) : 0;
    const size_t step = group_ != nullptr ? static_cast<size_t>(group_->world()) : 1;
    double sums[] = {0, 0};  // of the loss, of tokens
    for (size_t i = first; i < validation_batches_.size(); i += step) {
      const Batch batch = make_batch(validation_, validation_batches_[i], model_.config().tokens.pad);
      sums[0] += nn::cross_entropy(model_.logits(batch), packed_targets(batch), 0).sum;
      sums[1] += static_cast<double>(batch.target_tokens());
    }
    if (group_ != nullptr) group_->sum(sums);
    return sums[0] / sums[1];
  }

  const std::vector<Example>& train_examples() const { return train_; }
  const std::vector<Example>& validation_examples() const { return validation_; }

 private:
  const std::vector<Example>& examples() const { return sampled_.empty() ? train_ : sampled_; }

  Model& model_;
  nn::Processes* group_;
  std::vector<Example> train_, validation_, sampled_;
  const TrainOptions& options_;
  std::function<std::vector<Example>(int64_t)> sample_;
  std::vector<std::vector<int64_t>> batches_, validation_batches_;
};

json to_json(const TrainResult& r) {
  json j = r.to_json();
  j.update({{"train_pairs", r.train_pairs},
            {"validation_pairs", r.validation_pairs},
            {"target_tokens", r.target_tokens},
            {"alignment_agreement", app::finite(r.alignment_agreement)}});
  return j;
}

TrainResult result_from_json(const json& j) {
  TrainResult r;
  if (j.is_null()) return r;
  r.read(j);
  r.train_pairs = j.at("train_pairs").get<int64_t>();
  r.validation_pairs = j.at("validation_pairs").get<int64_t>();
  r.target_tokens = j.at("target_tokens").get<int64_t>();
  r.alignment_agreement = app::number(j.at("alignment_agreement"));
  return r;
}

}  // namespace

void TrainOptions::complete() {
  if (learning_rate == 0) learning_rate = from.empty() ? 1e-3 : 2e-4;
}

TrainResult train(const std::vector<Pair>& pairs, const std::vector<Pair>& validation, const TrainOptions& given,
                  const std::function<void(const TrainProgress&)>& progress) {
  TrainOptions options = given;
  options.complete();
  check_options(options);
  app::Training training(options, identity_of(pairs, validation, options));
  if (const auto finished = training.begin()) return result_from_json(*finished);

  Start start;
  if (!options.from.empty()) {
    start = start_from(training, options);
    options.lowercase = start.model->config().lowercase;
  }
  Data data = prepare(pairs, validation, options);
  if (options.from.empty()) start = start_anew(training.folder(), data, options);
  const ModelConfig& config = start.model->config();
  const int64_t max_pieces = config.arch == "transformer" ? std::min(kMaxPieces, config.max_positions - 1) : kMaxPieces;
  const auto encode = [&](const std::vector<Pair>& some) {
    return encode_pairs(some, *start.source, *start.target, max_pieces, config.tokens);
  };
  Examples train_examples = encode(data.train), valid_examples = encode(data.validation);
  if (train_examples.examples.empty()) throw Error("there is nothing to train on: " + train_examples.summary());
  if (valid_examples.examples.empty()) throw Error("there is nothing to validate with: " + valid_examples.summary());
  data.validation.clear();
  if (options.bpe_dropout == 0) data.train.clear();
  if (options.processes != nullptr) {
    options.processes->agree({{"the text in pieces", checksum(train_examples.examples)},
                              {"the validation text in pieces", checksum(valid_examples.examples)}});
  }

  TrainResult result;
  if (!start.source->note().empty()) result.notes.push_back(start.source->note());
  if (training.leads() && train_examples.too_long + train_examples.empty > 0)
    result.notes.push_back(train_examples.summary());
  result.train_pairs = static_cast<int64_t>(train_examples.examples.size());
  result.validation_pairs = static_cast<int64_t>(valid_examples.examples.size());

  Model& model = *start.model;
  for (const auto& parameter : model.parameters()) result.parameters += parameter.numel();
  Task task(model, std::move(train_examples.examples), std::move(valid_examples.examples), options, [&](int64_t epoch) {
    const uint64_t seed = nn::splitmix(options.seed, static_cast<uint64_t>(epoch));
    return sample_pairs(data.train, *start.source, options.bpe_dropout, seed, max_pieces, config.tokens).examples;
  });

  result.target_tokens = training.run(model, task, progress, result);
  if (!result.interrupted && training.leads()) {
    if (auto* transformer = dynamic_cast<TransformerModel*>(&model)) {
      const AlignmentChoice choice = choose_alignment(*transformer, task.train_examples(), task.validation_examples());
      transformer->set_alignment(choice.from);
      result.alignment_agreement = choice.agreement;
    }
    const std::string dir = training.folder().finished();
    save_model(model, dir);
    for (const auto& [name, bytes] : start.files) nn::write_file(dir + "/" + name, bytes);
    training.finish(to_json(result));
  }
  training.end();
  return result;
}

}  // namespace heed::translate
