// Lines from a file descriptor.
#include "apps/lines.h"

#include <heed/attention.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace heed::app {
namespace {

constexpr size_t kBlock = size_t{1} << 16;  // bytes read at a time
constexpr int kPatience = 50;               // milliseconds to wait for more lines for the same batch

}  // namespace

bool LineReader::fill() {
  if (ended_) return false;
  buffer_.erase(0, at_);
  at_ = 0;
  const size_t size = buffer_.size();
  buffer_.resize(size + kBlock);
  ssize_t n = 0;
  do {
    n = ::read(fd_, buffer_.data() + size, kBlock);
  } while (n < 0 && errno == EINTR);
  const int error = errno;
  buffer_.resize(size + static_cast<size_t>(std::max<ssize_t>(n, 0)));
  if (n < 0) throw Error(std::string("cannot read the input: ") + std::strerror(error));
  ended_ = n == 0;
  return n > 0;
}

bool LineReader::more_at_hand() const {
  if (ended_) return true;
  pollfd poll_fd{fd_, POLLIN, 0};
  return poll(&poll_fd, 1, kPatience) > 0;
}

std::vector<LineReader::Line> LineReader::read(int64_t most) {
  std::vector<Line> lines;
  Line line;
  bool open = false;  // part of a line was read
  int64_t bytes = 0;
  const auto finish = [&] {
    if (!line.text.empty() && line.text.back() == '\r') line.text.pop_back();
    if (static_cast<int64_t>(line.text.size()) > max_bytes_) line.too_long = true;
    if (line.too_long) line.text.clear();
    bytes += static_cast<int64_t>(line.text.size());
    lines.push_back(std::exchange(line, {}));
    open = false;
  };
  while (static_cast<int64_t>(lines.size()) < most && (lines.empty() || bytes < max_bytes_)) {
    if (at_ == buffer_.size()) {
      if (!open && !lines.empty() && !more_at_hand()) break;
      if (!fill()) {
        if (open) finish();
        break;
      }
    }
    const size_t end = buffer_.find('\n', at_);
    const size_t stop = std::min(end, buffer_.size());
    if (!line.too_long) line.text.append(buffer_, at_, stop - at_);
    at_ = stop;
    open = true;
    if (end != std::string::npos) {
      ++at_;
      finish();
    } else if (static_cast<int64_t>(line.text.size()) > max_bytes_ + 1) {  // a CR may still go
      line.too_long = true;
      line.text.clear();
      line.text.shrink_to_fit();
    }
  }
  return lines;
}

}  // namespace heed::app
