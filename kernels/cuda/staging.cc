#include "kernels/cuda/staging.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace metattn::cuda {

Staging::~Staging() {
  if (memory_ != nullptr) (void)cudaFreeHost(memory_);
}

cudaError_t Staging::Grow(std::size_t bytes) {
  if (memory_ != nullptr) (void)cudaFreeHost(std::exchange(memory_, nullptr));
  bytes_ = 0;
  const std::size_t wanted = std::clamp(std::bit_ceil(bytes), kFirstBytes, kBytes);
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, wanted);
  if (error != cudaSuccess) return error;
  memory_ = static_cast<std::byte*>(memory);
  bytes_ = wanted;
  return cudaSuccess;
}

std::byte* Staging::Take(std::size_t bytes, cudaError_t* error) {
  *error = cudaSuccess;
  const bool grows = bytes > bytes_ || (refused_ && bytes_ < kBytes);
  if (used_ == 0 && grows) {
    *error = Grow(std::max(bytes, 2 * bytes_));
    if (*error != cudaSuccess) return nullptr;
  }
  refused_ = bytes > bytes_ - used_;
  if (refused_) return nullptr;
  std::byte* space = memory_ + used_;
  used_ = std::min(bytes_, used_ + (bytes + 63) / 64 * 64);
  return space;
}

void Staging::Promise(const std::byte* from, void* to, std::size_t bytes) {
  promised_.push_back({from, to, bytes});
}

void Staging::Release(bool arrived) {
  if (arrived) {
    for (const Delivery& d : promised_) std::memcpy(d.to, d.from, d.bytes);
  }
  promised_.clear();
  used_ = 0;
}

}  // namespace metattn::cuda
