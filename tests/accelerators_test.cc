// Which signs are accelerators, where they go in a translation, and how many placeholders it kept.
#include "apps/translate/documents/accelerators.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace heed::translate {
namespace {

TEST(Accelerators, AreTaken) {
  const auto taken = [](std::string text) {
    const auto a = take_accelerator(text);
    return a ? std::string(1, a->marker) + a->letter + " " + text : "none " + text;
  };
  EXPECT_EQ(taken("&File"), "&f File");
  EXPECT_EQ(taken("E&xit"), "&x Exit");
  EXPECT_EQ(taken("Save &As..."), "&a Save As...");
  EXPECT_EQ(taken("_Open %s"), "_o Open %s");
  EXPECT_EQ(taken("Sen_d reports"), "_d Send reports");
  EXPECT_EQ(taken("Ch~aracters"), "~a Characters");
  EXPECT_EQ(taken("打开(_O)"), "_o 打开");
  EXPECT_EQ(taken("Ö&ffnen"), "&f Öffnen");
  EXPECT_EQ(taken("&Öffnen"), "&ö Öffnen");
  EXPECT_EQ(taken("Zoom &1:1"), "&1 Zoom 1:1");
  EXPECT_EQ(taken("Find && &Replace"), "&r Find && Replace");
  for (const char* none :
       {"Black & white", "R&D costs", "AT&T", "Tom &amp; Jerry", "lock_file missing", "FILE_NAME", "a & b",
        "&File &Edit", "_a_", "~5 MB", "https://a.org/?a=1&b=2", "&", "File&", "line\n&two", "_a &b", ""}) {
    EXPECT_EQ(taken(none), std::string("none ") + none);
  }
}

TEST(Accelerators, ArePutBack) {
  const auto put = [](std::string text, char marker, const char* letter) {
    put_accelerator(text, {marker, letter});
    return text;
  };
  EXPECT_EQ(put("Datei öffnen", '&', "f"), "Datei ö&ffnen");
  EXPECT_EQ(put("Neue Datei", '&', "d"), "Neue &Datei");
  EXPECT_EQ(put("Öffnen", '_', "o"), "_Öffnen");
  EXPECT_EQ(put("Öffnen", '_', "ö"), "_Öffnen");
  EXPECT_EQ(put("Über %x", '&', "x"), "&Über %x") << "not into a placeholder";
  EXPECT_EQ(put("打开", '_', "o"), "打开(_O)");
  EXPECT_EQ(put("打开...", '&', "o"), "打开(&O)...");
  EXPECT_EQ(put("打开…", '&', "o"), "打开(&O)…");
  EXPECT_EQ(put("%s", '&', "o"), "%s(&O)");
  EXPECT_EQ(put("Открыть", '&', "o"), "&Открыть");
  EXPECT_EQ(put("neue datei", '_', "a"), "_neue datei") << "dat_ei would be a name";
}

TEST(Kept, IsCounted) {
  const auto kept = [](const char* source, const char* target) {
    const Kept k = kept_placeholders(source, target);
    return std::vector<int64_t>{k.placeholders, k.kept, k.added};
  };
  EXPECT_EQ(kept("&Open %s", "Ö&ffne %s"), (std::vector<int64_t>{2, 2, 0}));
  EXPECT_EQ(kept("&Open %s", "Öffne %d"), (std::vector<int64_t>{2, 0, 1}));
  EXPECT_EQ(kept("%s %s", "%s"), (std::vector<int64_t>{2, 1, 0}));
  EXPECT_EQ(kept("none", "keine"), (std::vector<int64_t>{0, 0, 0}));
  EXPECT_TRUE(kept_placeholders("_Close", "_Schließen").all());
  EXPECT_FALSE(kept_placeholders("_Close", "Schließen").all());
}

}  // namespace
}  // namespace heed::translate
