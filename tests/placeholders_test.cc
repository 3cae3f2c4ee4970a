// What is found as a placeholder, and what counts as intact.
#include "apps/translate/documents/placeholders.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace heed::translate {
namespace {

using Texts = std::vector<std::string>;

Texts found(const std::string& text, const Formats& formats = {}) {
  return texts(text, find_placeholders(text, formats));
}

Formats flagged(const std::string& flag) { return Formats::of(std::vector<std::string>{flag}); }

TEST(Placeholders, AreFound) {
  const std::vector<std::pair<std::string, Texts>> cases = {
      {"no placeholder here", {}},
      {"", {}},
      // printf
      {"%s and %d", {"%s", "%d"}},
      {"%1$s of %2$-5.2f", {"%1$s", "%2$-5.2f"}},
      {"%-5.2f%%", {"%-5.2f", "%%"}},
      {"%*d %.*s %lld %zu %hhx %Lf", {"%*d", "%.*s", "%lld", "%zu", "%hhx", "%Lf"}},
      {"%<PRIu64> and %-10<PRId32> bytes", {"%<PRIu64>", "%-10<PRId32>"}},
      {"%(name)s %(size).2f", {"%(name)s", "%(size).2f"}},
      {"%{name} %{count}d", {"%{name}", "%{count}"}},
      {"%@ and %1$@", {"%@", "%1$@"}},
      {"%qD and %q+#T", {"%qD", "%q+#T"}},
      {"%d%s%d", {"%d", "%s", "%d"}},
      {"%dx%d, %sth, %ss, %dMB", {"%d", "%d", "%s", "%s", "%d"}},
      {"0x%x v%s", {"%x", "%s"}},
      // words, not directives
      {"100% done", {}},
      {"50% of all", {}},
      {"eine 100%ige Sache, zu 50%-ig", {}},
      {"100%", {}},
      {"5 % discount", {}},
      // Qt, boost, dates, LibreOffice
      {"%1 of %2, %L1, %n file(s), %99", {"%1", "%2", "%L1", "%n", "%99"}},
      {"%1% and %2%.", {"%1%", "%2%"}},
      {"%1%2", {"%1", "%2"}},
      {"%Y-%m-%d %H:%M", {"%Y", "%m", "%d", "%H", "%M"}},
      {"%PRODUCTNAME %FILE_NAME %path%", {"%PRODUCTNAME", "%FILE_NAME", "%path%"}},
      {"$(ARG1) ${var} $HOME $1", {"$(ARG1)", "${var}", "$HOME", "$1"}},
      {"@count items, @name", {"@count", "@name"}},
      // braces
      {"{0} {name} {} {{x}} {{ x }} {x!r:>8} {a.b[0]}",
       {"{0}", "{name}", "{}", "{{x}}", "{{ x }}", "{x!r:>8}", "{a.b[0]}"}},
      {"{n, plural, one {# file} other {# files}} left", {"{n, plural, one {# file} other {# files}}"}},
      {"a { b } c", {}},
      {"open { only", {}},
      // tags and entities
      {"<b>bold</b> <br/> <a href=\"x > y\">z</a>", {"<b>", "</b>", "<br/>", "<a href=\"x > y\">", "</a>"}},
      {"<!-- a > b --> <0>x</0>", {"<!-- a > b -->", "<0>", "</0>"}},
      {"x < y and y > z, a<-b", {}},
      {"Tom &amp; Jerry &#160;&#xA0; Find && Replace", {"&amp;", "&#160;", "&#xA0;", "&&"}},
      // addresses, paths, options
      {"See https://example.org/a?b=1&c=2.", {"https://example.org/a?b=1&c=2"}},
      {"(https://en.wikipedia.org/wiki/A_(b))", {"https://en.wikipedia.org/wiki/A_(b)"}},
      {"www.example.org, mail me.too@example.co.uk!", {"www.example.org", "me.too@example.co.uk"}},
      {"Edit /etc/fstab or ~/.bashrc, not C:\\x\\y.ini.", {"/etc/fstab", "~/.bashrc", "C:\\x\\y.ini"}},
      {"in src/main.c, config.json, ./run", {"src/main.c", "config.json", "./run"}},
      {"and/or, km/h, 1/2/2020, open/save/close, e.g. this, 1.5, end.Next", {}},
      {"Use --foo, --foo=BAR or -v.", {"--foo", "--foo=BAR", "-v"}},
      {"well-known -- and - dash, 5-7", {}},
      // names, escapes
      {"lock_file FILE_NAME main() _GNU_SOURCE", {"lock_file", "FILE_NAME", "main()", "_GNU_SOURCE"}},
      {"a\\nb\\tc", {"\\n", "\\t"}},
      {"\x1b[1mbold\x1b[0m", {"\x1b[1m", "\x1b[0m"}},
      {"größer%süß", {"%s"}},
      // quotes beyond ASCII, and scripts without spaces
      {"»wait_seconds«, „config.json“, “--foo”, «-v»", {"wait_seconds", "config.json", "--foo", "-v"}},
      {"»https://example.org/Größe«; 见https://example.org。", {"https://example.org/Größe", "https://example.org"}},
      {"ä_b, ä-v, größe.txt, main()ä", {"main()"}}};
  for (const auto& [text, want] : cases) EXPECT_EQ(found(text), want) << text;
}

TEST(Placeholders, FormatsOfALanguage) {
  EXPECT_EQ(found("100% done % d", flagged("c-format")), (Texts{"% d", "% d"}));
  EXPECT_EQ(found("%(a) s", flagged("python-format")), (Texts{"%(a) s"}));
  EXPECT_EQ(found("a {b c} {{ }}", flagged("python-brace-format")), (Texts{"{b c}", "{{", "}}"}));
  EXPECT_EQ(found("~a and ~,2F~%", flagged("lisp-format")), (Texts{"~a", "~,2F", "~%"}));
  EXPECT_EQ(found("%qD is %<int%>", flagged("gcc-internal-format")), (Texts{"%qD", "%<", "%>"}));
  EXPECT_EQ(found("100% done", flagged("no-c-format")), Texts{});
}

TEST(Placeholders, NothingIsReadOutsideTheText) {
  const std::string all =
      "%-5.*2$s{{a}${b}<a href='x'>&amp;&#x1;https://a.b me@a.b --foo=</x \\n ~/x C:\\ %<PRIu64> %(a)s";
  for (size_t begin = 0; begin < all.size(); ++begin) {
    for (size_t end = begin; end <= all.size(); ++end) {
      const std::vector<char> exact(all.begin() + static_cast<ptrdiff_t>(begin),
                                    all.begin() + static_cast<ptrdiff_t>(end));
      const std::string_view text(exact.data(), exact.size());
      size_t last = 0;
      for (const Placeholder& p : find_placeholders(text)) {
        ASSERT_LE(last, p.begin);
        ASSERT_LT(p.begin, p.end);
        ASSERT_LE(p.end, text.size());
        last = p.end;
      }
    }
  }
}

TEST(Placeholders, Intact) {
  EXPECT_TRUE(intact("%s in %s", "%s: %s"));
  EXPECT_TRUE(intact("%1$s in %2$s", "%2$s hat %1$s"));
  EXPECT_TRUE(intact("%1 in %2", "%2 hat %1"));
  EXPECT_TRUE(intact("%(a)s in %(b)s", "%(b)s hat %(a)s"));
  EXPECT_FALSE(intact("%s of %d", "%d von %s")) << "they take their values from a list";
  EXPECT_TRUE(intact("%d%% of %s", "%d von 100 %% %s"));
  EXPECT_FALSE(intact("%s", ""));
  EXPECT_FALSE(intact("%s", "%s %s"));
  EXPECT_FALSE(intact("a", "%s"));
  EXPECT_FALSE(intact("%s", "%S"));
  EXPECT_TRUE(intact("<b>a</b> <i>b</i>", "<i>b</i> <b>a</b>"));
  EXPECT_FALSE(intact("<b>a</b>", "</b>a<b>"));
  EXPECT_FALSE(intact("<b>a</b> <i>b</i>", "<b>a <i>b</b></i>"));
  EXPECT_TRUE(intact("a<br>b", "b<br>a"));
  EXPECT_TRUE(intact("a</p>", "b</p>")) << "the source is not nested either";
  EXPECT_TRUE(intact("100% done", "zu 100 % fertig"));
  EXPECT_TRUE(intact("100% done", "100 % done", flagged("c-format")));
  EXPECT_FALSE(intact("100% done", "100% fertig", flagged("c-format"))) << "to C that is % d and % f";
  EXPECT_FALSE(intact("{0} it''s", "{0} it's", flagged("java-format")));
}

}  // namespace
}  // namespace heed::translate
