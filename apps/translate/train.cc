// Training a translation model: vocabulary, data, the loop of libtorch/trainer.h, and the model folder at the end.
#include "apps/translate/train.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "apps/training_folder.h"
#include "apps/translate/batches.h"
#include "apps/translate/choose_alignment.h"
#include "apps/translate/marian.h"
#include "apps/translate/utf8.h"
#include "apps/translate/vocab.h"
#include "libtorch/cross_entropy.h"
#include "libtorch/files.h"
#include "libtorch/splitmix.h"

namespace heed::translate {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

template <class T>
void require(bool good, const char* what, T value, const char* rule) {
  if (good) return;
  std::ostringstream text;
  text << what << " is " << value << "; " << rule;
  throw Error(text.str());
}

void check_options(const TrainOptions& o) {
  require(o.batch_tokens >= 1, "batch_tokens", o.batch_tokens, "a batch needs room for 1 token at least");
  require(o.label_smoothing >= 0 && o.label_smoothing < 1, "label_smoothing", o.label_smoothing,
          "it must be at least 0 and below 1");
  require(o.r_drop >= 0 && std::isfinite(o.r_drop), "r_drop", o.r_drop, "it must be finite and at least 0");
  require(o.r_drop == 0 || o.model.dropout > 0, "r_drop", o.r_drop,
          "it compares two passes with other dropout, and dropout is 0");
  require(o.bpe_dropout >= 0 && o.bpe_dropout < 1, "bpe_dropout", o.bpe_dropout, "it must be at least 0 and below 1");
  require(o.valid_pairs >= 1, "valid_pairs", o.valid_pairs, "at least 1 pair is needed to see whether training helps");
  require(o.model.vocab >= 1 && o.model.vocab <= (1 << 24), "vocab", o.model.vocab, "it must be from 1 to 16777216");
  (void)o.model.to_json();  // checks the sizes
}

// FNV-1a over the sides of pairs, texts or ids: notices other data; it need not resist an attacker. `end` is what no
// side holds.
template <class Element, class Pairs>
std::string checksum(const Pairs& pairs, Element end) {
  uint64_t hash = 0xCBF29CE484222325u;
  const auto add = [&](Element element) { hash = (hash ^ element) * 0x100000001B3u; };
  for (const auto& pair : pairs) {
    for (const auto* side : {&pair.source, &pair.target}) {
      for (const auto element : *side) add(static_cast<Element>(element));
      add(end);
    }
  }
  char text[64];
  std::snprintf(text, sizeof text, "%zu (checksum %016llx)", pairs.size(), static_cast<unsigned long long>(hash));
  return text;
}

std::string checksum(const std::vector<Pair>& pairs) { return checksum<unsigned char>(pairs, 0xFF); }  // not in UTF-8

// Notices that another SentencePiece has cut the text into other pieces.
std::string checksum(const std::vector<Example>& examples) { return checksum<uint32_t>(examples, 0xFFFFFFFFu); }

// What must be equal for a checkpoint to go on. When to stop may differ: a run may be given more time.
json identity_of(const std::vector<Pair>& pairs, const std::vector<Pair>& validation, const TrainOptions& o) {
  return {{"task", "translate"},
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
          {"learning_rate", o.learning_rate},
          {"warmup", o.warmup},
          {"label_smoothing", o.label_smoothing},
          {"weight_decay", o.weight_decay},
          {"clip", o.clip},
          {"average", o.average},
          {"validate_every", o.validate_every},
          {"valid_pairs", validation.empty() ? o.valid_pairs : 0},
          {"bpe_dropout", o.bpe_dropout},
          {"r_drop", o.r_drop},
          {"lowercase", o.lowercase},
          {"normalization", o.normalization},
          {"seed", o.seed}};
}

// What the processes that train together must have in common: beside that, when to stop.
json common_to_all(json identity, const TrainOptions& o) {
  identity.update({{"minutes", o.minutes}, {"epochs", o.epochs}, {"steps", o.steps}, {"patience", o.patience}});
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
    const bool twice = options_.r_drop > 0;
    if (twice) share.insert(share.end(), share.begin(), share.end());  // each place of a tensor has its own dropout
    const Batch batch = make_batch(examples(), share);
    const auto result = nn::cross_entropy(model_.logits(batch), packed_targets(batch),
                                          {.smoothing = options_.label_smoothing, .r_drop = options_.r_drop});
    if (!twice) return {result.loss, result.sum, batch.target_tokens()};
    return {result.loss, result.sum / 2, batch.target_tokens() / 2};
  }

  double validate() override {
    const size_t first = group_ != nullptr ? static_cast<size_t>(group_->rank()) : 0;
    const size_t step = group_ != nullptr ? static_cast<size_t>(group_->world()) : 1;
    double sums[] = {0, 0};  // of the loss, of tokens
    for (size_t i = first; i < validation_batches_.size(); i += step) {
      const Batch batch = make_batch(validation_, validation_batches_[i]);
      sums[0] += nn::cross_entropy(model_.logits(batch), packed_targets(batch)).sum;
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

nn::TrainerOptions trainer_options(const TrainOptions& o, const std::string& work, json identity) {
  nn::TrainerOptions t;
  t.minutes = o.minutes;
  t.epochs = o.epochs;
  t.steps = o.steps;
  t.patience = o.patience;
  t.learning_rate = o.learning_rate;
  t.warmup = o.warmup;
  t.optimizer.weight_decay = o.weight_decay;
  t.optimizer.clip = o.clip;
  t.optimizer.average = o.average;
  t.validate_every = o.validate_every;
  t.checkpoint = work;
  t.checkpoint_seconds = o.checkpoint_seconds;
  t.resume = o.resume;
  t.identity = std::move(identity);
  t.processes = o.processes;
  return t;
}

json finite(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }

json to_json(const TrainResult& r) {
  json curve = json::array();
  for (const TrainPoint& p : r.curve) {
    curve.push_back({{"step", p.step},
                     {"seconds", p.seconds},
                     {"train_loss", finite(p.train_loss)},
                     {"valid_loss", finite(p.valid_loss)}});
  }
  return {{"steps", r.steps},
          {"parameters", r.parameters},
          {"train_pairs", r.train_pairs},
          {"validation_pairs", r.validation_pairs},
          {"target_tokens", r.target_tokens},
          {"seconds", r.seconds},
          {"best_valid_loss", finite(r.best_valid_loss)},
          {"alignment_agreement", finite(r.alignment_agreement)},
          {"notes", r.notes},
          {"curve", curve}};
}

TrainResult result_from_json(const json& j) {
  const auto real = [](const json& x) { return x.is_null() ? std::nan("") : x.get<double>(); };
  TrainResult r;
  r.steps = j.at("steps").get<int64_t>();
  r.parameters = j.at("parameters").get<int64_t>();
  r.train_pairs = j.at("train_pairs").get<int64_t>();
  r.validation_pairs = j.at("validation_pairs").get<int64_t>();
  r.target_tokens = j.at("target_tokens").get<int64_t>();
  r.seconds = j.at("seconds").get<double>();
  r.best_valid_loss = real(j.at("best_valid_loss"));
  r.alignment_agreement = real(j.at("alignment_agreement"));
  r.notes = j.at("notes").get<std::vector<std::string>>();
  for (const json& p : j.at("curve")) {
    r.curve.push_back({p.at("step").get<int64_t>(), p.at("seconds").get<double>(), real(p.at("train_loss")),
                       real(p.at("valid_loss"))});
  }
  return r;
}

// The whole model, with what Marian's readers look for.
void save(const Model& model, const Vocab& vocab, const std::string& dir) {
  save_model(model, dir);
  for (const char* name : {"source.spm", "target.spm"}) nn::write_file(dir + "/" + name, vocab.bytes());
  for (const auto& [name, bytes] : transformers_files(model.config(), vocab)) nn::write_file(dir + "/" + name, bytes);
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

}  // namespace

TrainResult train(const std::vector<Pair>& pairs, const std::vector<Pair>& validation, const TrainOptions& options,
                  const std::function<void(const TrainProgress&)>& progress) {
  check_options(options);
  const app::TrainingFolder folder(options.out);
  const json identity = identity_of(pairs, validation, options);
  const nn::TrainerOptions trainer = trainer_options(options, folder.work(), identity);
  nn::check_options(trainer);

  nn::Processes* const group = options.processes;
  const bool leader = group == nullptr || group->rank() == 0;
  if (group != nullptr) group->agree(common_to_all(identity, options));
  std::optional<json> finished;
  if (leader) finished = folder.open(identity, options.resume);
  if (group != nullptr && group->tell(finished ? "finished" : "") == "finished" && !leader) return {};
  if (finished) return result_from_json(*finished);

  Data data = prepare(pairs, validation, options);
  const Vocab vocab = shared_vocab(folder, data, options);
  if (!vocab.has_fixed_ids()) {
    throw Error((fs::path(options.out) / "source.spm").string() +
                " has other ids for padding, <unk>, <s> and </s> than 0, 1, 2 and 3; remove it to have one trained");
  }
  ModelConfig config = options.model;
  config.vocab = vocab.size();
  config.lowercase = options.lowercase;
  const int64_t max_pieces = config.arch == "transformer" ? std::min(kMaxPieces, config.max_positions - 1) : kMaxPieces;
  Examples train_examples = encode_pairs(data.train, vocab, max_pieces);
  Examples valid_examples = encode_pairs(data.validation, vocab, max_pieces);
  if (train_examples.examples.empty()) throw Error("there is nothing to train on: " + train_examples.summary());
  if (valid_examples.examples.empty()) throw Error("there is nothing to validate with: " + valid_examples.summary());
  data.validation.clear();
  if (options.bpe_dropout == 0) data.train.clear();
  if (group != nullptr) {
    group->agree({{"the text in pieces", checksum(train_examples.examples)},
                  {"the validation text in pieces", checksum(valid_examples.examples)}});
  }

  TrainResult result;
  if (!vocab.note().empty()) result.notes.push_back(vocab.note());
  if (leader && train_examples.too_long + train_examples.empty > 0) result.notes.push_back(train_examples.summary());
  result.train_pairs = static_cast<int64_t>(train_examples.examples.size());
  result.validation_pairs = static_cast<int64_t>(valid_examples.examples.size());

  torch::manual_seed(options.seed);
  const std::shared_ptr<Model> model = make_model(config);
  for (const auto& parameter : model->parameters()) result.parameters += parameter.numel();
  Task task(*model, std::move(train_examples.examples), std::move(valid_examples.examples), options,
            [&](int64_t epoch) {
              const uint64_t seed = nn::splitmix(options.seed, static_cast<uint64_t>(epoch));
              return sample_pairs(data.train, vocab, options.bpe_dropout, seed, max_pieces).examples;
            });

  const nn::TrainSummary summary = nn::train(*model, task, trainer, [&](const nn::TrainProgress& p) {
    if (!progress) return;
    progress({p.step, p.epoch, p.loss, p.units_per_second, p.seconds, p.fraction, p.seconds_left, p.validated});
  });
  result.steps = summary.steps;
  result.target_tokens = summary.units;
  result.seconds = summary.seconds;
  result.best_valid_loss = summary.best_valid_loss;
  result.interrupted = summary.interrupted;
  result.curve = summary.curve;
  if (!result.interrupted && leader) {
    if (auto* transformer = dynamic_cast<TransformerModel*>(model.get())) {
      const AlignmentChoice choice = choose_alignment(*transformer, task.train_examples(), task.validation_examples());
      transformer->set_alignment(choice.from);
      result.alignment_agreement = choice.agreement;
    }
    save(*model, vocab, folder.finished());
    folder.finish(to_json(result), identity);
  }
  if (group != nullptr) group->tell("");  // nobody ends well before the model is safe
  return result;
}

}  // namespace heed::translate
