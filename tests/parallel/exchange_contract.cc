// The contract of Exchange, AllGatherV and BroadcastFrom.
#include <algorithm>
#include <random>
#include <tuple>

#include "tests/parallel/communicator_contract.h"
#include "tests/parallel/contract_support.h"

namespace metattn {
namespace {

constexpr std::uint8_t kUntouched = 0xab;
constexpr std::int64_t kGap = 3;  // untouched bytes before every place of a message

struct Message {
  int from, to;
  std::int64_t bytes;
  int number;  // tells its contents from those of all others
};
// What all ranks say to each other at once; every rank knows all of it.
using Plan = std::vector<Message>;

std::uint8_t ByteOf(const Message& m, std::int64_t i) {
  const auto mixed = static_cast<std::uint64_t>(i * 257 + m.number * 7919 + 1) * 0x9e3779b97f4a7c15;
  return static_cast<std::uint8_t>(mixed >> 56);
}

// Messages one after another in device memory, each after a gap.
class Places {
 public:
  Places(Device& device, const Plan& messages) : bytes_(device, Layout(messages), kUntouched) {}

  Bytes& bytes() { return bytes_; }
  std::vector<Transfer> Transfers(const Plan& messages, bool sending) const {
    std::vector<Transfer> list;
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const int peer = sending ? messages[i].to : messages[i].from;
      list.push_back({peer, bytes_.view(offsets_[i]), messages[i].bytes});
    }
    return list;
  }
  // What the memory holds with all messages in their places.
  std::vector<std::uint8_t> Image(const Plan& messages) const {
    std::vector<std::uint8_t> image(static_cast<std::size_t>(end_), kUntouched);
    for (std::size_t i = 0; i < messages.size(); ++i) {
      for (std::int64_t k = 0; k < messages[i].bytes; ++k) {
        image[static_cast<std::size_t>(offsets_[i] + k)] = ByteOf(messages[i], k);
      }
    }
    return image;
  }

 private:
  std::int64_t Layout(const Plan& messages) {
    for (const Message& m : messages) {
      offsets_.push_back(end_ + kGap);
      end_ += kGap + m.bytes;
    }
    return end_ += kGap;
  }

  std::vector<std::int64_t> offsets_;
  std::int64_t end_ = 0;
  Bytes bytes_;
};

absl::Status Compare(const Communicator& comm, const char* what,
                     const std::vector<std::uint8_t>& expected,
                     const std::vector<std::uint8_t>& actual) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (actual[i] != expected[i]) {
      return Differs(comm, what, static_cast<std::int64_t>(i), expected[i], actual[i]);
    }
  }
  return absl::OkStatus();
}

// Senders list their messages in the plan's order, receivers by sender, the last one first: only
// the order between two ranks counts.
absl::Status Carry(Communicator& comm, Device& device, const Plan& plan) {
  Plan out, in;
  for (const Message& m : plan) {
    if (m.from == comm.rank()) out.push_back(m);
    if (m.to == comm.rank()) in.push_back(m);
  }
  std::ranges::stable_sort(in, std::greater<>(), &Message::from);
  Places sends(device, out), recvs(device, in);
  sends.bytes().values() = sends.Image(out);
  sends.bytes().Write();
  absl::Status s =
      comm.Exchange(sends.Transfers(out, true), recvs.Transfers(in, false), recvs.bytes().stream());
  if (s.ok()) s = recvs.bytes().Read();
  if (s.ok()) s = sends.bytes().Read();
  if (s.ok()) s = Compare(comm, "received", recvs.Image(in), recvs.bytes().values());
  if (s.ok()) s = Compare(comm, "sent", sends.Image(out), sends.bytes().values());
  return s;
}

// Up to three messages from every rank to every rank, itself included, of sizes that differ.
absl::Status ExchangeCarriesUnevenMessages(Communicator& comm, Device& device, bool) {
  constexpr std::int64_t kSizes[] = {0, 1, 5, 64, 576 * 4, 4097, 70001};
  std::mt19937 random(20);  // NOLINT: all ranks must plan the same
  for (int round = 0; round < 12; ++round) {
    Plan plan;
    for (int pair = 0; pair < comm.size() * comm.size(); ++pair) {
      for (unsigned k = random() % 4; k > 0; --k) {
        plan.push_back({pair / comm.size(), pair % comm.size(),
                        kSizes[random() % std::size(kSizes)], static_cast<int>(plan.size())});
      }
    }
    std::shuffle(plan.begin(), plan.end(), random);
    if (absl::Status s = Carry(comm, device, plan); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status ExchangeIsAnAllToAllARingAndNothing(Communicator& comm, Device& device, bool) {
  const int ranks = comm.size();
  Plan all_to_all, ring;
  for (int a = 0; a < ranks; ++a) {
    for (int b = 0; b < ranks; ++b) all_to_all.push_back({a, b, 100 + 10 * a + b, a * ranks + b});
    ring.push_back({a, (a + 1) % ranks, 300001, a});
  }
  // The last: between two ranks only; the others have empty lists.
  for (const Plan& plan : {all_to_all, ring, Plan(), Plan{{ranks - 1, 0, 4000, 1}}}) {
    if (absl::Status s = Carry(comm, device, plan); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// Each exchange sends what the one before received, and nobody waits in between: after as many as
// there are ranks everybody has their own again, once around.
absl::Status ExchangesFollowEachOther(Communicator& comm, Device& device, bool) {
  const int ranks = comm.size(), next = (comm.rank() + 1) % ranks;
  const int before = (comm.rank() + ranks - 1) % ranks;
  constexpr std::int64_t kCount = 1000;
  Floats boxes(device, 2 * kCount);
  for (std::int64_t i = 0; i < kCount; ++i) {
    boxes[i] = static_cast<float>(comm.rank() * kCount + i);
  }
  boxes.Write();
  for (int lap = 1; lap <= 2 * ranks; ++lap) {
    const View from = boxes.view(lap % 2 == 1 ? 0 : kCount),
               to = boxes.view(lap % 2 == 1 ? kCount : 0);
    const Transfer send = {next, from, kCount * 4}, recv = {before, to, kCount * 4};
    absl::Status s = comm.Exchange({&send, 1}, {&recv, 1}, boxes.stream());
    if (!s.ok()) return s;
  }
  if (absl::Status s = boxes.Read(); !s.ok()) return s;
  for (std::int64_t i = 0; i < kCount; ++i) {
    const auto expected = static_cast<float>(comm.rank() * kCount + i);
    if (boxes[i] != expected) return Differs(comm, "once around", i, expected, boxes[i]);
  }
  return absl::OkStatus();
}

absl::Status GatherOnAll(Communicator& comm, Device& device,
                         const std::vector<std::int64_t>& counts, bool in_place) {
  std::vector<float> expected;
  std::int64_t before = 0;
  for (int r = 0; r < comm.size(); ++r) {
    const std::int64_t count = counts[static_cast<std::size_t>(r)];
    if (r < comm.rank()) before += count;
    for (std::int64_t k = 0; k < count; ++k) expected.push_back(static_cast<float>(1000 * r + k));
  }
  const auto total = static_cast<std::int64_t>(expected.size());
  const std::int64_t own = counts[static_cast<std::size_t>(comm.rank())];
  Floats all(device, total + 2, -7), mine(device, own);  // one of each side stays as it was
  for (std::int64_t k = 0; k < own; ++k) {
    (in_place ? all[1 + before + k] : mine[k]) = static_cast<float>(1000 * comm.rank() + k);
  }
  all.Write();
  mine.Write();
  const View from = in_place ? all.view(1 + before) : own == 0 ? View{} : mine.view();
  absl::Status s = comm.AllGatherV(from, all.view(1), counts, all.stream());
  if (s.ok()) s = all.Read();
  if (!s.ok()) return s;
  expected.insert(expected.begin(), -7);
  expected.push_back(-7);
  for (std::int64_t i = 0; i < total + 2; ++i) {
    const float value = expected[static_cast<std::size_t>(i)];
    if (all[i] != value) return Differs(comm, "all-gather", i, value, all[i]);
  }
  return absl::OkStatus();
}

absl::Status AllGatherVLaysPartsOutOnAll(Communicator& comm, Device& device, bool) {
  for (const std::int64_t scale : {0, 1, 5, 24576}) {
    const auto ranks = static_cast<std::size_t>(comm.size());
    std::vector<std::int64_t> equal(ranks, scale), uneven(ranks), last_only(ranks, 0);
    for (std::size_t r = 0; r < ranks; ++r) {
      uneven[r] = r % 3 == 1 ? 0 : scale * static_cast<std::int64_t>(r + 1);
    }
    last_only.back() = scale;
    for (const std::vector<std::int64_t>& counts : {equal, uneven, last_only}) {
      for (const bool in_place : {false, true}) {
        if (absl::Status s = GatherOnAll(comm, device, counts, in_place); !s.ok()) return s;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status BroadcastFromReachesAllFromEveryRoot(Communicator& comm, Device& device, bool) {
  constexpr std::int64_t kLarge = (8 << 20) + 3;
  for (const std::int64_t bytes :
       {std::int64_t{0}, std::int64_t{1}, std::int64_t{2304}, std::int64_t{70001}, kLarge}) {
    for (int root = 0; root < comm.size(); ++root) {
      if (bytes == kLarge && root + 1 < comm.size()) continue;
      const Message m = {root, root, bytes, root};
      Bytes data(device, bytes + 2 * kGap, kUntouched);
      std::vector<std::uint8_t> expected = data.values();
      for (std::int64_t i = 0; i < bytes; ++i) {
        expected[static_cast<std::size_t>(kGap + i)] = ByteOf(m, i);
      }
      if (comm.rank() == root) data.values() = expected;
      data.Write();
      absl::Status s = comm.BroadcastFrom(root, data.view(kGap), bytes, data.stream());
      if (s.ok()) s = data.Read();
      if (s.ok()) s = Compare(comm, "broadcast of a tensor", expected, data.values());
      if (!s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

absl::Status Counted(Communicator& comm, const char* what, std::int64_t bytes) {
  const CommStats stats = comm.TakeStats();
  if (stats.calls != 1) return Differs(comm, what, -1, 1, static_cast<double>(stats.calls));
  if (stats.wait_seconds < 0 || stats.transfer_seconds < 0) {
    return Differs(comm, "seconds", 0, 0, std::min(stats.wait_seconds, stats.transfer_seconds));
  }
  if (stats.bytes == bytes) return absl::OkStatus();
  return Differs(comm, what, 0, static_cast<double>(bytes), static_cast<double>(stats.bytes));
}

// The header's costs; what a rank says to itself is free.
absl::Status NewOperationsCountTheirBytes(Communicator& comm, Device& device, bool) {
  const int ranks = comm.size(), me = comm.rank(), next = (me + 1) % ranks;
  const int before = (me + ranks - 1) % ranks;
  Bytes data(device, 4096), other(device, 4096);
  (void)comm.TakeStats();
  // 100 bytes a rank above the first to its follower, and 50 to itself.
  const auto length = [](int rank) { return std::int64_t{100} * (rank + 1); };
  const std::vector<Transfer> sends = {{next, data.view(), length(me)}, {me, data.view(2048), 50}};
  std::vector<Transfer> recvs = {{before, other.view(), length(before)},
                                 {me, other.view(2048), 50}};
  absl::Status s = comm.Exchange(sends, recvs, data.stream());
  if (s.ok()) s = data.stream().Synchronize();
  if (s.ok()) s = Counted(comm, "exchange", ranks == 1 ? 0 : length(me) + length(before));
  if (s.ok()) s = comm.Exchange({}, {}, data.stream());
  if (s.ok()) s = Counted(comm, "empty exchange", 0);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(ranks), 10);
  counts.back() = 20;
  const std::int64_t total = 10 * ranks + 10, own = counts[static_cast<std::size_t>(me)];
  if (s.ok()) s = comm.AllGatherV(data.view(), other.view(), counts, data.stream());
  if (s.ok()) s = data.stream().Synchronize();
  if (s.ok()) s = Counted(comm, "all-gather", (total - own) * 4);
  if (s.ok()) s = comm.BroadcastFrom(ranks - 1, data.view(), 777, data.stream());
  if (s.ok()) s = data.stream().Synchronize();
  const std::int64_t root_sends = 777 * (ranks - 1), received = ranks == 1 ? 0 : 777;
  if (s.ok()) s = Counted(comm, "broadcast of a tensor", me == ranks - 1 ? root_sends : received);
  return s;
}

}  // namespace

std::vector<ContractCheck> ExchangeChecks() {
  return {
      {"ExchangeCarriesUnevenMessages", ExchangeCarriesUnevenMessages},
      {"ExchangeIsAnAllToAllARingAndNothing", ExchangeIsAnAllToAllARingAndNothing},
      {"ExchangesFollowEachOther", ExchangesFollowEachOther},
      {"AllGatherVLaysPartsOutOnAll", AllGatherVLaysPartsOutOnAll},
      {"BroadcastFromReachesAllFromEveryRoot", BroadcastFromReachesAllFromEveryRoot},
      {"NewOperationsCountTheirBytes", NewOperationsCountTheirBytes},
  };
}

}  // namespace metattn
