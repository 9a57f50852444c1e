#include "parallel/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace metattn {
namespace {

// The plain operations, not the _PRIVATE ones: the word lies in memory shared between processes.
void FutexWait(std::atomic<std::uint32_t>* word, std::uint32_t value, const timespec& timeout) {
  ::syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, nullptr, 0);
}

void FutexWakeAll(std::atomic<std::uint32_t>* word) {
  ::syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

// Sequentially consistent on both sides: either Ring sees the sleeper, or the sleeper's kernel
// check sees the ring.
void Doorbell::Ring() {
  shared_->rings.fetch_add(1, std::memory_order_seq_cst);
  if (shared_->sleepers.load(std::memory_order_seq_cst) != 0) FutexWakeAll(&shared_->rings);
}

void Doorbell::Wait(std::uint32_t seen, std::chrono::microseconds timeout) {
  const timespec limit = {static_cast<time_t>(timeout.count() / 1000000),
                          static_cast<long>(timeout.count() % 1000000 * 1000)};
  shared_->sleepers.fetch_add(1, std::memory_order_seq_cst);
  if (rings() == seen) FutexWait(&shared_->rings, seen, limit);
  shared_->sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace metattn
