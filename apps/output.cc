// Standard output and standard error.
#include "apps/output.h"

#include <fcntl.h>
#include <heed/attention.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "apps/terminal.h"

namespace heed::app {

void prepare_streams() {
  std::signal(SIGPIPE, SIG_IGN);
  for (int fd = 0; fd <= 2; ++fd) {
    if (fcntl(fd, F_GETFD) == -1 && errno == EBADF) {
      // open gives the lowest free number, which is this one. Output that was closed stays unwritable, so that losing
      // it is reported; messages on a closed standard error are dropped.
      if (open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY) != fd) _exit(1);
    }
  }
}

void print(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data(), text.size());
    if (n >= 0) {
      text.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EPIPE) {
      throw ReaderGone();
    } else if (errno != EINTR) {
      throw Error(std::string("cannot write to standard output: ") + std::strerror(errno));
    }
  }
}

void say(std::string_view line) { std::fprintf(stderr, "%s\n", printable(line).c_str()); }

void check_folder_of(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code ignored;
  if (!folder.empty() && !std::filesystem::is_directory(folder, ignored)) {
    throw Error("cannot write " + path + ": there is no folder " + folder.string());
  }
}

}  // namespace heed::app
