// The NCCL body over the emulated NCCL under mpirun: the contract, and how a lost peer ends it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/support/mpirun.h"

namespace metattn {
namespace {

using test::MpiRun;
using ::testing::HasSubstr;

std::vector<std::string> Command(std::vector<std::string> arguments,
                                 const std::vector<std::string>& environment = {}) {
  std::vector<std::string> words = {"env"};
  words.insert(words.end(), environment.begin(), environment.end());
  words.emplace_back(METATTN_NCCL_RANKS);
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

class NcclContract : public testing::TestWithParam<int> {};

TEST_P(NcclContract, Holds) {
  MpiRun run(GetParam(), Command({"contract"}));
  ASSERT_TRUE(run.WaitForExit(120)) << run.text();
  EXPECT_EQ(run.exit_code(), 0) << run.text();
  EXPECT_THAT(run.text(), HasSubstr("rank 0: passed"));
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclContract, testing::Values(1, 2, 3, 4),
                         [](const auto& info) { return "On" + std::to_string(info.param); });

TEST(NcclWorld, StartsOnlyWithAllRanks) {
  MpiRun run(2, Command({"start", "0.5"}, {"EMU_NCCL_LOST=1@0"}));
  ASSERT_TRUE(run.WaitForExit(60)) << run.text();
  EXPECT_THAT(run.text(), HasSubstr("DEADLINE_EXCEEDED: rank 0 of 2: NCCL has not started within "
                                    "0.5 s"));
}

// Everybody's deadline is the same, so either rank may be the first to see it.
TEST(NcclWorld, IsEndedByTheWatchdogWhenARankIsSilent) {
  MpiRun run(2, Command({"sums", "1"}, {"EMU_NCCL_LOST=1@10"}));
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(run.WaitForExit(30)) << run.text();
  EXPECT_EQ(run.exit_code(), 75) << run.text();  // kPeerLostExit
  EXPECT_THAT(run.text(),
              testing::ContainsRegex("metattn: rank [01] of 2: all-reduce, or one before it in its "
                                     "stream, has not finished after 1\\.[0-9] s"));
  std::printf("gone after %.1f s, the start included\n", test::SecondsSince(start));
}

TEST(NcclWorld, IsEndedWhenNcclReportsALostPeer) {
  MpiRun run(2, Command({"sums", "60"}, {"EMU_NCCL_LOST=1@10", "EMU_NCCL_ERROR_MS=300"}));
  ASSERT_TRUE(run.WaitForExit(30)) << run.text();
  EXPECT_EQ(run.exit_code(), 75) << run.text();
  EXPECT_THAT(run.text(), HasSubstr("of 2: NCCL reports: remote process exited or there was a "
                                    "network error"));
  EXPECT_THAT(run.text(), HasSubstr("the last operation was: all-reduce"));
}

}  // namespace
}  // namespace metattn
