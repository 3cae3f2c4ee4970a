// Filling in .po and .tmx files: what is filled, and that not a byte of the rest changes.
#include "apps/translate/documents/fill.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "apps/translate/documents/plural_forms.h"
#include "apps/translate/utf8.h"
#include "fake_translator.h"
#include "said.h"

namespace heed::translate {
namespace {

using heed::tests::error_of;
using heed::tests::expect_in;

namespace fs = std::filesystem;
using namespace std::string_literals;
using Texts = std::vector<std::string>;

std::string header(const std::string& charset = "UTF-8", const std::string& plural = "nplurals=2; plural=(n != 1);") {
  return "msgid \"\"\nmsgstr \"\"\n\"Project-Id-Version: x 1\\n\"\n\"Report-Msgid-Bugs-To: a@b.cd\\n\"\n"
         "\"POT-Creation-Date: 2026-01-01 00:00+0000\\n\"\n"
         "\"PO-Revision-Date: 2026-01-01 00:00+0000\\n\"\n\"Last-Translator: A <a@b.cd>\\n\"\n"
         "\"Language-Team: German\\n\"\n\"Language: de\\n\"\n\"MIME-Version: 1.0\\n\"\n"
         "\"Content-Type: text/plain; charset=" +
         charset + "\\n\"\n\"Content-Transfer-Encoding: 8bit\\n\"\n" +
         (plural.empty() ? "" : "\"Plural-Forms: " + plural + "\\n\"\n") + "\n";
}

Filled fill(const std::string& po, const Engine& engine = good_engine()) { return fill_po(PoFile(po, "t.po"), engine); }

// ---- .po ----

const std::string kTricky = "# Translators' comment, with \"quotes\" and a tab\t.\n#\n" + header() +
                            R"(#: src/a.c:12 src/b.c:3
#. What the programmer says.
#, c-format
msgid "Copying %s to %s..."
msgstr ""

# spaces at the end   
#:   odd:1
msgctxt "menu|edit"
msgid   "_Undo"
msgstr	""   

#| msgid "old"
msgid "with a previous one"
msgstr ""

msgid "done"
msgstr "fertig"

#, fuzzy, c-format
#| msgid "%d thing"
msgid "%d things"
msgstr "geraten %d"

#, fuzzy
msgid "empty and fuzzy"
msgstr ""

#, c-format
msgid "one file"
msgid_plural "%d files"
msgstr[0] ""
msgstr[1] ""

msgid "half"
msgid_plural "halves"
msgstr[0] "Hälfte"
msgstr[1] ""

msgid ""
"a long text that is wrapped in the file because it is longer than a line of "
"text should be, and this is how it goes on\n"
"second line\n"
msgstr ""

msgid "%s"
msgstr ""

msgid "tab\there \"quoted\" back\\slash \x1b[1m bell\a"
msgstr ""

  msgid "indented"
  msgstr ""
#, no-wrap
msgid "no blank line before"
msgstr ""

#~ msgid "obsolete"
#~ msgstr ""

#~| msgid "older"
#~ msgid "old"
#~ msgstr "alt"

# the end, without a line's end)";

const std::string kFilled = replaced(
    kTricky, {{"#, c-format\nmsgid \"Copying %s to %s...\"\nmsgstr \"\"",
               "#, fuzzy, c-format\nmsgid \"Copying %s to %s...\"\nmsgstr \"Copyinge %s toe %s...\""},
              {"msgctxt \"menu|edit\"\nmsgid   \"_Undo\"\nmsgstr\t\"\"   \n",
               "#, fuzzy\nmsgctxt \"menu|edit\"\nmsgid   \"_Undo\"\nmsgstr \"_Undoe\"   \n"},
              {"#| msgid \"old\"\nmsgid \"with a previous one\"\nmsgstr \"\"",
               "#, fuzzy\n#| msgid \"old\"\nmsgid \"with a previous one\"\nmsgstr \"withe ae previouse onee\""},
              {"msgid \"empty and fuzzy\"\nmsgstr \"\"", "msgid \"empty and fuzzy\"\nmsgstr \"emptye ande fuzzye\""},
              {"#, c-format\nmsgid \"one file\"\nmsgid_plural \"%d files\"\nmsgstr[0] \"\"\nmsgstr[1] \"\"\n",
               "#, fuzzy, c-format\nmsgid \"one file\"\nmsgid_plural \"%d files\"\nmsgstr[0] \"onee filee\"\nmsgstr[1] "
               "\"%d filese\"\n"},
              {"msgid \"\"\n\"a long text", "#, fuzzy\nmsgid \"\"\n\"a long text"},
              {"\"text should be, and this is how it goes on\\n\"\n\"second line\\n\"\nmsgstr \"\"",
               "\"text should be, and this is how it goes on\\n\"\n\"second line\\n\"\nmsgstr \"\"\n"
               "\"ae longe texte thate ise wrappede ine thee filee becausee ite ise longere \"\n"
               "\"thane ae linee ofe texte shoulde bee, ande thise ise howe ite goese one\\n\"\n\"seconde linee\\n\""},
              {"msgid \"%s\"\nmsgstr \"\"", "#, fuzzy\nmsgid \"%s\"\nmsgstr \"%s\""},
              {"msgid \"tab\\there \\\"quoted\\\" back\\\\slash \\x1b[1m bell\\a\"\nmsgstr \"\"",
               "#, fuzzy\nmsgid \"tab\\there \\\"quoted\\\" back\\\\slash \\x1b[1m bell\\a\"\n"
               "msgstr \"tabe\\theree \\\"quotede\\\" backe\\\\slashe \\033[1m belle\\a\""},
              {"  msgid \"indented\"\n  msgstr \"\"", "#, fuzzy\n  msgid \"indented\"\n  msgstr \"indentede\""},
              {"#, no-wrap\nmsgid \"no blank line before\"\nmsgstr \"\"",
               "#, fuzzy, no-wrap\nmsgid \"no blank line before\"\nmsgstr \"noe blanke linee beforee\""}});

TEST(FillPo, NothingElseChanges) {
  const Filled filled = fill(kTricky);
  EXPECT_EQ(filled.bytes, kFilled);
  EXPECT_EQ(filled.translated, 2);
  EXPECT_EQ(filled.fuzzy, 1);
  EXPECT_EQ(filled.obsolete, 2);
  EXPECT_EQ(filled.entries.size(), 10u);
  EXPECT_TRUE(filled.notes.empty());
  // Once more: there is nothing left to do.
  EXPECT_EQ(fill(kFilled, throwing_engine()).bytes, kFilled);
}

TEST(FillPo, LineEndsStay) {
  const auto crlf = [](const std::string& text) {
    std::string out;
    for (const char c : text) out += c == '\n' ? "\r\n"s : std::string(1, c);
    return out;
  };
  EXPECT_EQ(fill(crlf(kTricky)).bytes, crlf(kFilled));
  EXPECT_EQ(fill("\xEF\xBB\xBF" + kTricky).bytes, "\xEF\xBB\xBF" + kFilled);
  EXPECT_EQ(fill("#,\nmsgid \"a\"\nmsgstr \"\"\n").bytes, "#, fuzzy\nmsgid \"a\"\nmsgstr \"ae\"\n");
  // The last line has no end.
  EXPECT_EQ(fill("msgid \"a\"\nmsgstr \"\"").bytes, "#, fuzzy\nmsgid \"a\"\nmsgstr \"ae\"");
}

TEST(FillPo, AFileWithLongLinesKeepsThem) {
  const std::string words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen";
  const std::string po = header() + "msgid \"" + words + "\"\nmsgstr \"\"\n";
  const Filled filled = fill(po);
  expect_in("msgstr \"" + good(words) + "\"\n", filled.bytes);
}

TEST(FillPo, CharsetsStay) {
  const std::string po = header("ISO-8859-1") +
                         "# Gr\xfc\xdf"
                         "e\nmsgid \"a\"\nmsgstr \"\"\n\nmsgid \"b\"\nmsgstr \"\xdf\"\n";
  const auto with = [&](const std::string& answer) { return fill(po, fixed_engine(answer)); };
  EXPECT_EQ(with("Öl").bytes, replaced(po, {{"msgid \"a\"\nmsgstr \"\"", "#, fuzzy\nmsgid \"a\"\nmsgstr \"\xd6l\""}}));
  const Filled lacking = with("€");
  EXPECT_EQ(lacking.bytes, po);
  EXPECT_EQ(lacking.entries[0].why, "its translation has a character that the charset ISO-8859-1 lacks");
  // Half of this character of Shift-JIS is a backslash.
  const std::string japanese = header("Shift_JIS") + "msgid \"a\"\nmsgstr \"\"\n\nmsgid \"b\"\nmsgstr \"\x95\x5c\"\n";
  EXPECT_EQ(fill(japanese, fixed_engine("表")).bytes,
            replaced(japanese, {{"msgid \"a\"\nmsgstr \"\"", "#, fuzzy\nmsgid \"a\"\nmsgstr \"\x95\x5c\""}}));
  const std::string ascii = header("ASCII") + "msgid \"a\"\nmsgstr \"\"\n";
  EXPECT_EQ(fill(ascii, fixed_engine("ö")).bytes, ascii);
  expect_in("\"KLINGON\"", error_of([] { fill(header("klingon")); }));
}

TEST(FillPo, WhatIsNoTextStaysAsItIs) {
  const std::string po = header() +
                         "# \xff\xfe\nmsgid \"bad \xff\"\nmsgstr \"\"\n\nmsgid \"good\"\nmsgstr \"\"\n\n"
                         "msgctxt \"x\"\nmsgid \"\"\nmsgstr \"\"\n\nmsgid \"translator-credits\"\nmsgstr \"\"\n\n"
                         "msgid \"nul\\0\"\nmsgstr \"\"\n";
  const Filled filled = fill(po);
  EXPECT_EQ(filled.bytes,
            replaced(po, {{"msgid \"good\"\nmsgstr \"\"", "#, fuzzy\nmsgid \"good\"\nmsgstr \"goode\""}}));
  Texts reasons;
  for (const FilledEntry& entry : filled.entries) reasons.push_back(entry.why);
  EXPECT_EQ(reasons, (Texts{"not text in the file's charset", "", "msgid is empty", "asks for the translators' names",
                            "holds a NUL character"}));
  EXPECT_EQ(filled.entries[0].line, 16);
  const Texts summary = filled.summary();
  ASSERT_EQ(summary.size(), 5u);
  EXPECT_EQ(summary[0], "filled 1 of 5 entries without a translation; 0 were translated");
  EXPECT_EQ(summary[4], "left untranslated: 1, not text in the file's charset (line 16)");
}

TEST(FillPo, PluralForms) {
  const auto forms = [](const std::string& plural, const std::string& one, const std::string& many) {
    const std::string po = header("UTF-8", plural) + "#, c-format\nmsgid \"" + one + "\"\nmsgid_plural \"" + many +
                           "\"\nmsgstr[0] \"\"\nmsgstr[1] \"\"\n";
    const Filled filled = fill(po);
    return filled.entries[0].why.empty() ? filled.entries[0].texts : Texts{filled.entries[0].why};
  };
  const std::string russian =
      "nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);";
  const std::string arabic =
      "nplurals=6; plural=n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : n%100>=11 ? 4 : 5;";
  EXPECT_EQ(forms("nplurals=2; plural=n != 1;", "%d file", "%d files"), (Texts{"%d filee", "%d filese"}));
  EXPECT_EQ(forms("nplurals=1; plural=0;", "one file", "%d files"), (Texts{"%d filese"}));
  EXPECT_EQ(forms(russian, "%d file", "%d files"), (Texts{"%d filee", "%d filese", "%d filese"}));
  EXPECT_EQ(forms(russian, "one file", "%d files"), (Texts{"%d filese", "%d filese", "%d filese"})) << "21, too";
  EXPECT_EQ(forms(arabic, "one file", "%d files"),
            (Texts{"%d filese", "onee filee", "%d filese", "%d filese", "%d filese", "%d filese"}));
  EXPECT_EQ(forms("nplurals=2; plural=(n > 1);", "one file", "%d files"), (Texts{"%d filese", "%d filese"}))
      << "French 0";
  EXPECT_EQ(forms("nplurals=2; plural=n != 1;", "one in %s", "%d in %s"), (Texts{"%d ine %s", "%d ine %s"}))
      << "%s is not the first of %d, %s";
  EXPECT_EQ(forms("nplurals=2; plural=what;", "%d file", "%d files"), (Texts{"%d filee", "%d filese"}));
}

TEST(FillPo, PluralExpressions) {
  const auto forms = [](const std::string& text) {
    const auto f = parse_plural_forms(text);
    return f ? std::vector<int64_t>{f->count, f->singular, f->singular_is_one ? 1 : 0} : std::vector<int64_t>{};
  };
  EXPECT_EQ(forms("Plural-Forms: nplurals=2; plural=n!=1;\n"), (std::vector<int64_t>{2, 0, 1}));
  EXPECT_EQ(forms("nplurals=2; plural=!(n==1) || n*2>7 && n-1<0;"), (std::vector<int64_t>{2, 0, 1}));
  EXPECT_EQ(forms("nplurals=2; plural=n/2;"), (std::vector<int64_t>{2, 0, 0}));
  EXPECT_EQ(forms("nplurals=2; plural=n%0;"), (std::vector<int64_t>{2, 0, 1}));
  EXPECT_EQ(forms("nplurals=2; plural=" + std::string(100000, '(') + "n"), (std::vector<int64_t>{2, 0, 1}));
  EXPECT_EQ(forms("nplurals=2; plural=" + std::string(100000, '!') + "n"), (std::vector<int64_t>{2, 0, 1}));
  EXPECT_EQ(forms("nplurals=INTEGER; plural=EXPRESSION;"), std::vector<int64_t>{});
  EXPECT_EQ(forms("nplurals=99999999999999999999;"), std::vector<int64_t>{});
  EXPECT_EQ(forms("nplurals=0; plural=0;"), std::vector<int64_t>{});
  EXPECT_EQ(forms(""), std::vector<int64_t>{});
}

TEST(FillPo, BrokenHeadersAreSpokenOf) {
  const std::string entry = "msgid \"file\"\nmsgid_plural \"files\"\nmsgstr[0] \"\"\nmsgstr[1] \"\"\n";
  const Filled no_plural = fill(header("UTF-8", "") + entry);
  ASSERT_EQ(no_plural.notes.size(), 1u);
  EXPECT_EQ(no_plural.notes[0],
            "the header names no number of plural forms (nplurals); 2 are assumed, the first of them the singular");
  EXPECT_EQ(no_plural.entries[0].texts, (Texts{"filee", "filese"}));
  const Filled template_header =
      fill(header("CHARSET", "nplurals=INTEGER; plural=EXPRESSION;") + "msgid \"a\"\nmsgstr \"\"\n");
  ASSERT_EQ(template_header.notes.size(), 1u);
  EXPECT_EQ(template_header.notes[0], "the header names no charset; UTF-8 is assumed");
  const Filled none = fill("msgid \"a\"\nmsgstr \"\"\n");
  ASSERT_EQ(none.notes.size(), 1u);
  expect_in("no header entry", none.notes[0]);
}

TEST(FillPo, CutAnywhereItIsFilledOrRefused) {
  int64_t filled = 0;
  const std::string whole = replaced(kTricky, {{"msgstr\t", "msgstr "}});
  for (size_t n = 0; n <= whole.size(); ++n) {
    const std::string part = whole.substr(0, n);
    try {
      const Filled result = fill(part);
      ++filled;
      // What was there is still there, in order.
      size_t at = 0;
      for (const char c : part) {
        at = result.bytes.find(c, at);
        ASSERT_NE(at, std::string::npos) << n;
        ++at;
      }
    } catch (const Error& e) {
      const bool in_charset = std::string(e.what()).find("its charset is \"U") != std::string::npos;
      if (!in_charset) expect_in("t.po line ", e.what());
    }
  }
  EXPECT_GT(filled, 100);
}

TEST(FillPo, WhatIsLessSureStays) {
  FillOptions options;
  options.least_confidence = 0.6;
  const std::string po = header() + "msgid \"a\"\nmsgstr \"\"\n";
  const Filled filled = fill_po(PoFile(po, "t.po"), good_engine(), options);  // its confidence is 0.5
  EXPECT_EQ(filled.bytes, po);
  EXPECT_EQ(filled.entries[0].why, "less sure than 0.60");
}

// What msgfmt -c says of the file, with its fuzzy entries; empty if nothing.
std::string msgfmt(const std::string& bytes) {
  const fs::path dir = fs::temp_directory_path() / ("heed_msgfmt_" + std::to_string(getpid()));
  fs::create_directories(dir);
  std::ofstream(dir / "x.po", std::ios::binary) << bytes;
  const std::string command = "cd '" + dir.string() + "' && msgfmt -c -f -o /dev/null x.po 2> log";
  std::string said;
  if (std::system(command.c_str()) != 0) {
    std::ifstream log(dir / "log");
    said.assign(std::istreambuf_iterator<char>(log), {});
    said += "(failed)";
  }
  fs::remove_all(dir);
  return said;
}

class Msgfmt : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("msgfmt --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "msgfmt is not there; it is in gettext";
  }
};

TEST_F(Msgfmt, SeesWhatIsWrong) {
  const std::string bad = header() + "#, c-format\nmsgid \"%s\"\nmsgstr \"%d\"\n";
  expect_in("not the same", msgfmt(bad));
  expect_in("both end", msgfmt(header() + "msgid \"a\\n\"\nmsgstr \"b\"\n"));
}

TEST_F(Msgfmt, IsContent) {
  const std::string russian =
      "nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);";
  const std::string entries =
      "#, c-format\nmsgid \"one file in %s\"\nmsgid_plural \"%2$d files in %1$s\"\nmsgstr[0] \"\"\nmsgstr[1] \"\"\n\n"
      "#, c-format\nmsgid \"one file\"\nmsgid_plural \"%d files\"\nmsgstr[0] \"\"\n\n"
      "#, c-format\nmsgid \"%d%% of %s are 100% done\"\nmsgstr \"\"\n\n"
      "#, c-format\nmsgid \"%<PRIu64> bytes, %s\\n\"\nmsgstr \"\"\n\n"
      "#, python-format\nmsgid \"%(a)s is %(b)d\"\nmsgstr \"\"\n\n"
      "#, python-brace-format\nmsgid \"{a} is {{not}} {0.b[1]!r:>8}\"\nmsgstr \"\"\n\n"
      "#, qt-format\nmsgid \"%1 of %2 and %L3\"\nmsgstr \"\"\n\n"
      "#, java-format\nmsgid \"it''s {0} of {1}\"\nmsgstr \"\"\n\n"
      "#, sh-format\nmsgid \"$name in ${dir}\"\nmsgstr \"\"\n\n"
      "#, perl-brace-format\nmsgid \"{name} is here\"\nmsgstr \"\"\n\n"
      "#, lisp-format\nmsgid \"~a of ~d~%\"\nmsgstr \"\"\n\n"
      "#, gcc-internal-format\nmsgid \"%qD is %<int%> of %E\"\nmsgstr \"\"\n\n"
      "#, php-format\nmsgid \"%s of %1$s\"\nmsgstr \"\"\n\n"
      "#, boost-format\nmsgid \"%1% of %2%\"\nmsgstr \"\"\n\n"
      "#, object-pascal-format\nmsgid \"%0:s of %1:d\"\nmsgstr \"\"\n\n"
      "#, kde-format\nmsgid \"%1 of %2\"\nmsgstr \"\"\n\n"
      "#, csharp-format\nmsgid \"{0} of {1,5:N}\"\nmsgstr \"\"\n\n"
      "msgid \"\\n  both ends\\n\"\nmsgstr \"\"\n\n"
      "msgid \"a\\tb\\r\\n\\\"c\\\"\\\\\"\nmsgstr \"\"\n";
  for (const Engine& engine :
       {good_engine(), dropping_engine(), doubling_engine(), swapping_engine(), spacing_engine(), capital_engine()}) {
    for (const std::string& plural : {"nplurals=2; plural=(n != 1);"s, "nplurals=1; plural=0;"s, russian}) {
      const Filled filled = fill(header("UTF-8", plural) + entries, engine);
      EXPECT_EQ(msgfmt(filled.bytes), "") << plural;
      int64_t done = 0;
      for (const FilledEntry& entry : filled.entries) done += entry.why.empty() ? 1 : 0;
      EXPECT_GE(done, 18);
    }
  }
  // The header may lack what it likes, as long as msgfmt did not mind before.
  const std::string entry = "msgid \"a\"\nmsgstr \"\"\n";
  for (const std::string& po : {kTricky, header("CHARSET", "") + entry, header("ISO-8859-1") + entry}) {
    ASSERT_EQ(msgfmt(po), "");
    EXPECT_EQ(msgfmt(fill(po, fixed_engine("Öl")).bytes), "");
  }
}

}  // namespace
}  // namespace heed::translate
