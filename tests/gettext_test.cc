// Message catalogues: .po and .mo parsing, damaged files, cleaning for training.
#include "apps/translate/gettext.h"

#include <gtest/gtest.h>
#include <heed/attention.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "said.h"

namespace heed::translate {
namespace {

using heed::tests::error_of;
using heed::tests::expect_in;

using namespace std::string_literals;

const std::string kHeader =
    "msgid \"\"\nmsgstr \"\"\n\"Project-Id-Version: x\\n\"\n"
    "\"Content-Type: text/plain; charset=UTF-8\\n\"\n\n";

std::vector<Message> po(const std::string& text) { return parse_po(text, "t.po").messages; }

// The bytes of a .mo file with these strings, as msgfmt lays them out (without a hash table).
std::string mo(const std::vector<std::pair<std::string, std::string>>& entries, bool big_endian, uint32_t version = 0) {
  std::string out;
  const auto word = [&](uint32_t v) {
    for (int i = 0; i < 4; i++) out.push_back(static_cast<char>(v >> (big_endian ? 24 - 8 * i : 8 * i)));
  };
  const uint32_t n = static_cast<uint32_t>(entries.size());
  for (const uint32_t v : {0x950412deu, version, n, 28u, 28 + 8 * n, 0u, 28 + 16 * n}) word(v);
  uint32_t at = 28 + 16 * n;
  std::string text;
  for (const bool target : {false, true}) {
    for (const auto& entry : entries) {
      const std::string& s = target ? entry.second : entry.first;
      word(static_cast<uint32_t>(s.size()));
      word(at);
      at += static_cast<uint32_t>(s.size()) + 1;
      text += s + '\0';
    }
  }
  return out + text;
}

const std::vector<std::pair<std::string, std::string>> kEntries = {
    {"", "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n != 1);\n"},
    {"Open", "Öffnen"},
    {"menu\4Close", "Schließen"},
    {"%d file\0%d files"s, "%d Datei\0%d Dateien"s},
    {"empty", ""},
    {"STR_A|STR_B\4Line 1\nLine 2", "Zeile 1\nZeile 2"}};
const std::vector<Message> kMessages = {{"", "Open", "Öffnen"},
                                        {"menu", "Close", "Schließen"},
                                        {"", "%d file", "%d Datei"},
                                        {"STR_A|STR_B", "Line 1\nLine 2", "Zeile 1\nZeile 2"}};

TEST(Po, EveryKindOfEntry) {
  const Catalogue c = parse_po("\xEF\xBB\xBF# comment\n#, fuzzy\n" + kHeader + R"(#: src/a.c:12
#. a note
msgctxt "menu"
msgid "Open"
msgstr "Öffnen"

msgid ""
"two \"lines\"\n"
"tab\tbackslash \\ "
msgstr ""
"zwei \"Zeilen\"\n"
"oct\101\x42"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

#, c-format, fuzzy
#| msgid "Old"
msgid "Guessed"
msgstr "Geraten"

#, c-format
msgid "untranslated"
msgstr ""

#~ msgid "obsolete"
#~ msgstr "veraltet"
msgid "no blank line before"
msgstr "keine Leerzeile davor"
msgid   "last"
msgstr	"letzte"  )",
                               "t.po");
  EXPECT_EQ(c.messages, (std::vector<Message>{{"menu", "Open", "Öffnen"},
                                              {"", "two \"lines\"\ntab\tbackslash \\ ", "zwei \"Zeilen\"\noctAB"},
                                              {"", "%d file", "%d Datei"},
                                              {"", "no blank line before", "keine Leerzeile davor"},
                                              {"", "last", "letzte"}}));
  EXPECT_EQ(c.entries, 8);
  EXPECT_EQ(c.fuzzy, 1);
  EXPECT_EQ(c.obsolete, 1);
  EXPECT_EQ(c.untranslated, 1);
  EXPECT_EQ(c.charset, "UTF-8");
}

TEST(Po, CrLfAndAFileWithoutHeader) {
  EXPECT_EQ(po("msgid \"a\"\r\nmsgstr \"b\"\r\n\r\nmsgid \"c\"\r\nmsgstr \"d\"\r\n"),
            (std::vector<Message>{{"", "a", "b"}, {"", "c", "d"}}));
  EXPECT_TRUE(po("").empty());
}

TEST(Po, ConvertsOtherCharsets) {
  const auto with = [](const std::string& charset, const std::string& target) {
    return parse_po("msgid \"\"\nmsgstr \"Content-Type: text/plain; charset=" + charset +
                        "\\n\"\n\nmsgid \"x\"\nmsgstr \"" + target + "\"\n",
                    "t.po");
  };
  EXPECT_EQ(with("ISO-8859-1",
                 "\xd6"
                 "ffnen")
                .messages[0]
                .target,
            "Öffnen");
  EXPECT_EQ(with("iso-8859-15", "\xa4").messages[0].target, "€");
  // The second byte of this Shift-JIS character is a backslash.
  EXPECT_EQ(with("Shift_JIS", "\x95\x5c\x8e\xa6").messages[0].target, "表示");
  EXPECT_EQ(with("CHARSET", "ö").messages[0].target, "ö");
  EXPECT_EQ(with("ASCII", "o").charset, "UTF-8");
  EXPECT_EQ(with("UTF-8",
                 "\xd6"
                 "ffnen")
                .invalid,
            1);
  expect_in("\"KLINGON\"", error_of([&] { with("klingon", "x"); }));
  expect_in("not text in its charset", error_of([&] { with("EUC-JP", "\xff\xff"); }));
}

TEST(Po, SyntaxErrorsHaveTheLine) {
  expect_in("t.po line 1: a string in double quotes is expected", error_of([] { po("msgid abc\n"); }));
  expect_in("line 2: the string has no closing quote", error_of([] { po("msgid \"a\"\nmsgstr \"b\n"); }));
  expect_in("line 1: the string has no closing quote", error_of([] { po("msgid \"a\\\"\n"); }));
  expect_in("line 1: there is text behind", error_of([] { po("msgid \"a\" b\n"); }));
  expect_in("line 3: a string stands here", error_of([] { po("# x\n\n\"a\"\n"); }));
  expect_in("line 1: msgstr without a msgid", error_of([] { po("msgstr \"a\"\n"); }));
  expect_in("no msgstr", error_of([] { po("msgid \"a\"\n\nmsgid \"b\"\nmsgstr \"c\"\n"); }));
  expect_in("not \"hello world\"", error_of([] { po("hello world\n"); }));
  expect_in("closing bracket", error_of([] { po("msgid \"a\"\nmsgstr[0 \"b\"\n"); }));
  expect_in("line 2: msgstr without a quoted string", error_of([] { po("msgid \"a\"\nmsgstr\n"); }));
  expect_in("UTF-16", error_of([] { po("\xff\xfem\0"s); }));
}

TEST(Po, CutAnywhereItIsReadOrRefused) {
  const std::string whole =
      kHeader + "msgctxt \"c\"\nmsgid \"a\\n\"\n\"b\"\nmsgid_plural \"p\"\nmsgstr[0] \"x\\101\"\n";
  for (size_t n = 0; n <= whole.size(); n++) {
    const std::vector<char> exact(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(n));
    try {
      parse_po({exact.data(), n}, "t.po");
    } catch (const Error&) {
    }
  }
}

TEST(Mo, BothByteOrders) {
  for (const bool big : {false, true}) {
    const Catalogue c = parse_mo(mo(kEntries, big), "t.mo");
    EXPECT_EQ(c.messages, kMessages);
    EXPECT_EQ(c.entries, 5);
    EXPECT_EQ(c.untranslated, 1);
    EXPECT_TRUE(parse_mo(mo({}, big), "t.mo").messages.empty());
    EXPECT_EQ(parse_mo(mo(kEntries, big, 0x00010001), "t.mo").messages, kMessages);
    expect_in("version 2", error_of([&] { parse_mo(mo(kEntries, big, 0x00020000), "t.mo"); }));
  }
}

TEST(Mo, ConvertsOtherCharsets) {
  const std::string header = "Content-Type: text/plain; charset=";
  const Catalogue c = parse_mo(mo({{"", header + "ISO-8859-1\n"}, {"x", "\xd6l"}}, false), "t.mo");
  EXPECT_EQ(c.messages, (std::vector<Message>{{"", "x", "Öl"}}));
  EXPECT_EQ(c.charset, "ISO-8859-1");
  EXPECT_EQ(parse_mo(mo({{"", header + "UTF-8\n"}, {"x", "\xd6l"}}, false), "t.mo").invalid, 1);
  expect_in("\"KLINGON\"", error_of([&] { parse_mo(mo({{"", header + "klingon"}, {"x", "y"}}, false), "t.mo"); }));
}

// Each prefix is copied to an allocation of its own size, so that the address sanitizer sees a read past the end.
TEST(Mo, CutAtEveryByteIsReadOrRefused) {
  for (const bool big : {false, true}) {
    const std::string whole = mo(kEntries, big);
    int refused = 0;
    for (size_t n = 0; n < whole.size(); n++) {
      const std::unique_ptr<char[]> exact(new char[n]);
      std::copy_n(whole.data(), n, exact.get());
      try {
        parse_mo({exact.get(), n}, "t.mo");
      } catch (const Error&) {
        refused++;
      }
    }
    EXPECT_EQ(refused, static_cast<int>(whole.size()));  // the last string's NUL is the last byte
  }
}

TEST(Mo, EveryByteChangedIsReadOrRefused) {
  for (const bool big : {false, true}) {
    const std::string whole = mo(kEntries, big);
    for (size_t i = 0; i < whole.size(); i++) {
      for (const int value : {0, 1, 0x7f, 0x80, 0xff}) {
        const std::unique_ptr<char[]> exact(new char[whole.size()]);
        std::copy(whole.begin(), whole.end(), exact.get());
        exact[i] = static_cast<char>(value);
        try {
          parse_mo({exact.get(), whole.size()}, "t.mo");
        } catch (const Error&) {
        }
      }
    }
  }
}

TEST(Mo, LyingFilesAreErrors) {
  expect_in("has 5 bytes", error_of([] { parse_mo("hello", "t.mo"); }));
  expect_in("not a .mo file", error_of([] { parse_mo(std::string(100, 'x'), "t.mo"); }));
  std::string many = mo(kEntries, false);
  many[11] = '\x7f';
  expect_in("2130706438 messages", error_of([&] { parse_mo(many, "t.mo"); }));

  // A thousand messages, each of them the same 100,000 bytes: small on disk, large in memory.
  std::vector<std::pair<std::string, std::string>> entries(1000, {"a", "b"});
  std::string bomb = mo(entries, false);
  const uint32_t start = static_cast<uint32_t>(bomb.size()), length = 100'000;
  bomb.append(length, 'x');
  bomb.push_back('\0');
  for (size_t i = 0; i < 2000; i++) {
    for (int k = 0; k < 4; k++) {
      bomb[28 + 8 * i + static_cast<size_t>(k)] = static_cast<char>(length >> (8 * k));
      bomb[32 + 8 * i + static_cast<size_t>(k)] = static_cast<char>(start >> (8 * k));
    }
  }
  expect_in("overlap", error_of([&] { parse_mo(bomb, "t.mo"); }));
}

Pair clean(const std::string& source, const std::string& target) {
  const auto pairs = clean_messages(std::vector<Message>{{"", source, target}});
  return pairs.empty() ? Pair{"dropped", ""} : pairs[0];
}

TEST(Clean, TakesAcceleratorsOut) {
  const std::pair<Pair, Pair> cases[] = {
      {{"&Open", "Ö&ffnen"}, {"Open", "Öffnen"}},
      {{"E&xit", "&Beenden"}, {"Exit", "Beenden"}},
      {{"A_uto Complete", "_Automatisch"}, {"Auto Complete", "Automatisch"}},
      {{"Ch~aracters", "Ze~ichen"}, {"Characters", "Zeichen"}},
      {{"Sen_d reports", "Berichte senden"}, {"Send reports", "Berichte senden"}},
      {{"Recent Colors", "Z_uletzt verwendet"}, {"Recent Colors", "Zuletzt verwendet"}},
      {{"DDE command", "DDE_-Befehl"}, {"DDE command", "DDE-Befehl"}},
      {{"_Open", "打开(_O)"}, {"Open", "打开"}},
      {{"&Open...", "打开(&O)..."}, {"Open...", "打开..."}},
      {{"Find && Replace", "Suchen && Ersetzen"}, {"Find & Replace", "Suchen & Ersetzen"}},
      // These are no markers.
      {{"Black & white", "Schwarz & weiß"}, {"Black & white", "Schwarz & weiß"}},
      {{"R&D costs", "R&D-Kosten"}, {"R&D costs", "R&D-Kosten"}},
      {{"Tom &amp; Jerry", "Tom &amp; Gerd"}, {"Tom &amp; Jerry", "Tom &amp; Gerd"}},
      {{"lock_file missing", "lock_file fehlt"}, {"lock_file missing", "lock_file fehlt"}},
      {{"%FILE_NAME gone", "%FILE_NAME, weg"}, {"%FILE_NAME gone", "%FILE_NAME, weg"}},
      {{"Star_Calc 1", "Star_Calc 1.0"}, {"Star_Calc 1", "Star_Calc 1.0"}},
      {{"Ma_ximum", "Ma_ximum:"}, {"Maximum", "Maximum:"}},
      {{"Te&xt only", "Nur Te&xt"}, {"Text only", "Nur Text"}},
      {{"_a_ and _b_", "_a_ und _b_"}, {"_a_ and _b_", "_a_ und _b_"}},
      {{"Size ~", "Größe ~"}, {"Size ~", "Größe ~"}}};
  for (const auto& [in, want] : cases) EXPECT_EQ(clean(in.source, in.target), want) << in.source << " / " << in.target;
}

TEST(Clean, ContextsAndWhiteSpace) {
  EXPECT_EQ(clean("aBcDe‖Open", "Öffnen"), (Pair{"Open", "Öffnen"}));
  EXPECT_EQ(clean("Operand|Value", "Wert"), (Pair{"Value", "Wert"}));
  EXPECT_EQ(clean("yes|no", "ja|nein"), (Pair{"yes|no", "ja|nein"}));
  EXPECT_EQ(clean("  two\n\tlines \u00a0 here\n", "zwei\nZeilen"), (Pair{"two lines here", "zwei Zeilen"}));
}

TEST(Clean, DropsAndCounts) {
  std::vector<Message> messages = {{"", "Linux", "Linux"},
                                   {"", "_Linux", "Linux"},
                                   {"", "%1 / 2", "%1 : 2"},
                                   {"", "ok", "12"},
                                   {"", std::string(201, 'a'), "b"},
                                   {"", "short",
                                    [] {
                                      std::string words;
                                      for (int i = 0; i < 41; i++) words += "w ";
                                      return words;
                                    }()},
                                   {"", "This is a rather long sentence", "Kurz"},
                                   {"", "  -v, --verbose  be verbose", "  -v, --verbose  sei laut"},
                                   {"", "a <b>bold</b> word", "ein fettes Wort"},
                                   {"", "esc\x1b", "a"},
                                   {"", "Error.~%Stop", "Fehler.~%Halt"},
                                   {"", "x < y and y > z", "x < y und y > z"},
                                   {"", "OK", "Einverstanden"}};
  CleanCounts counts;
  const auto pairs = clean_messages(messages, &counts);
  EXPECT_EQ(pairs, (std::vector<Pair>{{"x < y and y > z", "x < y und y > z"}, {"OK", "Einverstanden"}}));
  EXPECT_EQ(counts.messages, 13);
  EXPECT_EQ(counts.same, 2);
  EXPECT_EQ(counts.no_letters, 2);
  EXPECT_EQ(counts.too_long, 2);
  EXPECT_EQ(counts.ratio, 1);
  EXPECT_EQ(counts.options, 1);
  EXPECT_EQ(counts.markup, 3);
  EXPECT_EQ(counts.duplicate, 0);
}

TEST(Clean, OneTargetPerSourceByMajority) {
  CleanCounts counts;
  const auto pairs = clean_messages(std::vector<Message>{{"", "Edit", "Bearbeiten…"},
                                                         {"", "Undo", "Zurück"},
                                                         {"a", "_Edit", "_Bearbeiten"},
                                                         {"b", "Edit", "Bearbeiten"},
                                                         {"", "Undo", "Rückgängig"}},
                                    &counts);
  EXPECT_EQ(pairs, (std::vector<Pair>{{"Edit", "Bearbeiten"}, {"Undo", "Zurück"}}));
  EXPECT_EQ(counts.duplicate, 3);
}

}  // namespace
}  // namespace heed::translate
