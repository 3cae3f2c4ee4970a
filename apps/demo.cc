// The demo, in the order a reader sees it: explain, collect, train, measure, translate, show.
#include "apps/demo.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "apps/boxed_model.h"
#include "apps/demo_pictures.h"
#include "apps/explain.h"
#include "apps/info.h"
#include "apps/output.h"
#include "apps/page.h"
#include "apps/program.h"
#include "apps/progress.h"
#include "apps/terminal.h"
#include "apps/translate/commands.h"
#include "apps/translate/debian.h"
#include "apps/translate/infer.h"
#include "apps/translate/metrics.h"
#include "apps/translate/train.h"
#include "apps/translate/utf8.h"
#include "libtorch/files.h"

namespace heed::app {
namespace {

namespace fs = std::filesystem;

constexpr int kExamples = 10;
constexpr int kFewestWords = 3, kMostWords = 10;
constexpr double kTest = 1000;  // pairs, about: enough for BLEU to stand still, few enough to translate in seconds
constexpr double kValidation = 500;
constexpr int kBeam = 4;
// What was held out of the messages that models/en-de learned from, by the same split (its README.md says so).
constexpr double kHeldOutOfTheBox = 0.015;
constexpr double kClassifyShare = 0.13, kSegmentShare = 0.25;  // of the time for training
constexpr int64_t kValidateEvery = 75;                         // steps: some twenty points on the curve

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// "4 minutes": as one says it, in a title.
std::string spoken(double seconds) {
  if (seconds < 90) return std::to_string(std::llround(seconds)) + " seconds";
  return std::to_string(std::llround(seconds / 60)) + " minutes";
}

std::string count(size_t n) { return thousands(static_cast<long long>(n)); }

// FNV-1a, 64 bits, so that the order of the examples does not depend on the standard library.
uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  // FNV's high bits hardly know the last letters; spread them.
  hash = (hash ^ (hash >> 31)) * 0x94d049bb133111ebu;
  return hash ^ (hash >> 29);
}

int count_words(std::string_view text) {
  int words = 0;
  bool inside = false;
  for (char32_t c : translate::decode_utf8(text)) {
    const bool space = translate::is_space(c);
    words += !space && !inside;
    inside = !space;
  }
  return words;
}

std::vector<std::string> sources_of(std::span<const translate::Pair> pairs) {
  std::vector<std::string> list;
  for (const translate::Pair& pair : pairs) list.push_back(pair.source);
  return list;
}

std::vector<std::string> targets_of(std::span<const translate::Pair> pairs) {
  std::vector<std::string> list;
  for (const translate::Pair& pair : pairs) list.push_back(pair.target);
  return list;
}

class Demo {
 public:
  explicit Demo(const DemoOptions& options)
      : options_(options),
        work_(options.work.empty() ? (fs::path(options.out) / "work").string() : options.work),
        terminal_(terminal(1)),
        style_{terminal_.colour} {}

  int run() {
    const double start = now();
    nn::make_folder(options_.out);
    nn::make_folder(work_);
    step("The three steps of attention");
    page_.explanation = explain("hello world", "AI and deep learning");
    print(describe(page_.explanation, terminal_));

    step("Sentence pairs from Debian's translated programs");
    collect();
    step("Translate: training an encoder-decoder with additive attention (Bahdanau et al. 2015)");
    if (!learn()) return kInterrupted;
    step("Measuring on the held-out pairs");
    measure();
    step("Ten held-out messages");
    show_examples();
    step("Classify: training a convolutional network with CBAM (Woo et al. 2018) on pictures of clothes");
    if (!add(demo_classify(pictures(kClassifyShare)))) return kInterrupted;
    step("Segment: training a U-Net with attention gates (Oktay et al. 2018) on composed scenes");
    if (!add(demo_segment(pictures(kSegmentShare)))) return kInterrupted;
    step("Pictures to try the models in the box on");
    const SamplePictures samples = write_samples(fashion_, (fs::path(options_.out) / "pictures").string());
    if (!boxed_model("fashion").empty()) print("  heed classify " + samples.clothes.front() + "\n");
    if (!boxed_model("nuclei").empty()) {
      print("  heed segment " + samples.cells.front() + " --overlay-out " + options_.out + "\n");
    }

    page_.facts.push_back({"The whole demo", duration(now() - start)});
    const std::string file = (fs::path(options_.out) / "index.html").string();
    nn::write_file(file, render_page(page_));
    print("\n" + style_.bold("Open " + file) + " for where each word came from. All of it took " +
          duration(now() - start) + ".\n");
    return kOk;
  }

 private:
  void step(const std::string& title) {
    print("\n" + style_.accent(style_.bold(std::to_string(++steps_) + "  " + title)) + "\n\n");
  }

  PicturesDemo pictures(double share) {
    if (fashion_.empty()) fashion_ = fashion_folder((fs::path(work_) / "debian").string());
    return {.data = fashion_, .work = work_, .minutes = share * options_.minutes, .seed = options_.seed};
  }

  // False if Ctrl-C stopped it.
  bool add(std::optional<PagePictures> task) {
    if (task) page_.pictures.push_back(*std::move(task));
    return task.has_value();
  }

  void collect() {
    const std::string folder = (fs::path(work_) / "debian").string();
    nn::make_folder(folder);
    Progress bar("Collecting");
    const translate::DebianText text = translate::collect_debian(
        translate::kDemoPackages, folder, [&](const std::string& package, int64_t done, int64_t total) {
          bar.update([&] {
            return ProgressState{static_cast<double>(done) / static_cast<double>(std::max<int64_t>(total, 1)),
                                 {package}};
          });
        });
    for (const translate::DebianPackage& package : text.packages) {
      bar.note(package.name + ": " + thousands(package.catalogues) +
               (package.catalogues == 1 ? " catalogue, " : " catalogues, ") + thousands(package.messages) +
               " messages, " + thousands(package.pairs) + " pairs fit to learn from");
      page_.facts.push_back({package.name, package.file + ": " + thousands(package.pairs) + " pairs"});
    }
    if (text.pairs.empty()) throw Error("the Debian packages gave no sentence pairs; is the archive reachable?");
    // One cut by content takes out all that is not trained on. A second cut of that kind would find nothing left, since
    // it goes by the same hash; so what was taken out is shared between measuring and validation by another hash.
    translate::Split split = translate::split_pairs(
        text.pairs, std::min(0.1, (kTest + kValidation) / static_cast<double>(text.pairs.size())));
    train_pairs_ = std::move(split.train);
    for (translate::Pair& pair : split.held_out) {
      const double place = static_cast<double>(hash_bytes(translate::split_key(pair.source)) >> 11) * 0x1p-53;
      (place < kTest / (kTest + kValidation) ? test_pairs_ : validation_pairs_).push_back(std::move(pair));
    }
    if (test_pairs_.empty() || validation_pairs_.empty()) {
      throw Error("too few sentence pairs to hold some out: " + count(text.pairs.size()));
    }
    bar.done(count(text.pairs.size()) + " pairs: " + count(train_pairs_.size()) + " to learn from, " +
             count(validation_pairs_.size()) + " to watch the training with, " + count(test_pairs_.size()) +
             " held out for measuring. Messages that differ only in case, digits or " +
             "punctuation are never on different sides.");
  }

  // False if Ctrl-C stopped it.
  bool learn() {
    train_.out = (fs::path(work_) / "model").string();
    train_.minutes = (1 - kClassifyShare - kSegmentShare) * options_.minutes;
    train_.seed = options_.seed;
    train_.patience = 0;  // the time is the limit
    train_.model.arch = "rnn";
    train_.model.layers = 1;
    // For a budget of minutes on short messages: fewer pieces, smaller batches and a higher rate give more steps that
    // each go further.
    train_.model.vocab = 4000;
    train_.batch_tokens = 1000;
    train_.learning_rate = 2e-3;
    train_.resume = false;  // each demo is a whole one
    train_.validate_every = kValidateEvery;
    Progress bar("Training");
    result_ = translate::train(train_pairs_, validation_pairs_, train_, translate::show_training(bar));
    if (result_.interrupted) {
      bar.done("Interrupted. The next demo trains from the start, with the pairs that are here already.");
      return false;
    }
    for (const std::string& note : result_.notes) bar.note(note);
    bar.done(translate::training_summary(result_, train_));
    for (const nn::TrainPoint& p : result_.curve) page_.curve.push_back({p.seconds, p.train_loss, p.valid_loss});
    return true;
  }

  void measure() {
    translator_ = std::make_unique<translate::Translator>(translate::Translator::load(train_.out));
    if (const std::string boxed = boxed_model("en-de"); !boxed.empty()) {
      boxed_ = std::make_unique<translate::Translator>(translate::Translator::load(boxed));
    }
    const std::vector<std::string> outputs = translate_all(*translator_, test_pairs_);
    page_.scores = {scored("Heed, trained just now", outputs, test_pairs_),
                    scored("Copying the source", sources_of(test_pairs_), test_pairs_)};
    print_scores(page_.scores, count(test_pairs_.size()) + " held-out messages");
    if (boxed_ == nullptr) return;
    // The model in the box has learned from messages, too, but not from these.
    unseen_ = translate::split_pairs(test_pairs_, kHeldOutOfTheBox).held_out;
    if (unseen_.empty()) return;
    std::map<std::string, std::string> output_of;
    for (size_t i = 0; i < outputs.size(); ++i) output_of[test_pairs_[i].source] = outputs[i];
    std::vector<std::string> ours;
    for (const translate::Pair& pair : unseen_) ours.push_back(output_of[pair.source]);
    page_.boxed_scores = {scored("Heed, trained just now", ours, unseen_),
                          scored("The model in the box", translate_all(*boxed_, unseen_), unseen_)};
    print_scores(page_.boxed_scores, "the " + count(unseen_.size()) + " of them that models/en-de has not seen either");
  }

  static PageScore scored(const std::string& name, const std::vector<std::string>& texts,
                          std::span<const translate::Pair> pairs) {
    const std::vector<std::string> references = targets_of(pairs);
    return {name, translate::bleu(texts, references).score, translate::chrf(texts, references)};
  }

  static std::vector<std::string> translate_all(const translate::Translator& translator,
                                                std::span<const translate::Pair> pairs) {
    const std::vector<std::string> sources = sources_of(pairs);
    const double start = now();
    Progress bar("Translating");
    std::vector<std::string> outputs;
    for (translate::Translation& t : translator.translate(sources, {.beam = kBeam}, [&](int64_t done) {
           const double share = static_cast<double>(done) / static_cast<double>(sources.size());
           bar.update([&] {
             return ProgressState{
                 share, {thousands(done) + " sentences"}, share > 0 ? (now() - start) * (1 / share - 1) : -1};
           });
         })) {
      outputs.push_back(std::move(t.text));
    }
    const double seconds = now() - start;
    bar.done(count(sources.size()) + " sentences in " + duration(seconds) + ", " +
             fixed(static_cast<double>(sources.size()) / std::max(seconds, 1e-9), 1) + " a second, beam " +
             std::to_string(kBeam));
    return outputs;
  }

  static void print_scores(std::span<const PageScore> scores, const std::string& of) {
    std::string table = pad_right("", 24) + "  BLEU    chrF   on " + of + "\n";
    for (const PageScore& s : scores) {
      table += pad_right(s.name, 24) + pad_left(fixed(s.bleu, 2), 6) + pad_left(fixed(s.chrf, 2), 8) + "\n";
    }
    print("\n" + table);
  }

  void show_examples() {
    // Those that neither model has seen, if there are two and so many.
    boxed_shown_ = boxed_ != nullptr && choose_examples(unseen_, kExamples).size() == kExamples;
    const std::vector<translate::Pair> examples = choose_examples(boxed_shown_ ? unseen_ : test_pairs_, kExamples);
    const std::vector<translate::Translation> translations =
        translator_->translate(sources_of(examples), {.beam = kBeam, .attention = true});
    std::vector<translate::Translation> boxed;
    if (boxed_shown_) boxed = boxed_->translate(sources_of(examples), {.beam = kBeam, .attention = true});
    const auto output = [](const translate::Translation& t) {
      return PageOutput{t.text, t.source_pieces, t.target_pieces, t.attention};
    };
    for (size_t i = 0; i < examples.size(); ++i) {
      const translate::Translation& t = translations[i];
      page_.translations.push_back(
          {examples[i].source, examples[i].target, output(t), boxed_shown_ ? output(boxed[i]) : PageOutput{}});
      const auto line = [&](const char* name, const std::string& text) {
        print("  " + style_.faint(pad_right(name, 12)) + printable(text, terminal_.unicode) + "\n");
      };
      line("source", examples[i].source);
      print("  " + style_.faint(pad_right("Heed", 12)) + style_.bold(printable(t.text, terminal_.unicode)) + "\n");
      if (boxed_shown_) line("in the box", boxed[i].text);
      line("reference", examples[i].target);
      print("\n");
    }
    describe_work(examples.size());
  }

  // The page's words about what was done.
  void describe_work(size_t examples) {
    const Info machine = info();
    page_.title = "Translate, classify, segment, after " + spoken(60 * options_.minutes) + " of training";
    page_.lead =
        "Three programs of attention, trained on this machine just now. The first, a small encoder-decoder with "
        "additive attention, knew no word of either language. It was shown " +
        count(train_pairs_.size()) +
        " messages of free software with their German translations, on this machine, and then asked for "
        "messages it had never seen.";
    page_.scores_note =
        "Measured on " + count(test_pairs_.size()) +
        " held-out messages; none differs from a message in training only by case, digits or punctuation. "
        "BLEU (13a, mixed case) and chrF2 as sacrebleu computes them, from 0 to 100, more is better. Copying the "
        "source "
        "scores above zero because names and numbers stay.";
    page_.boxed_note =
        "On the " + count(unseen_.size()) +
        " of these messages that models/en-de, the model that comes with Heed, has not learned from either. It is a "
        "Transformer and has seen more and longer; its README.md says what. `heed translate \"...\"` uses it. Where it "
        "looked, below each translation, is the attention head that agrees best with word alignments of IBM Model 1.";
    page_.translations_note = "The first " + std::to_string(examples) + " held-out messages of " +
                              std::to_string(kFewestWords) + " to " + std::to_string(kMostWords) +
                              " words in the order of a hash of their text: nobody picked them." +
                              (boxed_shown_ ? " Neither model has learned from one of them." : "");
    std::vector<PageFact> facts = {
        {"Model", "two-way GRU, additive attention, GRU (Bahdanau, Cho, Bengio 2015)"},
        {"Parameters", thousands(result_.parameters)},
        {"Vocabulary", "up to " + thousands(train_.model.vocab) + " subword pieces, shared by both languages"},
        {"Learned from", thousands(result_.train_pairs) + " pairs; " + thousands(result_.validation_pairs) +
                             " more for validation only"},
        {"Training", duration(result_.seconds) + ", " + thousands(result_.steps) + " steps, " +
                         thousands(result_.target_tokens) + " target tokens, best validation loss " +
                         fixed(result_.best_valid_loss, 3)},
        {"Search", "beam of " + std::to_string(kBeam)},
        {"Seed", std::to_string(options_.seed)},
        {"Processor", machine.cpu + ", " + std::to_string(machine.torch_threads) +
                          (machine.torch_threads == 1 ? " thread" : " threads") + ", SIMD target " + machine.target},
        {"Software", "heed " + machine.version + ", LibTorch " + machine.torch + ", BLAS " + machine.blas}};
    // The packages, noted when they were collected, come last.
    facts.insert(facts.end(), page_.facts.begin(), page_.facts.end());
    page_.facts = std::move(facts);
  }

  const DemoOptions options_;
  const std::string work_;
  std::string fashion_;  // the folder of the clothes
  const Terminal terminal_;
  const Style style_;
  int steps_ = 0;
  Page page_;
  std::vector<translate::Pair> train_pairs_, validation_pairs_, test_pairs_;
  translate::TrainOptions train_;
  translate::TrainResult result_;
  std::unique_ptr<translate::Translator> translator_, boxed_;
  bool boxed_shown_ = false;
  std::vector<translate::Pair> unseen_;  // of test_pairs_, those the boxed model has not learned from
};

}  // namespace

std::vector<translate::Pair> choose_examples(std::span<const translate::Pair> pairs, size_t count) {
  std::vector<translate::Pair> fit;
  for (const translate::Pair& pair : pairs) {
    const int words = count_words(pair.source);
    if (words >= kFewestWords && words <= kMostWords) fit.push_back(pair);
  }
  std::stable_sort(fit.begin(), fit.end(), [](const translate::Pair& a, const translate::Pair& b) {
    return hash_bytes(a.source) < hash_bytes(b.source);
  });
  if (fit.size() > count) fit.resize(count);
  return fit;
}

int demo(const DemoOptions& options) { return Demo(options).run(); }

void add_demo(Program& program) {
  CLI::App* command = program.heed.add_subcommand(
      "demo", "Train translation, classification and segmentation in about six minutes, and look at them");
  auto o = std::make_shared<DemoOptions>();
  command->add_option("--out", o->out, "The folder of the page, index.html")->type_name("DIR")->capture_default_str();
  command->add_option("--work", o->work, "The folder of the downloads and the model; without it OUT/work")
      ->type_name("DIR");
  command->add_option("--minutes", o->minutes, "Minutes of training")
      ->type_name("N")
      ->check(between(0.05, 1e5))
      ->capture_default_str();
  command->add_option("--seed", o->seed, "Seed of everything random")->type_name("N")->capture_default_str();
  command->footer(
      "Downloads message catalogues and Fashion-MNIST from Debian (some 45 MB, by apt-get download; nothing is "
      "installed),\n"
      "trains a model of each task on them, measures, and writes a page that shows where they looked. A second run "
      "uses\n"
      "the downloads of the first.\n\n"
      "Example:\n"
      "  heed demo --minutes 1");
  run_with(program, command, o, demo);
}

}  // namespace heed::app
