// Copies of this program on this machine, for training on several processes. Needs no LibTorch.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace heed::nn {

// A process among those that train together. Rank 0 is the one that prints and writes.
struct Place {
  int rank = 0;
  int world = 1;      // how many there are
  std::string board;  // on one machine: the path of a file in memory where they leave notes; gone with the last of them
};

// Rank 1 and those after it, started by rank 0.
class Children {
 public:
  // Starts world - 1 copies of this program with these arguments, the program's name first; by default its own. A child
  // is killed when its parent dies, reads nothing from standard input, and knows its place: child_place(). Call it from
  // a thread that lives as long as the children. Throws heed::Error when a process cannot be started.
  explicit Children(int world);
  Children(int world, const std::vector<std::string>& arguments);
  ~Children();  // join()
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  // The parent's place: rank 0.
  Place place() const;

  // What happened to a child that ended and should not have, "rank 1 of 2 (process 4242) was killed by signal 9
  // (Killed)"; empty as long as none has. Of several, one that was killed comes first: the others may have followed it.
  std::string casualty();

  // Gives them a few seconds to end, kills those that have not, and waits for all, so that neither orphans nor zombies
  // stay. Returns what casualty() does then.
  std::string join();

 private:
  struct Child {
    pid_t pid;
    std::optional<int> status = {};  // as waitpid tells it, once the child has ended
  };
  Children();
  void start(int world, const std::vector<std::string>& arguments);
  void look();

  int board_ = -1;
  int world_ = 1;
  std::vector<Child> children_;
};

// In a process that Children has started: its place.
std::optional<Place> child_place();

}  // namespace heed::nn
