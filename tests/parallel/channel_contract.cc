// The contract of second channels, and of what operations refuse.
#include <functional>
#include <string>
#include <thread>

#include "tests/parallel/communicator_contract.h"
#include "tests/parallel/contract_support.h"

namespace metattn {
namespace {

// A ring of one value, a sum and a broadcast on a stream of its own, not waited for until Check.
class Work {
 public:
  Work(Communicator& comm, Device& device) : comm_(comm), values_(device, 8) {}

  absl::Status Issue(int round) {
    const int ranks = comm_.size(), me = comm_.rank();
    round_ = round;
    values_[0] = values_[2] = static_cast<float>(round * 10 + me);
    values_[1] = -1;
    values_[3] = static_cast<float>(me == round % ranks ? round : -1);
    values_.Write();
    const Transfer send = {(me + 1) % ranks, values_.view(0), 4};
    const Transfer recv = {(me + ranks - 1) % ranks, values_.view(1), 4};
    absl::Status s = comm_.Exchange({&send, 1}, {&recv, 1}, values_.stream());
    if (s.ok()) s = comm_.AllReduceSum(values_.view(2), 1, values_.stream());
    if (s.ok()) s = comm_.BroadcastFrom(round % ranks, values_.view(3), 4, values_.stream());
    return s;
  }

  absl::Status Check() {
    if (absl::Status s = values_.Read(); !s.ok()) return s;
    const int ranks = comm_.size(), before = (comm_.rank() + ranks - 1) % ranks;
    const int expected[] = {round_ * 10 + before, ranks * round_ * 10 + ranks * (ranks - 1) / 2,
                            round_};
    for (int i = 0; i < 3; ++i) {
      if (values_[i + 1] != static_cast<float>(expected[i])) {
        return Differs(comm_, "a channel's work", round_ * 10 + i, expected[i], values_[i + 1]);
      }
    }
    return absl::OkStatus();
  }

 private:
  Communicator& comm_;
  Floats values_;
  int round_ = 0;
};

absl::Status HostMessages(Communicator& comm, int round) {
  std::vector<std::byte> message(comm.rank() == 0 ? 5 : 0, static_cast<std::byte>(round));
  std::vector<std::byte> record(3), all(comm.rank() == 0 ? 3 * comm.size() : 0);
  absl::Status s = comm.Broadcast(message);
  if (s.ok() && message != std::vector<std::byte>(5, static_cast<std::byte>(round))) {
    return Differs(comm, "a channel's broadcast", round, 5, static_cast<double>(message.size()));
  }
  if (s.ok()) s = comm.GatherRecords(record, all);
  return s.ok() ? comm.Barrier() : s;
}

// Two channels and the communicator itself issue in orders that change; every rank in the same one,
// which is all that GPUs can do, but each waits for its streams in another order than it issued.
absl::Status ChannelsTakeTurnsInAnyOrder(Communicator& comm, Device& device, bool) {
  auto first = comm.NewChannel(), second = comm.NewChannel();
  if (!first.ok()) return first.status();
  if (!second.ok()) return second.status();
  const std::vector<Communicator*> channels = {&comm, first->get(), second->get()};
  std::vector<Work> work;
  for (Communicator* channel : channels) {
    if (channel->rank() != comm.rank() || channel->size() != comm.size() ||
        channel->transport() != comm.transport()) {
      return absl::InternalError("a channel is not like its communicator");
    }
    work.emplace_back(*channel, device);
  }
  constexpr int kOrders[][3] = {{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {0, 2, 1}, {2, 0, 1}, {1, 0, 2}};
  for (int round = 0; round < 24; ++round) {
    const auto& issue = kOrders[round % 6];
    const auto& wait = kOrders[(round + round / 6) % 6];
    for (const int i : issue) {
      if (absl::Status s = work[i].Issue(round * 3 + i); !s.ok()) return s;
    }
    for (const int i : wait) {
      if (absl::Status s = work[i].Check(); !s.ok()) return s;
    }
    if (absl::Status s = HostMessages(*channels[round % 3], round); !s.ok()) return s;
  }
  second->reset();
  first->reset();
  return HostMessages(comm, 1);  // it goes on without them
}

// Ranks come to the two channels in different orders, each from two threads: neither waits for the
// other. Over NCCL that is forbidden.
absl::Status ChannelsHaveAnOrderOfTheirOwn(Communicator& comm, Device& device, bool) {
  if (comm.transport() == "nccl") return absl::OkStatus();
  auto channel = comm.NewChannel();
  if (!channel.ok()) return channel.status();
  const auto run = [&](Communicator& where) {
    Work work(where, device);
    for (int round = 0; round < 50; ++round) {
      absl::Status s = work.Issue(round);
      if (s.ok()) s = work.Check();
      if (!s.ok()) return s;
    }
    return absl::OkStatus();
  };
  absl::Status background;
  std::thread thread([&] { background = run(**channel); });
  if (comm.rank() % 2 == 1) thread.join();  // these come to the first when the second is done
  const absl::Status foreground = run(comm);
  if (thread.joinable()) thread.join();
  return foreground.ok() ? background : foreground;
}

absl::Status ChannelsCountForThemselves(Communicator& comm, Device& device, bool) {
  auto channel = comm.NewChannel();
  if (!channel.ok()) return channel.status();
  Work work(**channel, device);
  (void)comm.TakeStats();
  (void)(*channel)->TakeStats();
  absl::Status s = work.Issue(3);
  if (s.ok()) s = work.Check();
  if (s.ok()) s = HostMessages(**channel, 4);
  if (!s.ok()) return s;
  const auto own = static_cast<double>(comm.TakeStats().calls);
  if (own != 0) return Differs(comm, "calls of another channel", 0, 0, own);
  const auto calls = static_cast<double>((*channel)->TakeStats().calls);
  return calls == 6 ? absl::OkStatus() : Differs(comm, "calls of a channel", 0, 6, calls);
}

using Call = std::function<absl::Status(Communicator&)>;

// A channel on which every rank makes the same wrong call says so with `words`, from then on.
absl::Status DiesOf(Communicator& comm, const char* words, const Call& call, Stream& stream) {
  auto channel = comm.NewChannel();
  if (!channel.ok()) return channel.status();
  const absl::Status wrong = call(**channel);
  if (!absl::IsInternal(wrong) || wrong.message().find(words) == std::string::npos) {
    return absl::InternalError(absl::StrFormat("rank %d: expected an error with '%s', got: %s",
                                               comm.rank(), words, wrong.ToString()));
  }
  if ((*channel)->Exchange({}, {}, stream) == wrong && (*channel)->NewChannel().status() == wrong) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrFormat("rank %d: an error did not stay: %s", comm.rank(), words));
}

absl::Status WrongArgumentsAreErrors(Communicator& comm, Device& device, bool) {
  Bytes data(device, 64);
  Stream& stream = data.stream();
  const int ranks = comm.size(), me = comm.rank();
  const auto own = static_cast<std::size_t>(ranks);
  const std::vector<std::int64_t> excess(own + 1, 1), negative(own, -1), many(own, 17);
  const auto exchange = [&](Communicator& c, const Transfer& send, const Transfer& recv) {
    return c.Exchange({&send, 1}, {&recv, 1}, stream);
  };
  const Transfer good = {me, data.view(), 8};
  const std::pair<const char*, Call> calls[] = {
      {"names rank",
       [&](auto& c) {
         return exchange(c, {ranks, data.view(), 4}, good);
       }},
      {"names rank",
       [&](auto& c) {
         return exchange(c, good, {-1, data.view(), 4});
       }},
      {"of -1 bytes",
       [&](auto& c) {
         return exchange(c, {me, data.view(), -1}, good);
       }},
      {"its view holds 4",
       [&](auto& c) {
         return exchange(c, good, {me, data.view(60), 8});
       }},
      {"its view holds 0",
       [&](auto& c) {
         return exchange(c, {me, View{}, 8}, good);
       }},
      {"sends 8 bytes",
       [&](auto& c) {
         return exchange(c, good, {me, data.view(32), 9});
       }},
      {"expects 0",
       [&](auto& c) {
         return c.Exchange({&good, 1}, {}, stream);
       }},
      {"all-gather with", [&](auto& c) { return c.AllGatherV({}, data.view(), excess, stream); }},
      {"all-gather with", [&](auto& c) { return c.AllGatherV({}, data.view(), negative, stream); }},
      {"holds 16", [&](auto& c) { return c.AllGatherV(data.view(), data.view(), many, stream); }},
      {"from rank", [&](auto& c) { return c.BroadcastFrom(ranks, data.view(), 4, stream); }},
      {"from rank", [&](auto& c) { return c.BroadcastFrom(-1, data.view(), 4, stream); }},
      {"of 65 bytes", [&](auto& c) { return c.BroadcastFrom(0, data.view(), 65, stream); }},
      {"of -2 bytes", [&](auto& c) { return c.BroadcastFrom(0, data.view(), -2, stream); }},
  };
  for (const auto& [words, call] : calls) {
    absl::Status s = DiesOf(comm, words, call, stream);
    if (s.ok()) s = comm.Barrier();
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<ContractCheck> ChannelChecks() {
  return {
      {"ChannelsTakeTurnsInAnyOrder", ChannelsTakeTurnsInAnyOrder},
      {"ChannelsHaveAnOrderOfTheirOwn", ChannelsHaveAnOrderOfTheirOwn},
      {"ChannelsCountForThemselves", ChannelsCountForThemselves},
      {"WrongArgumentsAreErrors", WrongArgumentsAreErrors},
  };
}

}  // namespace metattn
