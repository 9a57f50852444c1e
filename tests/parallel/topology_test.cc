#include "parallel/topology.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "parallel/bootstrap.h"
#include "parallel/launch_env.h"
#include "tests/parallel/host_world.h"

namespace metattn {
namespace {

RankRecord On(const char* host, int threads, std::initializer_list<int> cpus) {
  RankRecord record;
  std::strcpy(record.host, host);
  record.threads = threads;
  for (const int c : cpus) record.cpus.set(c);
  return record;
}

TEST(Topology, TwoUnboundRanksOfOneThreadFitOnTwoCores) {
  const RankRecord records[] = {On("a", 1, {0, 1}), On("a", 1, {0, 1})};
  for (const RankPlace& p : PlaceRanks(records)) {
    EXPECT_EQ(p.cores, 2);
    EXPECT_EQ(p.ranks_on_host, 2);
    EXPECT_EQ(p.cores_of_host, 2);
    EXPECT_EQ(p.threads_on_host, 2);
    EXPECT_FALSE(p.oversubscribed);
  }
}

TEST(Topology, TwoRanksOfTwoThreadsOnTwoCoresAreOversubscribed) {
  const RankRecord records[] = {On("a", 2, {0, 1}), On("a", 2, {0, 1})};
  for (const RankPlace& p : PlaceRanks(records)) EXPECT_TRUE(p.oversubscribed);
}

TEST(Topology, RanksBoundToCoresOfTheirOwnAddUp) {
  const RankRecord records[] = {On("a", 2, {0, 1}), On("a", 2, {2, 3})};
  for (const RankPlace& p : PlaceRanks(records)) {
    EXPECT_EQ(p.cores_of_host, 4);
    EXPECT_FALSE(p.oversubscribed);
  }
}

TEST(Topology, MoreThreadsThanTheRanksOwnMaskIsOversubscribedForThatRankOnly) {
  const RankRecord records[] = {On("a", 2, {0}), On("a", 1, {1, 2, 3})};
  const auto places = PlaceRanks(records);
  EXPECT_TRUE(places[0].oversubscribed);
  EXPECT_FALSE(places[1].oversubscribed);
}

TEST(Topology, HostsAreCountedApart) {
  const RankRecord records[] = {On("a", 2, {0, 1}), On("b", 4, {0, 1}), On("a", 0, {0, 1})};
  const auto places = PlaceRanks(records);
  EXPECT_EQ(places[0].ranks_on_host, 2);
  EXPECT_EQ(places[1].ranks_on_host, 1);
  EXPECT_EQ(places[1].rank_on_host, 0);
  EXPECT_EQ(places[2].rank_on_host, 1);
  EXPECT_EQ(places[2].threads, 1);  // chosen: two cores for two ranks
  EXPECT_TRUE(places[0].oversubscribed);
  EXPECT_TRUE(places[1].oversubscribed);
  EXPECT_EQ(places[0].threads_on_host, 3);
}

TEST(Topology, ThreadsLeftToUsShareTheHostAndAreAtLeastOne) {
  const RankRecord shared[] = {On("a", 0, {0, 1, 2, 3, 4}), On("a", 0, {0, 1, 2, 3, 4})};
  for (const RankPlace& p : PlaceRanks(shared)) EXPECT_EQ(p.threads, 2);
  const RankRecord crowded[] = {On("a", 0, {0}), On("a", 0, {0}), On("a", 0, {0})};
  for (const RankPlace& p : PlaceRanks(crowded)) {
    EXPECT_EQ(p.threads, 1);
    EXPECT_TRUE(p.oversubscribed);
  }
}

TEST(Topology, EveryRankGetsTheSameTable) {
  const auto statuses = RunRanks(3, CommOptions{}, [](Communicator& comm) -> absl::Status {
    const auto places = ExchangeTopology(comm, comm.rank() + 1);
    if (!places.ok()) return places.status();
    if (places->size() != 3) return absl::InternalError("wrong size");
    for (int r = 0; r < 3; ++r) {
      const RankPlace& p = (*places)[r];
      if (p.rank != r || p.threads != r + 1 || p.pid != getpid() || p.ranks_on_host != 3 ||
          p.threads_on_host != 6 || p.cores != CoresOfThisProcess() || p.host.empty()) {
        return absl::InternalError("wrong place of rank " + std::to_string(r));
      }
    }
    return absl::OkStatus();
  });
  for (const absl::Status& s : statuses) EXPECT_TRUE(s.ok()) << s;
}

class LaunchEnvTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : kNames) unsetenv(name);
  }
  void TearDown() override { SetUp(); }
  static constexpr const char* kNames[] = {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE",
                                           "OMPI_MCA_orte_bound_at_launch", "PMI_SIZE",
                                           "MPI_LOCALNRANKS"};
};

TEST_F(LaunchEnvTest, WithoutALauncherThisIsTheOnlyRank) {
  const LaunchEnv env = ReadLaunchEnv();
  EXPECT_FALSE(env.launched);
  EXPECT_EQ(env.world_size, 1);
  const auto world = MakeWorld(CommOptions{});
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ((*world)->size(), 1);
  EXPECT_EQ((*world)->transport(), "none");
}

TEST_F(LaunchEnvTest, ReadsOpenMpiAndPmiAndIgnoresNonsense) {
  setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
  setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2", 1);
  EXPECT_EQ(ReadLaunchEnv().world_size, 4);
  EXPECT_EQ(ReadLaunchEnv().local_size, 2);
  EXPECT_FALSE(ReadLaunchEnv().bound);
  setenv("OMPI_MCA_orte_bound_at_launch", "1", 1);
  EXPECT_TRUE(ReadLaunchEnv().bound);
  setenv("OMPI_COMM_WORLD_SIZE", "many", 1);
  EXPECT_FALSE(ReadLaunchEnv().launched);
  setenv("PMI_SIZE", "3", 1);
  EXPECT_EQ(ReadLaunchEnv().world_size, 3);
}

TEST_F(LaunchEnvTest, RanksThatShareTheCoresLookOversubscribedUnlessBound) {
  const int cores = CoresOfThisProcess();
  EXPECT_FALSE(LooksOversubscribed(cores));
  EXPECT_TRUE(LooksOversubscribed(cores + 1));
  setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2", 1);
  EXPECT_TRUE(LooksOversubscribed(cores));
  setenv("OMPI_MCA_orte_bound_at_launch", "1", 1);
  EXPECT_FALSE(LooksOversubscribed(cores));
}

#ifndef METATTN_HAVE_MPI
TEST_F(LaunchEnvTest, ALaunchedWorldWithoutMpiIsAnErrorNotManyWorldsOfOne) {
  setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  const auto world = MakeWorld(CommOptions{});
  EXPECT_EQ(world.status().code(), absl::StatusCode::kFailedPrecondition);
}
#endif

}  // namespace
}  // namespace metattn
