// The progress line.
#include "apps/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace heed::app {
namespace {

constexpr double kTerminalInterval = 0.1;  // seconds between redraws
constexpr double kPlainInterval = 20;      // seconds between lines in a log
constexpr int kWidestBar = 30;
constexpr int kNarrowestBar = 8;

// A bar of `width` columns.
std::string bar(double fraction, int width, bool unicode) {
  if (!unicode) {
    const int full = static_cast<int>(std::lround(fraction * (width - 2)));
    return "[" + std::string(full, '#') + std::string(width - 2 - full, '.') + "]";
  }
  const int full = static_cast<int>(std::lround(fraction * width));
  std::string out;
  for (int i = 0; i < width; ++i) out += i < full ? "━" : "─";
  return out;
}

}  // namespace

std::string progress_line(const std::string& label, const ProgressState& state, int columns, bool unicode) {
  const bool known = std::isfinite(state.fraction);
  const double fraction = known ? std::clamp(state.fraction, 0.0, 1.0) : 0.0;
  char percent[8];
  std::snprintf(percent, sizeof percent, "%3d%%", static_cast<int>(std::floor(fraction * 100)));
  std::vector<std::string> parts = state.details;
  // The time left is what people look for first, so it is the last to go.
  std::string left = state.seconds_left >= 0 ? duration(state.seconds_left) + " left" : "";
  const auto width_with = [&](int bar_width) {
    int width = display_width(label) + (known ? 2 + bar_width + 1 + 4 : 0);
    for (const std::string& part : parts) width += 2 + display_width(part);
    return width + (left.empty() ? 0 : 2 + display_width(left));
  };
  while (!parts.empty() && width_with(kNarrowestBar) > columns) parts.pop_back();
  const int bar_width = std::clamp(columns - width_with(0), kNarrowestBar, kWidestBar);
  if (width_with(bar_width) > columns) return fit(known ? label + " " + percent : label, columns, unicode);

  std::string line = known ? label + "  " + bar(fraction, bar_width, unicode) + " " + percent : label;
  for (const std::string& part : parts) line += "  " + part;
  if (!left.empty()) line += "  " + left;
  return line;
}

Progress::Progress(std::string label)
    : Progress(
          std::move(label), app::terminal(STDERR_FILENO),
          [](const std::string& text) {
            std::fputs(text.c_str(), stderr);
            std::fflush(stderr);
          },
          [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }) {
  fd_ = STDERR_FILENO;
}

Progress::Progress(std::string label, Terminal terminal, std::function<void(const std::string&)> write,
                   std::function<double()> seconds)
    : label_(std::move(label)),
      terminal_(terminal),
      write_(std::move(write)),
      seconds_(std::move(seconds)),
      due_(terminal.tty ? 0 : seconds_() + kPlainInterval) {}

Progress::~Progress() { clear(); }

void Progress::update(const std::function<ProgressState()>& state) {
  const double now = seconds_();
  if (now < due_) return;
  due_ = now + (terminal_.tty ? kTerminalInterval : kPlainInterval);
  if (fd_ >= 0) terminal_.columns = app::terminal(fd_).columns;
  // One column stays free: some terminals wrap when the last one is written.
  const std::string line = progress_line(label_, state(), terminal_.columns - 1, terminal_.unicode);
  if (terminal_.tty) {
    write_("\r" + line + "\x1b[K");
    drawn_ = true;
  } else {
    write_(line + "\n");
  }
}

void Progress::note(const std::string& line) {
  clear();
  write_(line + "\n");
}

void Progress::done(const std::string& line) {
  clear();
  due_ = INFINITY;  // a late update does not bring the bar back
  write_(line + "\n");
}

void Progress::clear() {
  if (drawn_) write_("\r\x1b[K");
  drawn_ = false;
  if (terminal_.tty && due_ != INFINITY) due_ = 0;
}

}  // namespace heed::app
