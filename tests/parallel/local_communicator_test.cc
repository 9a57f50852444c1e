#include "parallel/local_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <tuple>

#include "tests/parallel/communicator_contract.h"
#include "tests/parallel/host_world.h"

namespace metattn {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class LocalContract : public ::testing::TestWithParam<std::tuple<int, bool, std::size_t>> {};

TEST_P(LocalContract, Holds) {
  const auto [ranks, ordered, index] = GetParam();
  const ContractCheck& check = ContractChecks()[index];
  CommOptions options;
  options.ordered_sum = ordered;
  // The local body adds in rank order whether asked or not: hold it to that.
  const auto run = [&](Communicator& comm) {
    HostTestDevice device;
    return check.run(comm, device, ordered);
  };
  for (const absl::Status& s : RunRanks(ranks, options, run)) EXPECT_TRUE(s.ok()) << s;
}

INSTANTIATE_TEST_SUITE_P(Ranks, LocalContract,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4, 7), ::testing::Bool(),
                                            ::testing::Range(std::size_t{0},
                                                             ContractChecks().size())),
                         [](const auto& info) {
                           return ContractChecks()[std::get<2>(info.param)].name + "On" +
                                  std::to_string(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) ? "Ordered" : "");
                         });

CommOptions Impatient() {
  CommOptions options;
  options.deadline_s = 0.5;
  return options;
}

TEST(LocalCommunicator, NamesTheRankThatDoesNotCome) {
  const auto statuses = RunRanks(4, Impatient(), [](Communicator& comm) {
    if (comm.rank() == 2) {
      std::this_thread::sleep_for(milliseconds(1200));
      return comm.Barrier();  // too late: the communicator is dead by now
    }
    return comm.Barrier();
  });
  for (const absl::Status& s : statuses) {
    EXPECT_EQ(s.code(), absl::StatusCode::kDeadlineExceeded) << s;
    EXPECT_THAT(std::string(s.message()), HasSubstr("barrier: rank 2 did not come within 0.5 s"));
  }
}

TEST(LocalCommunicator, NamesEveryMissingRank) {
  const auto statuses = RunRanks(4, Impatient(), [](Communicator& comm) -> absl::Status {
    InlineStream stream;
    Buffer row = HostFloats(4);
    std::fill_n(reinterpret_cast<float*>(row.data()), 4, 0.0f);
    if (comm.rank() % 2 == 1) {
      std::this_thread::sleep_for(milliseconds(1200));
      return absl::OkStatus();
    }
    return comm.AllReduceSum({&row, 0}, 4, stream);
  });
  EXPECT_THAT(std::string(statuses[0].message()),
              HasSubstr("all-reduce: rank 1, rank 3 did not come"));
  EXPECT_EQ(statuses[0], statuses[2]);
}

TEST(LocalCommunicator, NamesTheRankWhoseEndIsDestroyed) {
  const auto statuses = RunRanks(3, CommOptions{}, [](Communicator& comm) -> absl::Status {
    if (comm.rank() == 1) return absl::OkStatus();  // leaves at once
    return comm.Barrier();
  });
  for (const int r : {0, 2}) {
    EXPECT_EQ(statuses[r].code(), absl::StatusCode::kAborted) << statuses[r];
    EXPECT_THAT(std::string(statuses[r].message()), HasSubstr("rank 1 of 3 has gone"));
  }
}

TEST(LocalCommunicator, AReceiverOfABroadcastWaitsPastTheDeadline) {
  const auto statuses = RunRanks(3, Impatient(), [](Communicator& comm) {
    std::vector<std::byte> message;
    if (comm.rank() == 0) {
      std::this_thread::sleep_for(milliseconds(900));
      message.resize(5);
    }
    absl::Status s = comm.Broadcast(message);
    if (s.ok() && message.size() != 5) s = absl::InternalError("wrong length");
    return s;
  });
  for (const absl::Status& s : statuses) EXPECT_TRUE(s.ok()) << s;
}

TEST(LocalCommunicator, AReceiverWakesWhenTheSenderGoes) {
  const auto statuses = RunRanks(2, CommOptions{}, [](Communicator& comm) -> absl::Status {
    std::vector<std::byte> message;
    if (comm.rank() == 0) return absl::OkStatus();
    return comm.Broadcast(message);
  });
  EXPECT_EQ(statuses[1].code(), absl::StatusCode::kAborted) << statuses[1];
}

TEST(LocalCommunicator, TheDeadlineOfABroadcastRunsFromItsArrival) {
  const auto statuses = RunRanks(3, Impatient(), [](Communicator& comm) -> absl::Status {
    std::vector<std::byte> message;
    if (comm.rank() == 2) {
      std::this_thread::sleep_for(milliseconds(1500));
      return absl::OkStatus();
    }
    if (comm.rank() == 0) std::this_thread::sleep_for(milliseconds(200));
    return comm.Broadcast(message);
  });
  for (const int r : {0, 1}) {
    EXPECT_EQ(statuses[r].code(), absl::StatusCode::kDeadlineExceeded) << statuses[r];
    EXPECT_THAT(std::string(statuses[r].message()), HasSubstr("broadcast: rank 2 did not come"));
  }
}

TEST(LocalCommunicator, IdleTimeBeforeABroadcastIsNeitherWaitingNorTransfer) {
  const auto statuses = RunRanks(2, CommOptions{}, [](Communicator& comm) -> absl::Status {
    std::vector<std::byte> message;
    if (comm.rank() == 0) std::this_thread::sleep_for(milliseconds(800));
    if (absl::Status s = comm.Broadcast(message); !s.ok()) return s;
    const CommStats stats = comm.TakeStats();
    if (stats.wait_seconds + stats.transfer_seconds < 0.4) return absl::OkStatus();
    return absl::InternalError("idle time was counted");
  });
  for (const absl::Status& s : statuses) EXPECT_TRUE(s.ok()) << s;
}

TEST(LocalCommunicator, RanksThatCallDifferentOperationsAreToldSo) {
  const auto statuses = RunRanks(2, CommOptions{}, [](Communicator& comm) -> absl::Status {
    if (comm.rank() == 0) return comm.Barrier();
    return comm.GatherRecords({}, {});
  });
  for (const absl::Status& s : statuses) {
    EXPECT_EQ(s.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(
        std::string(s.message()),
        HasSubstr("rank 0 calls barrier (count 0, root 0), rank 1 calls gather of records"));
  }
}

TEST(LocalCommunicator, RanksThatDisagreeAboutTheCountAreToldSo) {
  const auto statuses = RunRanks(3, CommOptions{}, [](Communicator& comm) {
    InlineStream stream;
    Buffer row = HostFloats(8);
    std::fill_n(reinterpret_cast<float*>(row.data()), 8, 0.0f);
    return comm.AllReduceSum({&row, 0}, comm.rank() == 1 ? 7 : 8, stream);
  });
  for (const absl::Status& s : statuses) {
    EXPECT_THAT(std::string(s.message()), HasSubstr("ranks disagree")) << s;
  }
}

// Everybody is told, those without a message, too.
TEST(LocalCommunicator, NamesBothEndsOfAMessageThatDoesNotFit) {
  const auto statuses = RunRanks(3, CommOptions{}, [](Communicator& comm) {
    InlineStream stream;
    Buffer data = HostBytes(64);
    const Transfer send = {2, {&data}, 12}, recv = {0, {&data}, 16};
    const std::span<const Transfer> none;
    return comm.Exchange(comm.rank() == 0 ? std::span(&send, 1) : none,
                         comm.rank() == 2 ? std::span(&recv, 1) : none, stream);
  });
  for (const absl::Status& s : statuses) {
    EXPECT_EQ(s.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(s.message()),
                HasSubstr("message 0 from rank 0 to rank 2: rank 0 sends 12 bytes, rank 2 expects "
                          "16"));
  }
}

TEST(LocalCommunicator, NamesBothRanksOfAMessageWithoutAnotherEnd) {
  for (const bool sender_is_right : {true, false}) {
    const auto statuses = RunRanks(2, CommOptions{}, [&](Communicator& comm) {
      InlineStream stream;
      Buffer data = HostBytes(64);
      const Transfer t = {1 - comm.rank(), {&data}, 4};
      const std::span<const Transfer> one(&t, 1), none;
      if (comm.rank() == 0) return comm.Exchange(sender_is_right ? one : none, none, stream);
      return comm.Exchange(none, sender_is_right ? none : one, stream);
    });
    for (const absl::Status& s : statuses) {
      EXPECT_THAT(
          std::string(s.message()),
          HasSubstr(sender_is_right ? "rank 0 sends 1 messages to rank 1, which expects 0"
                                    : "rank 0 sends 0 messages to rank 1, which expects 1"));
    }
  }
}

TEST(LocalCommunicator, AnExchangeWaitsNoLongerThanTheDeadline) {
  const auto statuses = RunRanks(2, Impatient(), [](Communicator& comm) {
    InlineStream stream;
    if (comm.rank() == 1) std::this_thread::sleep_for(milliseconds(1200));
    return comm.Exchange({}, {}, stream);
  });
  for (const absl::Status& s : statuses) {
    EXPECT_EQ(s.code(), absl::StatusCode::kDeadlineExceeded) << s;
    EXPECT_THAT(std::string(s.message()), HasSubstr("exchange: rank 1 did not come within 0.5 s"));
  }
}

TEST(LocalCommunicator, RanksThatDisagreeAboutTheRootAreToldSo) {
  const auto statuses = RunRanks(2, CommOptions{}, [](Communicator& comm) {
    InlineStream stream;
    Buffer data = HostBytes(64);
    return comm.BroadcastFrom(comm.rank(), {&data}, 4, stream);
  });
  for (const absl::Status& s : statuses) {
    EXPECT_THAT(std::string(s.message()), HasSubstr("broadcast of a tensor (count 4, root 0), "));
  }
}

// A channel dies alone, and hears when another rank's end of it goes.
TEST(LocalCommunicator, AChannelHasErrorsOfItsOwn) {
  const auto statuses = RunRanks(2, CommOptions{}, [](Communicator& comm) -> absl::Status {
    auto channel = comm.NewChannel();
    if (!channel.ok()) return channel.status();
    if (comm.rank() == 1) channel->reset();
    const absl::Status gone = comm.rank() == 0 ? (*channel)->Barrier() : absl::OkStatus();
    if (absl::Status s = comm.Barrier(); !s.ok()) return s;
    return comm.rank() == 0 ? gone : absl::AbortedError("rank 1 of 2 has gone");
  });
  for (const absl::Status& s : statuses) {
    EXPECT_EQ(s.code(), absl::StatusCode::kAborted) << s;
    EXPECT_THAT(std::string(s.message()), HasSubstr("rank 1 of 2 has gone"));
  }
}

TEST(LocalCommunicator, AViewThatIsTooShortEndsTheWorldWithASentence) {
  const auto statuses = RunRanks(2, CommOptions{}, [](Communicator& comm) {
    InlineStream stream;
    Buffer row = HostFloats(8);
    std::fill_n(reinterpret_cast<float*>(row.data()), 8, 0.0f);
    return comm.AllReduceSum({&row, comm.rank() == 1 ? 4u : 0u}, 8, stream);
  });
  for (const absl::Status& s : statuses) {
    EXPECT_THAT(std::string(s.message()),
                HasSubstr("rank 1: all-reduce of 8 values, but its view holds 7"));
  }
}

}  // namespace
}  // namespace metattn
