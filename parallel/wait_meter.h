// Splits the time of blocking collectives into waiting for the last rank and moving data.
//
// A blocking collective only tells its total. So some operations are preceded by a barrier: the
// barrier's time is waiting, the rest is transfer (both measured). The others are split by
// estimate: the least transfer of its size among the last measured four, the rest is waiting.
// Measured are the first of every size class, every kEvery-th of it, and every large one, where a
// barrier is lost in the noise; all ranks decide alike, because they issue the same operations in
// the same order. Plain arithmetic, no clock inside. Owned by one thread. Cost: a few nanoseconds
// per operation and one small barrier (1-2 us between two ranks of one host) per measured one.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>

namespace metattn {

class WaitMeter {
 public:
  static constexpr int kEvery = 32;
  static constexpr std::uint32_t kSamples = 4;
  static constexpr std::int64_t kLargeBytes = 64 * 1024;

  // To be asked once per operation, in the order of the operations.
  bool ShouldMeasure(std::int64_t bytes) {
    return bytes >= kLargeBytes || classes_[ClassOf(bytes)].calls++ % kEvery == 0;
  }

  void Measured(std::int64_t bytes, double wait_seconds, double transfer_seconds) {
    Class& c = classes_[ClassOf(bytes)];
    c.samples[c.next++ % kSamples] = transfer_seconds;
    wait_ += wait_seconds;
    transfer_ += transfer_seconds;
  }

  void Unmeasured(std::int64_t bytes, double total_seconds) {
    const double transfer = std::min(total_seconds, classes_[ClassOf(bytes)].Transfer());
    wait_ += total_seconds - transfer;
    transfer_ += transfer;
  }

  // For transports where no barrier can come before an operation: of its size class the least of
  // the last kSamples times kEvery totals counts as its transfer, the rest of a total as waiting.
  void Estimated(std::int64_t bytes, double total_seconds) {
    Class& c = classes_[ClassOf(bytes)];
    const bool first = c.calls % kEvery == 0;  // of the kEvery that share a sample
    if (first) ++c.next;
    double& least = c.samples[(c.next - 1) % kSamples];
    least = first ? total_seconds : std::min(least, total_seconds);
    ++c.calls;
    Unmeasured(bytes, total_seconds);
  }

  // For operations of known nature.
  void Waited(double seconds) { wait_ += seconds; }
  void Transferred(double seconds) { transfer_ += seconds; }

  double TakeWait() { return std::exchange(wait_, 0.0); }
  double TakeTransfer() { return std::exchange(transfer_, 0.0); }

 private:
  struct Class {
    std::uint32_t calls = 0;
    std::uint32_t next = 0;
    std::array<double, kSamples> samples{};  // seconds, of the last measured transfers

    // The least of them: a rank that lost its core in one must not colour the estimate.
    double Transfer() const {
      const auto end = samples.begin() + std::min<std::uint32_t>(next, kSamples);
      return next == 0 ? 0 : *std::min_element(samples.begin(), end);
    }
  };

  // Four classes per octave: sizes of one class differ by at most a quarter.
  static std::size_t ClassOf(std::int64_t bytes) {
    const auto b = static_cast<std::uint64_t>(std::max<std::int64_t>(bytes, 4));
    const int octave = std::bit_width(b) - 1;
    return static_cast<std::size_t>(octave) * 4 + ((b >> (octave - 2)) & 3);
  }

  std::array<Class, 64 * 4> classes_{};
  double wait_ = 0;
  double transfer_ = 0;
};

}  // namespace metattn
