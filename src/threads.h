// The one place that runs work in parallel.
#pragma once

#include <cstdint>
#include <type_traits>

#include "heed/attention.h"

namespace heed {

// How many pieces of work can run at once on `executor`, or on Heed's own pool if it is null; 1 inside a piece.
int workers(Executor* executor);

// Calls task(worker, i) for i in [0, n), in ascending order of i as workers get free. Pieces that run at the same time
// have different workers, numbered from 0 to below `most`; with one worker everything runs in this thread. An exception
// in a piece reaches the caller after all pieces have ended.
void parallel(Executor* executor, int most, int64_t n, void (*task)(void*, int, int64_t), void* context);

template <class F>
void parallel(Executor* executor, int most, int64_t n, F&& f) {
  parallel(
      executor, most, n,
      [](void* context, int worker, int64_t i) { (*static_cast<std::remove_reference_t<F>*>(context))(worker, i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// The same for pieces that do not care which worker runs them: task(i).
template <class F>
void parallel(Executor* executor, int64_t n, F&& f) {
  parallel(executor, workers(executor), n, [&f](int, int64_t i) { f(i); });
}

}  // namespace heed
