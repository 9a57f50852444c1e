#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>
#include <vector>

namespace metattn::cpu {
namespace {

struct PoolParam {
  int threads;
  bool spin;
};

class ThreadPoolTest : public ::testing::TestWithParam<PoolParam> {
 protected:
  ThreadPool pool_{GetParam().threads, GetParam().spin};
};

TEST_P(ThreadPoolTest, EveryIndexIsVisitedOnceInChunksOfTheSizeAskedFor) {
  for (const std::int64_t n : {0, 1, 2, 7, 64, 1000}) {
    for (const std::int64_t chunk : {1, 3, 64, 5000}) {
      std::vector<int> visits(static_cast<std::size_t>(n));
      std::atomic<int> odd_chunks{0};
      pool_.ParallelFor(n, chunk, [&](std::int64_t begin, std::int64_t end, int) {
        if (begin % chunk != 0 || (end - begin != chunk && end != n) || begin >= end) ++odd_chunks;
        for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
      });
      EXPECT_EQ(odd_chunks, 0) << n << " by " << chunk;
      for (const int v : visits) EXPECT_EQ(v, 1) << n << " by " << chunk;
    }
  }
}

TEST(ThreadPoolShares, FollowOneAnotherAndDifferByOneAtMost) {
  for (std::int64_t shares = 1; shares <= 7; ++shares) {
    for (std::int64_t count = 0; count <= 40; ++count) {
      EXPECT_EQ(ThreadPool::ShareBegin(count, shares, 0), 0);
      EXPECT_EQ(ThreadPool::ShareBegin(count, shares, shares), count);
      for (std::int64_t i = 0; i < shares; ++i) {
        const std::int64_t size =
            ThreadPool::ShareBegin(count, shares, i + 1) - ThreadPool::ShareBegin(count, shares, i);
        EXPECT_GE(size, count / shares) << count << " in " << shares;
        EXPECT_LE(size, (count + shares - 1) / shares) << count << " in " << shares;
      }
    }
  }
}

TEST_P(ThreadPoolTest, NoTwoThreadsShareAWorkerNumber) {
  std::vector<std::atomic<int>> inside(static_cast<std::size_t>(pool_.threads()));
  std::atomic<int> wrong{0};
  for (int round = 0; round < 200; ++round) {
    pool_.ParallelFor(64, 1, [&](std::int64_t, std::int64_t, int worker) {
      if (worker < 0 || worker >= pool_.threads()) {
        ++wrong;
        return;
      }
      if (inside[static_cast<std::size_t>(worker)].fetch_add(1) != 0) ++wrong;
      inside[static_cast<std::size_t>(worker)].fetch_sub(1);
    });
  }
  EXPECT_EQ(wrong, 0);
}

// Plain (not atomic) memory is written by one job and read by the next from other threads, so a
// missing happens-before shows under TSan and as a wrong sum.
TEST_P(ThreadPoolTest, ManySmallJobsInARowSeeEachOthersWrites) {
  constexpr std::int64_t kSize = 48;
  constexpr int kRounds = 20000;
  std::vector<std::int64_t> a(kSize, 0), b(kSize, 0);
  for (int round = 0; round < kRounds; ++round) {
    pool_.ParallelFor(kSize, 2, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        b[static_cast<std::size_t>(i)] = a[static_cast<std::size_t>((i + 7) % kSize)] + 1;
      }
    });
    a.swap(b);
  }
  for (const std::int64_t v : a) EXPECT_EQ(v, kRounds);
}

TEST_P(ThreadPoolTest, PausesBetweenJobsOfAnyLengthLoseNoJob) {
  std::atomic<std::int64_t> sum{0};
  std::int64_t expected = 0;
  // Around the length of the spin, where threads are just falling asleep.
  for (int round = 0; round < 300; ++round) {
    std::this_thread::sleep_for(std::chrono::microseconds(round % 10 * 15));
    pool_.ParallelFor(9, 1, [&](std::int64_t begin, std::int64_t, int) { sum += begin; });
    expected += 36;
  }
  EXPECT_EQ(sum, expected);
}

TEST_P(ThreadPoolTest, ASlowWorkerIsWaitedFor) {
  for (int round = 0; round < 5; ++round) {
    std::atomic<int> finished{0};
    pool_.ParallelFor(4, 1, [&](std::int64_t begin, std::int64_t, int) {
      if (begin == 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      ++finished;
    });
    EXPECT_EQ(finished, 4);
  }
}

TEST_P(ThreadPoolTest, AnIdlePoolUsesNoProcessorTime) {
  pool_.ParallelFor(64, 1, [](std::int64_t, std::int64_t, int) {});
  // Again, because on a busy machine a thread may come to its spinning late.
  double seconds = 1;
  for (int attempt = 0; attempt < 10 && seconds >= 0.01; ++attempt) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // spinning is over
    const std::clock_t before = std::clock();                    // of all threads of the process
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    seconds = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  }
  EXPECT_LT(seconds, 0.01);  // 5 % of one core would be 0.01 s
}

INSTANTIATE_TEST_SUITE_P(Pools, ThreadPoolTest,
                         ::testing::Values(PoolParam{1, true}, PoolParam{2, true},
                                           PoolParam{2, false}, PoolParam{5, true},
                                           PoolParam{5, false}),
                         [](const auto& info) {
                           return std::to_string(info.param.threads) +
                                  (info.param.spin ? "ThreadsSpinning" : "ThreadsSleeping");
                         });

TEST(ThreadPoolLifetime, PoolsComeAndGoWithAndWithoutWork) {
  for (int round = 0; round < 200; ++round) {
    ThreadPool pool(3, round % 2 == 0);
    if (round % 3 != 0) {
      std::atomic<int> calls{0};
      pool.ParallelFor(5, 1, [&](std::int64_t, std::int64_t, int) { ++calls; });
      EXPECT_EQ(calls, 5);
    }
  }
}

TEST(ThreadPoolLifetime, OneThreadRunsOnTheCaller) {
  ThreadPool pool(1, true);
  EXPECT_EQ(pool.threads(), 1);
  const auto me = std::this_thread::get_id();
  pool.ParallelFor(10, 3, [&](std::int64_t, std::int64_t, int worker) {
    EXPECT_EQ(std::this_thread::get_id(), me);
    EXPECT_EQ(worker, 0);
  });
}

}  // namespace
}  // namespace metattn::cpu
