// The memory budget of a CUDA device, and copies from and to the host, in the emulation.
#include "kernels/cuda/cuda_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

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

// Streams run when they are waited for (lazily) or at once, as the mask says.
class CudaCopiesTest : public testing::TestWithParam<unsigned> {
 protected:
  void SetUp() override {
    emu::Reset({.device_memory = 64 * kMiB, .eager_mask = GetParam()});
    auto device = CudaDevice::Create(0);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    auto stream = device_->NewStream();
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = *std::move(stream);
    auto buffer = device_->Allocate(kBytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    buffer_ = *std::move(buffer);
  }
  void TearDown() override {
    buffer_ = Buffer();
    stream_.reset();
    EXPECT_EQ(emu::Leaks(), "");
    emu::Reset();
  }
  static std::vector<std::uint32_t> Numbers(std::size_t bytes, std::uint32_t first) {
    std::vector<std::uint32_t> numbers(bytes / 4);
    std::iota(numbers.begin(), numbers.end(), first);
    return numbers;
  }
  void In(const std::vector<std::uint32_t>& values, std::size_t at) {
    device_->CopyIn(values.data(), {&buffer_, at}, values.size() * 4, *stream_);
  }
  void Out(std::size_t at, std::vector<std::uint32_t>& values) {
    device_->CopyOut({&buffer_, at}, values.data(), values.size() * 4, *stream_);
  }

  static constexpr std::size_t kBytes = 2 * Staging::kBytes + 4096;  // more than is ever pinned
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<Stream> stream_;
  Buffer buffer_;
};

TEST_P(CudaCopiesTest, EveryByteArrivesThoughTheHostsMemoryIsUsedAgain) {
  for (const std::size_t bytes :
       {std::size_t{4}, std::size_t{1000}, Staging::kFirstBytes + 4, Staging::kBytes, kBytes}) {
    SCOPED_TRACE(bytes);
    auto values = Numbers(bytes, 7);
    In(values, kBytes - bytes / 4 * 4);
    std::fill(values.begin(), values.end(), 0u);
    std::vector<std::uint32_t> whole(bytes / 4), tail(1);
    Out(kBytes - bytes / 4 * 4, whole);
    Out(kBytes - 4, tail);
    ASSERT_TRUE(stream_->Synchronize().ok());
    EXPECT_EQ(whole, Numbers(bytes, 7));
    EXPECT_EQ(tail[0], 7 + bytes / 4 - 1);
  }
}

// A step's copies: what they need in all is found out by waiting, once or a few times.
TEST_P(CudaCopiesTest, StepsSoonWaitForNoCopy) {
  const std::vector<std::uint32_t> plan = Numbers(3000, 1);
  std::vector<std::uint32_t> logits(300'000), best(3);
  const auto step = [&] {
    emu::ResetCounters();
    In(plan, 0);
    Out(0, logits);
    Out(8, best);
    EXPECT_TRUE(stream_->Synchronize().ok());
    return emu::Calls("cudaStreamSynchronize");
  };
  for (int i = 0; i < 5; ++i) step();
  EXPECT_EQ(step(), 1);
  EXPECT_EQ(best, std::vector<std::uint32_t>({3, 4, 5}));
}

TEST_P(CudaCopiesTest, AFailedCopyIsReportedAndDeliversNothing) {
  for (const char* function : {"cudaMemcpyAsync", "cudaMallocHost"}) {
    SCOPED_TRACE(function);
    auto fresh = device_->NewStream();
    ASSERT_TRUE(fresh.ok()) << fresh.status();
    std::vector<std::uint32_t> values(4, 99);
    emu::FailCall(function, cudaErrorMemoryAllocation);
    device_->CopyOut({&buffer_, 0}, values.data(), 16, **fresh);
    const absl::Status status = (*fresh)->Synchronize();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(status.message(), HasSubstr("CUDA device 0"));
    EXPECT_EQ(values, std::vector<std::uint32_t>(4, 99));
    EXPECT_TRUE((*fresh)->Synchronize().ok()) << "reported once";
  }
}

// Whichever of the two streams runs as late, or as early, as it may.
TEST_P(CudaCopiesTest, OneStreamGoesOnWhereAnotherWas) {
  auto other = device_->NewStream().value();
  std::vector<std::uint32_t> first(4);
  In(Numbers(16, 1), 0);
  other->WaitFor(*stream_);
  device_->Copy({&buffer_, 0}, {&buffer_, 64}, 16, *other);
  device_->CopyOut({&buffer_, 64}, first.data(), 16, *other);
  stream_->WaitFor(*other);
  In(Numbers(16, 9), 0);  // only now may what the copy reads change
  emu::ResetCounters();
  ASSERT_TRUE(stream_->Synchronize().ok());
  ASSERT_TRUE(other->Synchronize().ok());
  EXPECT_EQ(first, Numbers(16, 1));
  EXPECT_EQ(emu::Calls("cudaEventSynchronize") + emu::Calls("cudaDeviceSynchronize"), 0);
}

INSTANTIATE_TEST_SUITE_P(Eager, CudaCopiesTest, testing::Values(0u, 1u, 2u, 3u));

}  // namespace
}  // namespace metattn::cuda
