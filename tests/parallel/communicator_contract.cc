#include "tests/parallel/communicator_contract.h"

#include <bit>
#include <cmath>
#include <numeric>
#include <thread>

#include "absl/strings/str_format.h"
#include "tests/parallel/contract_support.h"

namespace metattn {
namespace {

// Empty, one, a row of the real model, remainders of every likely chunk, and one above 1 MiB.
constexpr std::int64_t kCounts[] = {0, 1, 3, 64, 576, 1000, 4097, 65536 + 7, 300001};

// Whole numbers below 2^24 add without rounding in any order: value(r, i) = (r + 1) * (i % 1000 -
// 300), whose sum over ranks is R (R + 1) / 2 times the bracket.
absl::Status AllReduceGivesTheClosedFormSum(Communicator& comm, Device& device, bool) {
  for (const std::int64_t count : kCounts) {
    const std::int64_t offset = count % 7;  // the view need not begin at the buffer's start
    Floats data(device, count + offset + 1, -7.0f);
    for (std::int64_t i = 0; i < count; ++i) {
      data[offset + i] = static_cast<float>((comm.rank() + 1) * (i % 1000 - 300));
    }
    data.Write();
    absl::Status s = comm.AllReduceSum(data.view(offset), count, data.stream());
    if (s.ok()) s = data.Read();
    if (!s.ok()) return s;
    const double ranks = comm.size();
    for (std::int64_t i = 0; i < count; ++i) {
      const double expected = ranks * (ranks + 1) / 2 * static_cast<double>(i % 1000 - 300);
      if (data[offset + i] != expected) {
        return Differs(comm, "all-reduce", i, expected, data[offset + i]);
      }
    }
    for (const std::int64_t i : {offset - 1, offset + count}) {  // neighbours stay as they were
      if (i >= 0 && data[i] != -7.0f) return Differs(comm, "outside all-reduce", i, -7, data[i]);
    }
  }
  return absl::OkStatus();
}

// Values of unlike size and sign, so that every order of additions gives other bits.
float Uneven(int rank, std::int64_t i) {
  const auto mixed = static_cast<std::uint32_t>(i * 16 + rank) * 2654435761u;
  const auto mantissa = static_cast<float>(static_cast<std::int32_t>(mixed)) * 0x1p-31f;
  return std::ldexp(mantissa, static_cast<int>(mixed >> 7) % 17 - 8);
}

absl::Status OrderedSumIsBitwiseTheSumInRankOrder(Communicator& comm, Device& device,
                                                  bool ordered) {
  for (const std::int64_t count : kCounts) {
    Floats data(device, count);
    for (std::int64_t i = 0; i < count; ++i) data[i] = Uneven(comm.rank(), i);
    data.Write();
    absl::Status status = comm.AllReduceSum(data.view(), count, data.stream());
    if (status.ok()) status = data.Read();
    if (!status.ok()) return status;
    for (std::int64_t i = 0; i < count; ++i) {
      float sum = Uneven(0, i);
      float magnitude = std::fabs(sum);
      for (int r = 1; r < comm.size(); ++r) {
        sum += Uneven(r, i);
        magnitude += std::fabs(Uneven(r, i));
      }
      // R - 1 additions, each wrong by at most half an epsilon of a partial sum, in both orders.
      const float bound = ordered ? 0 : static_cast<float>(comm.size() - 1) * 0x1p-23f * magnitude;
      const bool same = std::bit_cast<std::uint32_t>(sum) == std::bit_cast<std::uint32_t>(data[i]);
      if (!same && !(std::fabs(sum - data[i]) <= bound && !ordered)) {
        return Differs(comm, "ordered all-reduce", i, sum, data[i]);
      }
    }
  }
  return absl::OkStatus();
}

// Uneven counts with an empty rank; place k of rank r holds 1000 r + k.
absl::Status GatherVLaysPartsOutInRankOrder(Communicator& comm, Device& device, bool) {
  const int ranks = comm.size();
  for (const std::int64_t scale : {0, 1, 5, 24576}) {
    std::vector<std::int64_t> counts(ranks);
    for (int r = 0; r < ranks; ++r) counts[r] = r % 3 == 1 ? 0 : scale * (r + 1);
    const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    for (int root : {0, ranks - 1}) {
      const std::int64_t own = counts[static_cast<std::size_t>(comm.rank())];
      Floats mine(device, own), all(device, comm.rank() == root ? total : 0);
      for (std::int64_t k = 0; k < own; ++k) mine[k] = static_cast<float>(1000 * comm.rank() + k);
      mine.Write();
      const View send = own == 0 ? View{} : mine.view();
      const View recv = comm.rank() == root ? all.view() : View{};
      absl::Status s = comm.GatherV(send, recv, counts, root, mine.stream());
      if (s.ok()) s = mine.Read();  // waits for the stream
      if (s.ok()) s = all.Read();
      if (!s.ok()) return s;
      const float* got = all.values().data();
      for (int r = 0, k = 0; comm.rank() == root && r < ranks; k = 0, ++r) {
        for (; k < counts[r]; ++k, ++got) {
          if (*got != static_cast<float>(1000 * r + k)) {
            return Differs(comm, "gather", k, 1000 * r + k, *got);
          }
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status BroadcastBringsEveryLength(Communicator& comm, Device&, bool) {
  int round = 0;
  for (const std::size_t length : {0, 1, 100, 4000, 4096, 5000, 70000, 1, 0, 3000000}) {
    ++round;
    const auto expected = [&](std::size_t i) { return static_cast<std::byte>(i * 31 + round); };
    std::vector<std::byte> message(comm.rank() == 0 ? length : 17, std::byte{0xee});
    for (std::size_t i = 0; comm.rank() == 0 && i < length; ++i) message[i] = expected(i);
    if (absl::Status s = comm.Broadcast(message); !s.ok()) return s;
    if (message.size() != length) {
      return Differs(comm, "length of a broadcast", round, static_cast<double>(length),
                     static_cast<double>(message.size()));
    }
    for (std::size_t i = 0; i < length; ++i) {
      if (message[i] != expected(i)) {
        return Differs(comm, "broadcast", static_cast<std::int64_t>(i),
                       std::to_integer<int>(expected(i)), std::to_integer<int>(message[i]));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status GatherRecordsKeepsRankOrder(Communicator& comm, Device&, bool) {
  for (const std::size_t length : {0, 1, 96, 5000}) {
    const std::vector<std::byte> record(length, static_cast<std::byte>(comm.rank() + 1));
    std::vector<std::byte> all(comm.rank() == 0 ? length * comm.size() : 0);
    if (absl::Status s = comm.GatherRecords(record, all); !s.ok()) return s;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const int expected = static_cast<int>(i / length) + 1;
      if (std::to_integer<int>(all[i]) != expected) {
        return Differs(comm, "record", static_cast<std::int64_t>(i), expected,
                       std::to_integer<int>(all[i]));
      }
    }
  }
  return absl::OkStatus();
}

// As a step does: broadcast, sums, gather, records, in a loop, with ranks out of step.
absl::Status MixedOperationsStayInOrder(Communicator& comm, Device& device, bool) {
  const int ranks = comm.size();
  Floats row(device, 576), logits(device, comm.rank() == 0 ? 3 * ranks : 0);
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(ranks), 3);
  for (int step = 0; step < 50; ++step) {
    std::vector<std::byte> plan;
    if (comm.rank() == 0) plan.assign(1, static_cast<std::byte>(step));
    if (absl::Status s = comm.Broadcast(plan); !s.ok()) return s;
    if (plan.size() != 1 || std::to_integer<int>(plan[0]) != step) {
      return Differs(comm, "step of the plan", step, step,
                     plan.empty() ? -1 : std::to_integer<int>(plan[0]));
    }
    for (int layer = 0; layer < 4; ++layer) {
      if ((step + layer) % ranks == comm.rank()) std::this_thread::yield();
      std::fill_n(row.values().data(), 576, static_cast<float>(step + comm.rank()));
      row.Write();
      absl::Status s = comm.AllReduceSum(row.view(), 576, row.stream());
      if (s.ok()) s = row.Read();
      if (!s.ok()) return s;
      const double expected = ranks * step + ranks * (ranks - 1) / 2;
      if (row[575] != expected) return Differs(comm, "row", step, expected, row[575]);
    }
    const View recv = comm.rank() == 0 ? logits.view() : View{};
    absl::Status s = comm.GatherV(row.view(), recv, counts, 0, row.stream());
    if (s.ok()) s = row.Read();
    if (!s.ok()) return s;
    const std::vector<std::byte> record(8, static_cast<std::byte>(step));
    std::vector<std::byte> all(comm.rank() == 0 ? 8 * ranks : 0);
    if (absl::Status s = comm.GatherRecords(record, all); !s.ok()) return s;
  }
  return comm.Barrier();
}

absl::Status StatsCountCallsAndBytesAndStartAgain(Communicator& comm, Device& device,
                                                  bool ordered) {
  (void)comm.TakeStats();
  Floats row(device, 576, 1.0f);
  for (int i = 0; i < 20; ++i) {
    if (absl::Status s = comm.AllReduceSum(row.view(), 576, row.stream()); !s.ok()) return s;
  }
  if (absl::Status s = row.stream().Synchronize(); !s.ok()) return s;
  const CommStats stats = comm.TakeStats();
  const std::int64_t n = 576 * 4, ranks = comm.size();
  // The header's costs; a body may sum in rank order without the dearer exchange.
  const std::int64_t plain = 20 * (2 * n * (ranks - 1) / ranks), dear = 20 * n * (ranks - 1);
  if (stats.calls != 20) return Differs(comm, "calls", 0, 20, static_cast<double>(stats.calls));
  if (stats.bytes != plain && !(ordered && stats.bytes == dear)) {
    return Differs(comm, "bytes", 0, static_cast<double>(ordered ? dear : plain),
                   static_cast<double>(stats.bytes));
  }
  if (stats.wait_seconds < 0 || stats.transfer_seconds < 0) {
    return Differs(comm, "seconds", 0, 0, std::min(stats.wait_seconds, stats.transfer_seconds));
  }
  const CommStats again = comm.TakeStats();
  if (again.calls != 0 || again.bytes != 0 || again.wait_seconds != 0) {
    return Differs(comm, "calls after TakeStats", 0, 0, static_cast<double>(again.calls));
  }
  return absl::OkStatus();
}

// The last rank comes 30 ms late ten times: the others see it as waiting. (What the late rank and
// the transfers show depends on what else the machine runs; wait_meter_test has those.)
absl::Status StatsTellALatePeerFromASlowTransfer(Communicator& comm, Device& device, bool) {
  if (comm.size() == 1) return absl::OkStatus();
  const bool late = comm.rank() == comm.size() - 1;
  Floats row(device, 576, 1.0f);
  for (int i = 0; i < 100; ++i) {  // learn what a transfer costs
    if (absl::Status s = comm.AllReduceSum(row.view(), 576, row.stream()); !s.ok()) return s;
  }
  if (absl::Status s = row.stream().Synchronize(); !s.ok()) return s;
  if (absl::Status s = comm.Barrier(); !s.ok()) return s;
  (void)comm.TakeStats();
  for (int i = 0; i < 10; ++i) {
    if (late) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    if (absl::Status s = comm.AllReduceSum(row.view(), 576, row.stream()); !s.ok()) return s;
  }
  if (absl::Status s = row.stream().Synchronize(); !s.ok()) return s;
  const CommStats stats = comm.TakeStats();
  // Half of the truth, for machines that run many things at once.
  if (!late && stats.wait_seconds < 0.15) {
    return Differs(comm, "seconds waited for a late rank", 0, 0.3, stats.wait_seconds);
  }
  return absl::OkStatus();
}

absl::Status TransportIsNamed(Communicator& comm, Device&, bool) {
  const bool alone = comm.transport() == "none";
  if (comm.transport().empty() || alone != (comm.size() == 1)) {
    return absl::InternalError(absl::StrFormat("rank %d of %d: transport is '%s'", comm.rank(),
                                               comm.size(), std::string(comm.transport())));
  }
  return absl::OkStatus();
}

}  // namespace

const std::vector<ContractCheck>& ContractChecks() {
  static const std::vector<ContractCheck> checks = [] {
    std::vector<ContractCheck> all = {
        {"AllReduceGivesTheClosedFormSum", AllReduceGivesTheClosedFormSum},
        {"OrderedSumIsBitwiseTheSumInRankOrder", OrderedSumIsBitwiseTheSumInRankOrder},
        {"GatherVLaysPartsOutInRankOrder", GatherVLaysPartsOutInRankOrder},
        {"BroadcastBringsEveryLength", BroadcastBringsEveryLength},
        {"GatherRecordsKeepsRankOrder", GatherRecordsKeepsRankOrder},
        {"MixedOperationsStayInOrder", MixedOperationsStayInOrder},
        {"StatsCountCallsAndBytesAndStartAgain", StatsCountCallsAndBytesAndStartAgain},
        {"StatsTellALatePeerFromASlowTransfer", StatsTellALatePeerFromASlowTransfer},
        {"TransportIsNamed", TransportIsNamed},
    };
    for (const auto& more : {ExchangeChecks(), ChannelChecks()}) {
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  }();
  return checks;
}

}  // namespace metattn
