#include "parallel/doorbell.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <vector>

namespace metattn {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

TEST(Doorbell, DoesNotSleepWhenItRangSinceTheCallerLooked) {
  Doorbell::Shared shared{};
  Doorbell bell(&shared);
  const std::uint32_t seen = bell.rings();
  bell.Ring();
  const auto start = Clock::now();
  bell.Wait(seen, std::chrono::seconds(20));
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
}

TEST(Doorbell, WakesAfterTheTimeoutWithoutARing) {
  Doorbell::Shared shared{};
  Doorbell bell(&shared);
  const auto start = Clock::now();
  bell.Wait(bell.rings(), milliseconds(30));
  EXPECT_GE(Clock::now() - start, milliseconds(29));
}

// Every job is announced by a ring; a lost ring would cost a waiter its 20 s.
TEST(Doorbell, LosesNoRingBetweenManyThreads) {
  Doorbell::Shared shared{};
  std::atomic<int> jobs{0};
  constexpr int kJobs = 2000;
  const auto start = Clock::now();
  std::vector<std::thread> waiters;
  for (int i = 0; i < 3; ++i) {
    waiters.emplace_back([&] {
      Doorbell bell(&shared);
      for (int done = 0; done < kJobs;) {
        const std::uint32_t seen = bell.rings();
        const int now = jobs.load();
        if (now == done) bell.Wait(seen, std::chrono::seconds(20));
        done = now;
      }
    });
  }
  Doorbell bell(&shared);
  for (int i = 0; i < kJobs; ++i) {
    ++jobs;
    bell.Ring();
    if (i % 100 == 0) std::this_thread::sleep_for(milliseconds(1));
  }
  for (std::thread& t : waiters) t.join();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(15));
}

TEST(Doorbell, WakesAnotherProcess) {
  void* memory = mmap(nullptr, sizeof(Doorbell::Shared), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* shared = static_cast<Doorbell::Shared*>(memory);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    Doorbell bell(shared);
    const auto start = Clock::now();
    while (bell.rings() == 0) bell.Wait(0, std::chrono::seconds(20));
    _exit(Clock::now() - start < std::chrono::seconds(15) ? 0 : 1);
  }
  Doorbell bell(shared);
  while (shared->sleepers.load() == 0) std::this_thread::sleep_for(milliseconds(1));
  bell.Ring();
  int status = 1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  munmap(memory, sizeof(Doorbell::Shared));
}

}  // namespace
}  // namespace metattn
