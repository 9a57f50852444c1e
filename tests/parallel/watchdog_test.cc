#include "parallel/watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>

namespace metattn {
namespace {

using std::chrono::milliseconds;

TEST(Watchdog, TellsTheOperationThatOutlivesItsDeadlineOnce) {
  std::atomic<int> expiries{0};
  std::string operation;
  double seconds = 0;
  {
    Watchdog dog(0.15, [&](const char* op, double s) {
      operation = op;
      seconds = s;
      ++expiries;
    });
    dog.Begin("all-reduce", Watchdog::Clock::now());
    for (int i = 0; i < 500 && expiries == 0; ++i) std::this_thread::sleep_for(milliseconds(10));
    std::this_thread::sleep_for(2 * Watchdog::kPoll);
  }
  EXPECT_EQ(expiries, 1);
  EXPECT_EQ(operation, "all-reduce");
  EXPECT_GT(seconds, 0.15);
}

TEST(Watchdog, IsSilentWhileOperationsEndInTimeOrNoneRuns) {
  std::atomic<int> expiries{0};
  {
    Watchdog dog(1, [&](const char*, double) { ++expiries; });
    for (int i = 0; i < 60; ++i) {  // many short ones, together longer than the deadline
      dog.Begin("all-reduce", Watchdog::Clock::now());
      std::this_thread::sleep_for(milliseconds(20));
      dog.End();
    }
    std::this_thread::sleep_for(milliseconds(1300));  // idle for longer than the deadline
  }
  EXPECT_EQ(expiries, 0);
}

TEST(Watchdog, StopsAtOnce) {
  const auto start = Watchdog::Clock::now();
  for (int i = 0; i < 20; ++i) Watchdog dog(30, [](const char*, double) {});
  EXPECT_LT(Watchdog::Clock::now() - start, milliseconds(1500));
}

}  // namespace
}  // namespace metattn
