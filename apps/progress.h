// A progress line for long work: a bar redrawn in place on a terminal, a plain line now and then elsewhere.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "apps/terminal.h"

namespace heed::app {

struct ProgressState {
  double fraction = 0;               // 0..1
  std::vector<std::string> details;  // most important first; the last ones go when the terminal is narrow
  double seconds_left = -1;          // below 0 or NaN: not known
};

// One line of at most `columns` columns: label, bar, per cent, details, time left.
std::string progress_line(const std::string& label, const ProgressState& state, int columns, bool unicode);

// Writes to standard error. On a terminal the line is redrawn at most ten times a second; elsewhere (a log file, CI) a
// plain line appears every 20 seconds. Not for use from several threads at once.
class Progress {
 public:
  explicit Progress(std::string label);
  // For tests: where to write, what it can do, and what time it is.
  Progress(std::string label, Terminal terminal, std::function<void(const std::string&)> write,
           std::function<double()> seconds);
  ~Progress();  // takes the bar away if it still stands
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `state` is called only when a line is due, so calling update for every step is cheap.
  void update(const std::function<ProgressState()>& state);
  // A line that stays, above the bar.
  void note(const std::string& line);
  // Takes the bar away and leaves this line in its place.
  void done(const std::string& line);

 private:
  void clear();

  std::string label_;
  Terminal terminal_;
  int fd_ = -1;  // asked for its width at every redraw, since windows are resized
  std::function<void(const std::string&)> write_;
  std::function<double()> seconds_;
  double due_ = 0;  // when the next line may be written
  bool drawn_ = false;
};

}  // namespace heed::app
