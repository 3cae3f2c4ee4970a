#include "threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "hwy/cache_control.h"

namespace heed {
namespace {

// Set while a thread runs tasks of a pool: nested calls then run in place instead of waiting for the pool they occupy.
thread_local bool inside_a_task = false;

struct InsideATask {
  const bool before = inside_a_task;
  InsideATask() { inside_a_task = true; }
  ~InsideATask() { inside_a_task = before; }
};

// How long a thread looks for work, or for the others' end, before it sleeps: about what waking it would take. Calls
// that follow each other at once then wake nobody, and the scheduler has no occasion to wake two threads on one core.
constexpr std::chrono::microseconds kSpin{50};

// Whether `ready()` came true within kSpin.
template <class Ready>
bool spin_until(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      hwy::Pause();
    }
    std::this_thread::yield();  // to whoever else wants this core
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// Indices are handed out by a counter; the caller works too. Nobody is waited for who has not come by the time the
// counter has run out: on a busy machine that may be milliseconds later.
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
    task_ = task;
    context_ = context;
    tasks_ = tasks;
    next_ = 0;
    bool asleep = false;
    {
      std::lock_guard lock(mutex_);
      call_ = ++calls_;
      asleep = sleeping_ > 0;
    }
    if (asleep) wake_.notify_all();
    drain();
    call_ = 0;
    const auto left = [this] { return inside_ == 0; };
    if (spin_until(left)) return;
    std::unique_lock lock(mutex_);
    done_.wait(lock, left);
  }

 private:
  void drain() {
    InsideATask mark;
    for (int64_t i; (i = next_.fetch_add(1)) < tasks_;) task_(context_, i);
  }

  // Takes part in a call, unless it is over. The order of the four steps matters, here `inside_` before `call_` and in
  // run() the other way round: either this sees that the call is over, or the caller sees that somebody is inside.
  void join(uint64_t call) {
    ++inside_;
    if (call_ == call) drain();
    if (--inside_ == 0 && call_ != call) {
      std::lock_guard lock(mutex_);
      done_.notify_one();
    }
  }

  void work() {
    uint64_t seen = 0, call = 0;
    const auto called = [&] { return stop_ || ((call = call_) != 0 && call != seen); };
    for (;;) {
      if (!spin_until(called)) {
        std::unique_lock lock(mutex_);
        ++sleeping_;
        wake_.wait(lock, called);
        --sleeping_;
      }
      if (stop_) return;
      seen = call;
      join(call);
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> call_{0};  // the number of the one that runs; 0: none
  std::atomic<int> inside_{0};     // workers that may be at one
  std::atomic<int64_t> next_{0};
  uint64_t calls_ = 0;  // so far
  int sleeping_ = 0;    // under mutex_
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
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
