// The pool: every index once, nested and concurrent calls, exceptions, a change of size under way.
#include "threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace heed {
namespace {

TEST(Threads, EveryIndexOnce) {
  for (const int n : {1, 2, 5}) {
    set_threads(n);
    std::vector<std::atomic<int>> counts(1000);
    parallel(nullptr, 1000, [&](int64_t i) { ++counts[i]; });
    for (const auto& c : counts) EXPECT_EQ(c, 1);
  }
}

// Workers that still look for work, that sleep, and that wake too late for a call that others have done.
TEST(Threads, CallsAtOnceAndAfterAPause) {
  for (const int threads : {2, 3, 8}) {
    set_threads(threads);
    for (int call = 0; call < 3000; ++call) {
      const int64_t n = 2 + call % 9;
      std::vector<std::atomic<int>> counts(n);
      parallel(nullptr, n, [&](int64_t i) {
        if (call % 7 == 0) std::this_thread::sleep_for(std::chrono::microseconds(i * 20));
        ++counts[i];
      });
      for (const auto& c : counts) ASSERT_EQ(c, 1) << threads << " threads, call " << call;
      if (call % 50 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
}

TEST(Threads, AWorkerThatSleepsIsWoken) {
  set_threads(2);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::atomic<int> there{0};
  parallel(nullptr, 2, [&](int64_t) {
    ++there;
    for (int i = 0; i < 10000 && there < 2; ++i) std::this_thread::sleep_for(std::chrono::microseconds(500));
    EXPECT_EQ(there, 2);  // each waits for the other
  });
}

TEST(Threads, NestedAndConcurrentCalls) {
  set_threads(4);
  std::atomic<int> total{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&] {
      for (int r = 0; r < 50; ++r)
        parallel(nullptr, 8, [&](int64_t) { parallel(nullptr, 8, [&](int64_t) { ++total; }); });
    });
  for (std::thread& c : callers) c.join();
  EXPECT_EQ(total, 4 * 50 * 64);
}

TEST(Threads, AnExceptionReachesTheCaller) {
  set_threads(3);
  std::atomic<int> ran{0};
  EXPECT_THROW(parallel(nullptr, 100,
                        [&](int64_t i) {
                          ++ran;
                          if (i == 7) throw Error("seven");
                        }),
               Error);
  EXPECT_EQ(ran, 100);
  parallel(nullptr, 10, [&](int64_t) { ++ran; });  // and the pool still works
  EXPECT_EQ(ran, 110);
}

TEST(Threads, ChangingTheirNumberWhileTheyWork) {
  set_threads(2);
  std::atomic<bool> stop{false};
  std::thread worker([&] {
    while (!stop) {
      std::atomic<int> n{0};
      parallel(nullptr, 64, [&](int64_t) { ++n; });
      ASSERT_EQ(n, 64);
    }
  });
  for (int i = 0; i < 50; ++i) set_threads(1 + i % 4);
  stop = true;
  worker.join();
  set_threads(2);
}

}  // namespace
}  // namespace heed
