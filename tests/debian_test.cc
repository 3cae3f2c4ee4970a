// Collecting catalogues from Debian packages: with a package made here and an apt-get of our own on PATH, no network.
#include "apps/translate/debian.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "said.h"

namespace heed::translate {
namespace {

using heed::tests::expect_in;

namespace fs = std::filesystem;

std::string mo(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string out, text;
  const auto word = [&](size_t v) {
    for (int i = 0; i < 4; i++) out.push_back(static_cast<char>(v >> (8 * i)));
  };
  const size_t n = entries.size();
  for (const size_t v : {size_t{0x950412de}, size_t{0}, n, size_t{28}, 28 + 8 * n, size_t{0}, 28 + 16 * n}) word(v);
  for (const bool target : {false, true}) {
    for (const auto& entry : entries) {
      const std::string& s = target ? entry.second : entry.first;
      word(s.size());
      word(28 + 16 * n + text.size());
      text += s + '\0';
    }
  }
  return out + text;
}

class DebianTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists("/usr/bin/dpkg-deb")) GTEST_SKIP() << "/usr/bin/dpkg-deb is not there";
    // A path with everything a shell would trip over.
    dir_ = fs::temp_directory_path() / ("heed debian 'x' $(id) ; " + std::to_string(getpid()));
    fs::remove_all(dir_);
    fs::create_directories(dir_ / "bin");
    fs::create_directories(dir_ / "archive");
    old_path_ = std::getenv("PATH");
    setenv("PATH", ((dir_ / "bin").string() + ":" + old_path_).c_str(), 1);
    setenv("HEED_TEST_ARCHIVE", (dir_ / "archive").c_str(), 1);
    // Behaves as apt-get download does: the .deb lands in the working directory. Notes each call.
    apt_get(R"sh(
echo "$@" >> "$HEED_TEST_ARCHIVE/calls"
for package; do :; done
if ! cp "$HEED_TEST_ARCHIVE/$package"_*.deb . 2>/dev/null; then
  echo "Reading package lists..."
  echo "E: Unable to locate package $package" >&2
  exit 100
fi)sh");
  }
  void TearDown() override {
    if (old_path_.empty()) return;
    setenv("PATH", old_path_.c_str(), 1);
    fs::remove_all(dir_);
  }

  void apt_get(const std::string& script) {
    const fs::path path = dir_ / "bin" / "apt-get";
    std::ofstream(path) << "#!/bin/sh\n" << script << "\n";
    fs::permissions(path, fs::perms::owner_all);
  }

  // Makes a .deb with these files in the archive.
  void package(const std::string& name, const std::vector<std::pair<std::string, std::string>>& files) {
    const fs::path root = dir_ / "root";
    fs::remove_all(root);
    fs::create_directories(root / "DEBIAN");
    std::ofstream(root / "DEBIAN/control") << "Package: " << name << "\nVersion: 1.0\nArchitecture: all\n"
                                           << "Maintainer: nobody <nobody@example.org>\nDescription: test\n";
    for (const auto& [path, bytes] : files) {
      fs::create_directories((root / path).parent_path());
      std::ofstream(root / path, std::ios::binary) << bytes;
    }
    setenv("HEED_TEST_ROOT", root.c_str(), 1);
    setenv("HEED_TEST_DEB", (dir_ / "archive" / (name + "_1.0_all.deb")).c_str(), 1);
    ASSERT_EQ(std::system("dpkg-deb --root-owner-group -b \"$HEED_TEST_ROOT\" \"$HEED_TEST_DEB\" >/dev/null"), 0);
  }

  DebianText collect(const std::vector<std::string>& packages, const std::string& language = "de") {
    return collect_debian(
        packages, (dir_ / "work").string(),
        [&](const std::string& name, int64_t done, int64_t total) {
          progress_ += name + " " + std::to_string(done) + "/" + std::to_string(total) + ";";
        },
        language);
  }

  std::string error(const std::vector<std::string>& packages, const std::string& language = "de") {
    try {
      collect(packages, language);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  }

  int calls() const {
    std::ifstream in(dir_ / "archive" / "calls");
    int n = 0;
    for (std::string line; std::getline(in, line);) n++;
    return n;
  }

  fs::path dir_;
  std::string old_path_;
  std::string progress_;
};

TEST_F(DebianTest, DownloadsUnpacksReadsAndCaches) {
  const std::string header = "Content-Type: text/plain; charset=UTF-8\n";
  package("office-l10n",
          {{"usr/share/locale/de/LC_MESSAGES/a.mo", mo({{"", header}, {"_Open", "Ö_ffnen"}, {"Linux", "Linux"}})},
           {"usr/lib/office/program/resource/de/LC_MESSAGES/b.mo", mo({{"", header}, {"ID\4~Close", "S~chließen"}})},
           {"usr/share/locale/fr/LC_MESSAGES/a.mo", mo({{"", header}, {"_Open", "_Ouvrir"}})},
           {"usr/share/locale/de/LC_TIME/c.mo", "not a catalogue"},
           {"usr/share/doc/office-l10n/copyright", "x"}});
  package("paint",
          {{"usr/share/locale/de/LC_MESSAGES/p.mo", mo({{"", header}, {"Open", "Auf"}, {"Brush", "Pinsel"}})}});

  const DebianText text = collect({"office-l10n", "paint"});
  EXPECT_EQ(text.pairs, (std::vector<Pair>{{"Close", "Schließen"}, {"Open", "Öffnen"}, {"Brush", "Pinsel"}}));
  ASSERT_EQ(text.packages.size(), 2u);
  EXPECT_EQ(text.packages[0].name, "office-l10n");
  EXPECT_EQ(text.packages[0].file, "office-l10n_1.0_all.deb");
  EXPECT_EQ(text.packages[0].catalogues, 2);
  EXPECT_EQ(text.packages[0].messages, 3);
  EXPECT_EQ(text.packages[0].pairs, 2);
  EXPECT_EQ(text.packages[1].pairs, 1);  // "Open" was there already
  EXPECT_EQ(progress_, "office-l10n 0/2;paint 1/2;");
  EXPECT_EQ(calls(), 2);

  // Again, and in another language: nothing is downloaded.
  EXPECT_EQ(collect({"office-l10n", "paint"}).pairs, text.pairs);
  EXPECT_EQ(collect({"office-l10n"}, "fr").pairs, (std::vector<Pair>{{"Open", "Ouvrir"}}));
  EXPECT_EQ(calls(), 2);

  // A folder without the marker is one that was interrupted: it is replaced.
  fs::remove(dir_ / "work" / "paint" / "unpacked");
  std::ofstream(dir_ / "work" / "paint" / "rubbish") << "x";
  EXPECT_EQ(collect({"office-l10n", "paint"}).pairs, text.pairs);
  EXPECT_EQ(calls(), 3);
  EXPECT_FALSE(fs::exists(dir_ / "work" / "paint" / "rubbish"));
  int entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(dir_ / "work")) entries++;
  EXPECT_EQ(entries, 2) << "something was left behind";
}

TEST_F(DebianTest, ErrorsNameTheCommandThePackageAndItsLastLine) {
  std::string what = error({"nosuch"});
  expect_in("apt-get download for the package nosuch failed with exit code 100", what);
  expect_in("E: Unable to locate package nosuch", what);
  EXPECT_EQ(what.find("Reading package lists"), std::string::npos) << what;
  EXPECT_TRUE(fs::is_empty(dir_ / "work"));

  std::ofstream(dir_ / "archive" / "broken_1_all.deb") << "not a package";
  expect_in("dpkg-deb -x for the package broken failed", error({"broken"}));
  package("plain", {{"usr/share/doc/plain/copyright", "x"}});
  expect_in("plain has no message catalogue for the language \"de\"", error({"plain"}));
  package("bad", {{"usr/share/locale/de/LC_MESSAGES/x.mo", "hello"}});
  expect_in("x.mo has 5 bytes", error({"bad"}));

  apt_get("exit 0");
  expect_in("left no .deb", error({"ghost"}));
  apt_get("kill -TERM $$");
  expect_in("signal 15", error({"ghost"}));
  fs::remove(dir_ / "bin" / "apt-get");
  setenv("PATH", (dir_ / "bin").c_str(), 1);
  expect_in("could not be started", error({"ghost"}));

  std::ofstream(dir_ / "file") << "x";
  try {
    collect_debian(std::vector<std::string>{"ghost"}, (dir_ / "file").string());
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    expect_in("/file", e.what());
  }
}

TEST_F(DebianTest, OnlyPackageNamesAreLetThrough) {
  for (const std::string name : {"", "a", "-o=Dir::Etc=x", "../etc", "a b", "a;id", "$(id)", "Office", "a/b", "a\nb"}) {
    expect_in("is not the name of a Debian package", error({name}));
  }
  EXPECT_EQ(calls(), 0);
}

TEST(DebianDemo, PackagesHaveNames) {
  for (const std::string& name : kDemoPackages) EXPECT_GT(name.size(), 2u);
}

}  // namespace
}  // namespace heed::translate
