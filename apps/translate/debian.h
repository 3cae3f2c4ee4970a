// Parallel text from the translated programs in Debian's archive: the demo's data, which everyone may have.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "apps/translate/pairs.h"

namespace heed::translate {

// 31,000 different pairs for 13.5 MB of downloads (Debian 12, English to German; pairs new with each):
//   libreoffice-l10n-de  0.9 MB  17,100   the core: careful German, from "Bold" to whole sentences of advice
//   krita-l10n           3.0 MB   3,300   painting, KDE's own strings, very short
//   audacity-data        2.4 MB   3,400   sound
//   gnumeric-common      2.0 MB   3,000   spreadsheets, a second voice beside LibreOffice's
//   gnucash-common       5.2 MB   4,400   money and accounts
// Looked at and left out: gcc-12-locales (13,300 pairs; 59% have placeholders like %qD, all are about compiling),
// util-linux-locales (3,400; 35% have placeholders), vlc-l10n (5,400 pairs for 6.4 MB, half-English
// German: "Kein Input"), gnome-control-center-data (2,300; over a fifth are time zones), evolution-common (counted
// only: 4,300 for 8.5 MB).
inline const std::array<std::string, 5> kDemoPackages = {"libreoffice-l10n-de", "krita-l10n", "audacity-data",
                                                         "gnumeric-common", "gnucash-common"};

struct DebianPackage {
  std::string name;
  std::string file;        // the .deb it came from, which tells the version
  int64_t catalogues = 0;  // .mo files of the language
  int64_t messages = 0;    // in them
  int64_t pairs = 0;       // that are fit (clean_messages) and were in no package before
};

struct DebianText {
  std::vector<Pair> pairs;
  std::vector<DebianPackage> packages;
};

// Told before each package: its name, how many are done, how many there are in all.
using DebianProgress = std::function<void(const std::string& package, int64_t done, int64_t total)>;

// Fetches each package into work_dir (apps/debian_package.h) and reads the catalogues of `language` (a gettext locale:
// "de", "pt_BR") in it. English is the source side. Throws heed::Error as fetch_debian, and for a package without
// catalogues in the language.
DebianText collect_debian(std::span<const std::string> packages, const std::string& work_dir,
                          const DebianProgress& progress = {}, const std::string& language = "de");

}  // namespace heed::translate
