// The MPI body under real mpirun: the contract, and what happens when a rank dies or hangs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/mpirun.h"

namespace metattn {
namespace {

using test::SecondsSince;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

// Ranks of parallel_mpi_ranks.
class World : public test::MpiRun {
 public:
  World(int ranks, std::vector<std::string> arguments) : MpiRun(ranks, Command(arguments)) {}

 private:
  static std::vector<std::string> Command(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), METATTN_MPI_RANKS);
    return arguments;
  }
};

class MpiContract : public ::testing::TestWithParam<std::tuple<int, bool>> {};

TEST_P(MpiContract, Holds) {
  const auto [ranks, ordered] = GetParam();
  std::vector<std::string> arguments = {"contract"};
  if (ordered) arguments.push_back("ordered");
  World world(ranks, arguments);
  ASSERT_TRUE(world.WaitForExit(120)) << world.text();
  EXPECT_EQ(world.exit_code(), 0) << world.text();
  EXPECT_THAT(world.text(), HasSubstr("passed TransportIsNamed"));
  EXPECT_THAT(world.text(), HasSubstr("passed WrongArgumentsAreErrors"));
}

INSTANTIATE_TEST_SUITE_P(Ranks, MpiContract,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4), ::testing::Bool()),
                         [](const auto& info) {
                           return "On" + std::to_string(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) ? "Ordered" : "");
                         });

TEST(MpiWorld, IsGoneWithinTenSecondsWhenARankIsKilled) {
  for (const int victim : {1, 0}) {
    SCOPED_TRACE(victim);
    World world(3, {"loop"});
    ASSERT_TRUE(world.LearnPids(3, 60)) << world.text();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    ASSERT_EQ(kill(world.pid(victim), SIGKILL), 0);
    const auto start = Clock::now();
    ASSERT_TRUE(world.WaitForExit(10)) << world.text();
    EXPECT_NE(world.exit_code(), 0);
    EXPECT_THAT(world.RanksAlive(), ::testing::IsEmpty());
    RecordProperty("seconds", std::to_string(SecondsSince(start)));
    std::printf("gone %.1f s after the kill, mpirun's exit code %d\n", SecondsSince(start),
                world.exit_code());
  }
}

TEST(MpiWorld, IsEndedByTheWatchdogWhenARankHangs) {
  World world(2, {"hang", "2"});
  ASSERT_TRUE(world.LearnPids(2, 60)) << world.text();
  const auto start = Clock::now();
  ASSERT_TRUE(world.WaitForExit(2 + 5)) << world.text();
  EXPECT_EQ(world.exit_code(), 75) << world.text();  // kPeerLostExit
  EXPECT_THAT(world.RanksAlive(), ::testing::IsEmpty());
  EXPECT_THAT(world.text(),
              HasSubstr("metattn: rank 0 of 2: all-reduce has not finished after 2."));
  std::printf("gone %.1f s after the start of the hang\n", SecondsSince(start));
}

TEST(MpiWorld, IsEndedByTheWatchdogWhenARankIsStopped) {
  World world(2, {"hang", "1"});
  ASSERT_TRUE(world.LearnPids(2, 60)) << world.text();
  ASSERT_EQ(kill(world.pid(1), SIGSTOP), 0);
  ASSERT_TRUE(world.WaitForExit(1 + 5 + 2)) << world.text();
  EXPECT_NE(world.exit_code(), 0);
  EXPECT_THAT(world.RanksAlive(), ::testing::IsEmpty());
}

TEST(MpiWorld, WaitsForABroadcastPastTheDeadline) {
  World world(2, {"late", "1"});
  ASSERT_TRUE(world.WaitForExit(60)) << world.text();
  EXPECT_EQ(world.exit_code(), 0) << world.text();
}

TEST(MpiWorld, NamesBothSizesOfAMessageThatDoesNotFit) {
  for (const int run : {0, 1, 2, 3}) {
    const char* const expected = run % 2 == 0 ? "8" : "32";  // less than comes, and more
    std::vector<std::string> arguments = {"misfit", expected};
    if (run >= 2) arguments.emplace_back("late");
    World world(2, arguments);
    ASSERT_TRUE(world.WaitForExit(60)) << world.text();
    EXPECT_THAT(world.text(), HasSubstr("rank 0: OK"));
    EXPECT_THAT(world.text(),
                HasSubstr(std::string("rank 1: INTERNAL: exchange: rank 0 sends 16 bytes to rank "
                                      "1, which expects ") +
                          expected));
  }
}

TEST(MpiWorld, RefusesMessagesThatMpiCannotCount) {
  World world(2, {"misfit", "2147483648"});
  ASSERT_TRUE(world.WaitForExit(60)) << world.text();
  EXPECT_THAT(world.text(), HasSubstr("rank 0: INTERNAL: rank 0: exchange: a message of 2147483648 "
                                      "bytes with rank 1 is over MPI's limit of 2147483647"));
  EXPECT_THAT(world.text(), HasSubstr("rank 1: INTERNAL: rank 1: exchange: a message of "));
}

TEST(MpiWorld, IsEndedByAnyRankWithItsExitCode) {
  World world(3, {"abort", "41"});
  ASSERT_TRUE(world.LearnPids(3, 60)) << world.text();
  ASSERT_TRUE(world.WaitForExit(10)) << world.text();
  EXPECT_EQ(world.exit_code(), 41) << world.text();
  EXPECT_THAT(world.RanksAlive(), ::testing::IsEmpty());
}

}  // namespace
}  // namespace metattn
