// The MPI body under real mpirun: the contract, and what happens when a rank dies or hangs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

extern char** environ;

namespace metattn {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// As root, more ranks than cores, unbound, one host, no warnings in the output; vader copies
// through shared memory because containers often forbid reading another process.
void SetMpiEnvironment() {
  constexpr const char* kValues[][2] = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
                                        {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
                                        {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
                                        {"OMPI_MCA_hwloc_base_binding_policy", "none"},
                                        {"OMPI_MCA_mpi_yield_when_idle", "1"},
                                        {"OMPI_MCA_btl", "self,vader"},
                                        {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"},
                                        {"OMPI_MCA_pml", "ob1"}};
  for (const auto& [name, value] : kValues) setenv(name, value, /*overwrite=*/1);
}

// mpirun with one program, its output in memory. The destructor leaves nothing running.
class World {
 public:
  World(int ranks, std::vector<std::string> arguments) {
    SetMpiEnvironment();
    std::vector<std::string> words = {METATTN_MPIRUN, "-np", std::to_string(ranks),
                                      METATTN_MPI_RANKS};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    int ends[2];
    if (pipe(ends) != 0) return;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    if (posix_spawnp(&mpirun_, argv[0], &actions, nullptr, argv.data(), environ) != 0) mpirun_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    output_ = ends[0];
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World() {
    if (mpirun_ > 0 && !ended_) {
      kill(mpirun_, SIGTERM);
      if (!WaitForExit(10)) kill(mpirun_, SIGKILL);
      for (const auto& [rank, pid] : pids_) kill(pid, SIGKILL);
    }
    if (output_ >= 0) close(output_);
  }

  // Reads until every rank has printed its pid.
  bool LearnPids(std::size_t ranks, double seconds) {
    const auto start = Clock::now();
    while (pids_.size() < ranks && SecondsSince(start) < seconds && !Ended()) {
      Read(100);
      for (std::size_t at = text_.find("rank "); at != std::string::npos;
           at = text_.find("rank ", at + 1)) {
        int rank = 0, pid = 0, used = 0;
        // The line must have come in whole.
        if (std::sscanf(text_.c_str() + at, "rank %d pid %d%n", &rank, &pid, &used) == 2 &&
            text_[at + used] == '\n') {
          pids_[rank] = pid;
        }
      }
    }
    return pids_.size() == ranks;
  }

  // False when mpirun still runs after `seconds`. Keeps reading, so that nobody blocks on a pipe.
  bool WaitForExit(double seconds) {
    const auto start = Clock::now();
    while (!Ended() && SecondsSince(start) < seconds) Read(50);
    while (ended_ && Read(0)) {
    }
    return ended_;
  }

  // mpirun's own exit code; -1 when it ended otherwise.
  int exit_code() const { return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1; }
  pid_t pid(int rank) const { return pids_.at(rank); }
  const std::string& text() const { return text_; }

  std::vector<int> RanksAlive() const {
    std::vector<int> alive;
    for (const auto& [rank, pid] : pids_) {
      std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
      std::string line;
      if (!std::getline(stat, line)) continue;
      const std::size_t name_end = line.rfind(')');  // "pid (name) state ...": Z is dead
      if (name_end != std::string::npos && line.substr(name_end + 2, 1) != "Z") {
        alive.push_back(rank);
      }
    }
    return alive;
  }

 private:
  bool Ended() {
    if (!ended_) ended_ = waitpid(mpirun_, &status_, WNOHANG) == mpirun_;
    return ended_;
  }

  bool Read(int timeout_ms) {
    pollfd p{output_, POLLIN, 0};
    if (poll(&p, 1, timeout_ms) <= 0) return false;
    char bytes[4096];
    const ssize_t n = read(output_, bytes, sizeof(bytes));
    if (n > 0) text_.append(bytes, static_cast<std::size_t>(n));
    if (n <= 0 && timeout_ms > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(timeout_ms));
    return n > 0;
  }

  pid_t mpirun_ = -1;
  int output_ = -1;
  int status_ = 0;
  bool ended_ = false;
  std::string text_;
  std::map<int, pid_t> pids_;
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
}

INSTANTIATE_TEST_SUITE_P(Ranks, MpiContract,
                         ::testing::Combine(::testing::Values(1, 2, 4), ::testing::Bool()),
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
  World world(2, {"late", "0.5"});
  ASSERT_TRUE(world.WaitForExit(60)) << world.text();
  EXPECT_EQ(world.exit_code(), 0) << world.text();
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
