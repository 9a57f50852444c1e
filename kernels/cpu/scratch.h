// Grow-only scratch memory of one Kernels instance: two areas that an op's threads share
// (SharedArea), one per worker.
//
// Ownership: owns its memory; a pointer is good until the next call with more bytes or until the op
// ends. Thread safety: Shared from the calling thread outside ParallelFor; Worker(w) from worker w.
// Errors: aborts when memory ends (areas are small: a few hundred KB per worker). Cost: allocates
// only when it grows. Contents are undefined; 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

namespace metattn::cpu {

// Shared areas: linear attention has its own, because it runs beside softmax attention.
enum class SharedArea : std::size_t { kOp = 0, kLinearAttention = 1 };

class Scratch {
 public:
  explicit Scratch(int workers) : areas_(static_cast<std::size_t>(workers) + kShared) {}

  std::byte* Shared(std::size_t bytes, SharedArea area = SharedArea::kOp) {
    return Grow(static_cast<std::size_t>(area), bytes);
  }
  std::byte* Worker(int worker, std::size_t bytes) {
    return Grow(static_cast<std::size_t>(worker) + kShared, bytes);
  }

 private:
  static constexpr std::size_t kShared = 2;

  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  struct alignas(64) Area {  // apart, so that workers do not share a line
    std::unique_ptr<std::byte, Free> data;
    std::size_t bytes = 0;
  };

  std::byte* Grow(std::size_t area, std::size_t bytes);  // scratch.cc

  std::vector<Area> areas_;
};

}  // namespace metattn::cpu
