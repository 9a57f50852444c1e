// A bell in memory that processes of one host share: sleepers wake when it rings (a Linux futex).
//
// The shared part must begin zeroed and outlive every Doorbell on it; processes must map it shared.
// Anyone may ring, any number may wait. No ring is lost: a waiter passes the number of rings it had
// seen before it looked for work, and does not sleep when there has been one since. A waiter may
// wake without a ring, so look again. No errors. Cost: Ring is one atomic addition, and one system
// call only while somebody sleeps; waiting costs nothing; waking takes a scheduler's wake-up, some
// 50 us.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace metattn {

class Doorbell {
 public:
  struct Shared {
    alignas(64) std::atomic<std::uint32_t> rings;
    alignas(64) std::atomic<std::uint32_t> sleepers;
  };
  static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

  explicit Doorbell(Shared* shared) : shared_(shared) {}

  std::uint32_t rings() const { return shared_->rings.load(std::memory_order_seq_cst); }
  void Ring();
  // Returns at once when rings() is not `seen`; else after a ring or the timeout.
  void Wait(std::uint32_t seen, std::chrono::microseconds timeout);

 private:
  Shared* shared_;
};

}  // namespace metattn
