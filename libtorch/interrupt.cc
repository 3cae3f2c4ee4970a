// The signal handlers behind Interrupt.
#include "libtorch/interrupt.h"

#include <signal.h>

#include <mutex>

namespace heed::nn {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM};
struct sigaction before[2];  // what was installed before the first guard
volatile sig_atomic_t flag = 0;
std::mutex mutex;
int guards = 0;

bool ignored(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler == SIG_IGN;
}

void on_signal(int) {
  flag = 1;
  for (int i = 0; i < 2; ++i) {
    if (!ignored(before[i])) ::sigaction(kSignals[i], &before[i], nullptr);
  }
}

}  // namespace

Interrupt::Interrupt() {
  std::lock_guard lock(mutex);
  if (guards++ > 0) return;
  flag = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // a write in progress is not torn
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < 2; ++i) {
    ::sigaction(kSignals[i], nullptr, &before[i]);
    if (!ignored(before[i])) ::sigaction(kSignals[i], &action, nullptr);
  }
}

Interrupt::~Interrupt() {
  std::lock_guard lock(mutex);
  if (--guards > 0) return;
  for (int i = 0; i < 2; ++i) {
    if (!ignored(before[i])) ::sigaction(kSignals[i], &before[i], nullptr);
  }
}

bool Interrupt::requested() { return flag != 0; }

}  // namespace heed::nn
