// The one place that runs work in parallel.
#pragma once

#include <cstdint>
#include <type_traits>

#include "heed/attention.h"

namespace heed {

// Calls task(i) for i in [0, n): on `executor`, or on Heed's own pool if it is null; in this thread when there is
// nothing to share. An exception in a task reaches the caller after all tasks have ended.
void parallel(Executor* executor, int64_t n, void (*task)(void*, int64_t), void* context);

template <class F>
void parallel(Executor* executor, int64_t n, F&& f) {
  parallel(
      executor, n, [](void* context, int64_t i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace heed
