// An all-reduce of large f32 tensors between the ranks of one host, through memory that they share.
//
// Per part of kPart values a rank copies its values into its slot, announces that, waits until all
// have, and adds all slots in rank order: one meeting a part, and the same bits on every rank and
// in every run. Slots come in two: nobody announces part n + 1 before it has read part n, so part
// n + 2 may overwrite it.
// The memory must begin zeroed, lie on a cache line, hold Bytes(ranks) and outlive every SharedSum
// on it; one SharedSum per rank, which all issue the same sums. Owned by one thread. No errors: a
// rank that never comes lets the others wait for ever (the caller's watchdog ends that).
// Cost per rank: count values written, ranks x count read, no system call unless a rank is late by
// more than some 10 us: then it yields its core between looks (spin false: at once).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace metattn {

class SharedSum {
 public:
  // 128 KiB: two slots of two ranks stay in the cache of a core.
  static constexpr std::int64_t kPart = std::int64_t{32} << 10;
  static constexpr std::size_t kAlignment = 64;

  static std::size_t Bytes(int ranks);

  SharedSum(void* memory, int rank, int ranks, bool spin);

  // In place: values[i] = sum over ranks. -> seconds spent waiting for other ranks.
  double Sum(float* values, std::int64_t count);

 private:
  struct Announced {
    alignas(kAlignment) std::atomic<std::uint64_t> part;  // the last one that lies in its slot
  };
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

  float* Slot(int rank) const;
  double WaitForAll() const;

  Announced* announced_;  // one per rank, before the slots
  float* slots_;          // [2][ranks][kPart]
  const int rank_;
  const int ranks_;
  const bool spin_;
  std::uint64_t part_ = 0;
  std::vector<const float*> parts_;
};

}  // namespace metattn
