// Pinned host memory between the program's memory and a stream, so that copies wait for nothing.
//
// Owns one pinned allocation. Space is handed out in order and comes back all at once, when the
// stream has been waited for. It grows to what is asked for between two such waits, at most kBytes:
// streams that only load a vector stay small, and a step soon waits for none of its copies. One
// caller, the stream. Cost: one more pass of the host over every byte, which pageable memory costs
// in the driver too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

namespace metattn::cuda {

class Staging {
 public:
  static constexpr std::size_t kBytes = std::size_t{16} << 20, kFirstBytes = 64 << 10;

  Staging() = default;
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Space for `bytes` <= kBytes, 64-byte aligned; null when that much is not free, or (with
  // *error) when there is no pinned memory.
  std::byte* Take(std::size_t bytes, cudaError_t* error);
  // The device will have written `from`, space of this, when the stream has been waited for.
  void Promise(const std::byte* from, void* to, std::size_t bytes);
  // The stream was waited for: what was promised is copied if `arrived`, all space is free.
  void Release(bool arrived);

 private:
  struct Delivery {
    const std::byte* from;
    void* to;
    std::size_t bytes;
  };
  cudaError_t Grow(std::size_t bytes);

  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0, used_ = 0;
  bool refused_ = false;  // more was asked for than fits
  std::vector<Delivery> promised_;
};

}  // namespace metattn::cuda
