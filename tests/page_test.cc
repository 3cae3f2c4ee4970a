// The demo's page: whole, self-contained, escaped, and with the numbers in it.
#include "apps/page.h"

#include <gtest/gtest.h>

#include <cmath>
#include <regex>
#include <string>
#include <vector>

namespace heed::app {
namespace {

const std::string kHostile = "<script>alert('1')</script> & \"two\" <img src=x onerror=alert(2)>";

Page sample() {
  Page page;
  page.title = "English to German " + kHostile;
  page.lead = "Lead " + kHostile;
  page.scores = {{"Heed " + kHostile, 31.42, 55.19}, {"Copying", 4.1, 24.9}};
  page.scores_note = kHostile;
  page.boxed_scores = {{"In the box " + kHostile, 41.23, 65.4}};
  page.boxed_note = kHostile;
  page.translations_note = kHostile;
  page.translations = {{"The file could not be opened.",
                        "Die Datei ließ sich nicht öffnen.",
                        {"Die Datei konnte nicht geöffnet werden.",
                         {"▁The", "▁file", "▁open", "ed", ".", "</s>"},
                         {"▁Die", "▁Datei", "</s>"},
                         {{0.5f, 0.123f, 0.1f, 0.1f, 0.1f, 0.077f},
                          {0.1f, 0.834f, 0.0f, 0.0f, 0.066f, 0.0f},
                          {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 1.0f}}}},
                       {kHostile,
                        kHostile,
                        {kHostile, {"▁" + kHostile}, {kHostile}, {{1.0f}}},
                        {"boxed " + kHostile, {"▁look"}, {"▁box", kHostile}, {{0.25f}, {0.75f}}}},
                       {"Nothing", "Nichts", {"", {"▁Nothing", "</s>"}}}};
  for (int i = 0; i < 20; ++i) {
    page.curve.push_back({10.0 * (i + 1), 8.0 / (i + 1) + 2, i % 5 == 4 ? 8.5 / (i + 1) + 2 : NAN});
  }
  page.pictures = {{.title = "What is it? " + kHostile,
                    .note = kHostile,
                    .scores = {{"held-out pictures " + kHostile, "91.7%" + kHostile}},
                    .legend = {{"Sneaker " + kHostile, 1, 128, 255}},
                    .pictures = {{{{"Man", "as it is"}, {"Ma", "where it looked " + kHostile}},
                                  {{"Sneaker " + kHostile, 0.984}, {"Sandal", 0.016}}},
                                 {{{std::string("M\0\xFF", 3), "another"}}}},
                    .curve = {{1, 2, 3}, {2, 1, 2}},
                    .unit = "picture " + kHostile}};
  page.facts = {{"Seed" + kHostile, "1" + kHostile}};
  page.explanation = explain("hello " + kHostile, "AI and deep learning");
  return page;
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++n;
  return n;
}

// Whether a number that is none got into the drawing; "dominant" is fine.
bool has_nan(const std::string& html) { return std::regex_search(html, std::regex("[^a-z](nan|inf)[^a-z]")); }

TEST(Page, IsOneFileThatAsksTheNetworkForNothing) {
  const std::string html = render_page(sample());
  EXPECT_EQ(html.find("http://"), std::string::npos);
  EXPECT_EQ(html.find("https://"), std::string::npos);
  EXPECT_EQ(html.find("url("), std::string::npos);
  EXPECT_EQ(html.find("@import"), std::string::npos);
  // Every src and href is inside escaped text or data:.
  EXPECT_FALSE(std::regex_search(html, std::regex("<[a-z]+[^<>]* (src|href)=\"(?!data:)")));
  EXPECT_NE(html.find("default-src 'none'"), std::string::npos);
  EXPECT_NE(html.find("name=\"viewport\""), std::string::npos);
  EXPECT_NE(html.find("prefers-color-scheme: dark"), std::string::npos);
}

TEST(Page, EscapesAllText) {
  const std::string html = render_page(sample());
  EXPECT_EQ(count(html, "<script>"), 1u) << "the page's own, and no other";
  EXPECT_EQ(count(html, "</script>"), 1u);
  EXPECT_EQ(html.find("<img src=x"), std::string::npos);
  EXPECT_NE(html.find("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;two&quot;"), std::string::npos);
  EXPECT_EQ(escape_html("a\x01\xff"), "a\uFFFD\uFFFD");
}

TEST(Page, HoldsEveryTranslationAndWeight) {
  const Page page = sample();
  const std::string html = render_page(page);
  for (const PageTranslation& t : page.translations) {
    EXPECT_NE(html.find(escape_html(t.source)), std::string::npos);
    EXPECT_NE(html.find(escape_html(t.reference)), std::string::npos);
    EXPECT_NE(html.find(escape_html(t.output.text)), std::string::npos);
  }
  EXPECT_EQ(count(html, "<td class=\"w\""), 3u * 6 + 1 + 2);
  EXPECT_EQ(count(html, "class=\"map\""), 3u) << "no map without attention";
  EXPECT_NE(html.find("title=\"Datei ← 0.834 of file\""), std::string::npos);
  EXPECT_NE(html.find("--a:0.123"), std::string::npos);
  EXPECT_NE(html.find("title=\"end ← 1.000 of end\""), std::string::npos);
  EXPECT_NE(html.find("·ed"), std::string::npos) << "a piece inside a word says so";
  EXPECT_EQ(html.find("▁"), std::string::npos) << "SentencePiece's mark is for machines";
  EXPECT_NE(html.find("31.4"), std::string::npos);
  EXPECT_NE(html.find("24.9"), std::string::npos);
  EXPECT_EQ(count(html, "<dt>The model in the box</dt>"), 1u) << "where there is such a translation";
  EXPECT_EQ(count(html, "<summary>Where the model in the box looked</summary>"), 1u);
  EXPECT_NE(html.find("title=\"box ← 0.250 of look\""), std::string::npos);
  EXPECT_NE(html.find("boxed &lt;script"), std::string::npos);
  EXPECT_NE(html.find("41.2"), std::string::npos);
  EXPECT_EQ(count(html, "<table class=\"scores\">"), 3u);
}

TEST(Page, DrawsTheCurve) {
  const std::string html = render_page(sample());
  EXPECT_EQ(count(html, "<svg"), 2u + 2u) << "one for screens, one for phones, and those of the pictures' task";
  EXPECT_EQ(count(html, "<circle"), 2u * 4 + 2u * 2) << "a dot for each validation";
  EXPECT_EQ(count(html, ">loss, nats per token<"), 2u);
  EXPECT_EQ(count(html, ">loss, nats per picture &lt;"), 2u);
  EXPECT_FALSE(has_nan(html));
}

TEST(Page, HoldsThePictures) {
  const std::string html = render_page(sample());
  // base64 of three, two and again three bytes (RFC 4648).
  EXPECT_NE(html.find("<img alt=\"as it is\" src=\"data:image/png;base64,TWFu\">"), std::string::npos);
  EXPECT_NE(html.find("src=\"data:image/png;base64,TWE=\">"), std::string::npos);
  EXPECT_NE(html.find("<img alt=\"another\" src=\"data:image/png;base64,TQD/\">"), std::string::npos);
  EXPECT_EQ(count(html, "<img "), 3u);
  EXPECT_EQ(count(html, "<dl class=\"answers\">"), 1u) << "where there are answers";
  EXPECT_NE(html.find("--a:0.984\"></i>98.4%"), std::string::npos);
  EXPECT_NE(html.find("91.7%"), std::string::npos);
  EXPECT_NE(html.find("background:rgb(1 128 255)"), std::string::npos);

  Page page;
  page.pictures = {{.title = "", .note = "", .pictures = {{{{"M", "one byte"}}}}}};
  EXPECT_NE(render_page(page).find("base64,TQ==\""), std::string::npos);
}

TEST(Page, LeavesOutWhatIsNotThere) {
  const std::string empty = render_page({});
  EXPECT_EQ(empty.find("<svg"), std::string::npos);
  EXPECT_EQ(empty.find("<h2>"), std::string::npos);

  Page page;  // curves that cannot be drawn: one point, no finite loss, a flat line
  page.curve = {{1, 2, 3}};
  EXPECT_EQ(render_page(page).find("<svg"), std::string::npos);
  page.curve = {{1, NAN, NAN}, {2, NAN, NAN}};
  EXPECT_EQ(render_page(page).find("<svg"), std::string::npos);
  page.curve = {{1, 2, NAN}, {2, 2, NAN}};
  const std::string flat = render_page(page);
  EXPECT_NE(flat.find("<svg"), std::string::npos);
  EXPECT_FALSE(has_nan(flat));
}

TEST(Page, TagsAreClosed) {
  const std::string html = render_page(sample());
  for (const char* tag : {"section", "article", "table", "thead", "tbody", "tr", "dl", "div", "figure", "svg", "h2",
                          "h3", "em", "main", "body", "html", "style"}) {
    const std::string open = std::string("<") + tag;
    EXPECT_EQ(count(html, open + ">") + count(html, open + " "), count(html, std::string("</") + tag + ">")) << tag;
  }
}

}  // namespace
}  // namespace heed::app
