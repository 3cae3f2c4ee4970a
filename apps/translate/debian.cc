// Reading the message catalogues in Debian packages.
#include "apps/translate/debian.h"

#include <heed/attention.h>

#include <algorithm>
#include <filesystem>

#include "apps/debian_package.h"
#include "apps/translate/gettext.h"

namespace heed::translate {
namespace {

namespace fs = std::filesystem;

// .mo files in folders named <language>/LC_MESSAGES, wherever they are: most programs have theirs in usr/share/locale,
// LibreOffice in usr/lib/libreoffice/program/resource.
std::vector<fs::path> catalogues(const fs::path& root, const std::string& language) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const fs::path& path = entry.path();
    if (path.extension() == ".mo" && entry.is_regular_file() && !entry.is_symlink() &&
        path.parent_path().filename() == "LC_MESSAGES" && path.parent_path().parent_path().filename() == language) {
      found.push_back(path);
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

DebianText collect_debian(std::span<const std::string> packages, const std::string& work_dir,
                          const DebianProgress& progress, const std::string& language) {
  for (const std::string& package : packages) app::check_package_name(package);
  DebianText text;
  std::vector<Message> messages;
  size_t pairs_before = 0;
  try {
    for (const std::string& package : packages) {
      if (progress) {
        progress(package, static_cast<int64_t>(text.packages.size()), static_cast<int64_t>(packages.size()));
      }
      const app::DebianPackage files = app::fetch_debian(package, work_dir);
      DebianPackage counts{.name = package, .file = files.file};
      for (const fs::path& path : catalogues(files.folder, language)) {
        const Catalogue catalogue = parse_mo(read_bytes(path.string(), kMaxCatalogueBytes), path.string());
        counts.catalogues++;
        counts.messages += static_cast<int64_t>(catalogue.messages.size());
        messages.insert(messages.end(), catalogue.messages.begin(), catalogue.messages.end());
      }
      if (counts.catalogues == 0) {
        throw Error("The Debian package " + package + " has no message catalogue for the language \"" + language +
                    "\".");
      }
      // All over again with each package, so that the packages' messages vote together on a source they share.
      text.pairs = clean_messages(messages);
      counts.pairs = static_cast<int64_t>(text.pairs.size() - pairs_before);
      pairs_before = text.pairs.size();
      text.packages.push_back(counts);
    }
  } catch (const fs::filesystem_error& e) {
    throw Error("Collecting Debian's catalogues in " + work_dir + " failed: " + e.code().message() + " (" +
                e.path1().string() + ").");
  }
  return text;
}

}  // namespace heed::translate
