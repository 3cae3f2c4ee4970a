// Downloading and unpacking a Debian package.
#include "apps/debian_package.h"

#include <fcntl.h>
#include <heed/attention.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <vector>

namespace heed::app {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMarker = "unpacked";  // in a package's folder, when it is whole; holds the .deb's name

std::string last_line(const std::string& output) {
  size_t end = output.find_last_not_of(" \t\r\n");
  if (end == std::string::npos) return "";
  const size_t start = output.find_last_of("\r\n", end);
  return output.substr(start == std::string::npos ? 0 : start + 1, end - (start == std::string::npos ? -1 : start));
}

// Runs a program with these arguments in `dir` and returns what it wrote to both streams. No shell is involved, so
// nothing in an argument has a meaning of its own.
std::string run(const std::vector<std::string>& arguments, const fs::path& dir, const std::string& package) {
  const std::string what = arguments[0] + " " + arguments[1] + " for the package " + package;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw Error(what + ": no pipe: " + std::strerror(errno) + ".");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
  posix_spawn_file_actions_addchdir_np(&actions, dir.c_str());
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int failed = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  if (failed != 0) {
    close(ends[0]);
    throw Error(what + " could not be started: " + std::strerror(failed) +
                "; it comes from Debian's archive, so this needs Debian or a system made from it.");
  }
  std::string output;
  char buffer[4096];
  for (;;) {
    const ssize_t n = read(ends[0], buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    output.append(buffer, static_cast<size_t>(n));
    // Only the end is ever reported.
    if (output.size() > (1u << 20)) output.erase(0, output.size() - (1u << 16));
  }
  close(ends[0]);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) throw Error(what + ": waiting for it failed: " + std::strerror(errno) + ".");
  }
  if (WIFSIGNALED(status)) throw Error(what + " was stopped by signal " + std::to_string(WTERMSIG(status)) + ".");
  if (WEXITSTATUS(status) != 0) {
    const std::string said = last_line(output);
    throw Error(what + " failed with exit code " + std::to_string(WEXITSTATUS(status)) +
                (said.empty() ? "." : ": " + said));
  }
  return output;
}

// The marker's text, or nothing if the package is not there in whole.
std::string unpacked_from(const fs::path& dir) {
  std::ifstream marker(dir / kMarker);
  std::string file;
  std::getline(marker, file);
  return file;
}

// Leaves the package's files in dir. Works in a folder of its own until all is there, so a kill leaves nothing that
// looks whole, and two processes do not meet.
void fetch(const std::string& package, const fs::path& dir) {
  const fs::path part = dir.parent_path() / (package + ".part-" + std::to_string(getpid()));
  fs::remove_all(part);
  fs::create_directories(part);
  struct Remover {
    const fs::path& path;
    ~Remover() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  } remover{part};
  // As root apt would hand the download to the user _apt, who may not write here.
  run({"apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package}, part, package);
  fs::path deb;
  for (const auto& entry : fs::directory_iterator(part)) {
    if (entry.path().extension() == ".deb") deb = entry.path();
  }
  if (deb.empty()) throw Error("apt-get download for the package " + package + " left no .deb file.");
  run({"dpkg-deb", "-x", deb.filename().string(), "files"}, part, package);
  fs::remove(deb);
  std::ofstream marker(part / kMarker);
  marker << deb.filename().string() << "\n";
  marker.close();
  if (!marker) throw Error((part / kMarker).string() + " could not be written; is the disk full?");
  fs::remove_all(dir);
  fs::rename(part, dir);
}

}  // namespace

void check_package_name(const std::string& name) {
  const auto fits = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  const bool good = name.size() >= 2 && fits(name[0]) && std::all_of(name.begin(), name.end(), [&](char c) {
                      return fits(c) || c == '+' || c == '-' || c == '.';
                    });
  if (!good) throw Error("\"" + name + "\" is not the name of a Debian package.");
}

DebianPackage fetch_debian(const std::string& package, const std::string& work_dir) {
  check_package_name(package);
  try {
    fs::create_directories(work_dir);
    const fs::path dir = fs::absolute(work_dir) / package;
    if (unpacked_from(dir).empty()) fetch(package, dir);
    return {(dir / "files").string(), unpacked_from(dir)};
  } catch (const fs::filesystem_error& e) {
    throw Error("Unpacking the Debian package " + package + " in " + work_dir + " failed: " + e.code().message() +
                " (" + e.path1().string() + ").");
  }
}

}  // namespace heed::app
