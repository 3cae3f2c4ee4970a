// The files of a Debian package, without installing it.
#pragma once

#include <string>

namespace heed::app {

struct DebianPackage {
  std::string folder;  // holds the package's files, as usr/share/...
  std::string file;    // the .deb they came from, which tells the version
};

// Downloads a package with apt-get and unpacks it with dpkg-deb under work_dir; no right beyond writing there is
// needed. One that is already unpacked there is used as it is, without the network; one that was interrupted starts
// afresh. Throws heed::Error naming the command, the package and what the command said last, when a command fails; also
// for something that is not a package name.
DebianPackage fetch_debian(const std::string& package, const std::string& work_dir);

// Throws heed::Error unless this is the name of a package (Debian policy 5.6.7): anything else could be taken for an
// option or a path.
void check_package_name(const std::string& name);

}  // namespace heed::app
