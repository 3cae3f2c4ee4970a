// Passages: what must stay stays, whatever the model does.
#include "apps/translate/documents/passages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "apps/translate/documents/accelerators.h"
#include "apps/translate/documents/placeholders.h"
#include "fake_translator.h"

namespace heed::translate {
namespace {

using Texts = std::vector<std::string>;

Rendering render_one(const Passage& passage, const Engine& engine, const RenderOptions& options = {}) {
  return render(std::vector<Passage>{passage}, engine, options).front();
}

std::string rendered(const std::string& text, const Engine& engine = good_engine(), const Formats& formats = {}) {
  const Rendering r = render_one({text, formats, {}}, engine);
  return r.why.empty() ? r.text : "why: " + r.why;
}

TEST(Passages, LayoutStays) {
  EXPECT_EQ(rendered("open the file"), "opene thee filee");
  EXPECT_EQ(rendered("  open %s.\n"), "  opene %s.\n");
  EXPECT_EQ(rendered("\nfirst line:\n\tsecond\n\n"), "\nfirste linee:\n\tseconde\n\n");
  EXPECT_EQ(rendered("-v, --verbose   be loud"), "-v, --verbose   bee loude") << "a table";
  EXPECT_EQ(rendered("End.  Next"), "Ende.  Nexte");
  EXPECT_EQ(rendered("a\x01"
                     "b"),
            "ae\x01"
            "be");
  EXPECT_EQ(rendered("שלום עולם"), "שלוםe עולםe");
}

TEST(Passages, WrappedLinesAreOneSentence) {
  Texts asked;
  const Engine engine = noting(good_engine(), asked);
  const std::string text =
      "The package is in a very bad inconsistent state, you should\nreinstall it before attempting a removal.\n";
  const std::string got = rendered(text, engine);
  EXPECT_EQ(asked, Texts{"The package is in a very bad inconsistent state, you should reinstall it before attempting a "
                         "removal."});
  EXPECT_EQ(std::count(got.begin(), got.end(), '\n'), 2);
  EXPECT_NE(got.find("\nreinstalle"), std::string::npos) << got;
  // A table of short lines, and a list, are not.
  asked.clear();
  rendered("first\nsecond\n- a line that is long enough to be wrapped\n- another", engine);
  EXPECT_EQ(asked.size(), 4u);
  // No space to break at: between characters.
  EXPECT_EQ(rendered(text, fixed_engine("一二三四五六七八九十")), "一二三四五\n六七八九十\n");
  EXPECT_EQ(rendered(text, fixed_engine("一")), "why: its placeholders could not be kept");
}

TEST(Passages, WithoutWordsAreCopied) {
  for (const char* text :
       {"%s", "%d/%d", "<b></b>", "  {0}: %1\n", "12:30", "", " ", "\n", "&amp;", "https://example.org", "…"}) {
    const Rendering r = render_one({text, {}, {}}, throwing_engine());
    EXPECT_EQ(r.text, text);
    EXPECT_EQ(r.how, Rendering::How::copied);
    EXPECT_EQ(r.why, "");
  }
}

TEST(Passages, AcceleratorsMove) {
  EXPECT_EQ(rendered("&File"), "&Filee");
  EXPECT_EQ(rendered("_Open…", fixed_engine("打开…")), "打开(_O)…");
  EXPECT_EQ(rendered("&Open", fixed_engine("Datei & Ordner")), "why: the model invented a placeholder");
  EXPECT_EQ(rendered("Sen_d it", fixed_engine("Absenden")), "Absen_den") << "Absen_den is seen as one";
  EXPECT_EQ(rendered("Find && &Replace"), "Finde && &Replacee");
}

// Whatever the model does to the placeholders, they are intact or there is no translation, and here there is one.
TEST(Passages, PlaceholdersSurviveBadModels) {
  const Texts messages = {"Open %s now",
                          "%d of %d files, %s",
                          "%2$s in %1$s",
                          "Press <b>OK</b> to go on",
                          "Delete {0}? {name} is gone",
                          "&File %1",
                          "Mail me@example.org or see https://example.org/x?y=%s for more",
                          "%s",
                          "Set $HOME to ${dir} with --prefix=/usr in config.json",
                          "  Copying %s to %s...\n",
                          "Line one %s\nline two %d\n",
                          "_Save lock_file"};
  const std::vector<Engine> engines = {good_engine(),     dropping_engine(), doubling_engine(),
                                       swapping_engine(), spacing_engine(),  capital_engine()};
  for (size_t e = 0; e < engines.size(); ++e) {
    for (const std::string& message : messages) {
      const Rendering r = render_one({message, {}, {}}, engines[e]);
      EXPECT_EQ(r.why, "") << e << " " << message;
      EXPECT_TRUE(kept_placeholders(message, r.text).all()) << e << ": " << message << " / " << r.text;
      EXPECT_NE(r.text, "") << e;
    }
  }
  EXPECT_EQ(rendered("Open %s now", dropping_engine()), "Opene %s nowe");
  EXPECT_EQ(render_one({"Open %s now", {}, {}}, dropping_engine()).how, Rendering::How::piecewise);
  EXPECT_EQ(rendered("%d of %s", swapping_engine()), "%d ofe %s");
}

TEST(Passages, TheFirstIntactOneOfTheNBestIsTaken) {
  const Engine engine = [](std::span<const Task> tasks) {
    std::vector<std::vector<Candidate>> all;
    for (size_t i = 0; i < tasks.size(); ++i) {
      all.push_back({{"nichts", -0.1, 0.9, 3, 0}, {"öffne %s", -0.2, 0.8, 3, 0}, {"mach %s auf", -0.3, 0.7, 3, 0}});
    }
    return all;
  };
  const Rendering r = render_one({"open %s", {}, {}}, engine);
  EXPECT_EQ(r.text, "öffne %s");
  EXPECT_EQ(r.how, Rendering::How::whole);
  EXPECT_DOUBLE_EQ(r.confidence, 0.8);
  EXPECT_DOUBLE_EQ(r.score, -0.2);
  ASSERT_EQ(r.alternatives.size(), 1u);
  EXPECT_EQ(r.alternatives[0].text, "mach %s auf");
}

TEST(Passages, WordsAreBetterThanForcedPlaceholders) {
  const auto engine = [](double whole, double words) {
    return [=](std::span<const Task> tasks) {
      std::vector<std::vector<Candidate>> all;
      for (const Task& task : tasks) {
        const bool is_whole = task.text.find('%') != std::string::npos;
        all.push_back(
            {{good(task.text) + (is_whole ? " forced" : ""), -1, is_whole ? whole : words, 3, 0, is_whole ? 7 : 9}});
      }
      return all;
    };
  };
  EXPECT_EQ(rendered("open %s now", engine(0.1, 0.5)), "opene %s nowe");
  EXPECT_EQ(rendered("open %s now", engine(0.1, 0.15)), "opene %s nowe forced");
  EXPECT_EQ(rendered("open %s now", engine(0.3, 0.9)), "opene %s nowe forced") << "sure enough";
  const Rendering whole = render_one({"open %s now", {}, {}}, engine(0.1, 0.15));
  EXPECT_EQ(whole.how, Rendering::How::whole);
  EXPECT_EQ(whole.origins, std::vector<int64_t>{7});
  const Rendering words = render_one({"open %s now", {}, {}}, engine(0.1, 0.5));
  EXPECT_EQ(words.how, Rendering::How::piecewise);
  EXPECT_DOUBLE_EQ(words.confidence, 0.5);
  EXPECT_EQ(words.origins, (std::vector<int64_t>{9, 9}));
}

TEST(Passages, TagsKeepTheirWords) {
  EXPECT_EQ(rendered("a <b>bold</b> word", fixed_engine("ein fettes Wort <b> </b>")), "a <b>bold</b> word");
  EXPECT_EQ(rendered("a <b></b> word", fixed_engine("ein Wort <b></b>")), "ein Wort <b></b>");
}

TEST(Passages, CapitalsComeBack) {
  const Terms terms = Terms::parse("street\tGasse\nit\tEs\n", "t.tsv");
  RenderOptions options;
  options.terms = &terms;
  const auto get = [&](const std::string& text, const std::string& answer) {
    return render_one({text, {}, {}}, fixed_engine(answer), options).text;
  };
  EXPECT_EQ(get("the street", "die gasse"), "die Gasse");
  EXPECT_EQ(get("see README.md in $HOME", "siehe readme.md in $home"), "siehe README.md in $HOME");
  EXPECT_EQ(get("it eats", "essen tut es"), "essen tut Es") << "a word, not a part of one";
  EXPECT_EQ(get("street street", "gasse Gasse"), "Gasse Gasse");
}

TEST(Passages, NoTranslationSaysWhy) {
  EXPECT_EQ(rendered("open it", fixed_engine("")), "why: the model gave nothing");
  EXPECT_EQ(rendered("open it", fixed_engine("mach %s")), "why: the model invented a placeholder");
  EXPECT_EQ(rendered("open it", fixed_engine("a\tb")), "why: the model invented a placeholder");
  EXPECT_EQ(rendered("open the big %s it", fixed_engine("{0}")), "why: its placeholders could not be kept");
  EXPECT_EQ(rendered("open it %s it", fixed_engine("{0}")), "open it %s it") << "a few words stay";
  const Engine short_sighted = [](std::span<const Task> tasks) {
    return std::vector<std::vector<Candidate>>(tasks.size(), {{"x", 0, 1, 1, 5}});
  };
  EXPECT_EQ(rendered("open it", short_sighted), "why: too long for the model");
}

TEST(Passages, RequiredTextsAreAskedFor) {
  std::vector<Task> asked;
  const Engine engine = [&](std::span<const Task> tasks) {
    asked.assign(tasks.begin(), tasks.end());
    return good_engine()(tasks);
  };
  const Terms terms = Terms::parse("file\tDatei\nprefix\tPräfix\n", "t.tsv");
  RenderOptions options;
  options.terms = &terms;
  const Rendering r = render_one({"Open file %s with --prefix, %s", {}, {}}, engine, options);
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].required,
            (std::vector<Required>{
                {"%s", 10, 12, true}, {"--prefix", 18, 26, false}, {"%s", 28, 30, true}, {"Datei", 5, 9, true}}))
      << "no term inside a placeholder";
  EXPECT_EQ(r.missing_terms, Texts{"Datei"});
}

TEST(Passages, RequiredTextsKnowWhereTheyStand) {
  std::vector<Task> asked;
  const Engine engine = [&](std::span<const Task> tasks) {
    asked.assign(tasks.begin(), tasks.end());
    return good_engine()(tasks);
  };
  Passage passage{"Open %d file%s now <b>fast</b>", {}, {}};
  passage.prefix = ">>deu<< ";
  render_one(passage, engine, {});
  ASSERT_EQ(asked.size(), 1u);
  for (const Required& each : asked[0].required) {
    EXPECT_EQ(asked[0].text.substr(each.begin, each.end - each.begin), each.text) << "the prefix counts";
    EXPECT_EQ(each.apart, each.text == "%d") << each.text << ": what is touched in the source may be";
  }
  EXPECT_EQ(asked[0].required.size(), 4u);
}

TEST(Passages, ATranslationWithAllTermsComesFirst) {
  const Terms terms = Terms::parse("file\tDatei\n", "t.tsv");
  RenderOptions options;
  options.terms = &terms;
  const Engine engine = [](std::span<const Task> tasks) {
    return std::vector<std::vector<Candidate>>(tasks.size(), {{"das File", 0, 1, 2, 0}, {"die Datei", -1, 1, 2, 0}});
  };
  const Rendering r = render_one({"the file", {}, {}}, engine, options);
  EXPECT_EQ(r.text, "die Datei");
  EXPECT_TRUE(r.missing_terms.empty());
}

TEST(Passages, LongTextIsCut) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += "This sentence has ten words, or not quite so many.  ";
  const Rendering r = render_one({text, {}, {}}, good_engine());
  EXPECT_EQ(r.sentences, 500);
  EXPECT_EQ(r.text, good(text));
  // Lines as they come, without care for placeholders.
  RenderOptions lines;
  lines.placeholders = false;
  const Rendering line = render_one({text, {}, {}}, good_engine(), lines);
  EXPECT_EQ(line.sentences, 500);
  const Rendering blob = render_one({std::string(100000, 'z'), {}, {}}, throwing_engine(), lines);
  EXPECT_EQ(blob.text, std::string(100000, 'z'));
  EXPECT_EQ(blob.sentences, 1);
  // A word that is none, beside others: copied, and they are translated.
  const std::string key = "the key is " + std::string(1000, 'z');
  EXPECT_EQ(render_one({key, {}, {}}, good_engine(), lines).text, "thee keye ise " + std::string(1000, 'z'));
  // A tag with a sentence's end in it is not cut.
  std::string tag = "<a title=\"One. Two.\">";
  for (int i = 0; i < 60; ++i) tag += "word ";
  EXPECT_EQ(rendered(tag + "</a>"), good(tag + "</a>"));
}

TEST(Passages, LinesGoAsTheyAre) {
  RenderOptions lines;
  lines.placeholders = false;
  Texts asked;
  const Engine engine = noting(fixed_engine("weg"), asked);
  EXPECT_EQ(render_one({" &Open  %s\t", {}, {}}, engine, lines).text, "weg");
  EXPECT_EQ(asked, Texts{" &Open  %s\t"});
}

TEST(Passages, EachQuestionIsAskedOnce) {
  Texts asked;
  const Engine engine = noting(good_engine(), asked);
  const std::vector<Passage> passages(50, {"the same", {}, {}});
  EXPECT_EQ(render(passages, engine).size(), 50u);
  EXPECT_EQ(asked.size(), 1u);
}

TEST(Passages, PartsMakeNoPlaceholderTogether) {
  std::string text;
  for (int i = 0; i < 30; ++i) text += "字";
  text = text + text + "。" + text + "。";
  int n = 0;
  const Engine engine = [&](std::span<const Task> tasks) {
    std::vector<std::vector<Candidate>> all;
    for (size_t i = 0; i < tasks.size(); ++i) all.push_back({{n++ % 2 == 0 ? "x%" : "d", 0, 1, 1, 0}});
    return all;
  };
  EXPECT_EQ(rendered(text, engine), "why: its placeholders could not be kept");
  EXPECT_EQ(n, 2);
}

TEST(Passages, EveryPartHasThePrefix) {
  Texts asked;
  const Engine engine = noting(dropping_engine(), asked);
  render(std::vector<Passage>{{"one\ntwo %s three", {}, {}, ">>fra<< "}}, engine);
  EXPECT_EQ(asked, (Texts{">>fra<< one", ">>fra<< two %s three", ">>fra<< two", ">>fra<< three"}));
}

TEST(Passages, OrderOfPairs) {
  const Engine engine = fixed_engine("{2}fett{1}");
  const Rendering r = render_one({"{1}bold{2}", {}, {{"{1}", "{2}"}}}, engine);
  EXPECT_EQ(r.text, "{1}bold{2}") << "the word comes out with placeholders, and stays";
  const Rendering good_one = render_one({"{1}bold{2} x", {}, {{"{1}", "{2}"}}}, swapping_engine());
  EXPECT_EQ(good_one.text, "{1}bolde{2} xe");
}

// Messages made of anything, translated by a model that does anything: intact or refused, never lost, never a crash.
TEST(Passages, AnythingGoes) {
  const Texts bits = {"%s",           "%d",     "%",     "&",  "_",   "{",       "}",    "{0}",
                      "<b>",          "</b>",   "<",     ">",  "\n",  "\t",      " ",    "  ",
                      "word",         "Wort",   "字",    ".",  "...", "$x",      "\\n",  "~",
                      "http://a.b/c", "a@b.cd", "--foo", "%1", "é",   "\x1b[0m", "\x7f", "(&O)"};
  std::mt19937 random(1);
  const auto text_of = [&] {
    std::string text;
    for (size_t n = random() % 9; n > 0; --n) text += bits[random() % bits.size()];
    return text;
  };
  int64_t translated = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::string text = text_of();
    const Engine engine = [&](std::span<const Task> tasks) {
      std::vector<std::vector<Candidate>> all;
      for (const Task& task : tasks) {
        all.emplace_back();
        for (size_t n = random() % 3; n > 0; --n) {
          all.back().push_back({random() % 2 == 0 ? good(task.text) : text_of(), 0, 0.5, 1, 0});
        }
      }
      return all;
    };
    Formats formats;
    formats.c = round % 3 == 0;
    formats.brace = round % 5 == 0;
    const Rendering r = render_one({text, formats, {}}, engine);
    ASSERT_EQ(r.why.empty(), !r.text.empty() || text.empty()) << text;
    if (!r.why.empty()) continue;
    ++translated;
    ASSERT_TRUE(kept_placeholders(text, r.text, formats).all()) << text << " / " << r.text;
    ASSERT_EQ(text.starts_with("\n"), r.text.starts_with("\n")) << text << " / " << r.text;
    ASSERT_EQ(text.ends_with("\n"), r.text.ends_with("\n")) << text << " / " << r.text;
    ASSERT_EQ(std::count(text.begin(), text.end(), '\n'), std::count(r.text.begin(), r.text.end(), '\n'));
  }
  EXPECT_GT(translated, 1000);
}

}  // namespace
}  // namespace heed::translate
