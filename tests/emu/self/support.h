// What the self tests of the emulation share: a fixture that starts from a fresh runtime and finds
// leaks, device arrays, loops over all orders and masks.
//
// Ownership: DeviceArray owns device memory. Thread safety: none. Errors: gtest failures. Cost:
// none.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "gtest/gtest.h"
#include "tests/emu/control.h"

#define EXPECT_CUDA(call) EXPECT_EQ(call, cudaSuccess)
#define ASSERT_CUDA(call) ASSERT_EQ(call, cudaSuccess)

namespace emu::self {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// What a fault prints: the sanitizers' words (ASan takes any address near the stack pointer for an
// overflow), or the emulation's.
inline const char* FaultReport(const char* words) {
  return kAddressSanitizer || kThreadSanitizer ? "Sanitizer: (SEGV|stack-overflow)" : words;
}

class EmuTest : public testing::Test {
 protected:
  EmuTest() { Reset(Options{}); }
  ~EmuTest() override {
    EXPECT_EQ(Leaks(), "");
    Reset(Options{});
    SetThreadSchedule(ThreadScheduleFromEnvironment());
  }
};

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) {
    EXPECT_CUDA(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    EXPECT_CUDA(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { EXPECT_CUDA(cudaFree(data_)); }

  T* get() const { return data_; }
  std::size_t bytes() const { return count_ * sizeof(T); }
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    EXPECT_CUDA(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

// Calls body(name) under each thread order, the random one with that many seeds.
template <typename Body>
void ForEachOrder(const Body& body, unsigned seeds = 5) {
  SetThreadSchedule({ThreadOrder::kFifo});
  body("fifo");
  SetThreadSchedule({ThreadOrder::kLifo});
  body("lifo");
  for (unsigned seed = 1; seed <= seeds; ++seed) {
    SetThreadSchedule({ThreadOrder::kRandom, seed});
    body("random");
  }
}

inline Options WithMask(unsigned mask) {
  Options options;
  options.eager_mask = mask;
  return options;
}

}  // namespace emu::self
