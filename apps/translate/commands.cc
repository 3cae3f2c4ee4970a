// The translate task's commands: arguments in, words and exit codes out.
#include "apps/translate/commands.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/output.h"
#include "apps/processes.h"
#include "apps/terminal.h"
#include "apps/training_command.h"
#include "apps/translate/convert.h"
#include "apps/translate/infer.h"
#include "apps/translate/metrics.h"
#include "apps/translate/pairs.h"
#include "apps/translate/train.h"
#include "apps/translate/translate_command.h"
#include "libtorch/files.h"
#include "libtorch/processes.h"

namespace heed::translate {
namespace {

using app::between;
using app::check_folder_of;
using app::fixed;
using app::say;
using app::thousands;
using app::UsageError;

// Where sentence pairs come from: any number of pair files, or two files line by line.
struct PairSource {
  std::vector<std::string> files;
  std::string source, target;
  Languages languages;  // of .tmx files
  bool given() const { return !files.empty() || !source.empty() || !target.empty(); }
  std::vector<std::string> paths() const {
    std::vector<std::string> all = files;
    all.insert(all.end(), {source, target});
    return all;
  }
};

// Options --<prefix>pairs, --<prefix>source and --<prefix>target, or for validation --valid, --valid-source and so on.
void add_pair_options(CLI::App* command, PairSource& pairs, const std::string& what, const std::string& files,
                      const std::string& source, const std::string& target) {
  auto* files_option = command
                           ->add_option(files, pairs.files,
                                        what + ": .tsv (source TAB target), .po, .mo or .tmx, or with .gz; may repeat")
                           ->type_name("FILE");
  auto* source_option =
      command->add_option(source, pairs.source, what + ": source sentences, one per line")->type_name("FILE");
  auto* target_option =
      command->add_option(target, pairs.target, what + ": their translations, line by line")->type_name("FILE");
  source_option->needs(target_option);
  target_option->needs(source_option);
  files_option->excludes(source_option)->excludes(target_option);
}

void add_language_options(CLI::App* command, Languages& languages) {
  command->add_option("--source-lang", languages.source, ".tmx: the source language, if the file leaves a choice")
      ->type_name("LANG");
  command->add_option("--target-lang", languages.target, ".tmx: the target language, if the file leaves a choice")
      ->type_name("LANG");
}

std::vector<Pair> read(const PairSource& source, bool quiet = false) {
  std::vector<Pair> pairs;
  const auto add = [&](const std::string& name, PairFile file) {
    if (!quiet) say(name + ": " + file.summary());
    pairs.insert(pairs.end(), std::make_move_iterator(file.pairs.begin()), std::make_move_iterator(file.pairs.end()));
  };
  for (const std::string& path : source.files) add(path, read_pairs(path, source.languages));
  if (!source.source.empty()) add(source.source + ", " + source.target, read_lines(source.source, source.target));
  return pairs;
}

// ---- heed train translate ----

struct TrainArguments {
  PairSource pairs, validation;
  TrainOptions options;
  app::ProcessArguments processes;
  bool fresh = false, new_model = false;
  bool only_transformer = false, only_rnn = false;
};

int train_command(const TrainArguments& arguments) {
  TrainOptions options = arguments.options;
  if (!options.from.empty()) {
    if (arguments.new_model) {
      throw UsageError(
          "--arch, --vocab, --normalization, --dim, --hidden, --heads, --layers, --ffn and --lowercase are for a new "
          "model; --from has its own");
    }
    std::error_code ignored;
    if (!std::filesystem::is_directory(options.from, ignored)) {
      throw Error("there is no folder " + options.from + " to go on from");
    }
  }
  const bool rnn = options.model.arch == "rnn";
  if (rnn && arguments.only_transformer) throw UsageError("--heads, --layers and --ffn are for --arch transformer");
  if (!rnn && arguments.only_rnn) throw UsageError("--hidden is for --arch rnn");
  if (!arguments.pairs.given()) throw UsageError("give --pairs FILE, or --source FILE and --target FILE");
  if (rnn) options.model.layers = 1;
  options.resume = !arguments.fresh;

  std::vector<std::string> inputs = arguments.pairs.paths();
  for (const std::string& path : arguments.validation.paths()) inputs.push_back(path);
  app::check(arguments.processes, inputs);

  return app::with_processes(arguments.processes, [&](nn::Processes* group) {
    options.processes = group;
    const bool quiet = group != nullptr && group->rank() > 0;
    const std::string& meeting = arguments.processes.rendezvous;
    const auto say_apart = [&](const std::string& text) {  // a rank on another machine has a terminal of its own
      if (quiet && !meeting.empty()) say("rank " + std::to_string(group->rank()) + ": " + text);
    };
    say_apart("training with " + meeting + ", where rank 0 shows the progress");
    const std::vector<Pair> pairs = read(arguments.pairs, quiet);
    PairSource validation_source = arguments.validation;
    validation_source.languages = arguments.pairs.languages;
    const std::vector<Pair> validation = read(validation_source, quiet);
    app::Progress bar("Training");
    const TrainResult result =
        quiet ? train(pairs, validation, options) : train(pairs, validation, options, show_training(bar));
    if (!quiet) {
      for (const std::string& note : result.notes) bar.note(note);
      bar.done(training_summary(result, options));
    }
    say_apart(result.interrupted ? "interrupted; rank 0 has the checkpoint" : "done; rank 0 has the model");
    return result.interrupted ? app::kInterrupted : app::kOk;
  });
}

void add_train(app::Program& program) {
  CLI::App* command = program.train.add_subcommand("translate", "Train a translation model on sentence pairs");
  auto a = std::make_shared<TrainArguments>();
  TrainOptions& o = a->options;
  ModelConfig& m = o.model;
  add_pair_options(command, a->pairs, "Pairs to train on", "--pairs", "--source", "--target");
  add_language_options(command, a->pairs.languages);
  add_pair_options(command, a->validation, "Pairs to validate on", "--valid", "--valid-source", "--valid-target");
  command->add_option("--out", o.out, "The model's folder; made if it is not there")->required()->type_name("DIR");
  std::vector<CLI::Option*> of_new = {
      command->add_option("--arch", m.arch, "rnn (GRU with additive attention) or transformer")
          ->check(CLI::IsMember({"rnn", "transformer"}))
          ->type_name("NAME")
          ->capture_default_str()};
  command
      ->add_option("--from", o.from,
                   "Go on from this model, heed's or Marian's as Hugging Face keeps them, with its vocabulary")
      ->type_name("DIR")
      ->group("Model");

  const auto number = [&](const char* name, auto& value, double low, double high, const char* what) {
    return command->add_option(name, value, what)->type_name("N")->check(between(low, high))->capture_default_str();
  };
  app::add_stop_options(command, o, "pairs");

  auto* vocab = number("--vocab", m.vocab, 300, 1e6, "Subword pieces, shared by both languages");
  auto* normalization =
      command
          ->add_option("--normalization", o.normalization,
                       "nmt_nfkc: fold full-width and compatibility forms; identity: keep them, for Chinese and "
                       "Japanese with their own punctuation")
          ->check(CLI::IsMember({"nmt_nfkc", "identity"}))
          ->type_name("NAME")
          ->capture_default_str();
  auto* dim = number("--dim", m.dim, 1, 65536, "Width of the embeddings, and of the Transformer");
  auto* hidden = number("--hidden", m.hidden, 1, 65536, "rnn: units of each GRU and of the attention");
  auto* heads = number("--heads", m.heads, 1, 1024, "transformer: attention heads; must divide --dim");
  auto* layers = number("--layers", m.layers, 1, 1024, "transformer: layers in the encoder and in the decoder");
  auto* ffn = number("--ffn", m.ffn, 1, 1e6, "transformer: width of the feed-forward layers");
  for (auto* option : {vocab, normalization, dim, hidden, heads, layers, ffn}) {
    option->group("Model");
    of_new.push_back(option);
  }
  number("--dropout", m.dropout, 0, 0.99, "Share of activations dropped in training")->group("Model");
  of_new.push_back(command->add_flag("--lowercase", o.lowercase, "Train on lower-cased text")->group("Model"));

  number("--bpe-dropout", o.bpe_dropout, 0, 0.99,
         "Share of the vocabulary's merges left out at random, anew in each pass (Provilkov et al. 2020)")
      ->group("Training");

  number("--batch-tokens", o.batch_tokens, 1, 1e9, "Target tokens in a batch")->group("Training");
  number("--lr", o.learning_rate, 0, 100, "Peak learning rate of AdamW; 0: 0.001, with --from 0.0002")
      ->group("Training");
  number("--warmup", o.warmup, 0, app::kAnyCount, "Steps until the peak")->group("Training");
  number("--label-smoothing", o.label_smoothing, 0, 0.99, "Probability spread over the other pieces")
      ->group("Training");
  number("--clip", o.clip, 0, 1e9, "Largest norm of the gradient")->group("Training");
  number("--valid-pairs", o.valid_pairs, 0, app::kAnyCount, "Pairs held out for validation when --valid is not given")
      ->group("Training");
  app::add_loop_options(command, o, a->fresh);
  app::add_process_options(command, a->processes);
  command->footer(
      std::string(app::kTrainingHelp) + "\n\n" + std::string(app::kProcessHelp) +
      "\n\n"
      "Examples:\n"
      "  heed train translate --pairs deu.tsv --out model --minutes 30\n"
      "  heed train translate --pairs deu.tsv --out model --epochs 20 --nproc 2\n"
      "  heed train translate --pairs deu.tsv --out model --epochs 20 \\\n"
      "      --rendezvous tcp://192.168.0.1:29500 --world 2 --rank 0    # on 192.168.0.1, and --rank 1 on another\n"
      "  heed train translate --source train.en --target train.de --valid-source val.en --valid-target val.de \\\n"
      "      --arch transformer --out model --epochs 20\n"
      "  heed train translate --pairs our-manuals.tmx --from model --out ours --epochs 5\n"
      "  heed translate model < english.txt > german.txt");
  command->callback([&program, a, of_new, hidden, heads, layers, ffn] {
    a->new_model =
        std::any_of(of_new.begin(), of_new.end(), [](const CLI::Option* given) { return given->count() > 0; });
    a->only_transformer = heads->count() + layers->count() + ffn->count() > 0;
    a->only_rnn = hidden->count() > 0;
    program.chosen = [a] { return train_command(*a); };
  });
}

// ---- heed eval translate ----

const std::map<std::string, BleuOptions::Tokenize> kTokenize = {{"13a", BleuOptions::Tokenize::k13a},
                                                                {"zh", BleuOptions::Tokenize::kZh},
                                                                {"char", BleuOptions::Tokenize::kChar},
                                                                {"none", BleuOptions::Tokenize::kNone}};

struct EvalArguments {
  std::string dir, output;
  PairSource pairs;
  SearchArguments search;
  bool lowercase = false, json = false;
  std::string tokenize = "13a";
};

struct Measured {
  Bleu bleu;
  double chrf = 0;
};

nlohmann::json to_json(const Measured& m) {
  return {{"bleu", m.bleu.score},      {"precisions", m.bleu.precisions}, {"brevity_penalty", m.bleu.brevity_penalty},
          {"hyp_len", m.bleu.hyp_len}, {"ref_len", m.bleu.ref_len},       {"chrf", m.chrf}};
}

std::string table_row(const std::string& name, const Measured& m) {
  std::string precisions;
  for (double p : m.bleu.precisions) precisions += (precisions.empty() ? "" : "/") + fixed(p, 1);
  return app::pad_right(name, 20) + app::pad_left(fixed(m.bleu.score, 2), 7) + app::pad_left(fixed(m.chrf, 2), 8) +
         "   " + app::pad_right(precisions, 21) + app::pad_left(fixed(m.bleu.brevity_penalty, 3), 7) +
         app::pad_left(thousands(m.bleu.hyp_len) + "/" + thousands(m.bleu.ref_len), 18) + "\n";
}

int eval_command(const EvalArguments& arguments) {
  if (!arguments.pairs.given()) throw UsageError("give --pairs FILE, or --source FILE and --target FILE");
  check_folder_of(arguments.output);
  const Translator translator = Translator::load(arguments.dir);
  const std::vector<Pair> pairs = read(arguments.pairs);
  std::vector<std::string> sources, references, outputs;
  for (const Pair& pair : pairs) {
    sources.push_back(pair.source);
    references.push_back(pair.target);
  }

  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  app::Progress bar("Translating");
  const double total = static_cast<double>(pairs.size());
  const SearchOptions search = arguments.search.with(translator.generation());
  const auto translations = translator.translate(sources, search, [&](int64_t done) {
    bar.update([&] {
      const double seconds = elapsed(), rate = static_cast<double>(done) / std::max(seconds, 1e-9);
      return app::ProgressState{static_cast<double>(done) / total,
                                {thousands(done) + " sentences", fixed(rate, 1) + "/s"},
                                done > 0 ? (total - static_cast<double>(done)) / rate : -1};
    });
  });
  const double seconds = elapsed();
  for (const Translation& t : translations) outputs.push_back(t.text);
  if (!arguments.output.empty()) {
    std::string text;
    for (const std::string& line : outputs) text += line + "\n";
    nn::write_file(arguments.output, text);
  }

  const BleuOptions options{arguments.lowercase, kTokenize.at(arguments.tokenize)};
  const Measured ours{bleu(outputs, references, options), chrf(outputs, references)};
  const Measured copy{bleu(sources, references, options), chrf(sources, references)};
  const double rate = total / std::max(seconds, 1e-9);
  bar.done(thousands(static_cast<long long>(pairs.size())) + " sentences in " + app::duration(seconds) + ", " +
           fixed(rate, 1) + " a second");
  if (arguments.json) {
    app::print(nlohmann::json{{"pairs", pairs.size()},
                              {"model", to_json(ours)},
                              {"copy", to_json(copy)},
                              {"seconds", seconds},
                              {"sentences_per_second", rate},
                              {"beam", search.beam},
                              {"length_penalty", search.length_penalty},
                              {"lowercase", arguments.lowercase},
                              {"tokenize", arguments.tokenize}}
                   .dump(2) +
               "\n");
    return app::kOk;
  }
  app::print(app::pad_right("", 20) + "   BLEU    chrF   1- to 4-grams, %        brevity  tokens (ours/ref)\n" +
             table_row("model", ours) + table_row("copying the source", copy));
  return app::kOk;
}

void add_eval(app::Program& program) {
  CLI::App* command = program.eval.add_subcommand("translate", "Measure a translation model on sentence pairs");
  auto a = std::make_shared<EvalArguments>();
  command->add_option("DIR", a->dir, "The folder of a trained model")->required()->type_name(" ");
  add_pair_options(command, a->pairs, "Pairs to measure on", "--pairs", "--source", "--target");
  add_language_options(command, a->pairs.languages);
  command->add_flag("--lowercase", a->lowercase, "Compare lower-cased text in BLEU (sacrebleu -lc)");
  command
      ->add_option("--tokenize", a->tokenize,
                   "13a: plain text; zh: Chinese, by character; char: any script, by character; none: text that is "
                   "already tokenised")
      ->check(CLI::IsMember({"13a", "zh", "char", "none"}))
      ->type_name("NAME")
      ->capture_default_str();
  add_search_options(command, a->search);
  command->add_option("--output", a->output, "Also write the translations, one per line")->type_name("FILE");
  command->add_flag("--json", a->json, "Print the numbers as JSON");
  command->footer(
      "BLEU and chrF are sacrebleu's corpus_bleu and corpus_chrf, from 0 to 100, more is better. Beside the model\n"
      "stands what copying the source would score.\n\n"
      "Examples:\n"
      "  heed eval translate model --pairs test.tsv\n"
      "  heed eval translate model --source test.en --target test.de --lowercase --json");
  app::run_with(program, command, a, eval_command);
}

}  // namespace

std::function<void(const TrainProgress&)> show_training(app::Progress& bar) {
  return [&bar](const TrainProgress& p) { app::show(bar, p, "", "tokens"); };
}

std::string training_summary(const TrainResult& result, const TrainOptions& options) {
  return app::training_summary(result, options, thousands(result.train_pairs) + " pairs", "");
}

void add_commands(app::Program& program) {
  add_train(program);
  add_translate(program);
  add_convert(program);
  add_eval(program);
}

}  // namespace heed::translate
