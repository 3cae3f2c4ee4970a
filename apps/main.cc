// The program `heed`: its commands, and how it ends.
#include <heed/attention.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>

#include "apps/classify/commands.h"
#include "apps/demo.h"
#include "apps/explain.h"
#include "apps/info.h"
#include "apps/output.h"
#include "apps/program.h"
#include "apps/segment/commands.h"
#include "apps/segment/scenes_command.h"
#include "apps/terminal.h"
#include "apps/translate/commands.h"
#include "apps/translate/data_commands.h"
#include "libtorch/runtime.h"

namespace heed::app {
namespace {

// A task adds its commands to the program with one line here.
constexpr void (*kTasks[])(Program&) = {
    translate::add_data_commands, translate::add_commands,     classify::add_commands,
    segment::add_commands,        segment::add_scenes_command,
};

struct InfoArguments {
  bool json = false;
};

void add_info(Program& program) {
  CLI::App* command = program.heed.add_subcommand("info", "Show the processor, the SIMD target, threads and libraries");
  auto a = std::make_shared<InfoArguments>();
  command->add_flag("--json", a->json, "Print it as JSON");
  command->footer(
      "HEED_TARGET=AVX2 heed info   forces a SIMD target\nHEED_THREADS=1 heed info     sets the number of threads");
  run_with<InfoArguments>(program, command, a, [](const InfoArguments& arguments) {
    print(arguments.json ? to_json(info()) : describe(info()));
    return kOk;
  });
}

struct ExplainArguments {
  std::string query, text;
  ExplainOptions options;
  bool additive = false;
};

void add_explain(Program& program) {
  CLI::App* command =
      program.heed.add_subcommand("explain", "Show the three steps of attention on two texts, with every number");
  auto a = std::make_shared<ExplainArguments>();
  command->add_option("QUERY", a->query, "The words that look")->required()->type_name(" ");
  command->add_option("TEXT", a->text, "The words that are looked at")->required()->type_name(" ");
  command->add_option("--dim", a->options.dim, "Numbers in a word's vector")
      ->type_name("N")
      ->check(between(1, static_cast<double>(ExplainOptions::kMaxDim)))
      ->capture_default_str();
  command->add_flag("--additive", a->additive, "Score with w . tanh(q + k) (Bahdanau) instead of the dot product");
  command->add_flag("--causal", a->options.causal,
                    "The last word of QUERY sees all of TEXT, the one before one less, ...");
  command->footer(
      "The words' vectors are made from their letters and not learned: the numbers show how attention works, not what\n"
      "the words mean.\n\n"
      "Examples:\n"
      "  heed explain \"hello world\" \"AI and deep learning\"\n"
      "  heed explain --additive learn \"learning to learn\"");
  run_with<ExplainArguments>(program, command, a, [](const ExplainArguments& arguments) {
    ExplainOptions options = arguments.options;
    if (arguments.additive) options.score = Score::additive;
    Explanation explanation;
    try {
      explanation = explain(arguments.query, arguments.text, options);
    } catch (const Error& error) {  // the words are arguments
      throw UsageError(error.what());
    }
    print(describe(explanation, terminal(1)));
    return kOk;
  });
}

// One line on standard error, whatever the message is made of.
int fail(const std::string& message, int code) {
  std::fprintf(stderr, "heed: %s\n", printable(message).c_str());
  return code;
}

// The command that was being read when the arguments stopped making sense.
const CLI::App* innermost(const CLI::App& app) {
  const CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  return at;
}

std::string full_name(const CLI::App* app) {
  return app->get_parent() == nullptr ? app->get_name() : full_name(app->get_parent()) + " " + app->get_name();
}

std::string usage_message(const CLI::App& heed, const CLI::ParseError& error) {
  const CLI::App* command = innermost(heed);
  std::string message = error.what();
  const std::vector<std::string> unknown = command->remaining();
  std::string commands;
  for (const CLI::App* each : command->get_subcommands([](const CLI::App*) { return true; })) {
    commands += (commands.empty() ? "" : ", ") + each->get_name();
  }
  if (!commands.empty()) {
    const bool named = !unknown.empty() && !unknown.front().starts_with("-");
    if (named) {
      message = "there is no command \"" + full_name(command) + " " + unknown.front() + "\"; there is " + commands;
    } else if (unknown.empty()) {
      message = "\"" + full_name(command) + "\" needs a command: " + commands;
    }
  }
  for (char& c : message) {
    if (c == '\n') c = ' ';
  }
  return message + "; see " + full_name(command) + " --help";
}

int run(int argc, char** argv) {
  CLI::App heed("Heed: attention for C++, and programs made of it.", "heed");
  heed.set_version_flag("--version", "heed " + heed::version(), "Print the version");
  // Help lists the commands in the order in which they are added: look, train, use, measure.
  const auto train = std::make_shared<CLI::App>("Train a model on your data", "train");
  const auto eval = std::make_shared<CLI::App>("Measure a trained model on your data", "eval");
  const auto data = std::make_shared<CLI::App>("Collect and divide data", "data");
  Program program{heed, *train, *eval, *data};
  add_explain(program);
  add_demo(program);
  heed.add_subcommand(data);
  heed.add_subcommand(train);
  for (const auto add : kTasks) add(program);
  heed.add_subcommand(eval);
  add_info(program);
  heed.footer(
      "Start with:\n"
      "  heed explain \"hello world\" \"AI and deep learning\"\n"
      "  heed train translate --pairs pairs.tsv --out model --minutes 30\n"
      "  heed translate model < english.txt > german.txt\n"
      "  heed eval translate model --pairs test.tsv\n\n"
      "Each command has a --help of its own. Exit codes: 0 fine, 1 failed, 2 wrong arguments, 130 stopped by Ctrl-C.");
  for (CLI::App* app : {&heed, train.get(), eval.get(), data.get()}) app->require_subcommand(0, 1);
  heed.get_formatter()->column_width(30);
  try {
    heed.parse(argc, argv);
    if (!program.chosen) throw CLI::RequiredError("A command");
  } catch (const CLI::CallForHelp&) {
    const CLI::App* command = innermost(heed);
    print(command->help(command->get_parent() == nullptr ? "" : full_name(command->get_parent())));
    return kOk;
  } catch (const CLI::CallForVersion& version) {
    print(std::string(version.what()) + "\n");
    return kOk;
  } catch (const CLI::ParseError& error) {
    return fail(usage_message(heed, error), kUsage);
  }
  // The commands that do without LibTorch need not start twice.
  if (!heed.got_subcommand("info") && !heed.got_subcommand("explain") && !heed.got_subcommand("data"))
    nn::prepare_process(argv);
  prctl(PR_SET_NAME, "heed");  // to ps, top and pkill a program that has started itself anew is "exe"
  nn::use_threads();           // Debian's LibTorch starts with one
  return program.chosen();
}

}  // namespace

CLI::Validator between(double low, double high) {
  return CLI::Validator(
      [low, high](std::string& text) -> std::string {
        double value = 0;
        // A text that is no number is reported when it is read.
        if (!CLI::detail::lexical_cast(text, value)) return "";
        if (value >= low && value <= high) return "";
        char message[128];
        if (high >= kAnyCount) {
          std::snprintf(message, sizeof message, "%.40s is not %g or more", text.c_str(), low);
        } else {
          std::snprintf(message, sizeof message, "%.40s is not from %g to %g", text.c_str(), low, high);
        }
        return message;
      },
      "");
}

}  // namespace heed::app

int main(int argc, char** argv) {
  using namespace heed::app;
  prepare_streams();
  try {
    return run(argc, argv);
  } catch (const ReaderGone&) {
    return kOk;
  } catch (const UsageError& error) {
    return fail(error.what(), kUsage);
  } catch (const heed::Error& error) {
    return fail(error.what(), kFailed);
  } catch (const std::bad_alloc&) {
    return fail("not enough memory; a smaller batch or model needs less", kFailed);
  } catch (const std::exception& error) {
    return fail(std::string("unexpected: ") + error.what(), kFailed);
  }
}
