// Starting copies of the program, and what became of them.
#include "libtorch/children.h"

#include <fcntl.h>
#include <heed/attention.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "libtorch/files.h"

namespace heed::nn {
namespace {

constexpr const char* kVariable = "HEED_CHILD";  // rank, world and the board's descriptor
constexpr int kPatience = 5;                     // seconds that children get to end by themselves

std::string board_path(int descriptor) { return "/proc/self/fd/" + std::to_string(descriptor); }

std::vector<std::string> own_arguments() {
  const std::string line = read_file("/proc/self/cmdline");
  std::vector<std::string> result;
  for (size_t at = 0; at < line.size(); at += result.back().size() + 1) result.emplace_back(line.c_str() + at);
  return result;
}

// The environment with the variable set to this value.
std::vector<std::string> environment(const std::string& value) {
  const std::string name = std::string(kVariable) + "=";
  std::vector<std::string> result{name + value};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, name.c_str(), name.size()) != 0) result.emplace_back(*entry);
  }
  return result;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

Children::Children() : board_(::memfd_create("heed-processes", MFD_CLOEXEC)) {
  if (board_ < 0) throw Error(std::string("cannot start processes: memfd_create: ") + std::strerror(errno));
}

Children::Children(int world) : Children(world, own_arguments()) {}

Children::Children(int world, const std::vector<std::string>& arguments) : Children() { start(world, arguments); }

void Children::start(int world, const std::vector<std::string>& arguments) {
  const pid_t parent = ::getpid();
  const std::string of_world = " " + std::to_string(world) + " ";
  children_.reserve(static_cast<size_t>(world));
  world_ = world;
  for (int rank = 1; rank < world; ++rank) {
    // All memory is taken before the fork: behind it only system calls are safe.
    std::vector<std::string> words = arguments;
    std::vector<std::string> variables = environment(std::to_string(rank) + of_world + std::to_string(board_));
    std::vector<char*> argv = pointers(words), envp = pointers(variables);
    const pid_t child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(1);  // the parent died before it was asked for its death
      const int null = ::open("/dev/null", O_RDONLY);
      if (null >= 0) ::dup2(null, STDIN_FILENO);
      ::fcntl(board_, F_SETFD, 0);
      ::execve("/proc/self/exe", argv.data(), envp.data());
      ::_exit(127);
    }
    if (child < 0) {
      throw Error("cannot start process " + std::to_string(rank) + " of" + of_world.substr(0, of_world.size() - 1) +
                  ": " + std::strerror(errno));
    }
    children_.push_back({child});
  }
}

Children::~Children() {
  join();
  if (board_ >= 0) ::close(board_);
}

std::string Children::join() {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::seconds(kPatience);
  const auto running = [&] {
    look();
    return std::any_of(children_.begin(), children_.end(), [](const Child& child) { return !child.status; });
  };
  while (running() && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  for (Child& child : children_) {
    if (child.status) continue;
    ::kill(child.pid, SIGKILL);
    int status = 0;
    while (::waitpid(child.pid, &status, 0) < 0 && errno == EINTR) continue;
    child.status = status;
  }
  return casualty();
}

Place Children::place() const { return {0, world_, board_path(board_)}; }

void Children::look() {
  for (Child& child : children_) {
    int status = 0;
    if (!child.status && ::waitpid(child.pid, &status, WNOHANG) == child.pid) child.status = status;
  }
}

std::string Children::casualty() {
  look();
  std::string result;
  for (size_t i = 0; i < children_.size(); ++i) {
    const Child& child = children_[i];
    if (!child.status || (WIFEXITED(*child.status) && WEXITSTATUS(*child.status) == 0)) continue;
    const std::string who = "rank " + std::to_string(i + 1) + " of " + std::to_string(world_) + " (process " +
                            std::to_string(child.pid) + ") ";
    if (WIFSIGNALED(*child.status)) {
      const int signal = WTERMSIG(*child.status);
      return who + "was killed by signal " + std::to_string(signal) + " (" + ::strsignal(signal) + ")";
    }
    if (result.empty()) result = who + "ended with exit code " + std::to_string(WEXITSTATUS(*child.status));
  }
  return result;
}

std::optional<Place> child_place() {
  const char* text = std::getenv(kVariable);
  int rank = 0, world = 0, board = 0;
  if (text == nullptr || std::sscanf(text, "%d %d %d", &rank, &world, &board) != 3) return std::nullopt;
  return Place{rank, world, board_path(board)};
}

}  // namespace heed::nn
