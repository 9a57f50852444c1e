// The emulated NCCL under mpirun: nccl_ranks does the work, this starts and judges it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/mpirun.h"

namespace emu::self {
namespace {

using metattn::test::MpiRun;
using ::testing::HasSubstr;

std::vector<std::string> Command(const std::string& name,
                                 const std::vector<std::string>& environment = {}) {
  std::vector<std::string> words = {"env"};
  words.insert(words.end(), environment.begin(), environment.end());
  words.insert(words.end(), {EMU_NCCL_RANKS, name});
  return words;
}

void ExpectPasses(int ranks, const std::string& name,
                  const std::vector<std::string>& environment = {}) {
  MpiRun run(ranks, Command(name, environment));
  ASSERT_TRUE(run.WaitForExit(60)) << run.text();
  EXPECT_EQ(run.exit_code(), 0) << run.text();
  EXPECT_THAT(run.text(), HasSubstr("passed " + name));
}

void ExpectReport(const std::string& name, const std::string& report) {
  MpiRun run(2, Command(name));
  ASSERT_TRUE(run.WaitForExit(60)) << run.text();
  EXPECT_NE(run.exit_code(), 0);
  EXPECT_THAT(run.text(), HasSubstr(report));
}

class EmuNccl : public testing::TestWithParam<int> {};

TEST_P(EmuNccl, OperationsUnderEveryMask) { ExpectPasses(GetParam(), "operations"); }
TEST_P(EmuNccl, CapturedAndReplayedUnderEveryMask) { ExpectPasses(GetParam(), "graph"); }
TEST_P(EmuNccl, TwoRanksOnOneDeviceAreRefused) { ExpectPasses(GetParam(), "same-device"); }

INSTANTIATE_TEST_SUITE_P(Ranks, EmuNccl, testing::Values(2, 3),
                         [](const auto& info) { return "On" + std::to_string(info.param); });

TEST(EmuNcclMisuse, WrongMemoryRangesRanksAndTypesAreRefused) { ExpectPasses(2, "refused"); }
TEST(EmuNcclMisuse, CountsThatDifferAreReported) {
  ExpectReport("counts", "NCCL operations do not fit");
}
TEST(EmuNcclMisuse, UseAfterAbortIsReported) {
  ExpectReport("aborted", "ncclAllReduce: the communicator was aborted or destroyed");
}
TEST(EmuNcclMisuse, ACallWhileOneIsInProgressIsReported) {
  ExpectReport("unasked", "ncclAllReduce: the call before it is still in progress");
}

TEST(EmuNcclFaults, ALostRankKeepsAllFromStarting) {
  ExpectPasses(2, "never", {"EMU_NCCL_LOST=1@0"});
}
TEST(EmuNcclFaults, ALostRankIsNoticedAndAbortFreesTheStream) {
  ExpectPasses(2, "silent", {"EMU_NCCL_LOST=1@2", "EMU_NCCL_ERROR_MS=200"});
}
TEST(EmuNcclFaults, ALateRankDelaysTheOthers) { ExpectPasses(3, "late", {"EMU_NCCL_LATE=1@60"}); }

}  // namespace
}  // namespace emu::self
