#include "parallel/shared_sum.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "parallel/host_tensor.h"

namespace metattn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLooks = 500;  // before the core is yielded

void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

std::size_t SharedSum::Bytes(int ranks) {
  const auto n = static_cast<std::size_t>(ranks);
  return n * sizeof(Announced) + 2 * n * kPart * sizeof(float);
}

SharedSum::SharedSum(void* memory, int rank, int ranks, bool spin)
    : announced_(static_cast<Announced*>(memory)),
      slots_(reinterpret_cast<float*>(announced_ + ranks)),
      rank_(rank),
      ranks_(ranks),
      spin_(spin),
      parts_(static_cast<std::size_t>(ranks)) {}

double SharedSum::Sum(float* values, std::int64_t count) {
  double waited = 0;
  for (std::int64_t at = 0; at < count; at += kPart) {
    const std::int64_t n = std::min(kPart, count - at);
    ++part_;
    std::copy_n(values + at, n, Slot(rank_));
    announced_[rank_].part.store(part_, std::memory_order_release);
    waited += WaitForAll();
    // The own values are read where they are: nearer than the slot.
    for (int r = 0; r < ranks_; ++r) parts_[r] = r == rank_ ? values + at : Slot(r);
    SumInRankOrder(parts_, n, values + at);
  }
  return waited;
}

float* SharedSum::Slot(int rank) const {
  return slots_ + (static_cast<std::int64_t>(part_ % 2) * ranks_ + rank) * kPart;
}

double SharedSum::WaitForAll() const {
  const auto start = Clock::now();
  bool late = false;
  for (int r = 0; r < ranks_; ++r) {
    for (int looks = 0; announced_[r].part.load(std::memory_order_acquire) < part_; ++looks) {
      late = true;
      if (spin_ && looks < kLooks) {
        Relax();
      } else {
        std::this_thread::yield();
      }
    }
  }
  return late ? std::chrono::duration<double>(Clock::now() - start).count() : 0;
}

}  // namespace metattn
