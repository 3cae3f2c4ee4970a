#include "threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace heed {
namespace {

// Set while a thread runs tasks of a pool: nested calls then run in place instead of waiting for the pool they occupy.
thread_local bool inside_a_task = false;

struct InsideATask {
  const bool before = inside_a_task;
  InsideATask() { inside_a_task = true; }
  ~InsideATask() { inside_a_task = before; }
};

// Workers wait on a condition variable between calls. Indices are handed out by a counter; the caller works too.
class Pool final : public Executor {
 public:
  explicit Pool(int threads) {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this] { work(); });
  }
  ~Pool() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& w : workers_) w.join();
  }

  int concurrency() const override { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t tasks, void (*task)(void*, int64_t), void* context) override {
    // A second caller does not wait for the first one's work: it does its own in place.
    std::unique_lock turn(turn_, std::try_to_lock);
    if (!turn || workers_.empty() || inside_a_task) {
      for (int64_t i = 0; i < tasks; ++i) task(context, i);
      return;
    }
    {
      std::lock_guard lock(mutex_);
      task_ = task;
      context_ = context;
      tasks_ = tasks;
      next_ = 0;
      busy_ = static_cast<int>(workers_.size());
      ++call_;
    }
    wake_.notify_all();
    drain();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void drain() {
    InsideATask mark;
    for (int64_t i; (i = next_.fetch_add(1)) < tasks_;) task_(context_, i);
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || call_ != seen; });
        if (stop_) return;
        seen = call_;
      }
      drain();
      std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  bool stop_ = false;
  uint64_t call_ = 0;
  int busy_ = 0;
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_{0};
};

int default_threads() {
  if (const char* text = std::getenv("HEED_THREADS")) {
    const int n = std::atoi(text);
    if (n >= 1 && n <= 1024) return n;
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

std::mutex pool_mutex;
std::shared_ptr<Pool> pool;  // replaced by set_threads; a call in flight keeps the one it runs on

std::shared_ptr<Pool> current_pool() {
  std::lock_guard lock(pool_mutex);
  if (!pool) pool = std::make_shared<Pool>(default_threads());
  return pool;
}

// The pieces of one call, which workers take one after the other. Also carries an exception past an executor that knows
// nothing of them.
struct Work {
  void (*task)(void*, int, int64_t);
  void* context;
  int64_t n;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;

  static void run(void* self, int64_t worker) {
    Work& w = *static_cast<Work*>(self);
    const InsideATask mark;
    for (int64_t i; (i = w.next.fetch_add(1, std::memory_order_relaxed)) < w.n;) {
      try {
        w.task(w.context, static_cast<int>(worker), i);
      } catch (...) {
        std::lock_guard lock(w.mutex);
        if (!w.error) w.error = std::current_exception();
      }
    }
  }
};

}  // namespace

int workers(Executor* executor) {
  if (executor) return std::max(1, executor->concurrency());
  return inside_a_task ? 1 : current_pool()->concurrency();
}

void parallel(Executor* executor, int most, int64_t n, void (*task)(void*, int, int64_t), void* context) {
  const int64_t share = std::min<int64_t>(most, n);
  if (share <= 1) {
    for (int64_t i = 0; i < n; ++i) task(context, 0, i);
    return;
  }
  Work work{task, context, n, {}, {}, {}};
  if (executor) {
    executor->run(share, &Work::run, &work);
  } else {
    const std::shared_ptr<Pool> mine = current_pool();
    mine->run(share, &Work::run, &work);
  }
  if (work.error) std::rethrow_exception(work.error);
}

int threads() { return current_pool()->concurrency(); }

void set_threads(int n) {
  if (n < 1 || n > 1024) throw Error("set_threads(" + std::to_string(n) + ") is out of range; give 1 to 1024 threads");
  auto fresh = std::make_shared<Pool>(n);
  std::lock_guard lock(pool_mutex);
  pool.swap(fresh);
}

}  // namespace heed
