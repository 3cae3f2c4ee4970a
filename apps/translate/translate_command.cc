// `heed translate`: lines, catalogues and translation memories in, the same translated out.
#include "apps/translate/translate_command.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "apps/boxed_model.h"
#include "apps/lines.h"
#include "apps/output.h"
#include "apps/progress.h"
#include "apps/terminal.h"
#include "apps/translate/alignment.h"
#include "apps/translate/documents/fill.h"
#include "apps/translate/documents/passages.h"
#include "apps/translate/documents/terms.h"
#include "apps/translate/gettext.h"
#include "apps/translate/pairs.h"
#include "apps/translate/utf8.h"
#include "libtorch/files.h"

namespace heed::translate {
namespace {

using app::between;
using app::check_folder_of;
using app::fixed;
using app::thousands;
using app::UsageError;
using nlohmann::json;

constexpr int64_t kLinesAtOnce = 1000;              // sorted by length among themselves to fill batches
constexpr int64_t kMaxTextLine = int64_t{1} << 20;  // bytes; also about what a batch of lines holds

struct TranslateArguments {
  std::string dir, po, tmx, in, out, terms, prefix, attention, alignment;
  std::vector<std::string> texts;
  Languages languages;
  SearchArguments asked;
  SearchOptions search;  // of these, once the model is known
  double least_confidence = 0;
  bool confidence = false, as_json = false, stream = false, placeholders = false;
};

std::string counted(int64_t n, const std::string& noun) { return thousands(n) + " " + noun + (n == 1 ? "" : "s"); }

void say(const std::string& line) { std::fprintf(stderr, "heed: %s\n", app::printable(line).c_str()); }

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace) + "\n"; }

// A bar on a terminal and nothing elsewhere: who pipes wants the notes at the end and no log.
class Bar {
 public:
  Bar() {
    if (app::terminal(STDERR_FILENO).tty) bar_.emplace("Translating");
  }
  void update(double fraction, const std::string& detail) {
    if (!bar_) return;
    bar_->update([&] {
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
      return app::ProgressState{fraction, {detail}, fraction > 0 ? seconds * (1 - fraction) / fraction : -1};
    });
  }
  void clear() { bar_.reset(); }

 private:
  std::optional<app::Progress> bar_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// The model as passages want it.
class ModelEngine {
 public:
  ModelEngine(const Translator& translator, SearchOptions search) : translator_(translator), search_(search) {}

  std::function<void(int64_t done, int64_t all)> progress;
  bool keep = false;              // everything known of each translation, for attention and alignments
  std::vector<Translation> kept;  // by Candidate::origin

  std::vector<std::vector<Candidate>> operator()(std::span<const Task> tasks) {
    std::vector<Request> requests;
    requests.reserve(tasks.size());
    for (const Task& task : tasks) requests.push_back({task.text, task.required});
    const auto all = static_cast<int64_t>(requests.size());
    std::vector<Translation> translations = translator_.translate(requests, search_, [&](int64_t done) {
      if (progress) progress(done, all);
    });
    std::vector<std::vector<Candidate>> answers(translations.size());
    for (size_t i = 0; i < translations.size(); ++i) {
      std::vector<Translation> others = std::move(translations[i].alternatives);
      add(answers[i], std::move(translations[i]));
      for (Translation& other : others) add(answers[i], std::move(other));
    }
    return answers;
  }

 private:
  void add(std::vector<Candidate>& answer, Translation translation) {
    const auto tokens = static_cast<int64_t>(translation.target_pieces.size());
    answer.push_back({translation.text, translation.score, translation.confidence, tokens, translation.left_out,
                      static_cast<int64_t>(kept.size())});
    if (keep) kept.push_back(std::move(translation));
  }

  const Translator& translator_;
  SearchOptions search_;
};

// ---- Lines ----

// Where lines come from: standard input, a file, or the arguments.
class LineSource {
 public:
  explicit LineSource(const TranslateArguments& arguments) : texts_(arguments.texts) {
    if (!texts_.empty()) return;
    fd_ = STDIN_FILENO;
    if (!arguments.in.empty()) {
      std::error_code ignored;
      if (std::filesystem::is_directory(arguments.in, ignored)) {
        throw Error(arguments.in + " is a directory; a file is needed");
      }
      fd_ = open(arguments.in.c_str(), O_RDONLY | O_CLOEXEC);
      if (fd_ < 0) throw Error(arguments.in + " cannot be opened: " + std::strerror(errno));
      owned_ = true;
      const auto size = std::filesystem::file_size(arguments.in, ignored);
      if (!ignored) size_ = static_cast<double>(size);
    }
    watched_ = !owned_ && isatty(fd_) != 0;
    at_once_ = watched_ || arguments.stream ? 1 : kLinesAtOnce;
    reader_.emplace(fd_, kMaxTextLine);
  }
  ~LineSource() {
    if (owned_) close(fd_);
  }
  LineSource(const LineSource&) = delete;
  LineSource& operator=(const LineSource&) = delete;

  bool typed() const { return watched_; }
  double size() const { return size_; }  // in bytes; 0: not known

  // The next lines; none at the end.
  std::vector<app::LineReader::Line> next() {
    if (reader_) return reader_->read(at_once_);
    std::vector<app::LineReader::Line> lines;
    for (std::string& text : texts_) lines.push_back({std::move(text), false});
    texts_.clear();
    return lines;
  }

 private:
  std::vector<std::string> texts_;
  std::optional<app::LineReader> reader_;
  int fd_ = -1;
  int64_t at_once_ = 1;
  bool owned_ = false, watched_ = false;
  double size_ = 0;
};

// What happened to lines that was not what their writer may expect.
struct LineNotes {
  int64_t invalid = 0, too_long = 0, cut = 0, sentences = 0, left_out = 0, kept_as_is = 0, without_terms = 0, terms = 0;

  void tell() const {
    if (invalid > 0) say(counted(invalid, "line") + " had bytes that are not UTF-8; they were read as U+FFFD");
    if (too_long > 0) {
      say(counted(too_long, "line") + " had more than " + thousands(kMaxTextLine) +
          " bytes and came out empty; give one paragraph per line");
    }
    if (cut > 0) {
      say(counted(cut, "line") + (cut == 1 ? " was long; it was" : " were long; they were") + " split into " +
          counted(sentences, "sentence"));
    }
    if (left_out > 0) {
      say(counted(left_out, "line") + " had a sentence that is too long for the model; its end is not translated");
    }
    if (kept_as_is > 0) {
      say(counted(kept_as_is, "line") + (kept_as_is == 1 ? " stands" : " stand") +
          " untranslated, because the placeholders could not be kept");
    }
    if (terms > 0) say(counted(terms, "term") + " could not be used, in " + counted(without_terms, "line"));
  }
};

// A line, and what is put before each of its sentences: `prefix`, or a language token (">>fra<<") that it begins with.
Passage passage_of(const std::string& line, const std::string& prefix) {
  if (!prefix.empty()) return {line, {}, {}, prefix + " "};
  const size_t end = line.find("<< ");
  if (!line.starts_with(">>") || end == std::string::npos || line.find_first_of(" \t") < end) return {line, {}, {}, ""};
  return {line.substr(end + 3), {}, {}, line.substr(0, end + 3)};
}

json numbers(const std::string& text, double score, double confidence) {
  return {{"text", text}, {"score", score}, {"confidence", confidence}};
}

// One line's translation as it is printed.
std::string printed(const std::string& source, const Rendering& r, const TranslateArguments& arguments) {
  const auto nbest = static_cast<size_t>(arguments.search.nbest);
  if (arguments.as_json) {
    json object = numbers(r.text, r.score, r.confidence);
    object["source"] = source;
    object["sentences"] = r.sentences;
    object["missing_terms"] = r.missing_terms;
    if (nbest > 1) {
      object["nbest"] = json::array({numbers(r.text, r.score, r.confidence)});
      for (const Candidate& c : r.alternatives) {
        if (object["nbest"].size() < nbest) object["nbest"].push_back(numbers(c.text, c.score, c.confidence));
      }
    }
    return dump(object);
  }
  if (nbest > 1) {
    std::string text;
    const auto add = [&](const std::string& line, double score, double confidence) {
      text += fixed(score, 4) + "\t" + fixed(confidence, 4) + "\t" + line + "\n";
    };
    if (!r.text.empty()) add(r.text, r.score, r.confidence);
    for (size_t i = 0; i < r.alternatives.size() && i + 1 < nbest; ++i) {
      add(r.alternatives[i].text, r.alternatives[i].score, r.alternatives[i].confidence);
    }
    return text + "\n";
  }
  return (arguments.confidence ? fixed(r.confidence, 2) + "\t" : "") + r.text + "\n";
}

// The word alignment of a line, whose translations (one a sentence) follow each other.
std::string alignment_line(const Rendering& rendering, const std::vector<Translation>& kept) {
  WordAlignment line;
  for (const int64_t origin : rendering.origins) {
    const Translation& t = kept[static_cast<size_t>(origin)];
    const WordAlignment sentence = align_words({t.source_pieces, t.target_pieces, t.attention});
    const auto sources = static_cast<int64_t>(line.source.size()), targets = static_cast<int64_t>(line.target.size());
    for (const auto& link : sentence.links) {
      line.links.push_back({link.source + sources, link.target + targets, link.weight});
    }
    line.source.insert(line.source.end(), sentence.source.begin(), sentence.source.end());
    line.target.insert(line.target.end(), sentence.target.begin(), sentence.target.end());
  }
  return pharaoh(line) + "\n";
}

void translate_lines(const TranslateArguments& arguments, const Terms& terms, const Translator& translator) {
  LineSource source(arguments);
  SearchOptions search = arguments.search;
  search.attention = !arguments.attention.empty() || !arguments.alignment.empty();
  if (arguments.placeholders) search.nbest = search.beam;
  ModelEngine engine(translator, search);
  engine.keep = search.attention;
  RenderOptions options;
  options.terms = &terms;
  options.placeholders = arguments.placeholders;
  LineNotes notes;
  std::string alignments;
  std::vector<Translation> all;  // kept for --attention only; of a line that was split, one for each sentence
  Bar bar;
  double bytes_done = 0;
  int64_t lines_done = 0;

  const auto run = [&](const std::function<void(const std::string&)>& write) {
    if (source.typed()) say("type a sentence and Enter; Ctrl-D ends");
    for (;;) {
      std::vector<app::LineReader::Line> lines = source.next();
      if (lines.empty()) break;
      std::vector<Passage> passages;
      std::vector<std::optional<size_t>> places;  // of each line among the passages; blank lines have none
      double bytes = 0;
      for (app::LineReader::Line& line : lines) {
        bytes += static_cast<double>(line.text.size()) + 1;
        notes.too_long += line.too_long ? 1 : 0;
        if (!is_utf8(line.text)) {
          ++notes.invalid;
          line.text = encode_utf8(decode_utf8(line.text));
        }
        std::replace(line.text.begin(), line.text.end(), '\0', ' ');
        const std::u32string characters = decode_utf8(line.text);
        const bool blank = std::all_of(characters.begin(), characters.end(), is_space);
        places.push_back(blank ? std::nullopt : std::optional<size_t>(passages.size()));
        if (!blank) passages.push_back(passage_of(line.text, arguments.prefix));
      }
      if (source.size() > 0) {
        engine.progress = [&](int64_t done, int64_t of) {
          const double share = static_cast<double>(done) / static_cast<double>(std::max<int64_t>(of, 1));
          bar.update(std::min(1.0, (bytes_done + bytes * share) / source.size()), counted(lines_done, "line"));
        };
      }
      engine.kept.clear();
      const std::vector<Rendering> renderings = render(passages, std::ref(engine), options);
      std::string text;
      for (size_t i = 0; i < lines.size(); ++i) {
        Rendering r;
        if (places[i]) r = renderings[*places[i]];
        if (!r.why.empty() && arguments.placeholders) {
          r.text = lines[i].text;
          ++notes.kept_as_is;
        }
        notes.cut += r.sentences > 1 ? 1 : 0;
        notes.sentences += r.sentences > 1 ? r.sentences : 0;
        notes.left_out += r.left_out > 0 ? 1 : 0;
        notes.terms += static_cast<int64_t>(r.missing_terms.size());
        notes.without_terms += r.missing_terms.empty() ? 0 : 1;
        text += printed(lines[i].text, r, arguments);
        if (!arguments.alignment.empty()) alignments += alignment_line(r, engine.kept);
        if (arguments.attention.empty()) continue;
        if (r.origins.empty()) all.emplace_back();
        for (const int64_t origin : r.origins) all.push_back(engine.kept[static_cast<size_t>(origin)]);
      }
      write(text);
      bytes_done += bytes;
      lines_done += static_cast<int64_t>(lines.size());
    }
  };
  if (arguments.out.empty()) {
    run([](const std::string& text) { app::print(text); });
  } else {
    nn::write_file(arguments.out, [&](std::ostream& out) { run([&](const std::string& text) { out << text; }); });
  }
  bar.clear();
  if (!arguments.attention.empty()) nn::write_file(arguments.attention, attention_json(all));
  if (!arguments.alignment.empty()) nn::write_file(arguments.alignment, alignments);
  notes.tell();
}

// ---- Catalogues and translation memories ----

json to_json(const FilledEntry& entry) {
  json object = {{"line", entry.line}, {"source", entry.source}};
  if (!entry.why.empty()) {
    object["untranslated"] = entry.why;
    return object;
  }
  object["text"] = entry.texts.front();
  if (entry.texts.size() > 1) object["plural"] = entry.texts;
  object["how"] = entry.how == Rendering::How::copied      ? "copied"
                  : entry.how == Rendering::How::piecewise ? "piecewise"
                                                           : "whole";
  object["confidence"] = entry.confidence;
  object["missing_terms"] = entry.missing_terms;
  return object;
}

// Fills one file; `fill` does it with an engine.
void translate_file(const TranslateArguments& arguments, const std::string& path, const Translator& translator,
                    const std::function<Filled(const Engine&)>& fill) {
  SearchOptions search = arguments.search;
  search.nbest = search.beam;  // the more there are, the sooner one keeps its placeholders
  ModelEngine engine(translator, search);
  Bar bar;
  engine.progress = [&](int64_t done, int64_t all) {
    bar.update(static_cast<double>(done) / static_cast<double>(std::max<int64_t>(all, 1)),
               thousands(done) + " of " + counted(all, "text"));
  };
  const Filled filled = fill(std::ref(engine));
  bar.clear();
  nn::write_file(arguments.out, filled.bytes);
  for (const std::string& note : filled.notes) say(path + ": " + note);
  for (const std::string& line : filled.summary()) say(path + ": " + line);
  if (!arguments.as_json) return;
  std::string text;
  for (const FilledEntry& entry : filled.entries) text += dump(to_json(entry));
  app::print(text);
}

void check_usage(const TranslateArguments& arguments) {
  const bool file = !arguments.po.empty() || !arguments.tmx.empty();
  const int sources = (arguments.po.empty() ? 0 : 1) + (arguments.tmx.empty() ? 0 : 1) +
                      (arguments.in.empty() ? 0 : 1) + (arguments.texts.empty() ? 0 : 1);
  if (sources > 1) throw UsageError("give one of --po, --tmx, --in and texts");
  if (file && arguments.out.empty()) {
    throw UsageError("say with --out where the filled file goes; it may be the same file");
  }
  if (file && (arguments.asked.others.nbest > 1 || arguments.confidence)) {
    throw UsageError("--nbest and --confidence are for lines; of a file, --json tells how sure each translation is");
  }
  if (file && !(arguments.attention + arguments.alignment).empty()) {
    throw UsageError("--attention and --alignment are for lines");
  }
  if (arguments.placeholders && !arguments.alignment.empty()) {
    throw UsageError(
        "give --placeholders or --alignment: what is translated around a placeholder has no words to count");
  }
  if (!file && arguments.least_confidence > 0) throw UsageError("--least-confidence is for --po and --tmx");
  if (arguments.tmx.empty() && !(arguments.languages.source + arguments.languages.target).empty()) {
    throw UsageError("--source-lang and --target-lang are for --tmx; a model has one pair of languages");
  }
  const int nbest = arguments.asked.others.nbest;
  if (nbest > arguments.asked.beam.value_or(nbest)) {
    throw UsageError("--nbest " + std::to_string(nbest) + " is more than --beam " +
                     std::to_string(*arguments.asked.beam) + ", and a beam finds no more translations than it is wide");
  }
  if (arguments.out.ends_with(".gz")) throw UsageError("--out writes no .gz; leave it out of the name");
}

// A first argument with a space in it that is no folder is a text, for the model that comes with the program. A single
// word may be a folder's name with a typing error, which must not be translated.
void find_texts(TranslateArguments& arguments) {
  std::error_code ignored;
  if (arguments.dir.find(' ') == std::string::npos || std::filesystem::exists(arguments.dir, ignored)) return;
  arguments.texts.insert(arguments.texts.begin(), std::exchange(arguments.dir, ""));
}

Translator load(const std::string& dir) {
  if (dir.empty()) {
    const std::string boxed = app::boxed_model("en-de");
    if (boxed.empty()) {
      throw Error(
          "models/en-de, the model that comes with heed, is not where heed is; give the folder of another model");
    }
    return Translator::load(boxed);
  }
  std::error_code ignored;
  if (!std::filesystem::exists(dir, ignored)) {
    throw Error(dir + " does not exist; give the folder of a trained model, or none for the model that comes with " +
                "heed, or \"" + dir + " \", with a space, to have the word translated");
  }
  return Translator::load(dir);
}

int translate_command(const TranslateArguments& given) {
  TranslateArguments arguments = given;
  find_texts(arguments);
  check_usage(arguments);
  // What is only written at the end is looked at first, before an hour of translating is lost; and so is what is read.
  check_folder_of(arguments.attention);
  check_folder_of(arguments.alignment);
  check_folder_of(arguments.out);
  Terms terms;
  if (!arguments.terms.empty()) terms = Terms::read(arguments.terms);
  FillOptions fill_options;
  fill_options.terms = &terms;
  const auto load_model = [&] {
    Translator translator = load(arguments.dir);
    arguments.search = arguments.asked.with(translator.generation());
    return translator;
  };
  fill_options.least_confidence = arguments.least_confidence;
  if (!arguments.prefix.empty()) fill_options.prefix = arguments.prefix + " ";
  if (!arguments.po.empty()) {
    const PoFile file(read_bytes(arguments.po, kMaxCatalogueBytes), arguments.po);
    const Translator translator = load_model();
    translate_file(arguments, arguments.po, translator,
                   [&](const Engine& engine) { return fill_po(file, engine, fill_options); });
  } else if (!arguments.tmx.empty()) {
    const TmxFile file(read_bytes(arguments.tmx, kMaxTmxBytes), arguments.tmx);
    const Languages languages = choose_languages(file, arguments.languages);
    const Translator translator = load_model();
    if (arguments.languages.source.empty() || arguments.languages.target.empty()) {
      say(arguments.tmx + ": from " + languages.source + " to " + languages.target);
    }
    translate_file(arguments, arguments.tmx, translator,
                   [&](const Engine& engine) { return fill_tmx(file, languages, engine, fill_options); });
  } else {
    const Translator translator = load_model();
    translate_lines(arguments, terms, translator);
  }
  return app::kOk;
}

}  // namespace

SearchOptions SearchArguments::with(const Generation& folder) const {
  SearchOptions search = others;
  search.beam = beam.value_or(std::max(folder.beam, others.nbest));
  search.length_penalty = length_penalty.value_or(folder.length_penalty);
  return search;
}

void add_search_options(CLI::App* command, SearchArguments& arguments) {
  SearchOptions& o = arguments.others;
  command
      ->add_option(
          "--beam", arguments.beam,
          "Hypotheses kept at each step; 1 is greedy and fastest. Without it what the model's folder says, or 4")
      ->type_name("N")
      ->check(between(1, 1000));
  command
      ->add_option("--length-penalty", arguments.length_penalty,
                   "Scores are divided by length to this power; more is longer. Without it what the folder says, or 1")
      ->type_name("X")
      ->check(between(0, 10));
  command
      ->add_option("--coverage-penalty", o.coverage_penalty,
                   "Translations that have not looked at all of the source lose; 0.2 is usual, 0: off")
      ->type_name("X")
      ->check(between(0, 10))
      ->capture_default_str();
  command->add_option("--max-length", o.max_length, "Pieces in a translation; 0: twice the source and ten, at most 256")
      ->type_name("N")
      ->check(between(0, 100000))
      ->capture_default_str();
  command->add_option("--batch", o.batch_tokens, "Source tokens times beam in a batch: speed against memory")
      ->type_name("N")
      ->check(between(1, 1e9))
      ->capture_default_str();
}

void add_translate(app::Program& program) {
  CLI::App* command = program.heed.add_subcommand("translate", "Translate lines, a .po or a .tmx file");
  auto a = std::make_shared<TranslateArguments>();
  const auto file = [&](const char* name, std::string& value, const char* what, const char* group) {
    command->add_option(name, value, what)->type_name("FILE")->group(group);
  };
  command->add_option("DIR", a->dir, "The folder of a trained model; without one: English to German, models/en-de")
      ->type_name(" ");
  command->add_option("TEXT", a->texts, "Texts to translate; without any, lines of standard input")->type_name(" ");
  file("--in", a->in, "Translate the lines of this file", "Files");
  file("--po", a->po, "Fill the untranslated entries of this catalogue, marked fuzzy", "Files");
  file("--tmx", a->tmx, "Fill the units of this translation memory that lack the target language", "Files");
  file("--out", a->out, "Where the result goes; may be the file that is read", "Files");
  command->add_option("--source-lang", a->languages.source, "--tmx: the language to translate (else the header's)")
      ->type_name("LANG")
      ->group("Files");
  command->add_option("--target-lang", a->languages.target, "--tmx: the one to translate into (else the only other)")
      ->type_name("LANG")
      ->group("Files");
  command
      ->add_option("--least-confidence", a->least_confidence, "--po, --tmx: leave what is less sure than this, 0 to 1")
      ->type_name("X")
      ->check(between(0, 1))
      ->group("Files");
  file("--terms", a->terms, "Terminology: source TAB target; sentences with the one get the other", "Text");
  command
      ->add_option("--prefix", a->prefix,
                   "Put before each sentence: the language token of a model with several, >>fra<<")
      ->type_name("TOKEN")
      ->group("Text");
  command->add_flag("--placeholders", a->placeholders, "Keep placeholders, markup and addresses in lines, too")
      ->group("Text");
  command
      ->add_option("--nbest", a->asked.others.nbest,
                   "Print the N best: score TAB confidence TAB text, and an empty line")
      ->type_name("N")
      ->check(between(1, 1000))
      ->group("Output");
  command->add_flag("--confidence", a->confidence, "Print how sure the model is, 0 to 1, and a TAB before each line")
      ->group("Output");
  command->add_flag("--json", a->as_json, "Print one JSON object for each line, or for each entry filled or left")
      ->group("Output");
  command->add_flag("--stream", a->stream, "Translate each line as soon as it comes, as on a terminal")
      ->group("Output");
  file("--attention", a->attention, "Also write where each piece looked, as JSON", "Output");
  file("--alignment", a->alignment, "Also write which word comes from which, a line for each: 0-0 1-2 (source-target)",
       "Output");
  add_search_options(command, a->asked);
  command->footer(
      "Every line gives one line, and an empty one stays empty. A line of more than 40 words is split into sentences.\n"
      "In --po and --tmx placeholders (%s, {0}, %1, &File, <b>, addresses, names of files) stay as they are, and so "
      "does\n"
      "every byte of what was translated before; what cannot be translated well is left, and said. --terms finds "
      "whole\n"
      "words; capitals count only if the term has one inside (IT, GmbH).\n\n"
      "Examples:\n"
      "  heed translate \"Where is the station?\"\n"
      "  heed translate model < english.txt > german.txt\n"
      "  heed translate model --po de.po --out de.po --terms words.tsv\n"
      "  heed translate model --tmx memory.tmx --out memory.de.tmx --target-lang de\n"
      "  heed translate model --nbest 4 --json < english.txt");
  command->callback([&program, a] { program.chosen = [a] { return translate_command(*a); }; });
}

}  // namespace heed::translate
