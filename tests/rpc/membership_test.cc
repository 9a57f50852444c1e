#include "rpc/membership.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <mutex>
#include <thread>
#include <vector>

#include "parallel/local_communicator.h"
#include "tests/rpc/service_fixture.h"

namespace metattn {
namespace {

// Collects what on_lost says.
class Lost {
 public:
  MembershipOptions Options(int ping_ms = 3000) {
    MembershipOptions options;
    options.join_timeout_s = 5;
    options.ping_ms = ping_ms;
    options.on_lost = [this](const std::string& what) {
      std::lock_guard lock(mutex_);
      said_.push_back(what);
    };
    return options;
  }
  std::vector<std::string> said() const {
    std::lock_guard lock(mutex_);
    return said_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> said_;
};

std::string At(const MembershipServer& server) {
  return "127.0.0.1:" + std::to_string(server.port());
}

// A process that attaches as `rank` and then hangs; gRPC starts only after the fork.
pid_t ForkWorker(int port_pipe, int ready_pipe, int rank) {
  const pid_t child = fork();
  if (child != 0) return child;
  struct {
    int port;
    char token[32];
  } hello;
  if (read(port_pipe, &hello, sizeof(hello)) != sizeof(hello)) _exit(1);
  MembershipOptions options;
  options.join_timeout_s = 5;
  auto client = MembershipClient::Attach(options, "127.0.0.1:" + std::to_string(hello.port),
                                         std::string(hello.token, sizeof(hello.token)),
                                         {rank, "elsewhere", getpid()});
  const char byte = client.ok() ? 'y' : 'n';
  if (write(ready_pipe, &byte, 1) != 1) _exit(1);
  for (;;) pause();
}

// Must run before this process uses gRPC: gtest runs each case in its own process under ctest.
void ExpectNoticed(int signal, int ping_ms, double within_s) {
  int port[2], ready[2];
  ASSERT_EQ(pipe(port) | pipe(ready), 0);
  const pid_t child = ForkWorker(port[0], ready[1], 3);
  Lost lost;
  auto server = MembershipServer::Start(lost.Options(ping_ms), "127.0.0.1", 3);
  ASSERT_TRUE(server.ok()) << server.status();
  struct {
    int port;
    char token[32];
  } hello;
  hello.port = (*server)->port();
  (*server)->token().copy(hello.token, sizeof(hello.token));
  ASSERT_EQ(write(port[1], &hello, sizeof(hello)), static_cast<ssize_t>(sizeof(hello)));
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'y');
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_FALSE((*server)->lost());
  kill(child, signal);
  EXPECT_TRUE(Eventually([&] { return !lost.said().empty(); }, within_s));
  EXPECT_TRUE((*server)->lost());
  ASSERT_EQ(lost.said().size(), 1u);
  const std::string said = lost.said()[0];
  EXPECT_NE(said.find("rank 3 "), std::string::npos) << said;
  EXPECT_NE(said.find("elsewhere"), std::string::npos) << said;
  EXPECT_NE(said.find(std::to_string(child)), std::string::npos) << said;
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

TEST(Membership, AKilledWorkerIsNamedOnceWithHostAndPid) { ExpectNoticed(SIGKILL, 3000, 2); }

TEST(Membership, AStoppedWorkerIsNoticedByPings) { ExpectNoticed(SIGSTOP, 500, 6); }

TEST(Membership, ALostRankZeroIsNoticedByWorkers) {
  Lost root, worker;
  auto server = MembershipServer::Start(root.Options(), "127.0.0.1", 1);
  ASSERT_TRUE(server.ok());
  auto client =
      MembershipClient::Attach(worker.Options(), At(**server), (*server)->token(), {1, "here", 42});
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE((*server)->WaitForAll().ok());
  server->reset();  // no Leave: as if the process had gone
  EXPECT_TRUE(Eventually([&] { return worker.said().size() == 1; }));
  EXPECT_NE(worker.said()[0].find("rank 0 "), std::string::npos);
  EXPECT_TRUE((*client)->lost());
}

TEST(Membership, AnOrderlyEndFromRankZeroIsNoLoss) {
  Lost root, worker;
  auto server = MembershipServer::Start(root.Options(), "127.0.0.1", 1);
  auto client =
      MembershipClient::Attach(worker.Options(), At(**server), (*server)->token(), {1, "here", 42});
  ASSERT_TRUE(client.ok());
  ASSERT_TRUE((*server)->WaitForAll().ok());
  (*server)->Leave();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the goodbye travels
  client->reset();
  server->reset();
  EXPECT_TRUE(root.said().empty());
  EXPECT_TRUE(worker.said().empty());
}

TEST(Membership, AWorkerThatSaysGoodbyeIsNoLoss) {
  Lost root, worker;
  auto server = MembershipServer::Start(root.Options(), "127.0.0.1", 1);
  auto client =
      MembershipClient::Attach(worker.Options(), At(**server), (*server)->token(), {1, "here", 42});
  ASSERT_TRUE(client.ok());
  ASSERT_TRUE((*server)->WaitForAll().ok());
  client->reset();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_TRUE(root.said().empty());
  EXPECT_FALSE((*server)->lost());
}

TEST(Membership, AStrangerIsRefusedAndItsLeavingMeansNothing) {
  Lost root, worker;
  auto server = MembershipServer::Start(root.Options(), "127.0.0.1", 2);
  auto right =
      MembershipClient::Attach(worker.Options(), At(**server), (*server)->token(), {1, "here", 42});
  ASSERT_TRUE(right.ok());
  Lost strangers;
  struct Case {
    std::string token;
    int rank;
  };
  const Case cases[] = {{std::string(32, 'x'), 2}, {"", 2},
                        {(*server)->token(), 3},   {(*server)->token(), 0},
                        {(*server)->token(), -1},  {(*server)->token() + "x", 2}};
  int said = 0;
  for (const Case& c : cases) {
    auto client =
        MembershipClient::Attach(strangers.Options(), At(**server), c.token, {c.rank, "there", 1});
    if (!client.ok()) continue;
    ++said;
    EXPECT_TRUE(Eventually([&] { return static_cast<int>(strangers.said().size()) == said; }));
  }
  EXPECT_TRUE(root.said().empty());
  EXPECT_FALSE((*server)->lost());
}

TEST(Membership, RanksThatDoNotComeAreNamed) {
  Lost root;
  MembershipOptions options = root.Options();
  options.join_timeout_s = 0.2;
  auto server = MembershipServer::Start(options, "127.0.0.1", 3);
  Lost worker;
  auto client =
      MembershipClient::Attach(worker.Options(), At(**server), (*server)->token(), {2, "here", 42});
  const absl::Status status = (*server)->WaitForAll();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(std::string(status.message()).find("1, 3"), std::string::npos) << status;
}

// Join over the communicator, ranks as threads.
std::vector<absl::Status> JoinAll(int ranks, const absl::Status& problem, int* lost) {
  auto comms = MakeLocalCommunicators(ranks, CommOptions());
  std::vector<absl::Status> results(ranks);
  std::vector<std::unique_ptr<Membership>> members(ranks);
  Lost said;
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      auto joined = Membership::Join(said.Options(), problem, *comms[r]);
      results[r] = joined.status();
      if (joined.ok()) members[r] = *std::move(joined);
    });
  }
  for (std::thread& t : threads) t.join();
  if (members[0] != nullptr) members[0]->Leave();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  for (int r = ranks - 1; r >= 0; --r) members[r].reset();
  *lost = static_cast<int>(said.said().size());
  return results;
}

TEST(Membership, JoinConnectsEveryRank) {
  for (const int ranks : {1, 2, 4}) {
    int lost = 0;
    for (const absl::Status& status : JoinAll(ranks, absl::OkStatus(), &lost)) {
      EXPECT_TRUE(status.ok()) << status;
    }
    EXPECT_EQ(lost, 0);
  }
}

TEST(Membership, AProblemOfRankZeroReachesEveryRank) {
  int lost = 0;
  const auto results = JoinAll(3, absl::FailedPreconditionError("port 8001 is taken"), &lost);
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(results[r].code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(std::string(results[r].message()).find("8001"), std::string::npos);
    EXPECT_EQ(IsFromRoot(results[r]), r > 0);
  }
  EXPECT_EQ(lost, 0);
}

}  // namespace
}  // namespace metattn
