// Ctrl-C that lets the work be saved.
#pragma once

namespace heed::nn {

// While one of these lives, the first Ctrl-C (SIGINT) or SIGTERM only sets a flag, for the work to see and to save
// itself; the second acts as it would have without the guard, that is, it kills. What the program had installed before
// comes back with the last guard. A signal that the program ignores (nohup) stays ignored.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // True once a signal came since the first living guard was made.
  static bool requested();
};

}  // namespace heed::nn
