// Reading lines as they come, for programs that stand in a pipe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace heed::app {

// Reads a file descriptor line by line. A line may end in LF, CR LF or with the input; of a line longer than max_bytes
// only its length is kept, so a huge line costs no memory.
class LineReader {
 public:
  struct Line {
    std::string text;       // without its end; empty if too_long
    bool too_long = false;  // had more than max_bytes bytes
  };

  LineReader(int fd, int64_t max_bytes) : fd_(fd), max_bytes_(max_bytes) {}

  // The lines that are there, at least one and at most `most`, and none after max_bytes bytes of them, so that memory
  // is bounded; empty at the end of the input. Waits for the first line and then only briefly for more, so a reader at
  // the other end who waits for answers gets them. Throws heed::Error when reading fails.
  std::vector<Line> read(int64_t most);

 private:
  bool fill();                // reads more bytes; false at the end of the input
  bool more_at_hand() const;  // whether fill would return soon

  int fd_;
  int64_t max_bytes_;
  std::string buffer_;  // bytes read
  size_t at_ = 0;       // those before are used
  bool ended_ = false;
};

}  // namespace heed::app
