// The memory budget of a CUDA device, in the emulation.
#include "kernels/cuda/cuda_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <utility>

#include "tests/emu/control.h"

namespace metattn::cuda {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kMiB = 1 << 20;

class CudaDeviceTest : public testing::Test {
 protected:
  void SetUp() override { emu::Reset({.devices = 2, .device_memory = 64 * kMiB}); }
  void TearDown() override { emu::Reset(); }
};

TEST_F(CudaDeviceTest, AllocatesUpToItsFraction) {
  auto device = CudaDevice::Create(1, 0.5);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ((*device)->MemoryLeft(), 32 * kMiB);
  auto first = (*device)->Allocate(20 * kMiB);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ((*device)->MemoryLeft(), 12 * kMiB);
  for (const std::size_t bytes : {std::size_t{13 * kMiB}, SIZE_MAX}) {
    const auto second = (*device)->Allocate(bytes);
    ASSERT_EQ(second.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(second.status().message(), HasSubstr(std::to_string(bytes)));
    EXPECT_THAT(second.status().message(), HasSubstr("CUDA device 1"));
    EXPECT_THAT(second.status().message(), HasSubstr("--device-memory-fraction"));
  }
  EXPECT_EQ((*device)->MemoryLeft(), 12 * kMiB) << "a refusal takes nothing";
  *first = Buffer();
  EXPECT_EQ((*device)->MemoryLeft(), 32 * kMiB);
  EXPECT_TRUE((*device)->Allocate(32 * kMiB).ok());
}

TEST_F(CudaDeviceTest, ABufferMayOutliveItsDevice) {
  std::optional<Buffer> buffer;
  {
    auto device = CudaDevice::Create(0, 0.5);
    ASSERT_TRUE(device.ok()) << device.status();
    auto made = (*device)->Allocate(kMiB);
    ASSERT_TRUE(made.ok()) << made.status();
    buffer = *std::move(made);
  }
  buffer.reset();
  EXPECT_EQ(emu::DeviceBytesInUse(0), 0u);
}

TEST_F(CudaDeviceTest, WhatTheDriverRefusesIsGivenBack) {
  auto device = CudaDevice::Create(0, 0.5);
  ASSERT_TRUE(device.ok()) << device.status();
  emu::FailCall("cudaMalloc", cudaErrorMemoryAllocation);
  EXPECT_EQ((*device)->Allocate(kMiB).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ((*device)->MemoryLeft(), 32 * kMiB);
}

TEST_F(CudaDeviceTest, MemoryThatAnotherProcessHasIsAnErrorAtStart) {
  void* taken = nullptr;
  ASSERT_EQ(cudaMalloc(&taken, 40 * kMiB), cudaSuccess);
  const auto device = CudaDevice::Create(0, 0.5);
  ASSERT_EQ(device.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(device.status().message(), HasSubstr("CUDA device 0"));
  EXPECT_THAT(device.status().message(), HasSubstr("another process has the rest"));
  EXPECT_TRUE(CudaDevice::Create(1, 0.5).ok());
  ASSERT_EQ(cudaFree(taken), cudaSuccess);
}

}  // namespace
}  // namespace metattn::cuda
