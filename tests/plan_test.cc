// Plans: kept ones give the same bits as fresh ones, notice when they do not fit, allocate nothing, and serve one call
// at a time.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "problems.h"

namespace {
std::atomic<int64_t> allocations{0};
}

// Everything C++ allocates in this program is counted; the engine's big memory comes from aligned_alloc, which a plan
// that is made anew would call through Memory::floats.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kCounts = false;  // AddressSanitizer has these functions for itself
#else
constexpr bool kCounts = true;
void* operator new(size_t n) {
  ++allocations;
  if (void* p = std::malloc(n)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
#endif

namespace heed {
namespace {

using heed::testing::Data;

struct Problem {
  Data q, k, v, out;
  Problem(int64_t B, int64_t H, int64_t L, int64_t S, int64_t D) {
    std::mt19937_64 random(1);
    q = Data({B, H, L, D}, random), k = Data({B, H, S, D}, random), v = Data({B, H, S, D}, random);
    out = Data({B, H, L, D}, random);
  }
  std::vector<float> run(Plan* plan, Mask mask = {}) {
    forward({.q = q.read(), .k = k.read(), .v = v.read(), .mask = mask, .plan = plan}, {out.write()});
    return out.values();
  }
};

TEST(Plan, OnePlanForDifferentProblems) {
  Plan plan;
  Problem a(1, 2, 70, 300, 16), b(2, 1, 5, 600, 32), c(40, 4, 10, 20, 8);
  for (int again = 0; again < 2; ++again)
    for (Problem* p : {&a, &b, &c, &a, &a}) {
      EXPECT_EQ(p->run(&plan), p->run(nullptr));
      EXPECT_EQ(p->run(&plan, causal()), p->run(nullptr, causal()));
      EXPECT_EQ(p->run(&plan, causal(3)), p->run(nullptr, causal(3)));
    }
  for (const int n : {1, 3, 2}) {
    set_threads(n);
    EXPECT_EQ(a.run(&plan), a.run(nullptr));
  }
}

TEST(Plan, NothingIsAllocatedAfterTheFirstCall) {
  if (!kCounts) GTEST_SKIP() << "AddressSanitizer counts allocations in its own way";
  set_threads(1);
  const Mask mask = causal();
  for (auto [B, H, L, S] : {std::tuple{1, 1, 8, 8}, {4, 4, 100, 300}, {1, 8, 1, 2000}}) {
    Problem p(B, H, L, S, 64);
    Plan plan;
    const Attention a{.q = p.q.read(), .k = p.k.read(), .v = p.v.read(), .mask = mask, .plan = &plan};
    Data d_q = p.q, d_k = p.k, d_v = p.v;
    std::vector<float> lse(B * H * L);
    const Output result{p.out.write(), tensor(lse.data(), {B, H, L, 1})};
    const auto step = [&] {
      forward(a, result);
      backward(a, {result.out, result.lse, p.out.read()}, {d_q.write(), d_k.write(), d_v.write()});
    };
    step();
    const int64_t before = allocations;
    step();
    EXPECT_EQ(allocations - before, 0);
  }
  set_threads(2);
}

TEST(Plan, ServesOneCallAtATime) {
  // A call from inside a call with the same plan: the executor is where one gets hold of the thread.
  struct Inside final : Executor {
    Problem* p = nullptr;
    Plan* plan = nullptr;
    std::string said;
    int concurrency() const override { return 2; }
    void run(int64_t tasks, void (*task)(void*, int64_t), void* context) override {
      try {
        p->run(plan);
      } catch (const Error& e) {
        said = e.what();
      }
      for (int64_t i = 0; i < tasks; ++i) task(context, i);
    }
  } inside;
  Problem big(1, 8, 200, 200, 64), other(1, 1, 5, 5, 8);
  Plan plan;
  inside.p = &other;
  inside.plan = &plan;
  Attention a{.q = big.q.read(), .k = big.k.read(), .v = big.v.read(), .plan = &plan, .executor = &inside};
  forward(a, {big.out.write()});
  EXPECT_EQ(inside.said, "this plan is in use by another call; give each thread a plan of its own");
  const std::vector<float> got = big.out.values();
  EXPECT_EQ(got, big.run(nullptr));
}

}  // namespace
}  // namespace heed
