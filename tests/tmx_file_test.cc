// TMX: reading it in any encoding, filling it in without changing the rest, and pairs from it.
#include "apps/translate/documents/tmx_file.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "apps/translate/documents/fill.h"
#include "apps/translate/utf8.h"
#include "fake_translator.h"
#include "said.h"

namespace heed::translate {
namespace {

using heed::tests::error_of;
using heed::tests::expect_in;

namespace fs = std::filesystem;
using Texts = std::vector<std::string>;

std::string in_tmx(const std::string& body, const std::string& srclang = "en") {
  return "<tmx version=\"1.4\"><header srclang=\"" + srclang + "\"/><body>" + body + "</body></tmx>";
}

const std::string kTmx = R"(<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd" [ <!ENTITY x "y > z"> ]>
<!-- <tu> in a comment -->
<tmx version="1.4">
  <header creationtool="x" segtype='sentence' adminlang="en" srclang = "en-US" datatype="a > b"></header>
  <body>
    <tu tuid="1">
      <note>open &amp; shut</note>
      <tuv xml:lang="en-US">
        <prop type="x">p</prop>
        <seg>Open <bpt i="1" x="1">&lt;b&gt;</bpt>the<ept i="1">&lt;/b&gt;</ept> file &amp; go<ph x="2"/></seg>
      </tuv>
    </tu>
    <tu><tuv xml:lang="EN-us"><seg>done</seg></tuv><tuv xml:lang="de"><seg>fertig</seg></tuv></tu>
	<tu>
		<tuv xml:lang="en-US"><seg>empty</seg></tuv>
		<tuv xml:lang="de"><seg>  </seg></tuv>
	</tu>
    <tu><tuv xml:lang="en-US"><seg>one</seg></tuv><tuv xml:lang="de"><seg/></tuv></tu>
    <tu><tuv xml:lang="en-US"><seg>two</seg></tuv><tuv xml:lang="de"/></tu>
    <tu><tuv xml:lang="en-US"><seg>three</seg></tuv><tuv xml:lang="de"><note>n</note></tuv></tu>
    <tu><tuv xml:lang="fr"><seg>quatre</seg></tuv></tu>
    <tu><tuv xml:lang="en-US"><seg>a <hi type="b">high</hi> &nbsp;<![CDATA[x < y]]> &#8364; {1}</seg></tuv></tu>
  </body>
</tmx>
)";

const std::string kFilled = replaced(
    kTmx,
    {{"<ph x=\"2\"/></seg>\n      </tuv>\n",
      "<ph x=\"2\"/></seg>\n      </tuv>\n      <tuv xml:lang=\"de\" creationtool=\"heed\">\n        <seg>Opene <bpt "
      "i=\"1\" "
      "x=\"1\">&lt;b&gt;</bpt>thee<ept i=\"1\">&lt;/b&gt;</ept> filee &amp; goe<ph x=\"2\"/></seg>\n      </tuv>\n"},
     {"<seg>  </seg>", "<seg>emptye</seg>"},
     {"<seg/>", "<seg>onee</seg>"},
     {"<tuv xml:lang=\"de\"/>", "<tuv xml:lang=\"de\"><seg>twoe</seg></tuv>"},
     {"<note>n</note>", "<note>n</note><seg>threee</seg>"},
     {"&#8364; {1}</seg></tuv>",
      "&#8364; {1}</seg></tuv><tuv xml:lang=\"de\" creationtool=\"heed\"><seg>ae <hi type=\"b\">highe</hi> &nbsp;xe "
      "&lt; ye "
      "€e {1}</seg></tuv>"}});

Filled fill(const std::string& bytes, const Engine& engine = good_engine(), const Languages& languages = {"", "de"}) {
  const TmxFile file(bytes, "t.tmx");
  return fill_tmx(file, choose_languages(file, languages), engine);
}

std::string utf16(const std::string& text, bool big) {
  std::string out = big ? "\xFE\xFF" : "\xFF\xFE";
  const auto put = [&](char32_t unit) {
    out.push_back(static_cast<char>(big ? unit >> 8 : unit));
    out.push_back(static_cast<char>(big ? unit : unit >> 8));
  };
  for (const char32_t c : decode_utf8(text)) {
    if (c > 0xFFFF) {
      put(0xD800 + ((c - 0x10000) >> 10));
      put(0xDC00 + ((c - 0x10000) & 0x3FF));
    } else {
      put(c);
    }
  }
  return out;
}

TEST(Tmx, NothingElseChanges) {
  const Filled filled = fill(kTmx);
  EXPECT_EQ(filled.bytes, kFilled);
  EXPECT_EQ(filled.translated, 1);
  ASSERT_EQ(filled.entries.size(), 7u);
  EXPECT_EQ(filled.entries[0].source, "Open {1}the{2} file & go{3}");
  EXPECT_EQ(filled.entries[0].line, 7);
  EXPECT_EQ(filled.entries[5].why, "no text in en-US");
  EXPECT_EQ(filled.entries[6].source, "a {2}high{3} {4}x < y € {1}") << "{1} is the text's own";
  const Filled again = fill(kFilled, throwing_engine());
  EXPECT_EQ(again.bytes, kFilled);
}

TEST(Tmx, SignsInAttributesEndNoTag) {
  const TmxFile file(in_tmx("<tu><tuv xml:lang=\"en\" x='a>b'><seg x=\"'>\">a<ph x='1>0'>/></ph></seg></tuv></tu>"),
                     "t.tmx");
  const TmxText text = file.text(file.units().at(0).variants.at(0));
  EXPECT_EQ(text.text, "a{1}");
  EXPECT_EQ(text.inlines.at(0).second, "<ph x='1>0'>/></ph>");
}

TEST(Tmx, EncodingsStay) {
  for (const bool big : {false, true})
    EXPECT_EQ(fill(utf16(kTmx + "<!-- \U0001F600 -->", big)).bytes, utf16(kFilled + "<!-- \U0001F600 -->", big));
  EXPECT_EQ(fill("\xEF\xBB\xBF" + kTmx).bytes, "\xEF\xBB\xBF" + kFilled);
  std::string crlf, crlf_filled;
  for (const char c : kTmx) crlf += c == '\n' ? "\r\n" : std::string(1, c);
  for (const char c : kFilled) crlf_filled += c == '\n' ? "\r\n" : std::string(1, c);
  EXPECT_EQ(fill(crlf).bytes, crlf_filled);
  const std::string latin = "<?xml version='1.0' encoding='iso-8859-1'?>" +
                            in_tmx("<!-- \xdf --><tu><tuv xml:lang=\"en\"><seg>a</seg></tuv></tu>");
  expect_in("<!-- \xdf -->", fill(latin).bytes);
  expect_in("<seg>\xd6 &#8364;</seg>", fill(latin, fixed_engine("Ö €")).bytes);
}

TEST(Tmx, InlineElementsSurviveBadModels) {
  for (const Engine& engine :
       {dropping_engine(), doubling_engine(), swapping_engine(), spacing_engine(), capital_engine()}) {
    const Filled filled = fill(kTmx, engine);
    const std::string& first = filled.entries[0].texts.at(0);
    EXPECT_LT(first.find("{1}"), first.find("{2}")) << first;
    expect_in("{3}", first);
    TmxFile(filled.bytes, "again.tmx");  // well-formed
  }
}

TEST(Tmx, LanguagesAreFoundOut) {
  const auto chosen = [](const std::string& tmx, const Languages& given) {
    const Languages l = choose_languages(TmxFile(tmx, "t.tmx"), given);
    return l.source + ">" + l.target;
  };
  const std::string two = "<tu><tuv xml:lang=\"en-GB\"><seg>a</seg></tuv><tuv lang=\"de\"><seg>b</seg></tuv></tu>";
  EXPECT_EQ(chosen(in_tmx(two), {}), "en>de");
  EXPECT_EQ(chosen(in_tmx(two, "de"), {}), "de>en-GB");
  EXPECT_EQ(chosen(in_tmx(two, "*all*"), {"en", "de"}), "en>de");
  EXPECT_EQ(chosen(in_tmx(two, "*all*"), {"", "de"}), "en-GB>de");
  expect_in("which of en-GB, de is the source; say it with --source-lang",
            error_of([&] { chosen(in_tmx(two, "*all*"), {}); }));
  expect_in("nothing in the source language fr, only en-GB, de", error_of([&] { chosen(in_tmx(two, "fr"), {}); }));
  const std::string three = two + "<tu><tuv xml:lang=\"fr\"><seg>c</seg></tuv></tu>";
  expect_in("2 other languages, de, fr; say which to translate into with --target-lang",
            error_of([&] { chosen(in_tmx(three), {}); }));
  EXPECT_EQ(chosen(in_tmx(three), {"", "fr"}), "en>fr");
  const std::string one = "<tu><tuv xml:lang=\"en\"><seg>a</seg></tuv></tu>";
  expect_in("no language but en", error_of([&] { chosen(in_tmx(one), {}); }));
  expect_in("does not name a language", error_of([&] { chosen(in_tmx(one), {"", "d\"e"}); }));
}

TEST(Tmx, ErrorsHaveTheLine) {
  const auto why = [](const std::string& bytes) { return error_of([&] { TmxFile(bytes, "t.tmx"); }); };
  expect_in("t.tmx is empty", why(""));
  expect_in("not TMX", why("hello"));
  expect_in("begins with <html>", why("<html></html>"));
  expect_in("line 2: a tag begins here and does not end", why("<tmx>\n<body"));
  expect_in("line 3: </body> stands where <tu> of line 2 is still open", why("<tmx><body>\n<tu>\n</body>"));
  expect_in("line 1: the file ends, and <body> of line 1 is still open", why("<tmx><body>"));
  expect_in("line 1: </tmx> closes what was not opened", why("</tmx>"));
  expect_in("a <tuv> has no xml:lang", why(in_tmx("<tu><tuv><seg/></tuv></tu>")));
  expect_in("two <seg>", why(in_tmx("<tu><tuv xml:lang='a'><seg/><seg/></tuv></tu>")));
  expect_in("inside another", why(in_tmx("<tu><tu></tu></tu>")));
  expect_in("line 2 is not UTF-8", why("<tmx>\n\xff</tmx>"));
  expect_in("half a character", why(std::string("\xff\xfe<\0t", 5)));
  expect_in("half of a UTF-16 character", why(std::string("\xff\xfe\x00\xd8<\0", 6)));
  expect_in("KLINGON", why("<?xml version='1.0' encoding='klingon'?><tmx/>"));
  expect_in("written &lt;", why("<tmx>a < b></tmx>"));
}

TEST(Tmx, CutAnywhereItIsRefused) {
  for (size_t n = 0; n + 1 < kTmx.size(); ++n) {
    const std::string why = error_of([&] { TmxFile(kTmx.substr(0, n), "t.tmx"); });
    if (n < kTmx.find("</tmx>") + 6) {
      EXPECT_NE(why, "no error") << n;
    }
  }
}

TEST(Tmx, Pairs) {
  const fs::path dir = fs::temp_directory_path() / ("heed_tmx_" + std::to_string(getpid()));
  fs::create_directories(dir);
  const std::string path = (dir / "x.tmx").string();
  std::ofstream(path, std::ios::binary) << replaced(kFilled, {{"emptye", "  leer <ph/>\n &amp; "}});
  gzFile packed = gzopen((path + ".gz").c_str(), "wb");
  gzwrite(packed, kFilled.data(), static_cast<unsigned>(kFilled.size()));
  gzclose(packed);
  const PairFile file = read_pairs(path, {"", "de"});
  ASSERT_EQ(file.pairs.size(), 7u);
  EXPECT_EQ(file.pairs[0], (Pair{"Open the file & go", "Opene thee filee & goe"}));
  EXPECT_EQ(file.pairs[2], (Pair{"empty", "leer &"}));
  EXPECT_EQ(file.pairs[6].source, "a high x < y € {1}");
  EXPECT_EQ(file.lines, 8);
  EXPECT_EQ(file.skipped_empty, 1);
  EXPECT_EQ(read_pairs(path + ".gz", {"en", "de"}).pairs.size(), 7u);
  expect_in("--target-lang", error_of([&] { read_pairs(path); }));
  std::ofstream(path, std::ios::binary) << kTmx;
  expect_in("of 8 units 8 have no text in fr or in de", error_of([&] { read_pairs(path, {"fr", "de"}); }));
  fs::remove_all(dir);
}

}  // namespace
}  // namespace heed::translate
