// Where sentence pairs come from before a training: collected from Debian's packages, and divided.
#include "apps/translate/data_commands.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "apps/output.h"
#include "apps/progress.h"
#include "apps/terminal.h"
#include "apps/translate/debian.h"
#include "apps/translate/pairs.h"
#include "libtorch/files.h"

namespace heed::translate {
namespace {

using app::thousands;

void write_tsv(const std::string& path, const std::vector<Pair>& pairs) {
  std::string text;
  for (const Pair& pair : pairs) text += pair.source + "\t" + pair.target + "\n";
  nn::write_file(path, text);
}

// ---- heed data messages ----

struct MessagesArguments {
  std::vector<std::string> packages;
  std::string language = "de", work, out;
};

int messages_command(const MessagesArguments& arguments) {
  const std::string work = arguments.work.empty() ? arguments.out + ".packages" : arguments.work;
  app::check_folder_of(arguments.out);
  app::Progress bar("Collecting");
  const DebianText text = collect_debian(
      arguments.packages, work,
      [&](const std::string& package, int64_t done, int64_t total) {
        bar.update([&] {
          return app::ProgressState{static_cast<double>(done) / static_cast<double>(total), {package}};
        });
      },
      arguments.language);
  for (const DebianPackage& package : text.packages) {
    bar.note(package.file + ": " + thousands(package.messages) + " messages, " + thousands(package.pairs) +
             " pairs fit to learn from");
  }
  write_tsv(arguments.out, text.pairs);
  bar.done(thousands(static_cast<int64_t>(text.pairs.size())) + " pairs in " + arguments.out);
  return app::kOk;
}

void add_messages(app::Program& program) {
  CLI::App* command = program.data.add_subcommand("messages", "Collect pairs from the translations in Debian packages");
  auto a = std::make_shared<MessagesArguments>();
  a->packages.assign(kDemoPackages.begin(), kDemoPackages.end());
  command->add_option("--package", a->packages, "A package with .mo files; may repeat")
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--language", a->language, "The language, as gettext names it: de, fr, pt_BR")
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--out", a->out, "The pairs: English TAB translation")->required()->type_name("FILE");
  command->add_option("--work", a->work, "Where packages are unpacked; FILE.packages by default")->type_name("DIR");
  command->footer(
      "Packages are downloaded with apt-get and unpacked, not installed. Accelerators are taken out, tables, names "
      "and\n"
      "marked-up text left out, and each English text keeps the translation it most often has.\n\n"
      "Example:\n"
      "  heed data messages --package libreoffice-l10n-de --package gcc-12-locales --out messages.tsv");
  app::run_with(program, command, a, messages_command);
}

// ---- heed data split ----

struct SplitArguments {
  std::string pairs, train, held_out;
  double fraction = 0.01;
};

int split_command(const SplitArguments& arguments) {
  const PairFile file = read_pairs(arguments.pairs);
  const Split split = split_pairs(file.pairs, arguments.fraction);
  write_tsv(arguments.train, split.train);
  write_tsv(arguments.held_out, split.held_out);
  std::fprintf(stderr, "%s: %s; %s to train on in %s, %s held out in %s\n", arguments.pairs.c_str(),
               file.summary().c_str(), thousands(static_cast<int64_t>(split.train.size())).c_str(),
               arguments.train.c_str(), thousands(static_cast<int64_t>(split.held_out.size())).c_str(),
               arguments.held_out.c_str());
  return app::kOk;
}

void add_split(app::Program& program) {
  CLI::App* command = program.data.add_subcommand("split", "Set sentence pairs aside for measuring");
  auto a = std::make_shared<SplitArguments>();
  command->add_option("PAIRS", a->pairs, "Pairs: .tsv or .txt (source TAB target), .po or .mo, or with .gz")
      ->required()
      ->type_name(" ");
  command->add_option("--fraction", a->fraction, "The part that is held out")
      ->type_name("X")
      ->check(app::between(0, 1))
      ->capture_default_str();
  command->add_option("--train", a->train, "Pairs to train on")->required()->type_name("FILE");
  command->add_option("--held-out", a->held_out, "Pairs to measure with")->required()->type_name("FILE");
  command->footer(
      "A pair's side is decided by its source's letters alone, so sources that differ only in case, digits or\n"
      "punctuation stay together, and old pairs stay where they are when new ones come in.\n\n"
      "Example:\n"
      "  heed data split deu.txt --train train.tsv --held-out test.tsv");
  app::run_with(program, command, a, split_command);
}

}  // namespace

void add_data_commands(app::Program& program) {
  add_messages(program);
  add_split(program);
}

}  // namespace heed::translate
