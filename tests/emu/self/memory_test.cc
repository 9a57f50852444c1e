// Allocation, its limits, what fresh and freed memory holds, and copies of every kind.

#include <cmath>
#include <cstring>

#include "tests/emu/device_pages.h"
#include "tests/emu/self/support.h"
#include "tests/emu/self/test_kernels.h"

namespace emu::self {
namespace {

class EmuMemory : public EmuTest {
 protected:
  void SetUp() override { EXPECT_CUDA(cudaStreamCreateWithFlags(&stream_, kNonBlocking)); }
  void TearDown() override { EXPECT_CUDA(cudaStreamDestroy(stream_)); }

  void Limit(std::size_t bytes) {
    TearDown();
    Options options;
    options.device_memory = bytes;
    Reset(options);
    SetUp();
  }

  static constexpr unsigned kNonBlocking = cudaStreamNonBlocking;
  cudaStream_t stream_ = nullptr;
};

TEST_F(EmuMemory, FreshMemoryIsNan) {
  const DeviceArray<float> device(5);
  for (const float x : device.Read()) EXPECT_TRUE(std::isnan(x));
  float* pinned = nullptr;
  ASSERT_CUDA(cudaMallocHost(reinterpret_cast<void**>(&pinned), 8));
  EXPECT_TRUE(std::isnan(pinned[1]));
  EXPECT_CUDA(cudaFreeHost(pinned));
}

TEST_F(EmuMemory, BeyondTheLimitIsOutOfMemory) {
  Limit(1 << 20);
  std::size_t free = 0, total = 0;
  void *first = nullptr, *second = nullptr;
  EXPECT_CUDA(cudaMalloc(&first, 1 << 19));
  EXPECT_CUDA(cudaMemGetInfo(&free, &total));
  EXPECT_EQ(free, std::size_t{1} << 19);
  EXPECT_EQ(total, std::size_t{1} << 20);
  EXPECT_EQ(cudaMalloc(&second, (1 << 19) + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(second, nullptr);
  EXPECT_STREQ(cudaGetErrorString(cudaGetLastError()), "out of memory");
  EXPECT_EQ(cudaMalloc(&second, ~std::size_t{0}), cudaErrorMemoryAllocation);
  EXPECT_CUDA(cudaMalloc(&second, 1 << 19));
  EXPECT_EQ(DeviceBytesInUse(0), std::size_t{1} << 20);
  EXPECT_CUDA(cudaFree(first));
  EXPECT_CUDA(cudaFree(second));
  EXPECT_EQ(DeviceBytesInUse(0), 0U);
  void* pinned = nullptr;  // host memory does not count
  EXPECT_CUDA(cudaMallocHost(&pinned, 2 << 20));
  EXPECT_CUDA(cudaFreeHost(pinned));
}

TEST_F(EmuMemory, StreamOrderedAllocationWaitsForPendingFrees) {
  Limit(1 << 20);
  void *first = nullptr, *second = nullptr, *third = nullptr;
  EXPECT_CUDA(cudaMallocAsync(&first, 1 << 20, stream_));
  EXPECT_CUDA(cudaFreeAsync(first, stream_));
  EXPECT_CUDA(cudaMallocAsync(&second, 1 << 20, stream_));
  EXPECT_EQ(cudaMallocAsync(&third, 1, stream_), cudaErrorMemoryAllocation);
  EXPECT_CUDA(cudaFreeAsync(second, stream_));
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
}

TEST_F(EmuMemory, StreamOrderedMemoryBelongsToItsStreamFirst) {
  float* data = nullptr;
  const float one = 1;
  float seen = 0;
  EXPECT_CUDA(cudaMallocAsync(reinterpret_cast<void**>(&data), 4, stream_));
  // Bug of a program: another stream uses it without waiting for the allocation.
  EXPECT_CUDA(cudaMemcpy(data, &one, 4, cudaMemcpyHostToDevice));
  EXPECT_CUDA(cudaMemcpyAsync(&seen, data, 4, cudaMemcpyDeviceToHost, stream_));
  EXPECT_TRUE(std::isnan(seen));
  EXPECT_CUDA(cudaFreeAsync(data, stream_));
}

TEST_F(EmuMemory, FreeingWhatIsNotThereIsAnError) {
  int on_stack = 0;
  EXPECT_CUDA(cudaFree(nullptr));
  EXPECT_CUDA(cudaFreeHost(nullptr));
  EXPECT_EQ(cudaFree(&on_stack), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeAsync(&on_stack, stream_), cudaErrorInvalidValue);
  void *device = nullptr, *host = nullptr;
  EXPECT_CUDA(cudaMalloc(&device, 8));
  EXPECT_CUDA(cudaMallocHost(&host, 8));
  EXPECT_EQ(cudaFreeHost(device), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(host), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(static_cast<char*>(device) + 4), cudaErrorInvalidValue);
  EXPECT_CUDA(cudaFree(device));
  EXPECT_CUDA(cudaFreeHost(host));
  EXPECT_EQ(cudaFree(device), cudaErrorInvalidValue);
}

TEST_F(EmuMemory, CopiesOfTheWrongKindAreErrors) {
  const DeviceArray<float> a(4), b(4);
  float *pinned = nullptr, pageable[4] = {};
  ASSERT_CUDA(cudaMallocHost(reinterpret_cast<void**>(&pinned), 16));
  std::memset(pinned, 0, 16);
  const struct {
    void *to, *from;
    cudaMemcpyKind right;
  } copies[] = {
      {a.get(), b.get(), cudaMemcpyDeviceToDevice}, {a.get(), pinned, cudaMemcpyHostToDevice},
      {a.get(), pageable, cudaMemcpyHostToDevice},  {pinned, a.get(), cudaMemcpyDeviceToHost},
      {pageable, a.get(), cudaMemcpyDeviceToHost},  {pinned, pageable, cudaMemcpyHostToHost},
  };
  for (const auto& copy : copies) {
    for (const auto kind : {cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                            cudaMemcpyDeviceToDevice}) {
      const cudaError_t expected = kind == copy.right ? cudaSuccess : cudaErrorInvalidValue;
      EXPECT_EQ(cudaMemcpyAsync(copy.to, copy.from, 16, kind, stream_), expected)
          << "kind " << kind << " where " << copy.right << " is right";
      EXPECT_EQ(cudaMemcpy(copy.to, copy.from, 16, kind), expected);
    }
    EXPECT_CUDA(cudaMemcpyAsync(copy.to, copy.from, 16, cudaMemcpyDefault, stream_));
  }
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
  EXPECT_CUDA(cudaFreeHost(pinned));
}

TEST_F(EmuMemory, CopiesAndFillsStayInsideOneAllocation) {
  const DeviceArray<float> device(4);
  std::vector<float> host(8);
  EXPECT_EQ(cudaMemcpy(device.get(), host.data(), 17, cudaMemcpyHostToDevice),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host.data(), device.get() + 1, 16, cudaMemcpyDeviceToHost),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(device.get(), 0, 17), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host.data(), 0, 4), cudaErrorInvalidValue);
  EXPECT_CUDA(cudaMemset(device.get(), 0, 16));
  EXPECT_EQ(device.Read(), std::vector<float>(4));
}

TEST_F(EmuMemory, CopiesOfRowsKeepTheirPitches) {
  const std::vector<int> values = {1, 2, 3, 4, 5, 6, 7, 8};
  const DeviceArray<int> from(values), to(std::vector<int>(6));
  EXPECT_CUDA(
      cudaMemcpy2DAsync(to.get(), 12, from.get(), 16, 8, 2, cudaMemcpyDeviceToDevice, stream_));
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
  EXPECT_EQ(to.Read(), (std::vector<int>{1, 2, 0, 5, 6, 0}));
  EXPECT_EQ(BytesCopied(cudaMemcpyDeviceToDevice), 16);
  EXPECT_EQ(cudaMemcpy2DAsync(to.get(), 4, from.get(), 16, 8, 2, cudaMemcpyDeviceToDevice, stream_),
            cudaErrorInvalidPitchValue);
  EXPECT_EQ(
      cudaMemcpy2DAsync(to.get(), 12, from.get(), 16, 8, 3, cudaMemcpyDeviceToDevice, stream_),
      cudaErrorInvalidValue);
}

TEST_F(EmuMemory, PageableMemoryIsStagedAndPinnedMemoryIsNot) {
  const DeviceArray<float> device(1);
  float pageable = 1, *pinned = nullptr;
  ASSERT_CUDA(cudaMallocHost(reinterpret_cast<void**>(&pinned), 4));
  *pinned = 1;
  EXPECT_CUDA(cudaMemcpyAsync(device.get(), &pageable, 4, cudaMemcpyHostToDevice, stream_));
  pageable = 2;
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
  EXPECT_EQ(device.Read()[0], 1);
  EXPECT_CUDA(cudaMemcpyAsync(device.get(), pinned, 4, cudaMemcpyHostToDevice, stream_));
  *pinned = 2;  // bug of a program: too early
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
  EXPECT_EQ(device.Read()[0], 2);
  EXPECT_CUDA(cudaMemcpyAsync(&pageable, device.get(), 4, cudaMemcpyDeviceToHost, stream_));
  EXPECT_EQ(pageable, 2);  // there when the call returns
  EXPECT_CUDA(cudaFreeHost(pinned));
}

TEST_F(EmuMemory, PointersKnowWhatTheyAre) {
  const DeviceArray<float> device(4);
  void* pinned = nullptr;
  float own[4] = {};
  ASSERT_CUDA(cudaMallocHost(&pinned, 16));
  const auto type_of = [](const void* data) {
    cudaPointerAttributes attributes;
    EXPECT_CUDA(cudaPointerGetAttributes(&attributes, data));
    return attributes.type;
  };
  EXPECT_EQ(type_of(device.get() + 3), cudaMemoryTypeDevice);
  EXPECT_EQ(type_of(pinned), cudaMemoryTypeHost);
  EXPECT_EQ(type_of(own), cudaMemoryTypeUnregistered);
  EXPECT_CUDA(cudaHostRegister(own, sizeof own, 0));
  EXPECT_EQ(type_of(own), cudaMemoryTypeHost);
  EXPECT_EQ(cudaHostRegister(own, sizeof own, 0), cudaErrorHostMemoryAlreadyRegistered);
  EXPECT_EQ(cudaFreeHost(own), cudaErrorInvalidValue);
  EXPECT_CUDA(cudaHostUnregister(own));
  EXPECT_EQ(cudaHostUnregister(own), cudaErrorHostMemoryNotRegistered);
  EXPECT_CUDA(cudaFreeHost(pinned));
}

using EmuMemoryDeathTest = EmuMemory;

TEST_F(EmuMemoryDeathTest, HostCodeCannotTouchDeviceMemory) {
  if (!HostIsKeptOut()) GTEST_SKIP() << "this machine has no memory protection keys";
  const DeviceArray<float> device(4);
  const char* report = FaultReport("host code touches device memory");
  EXPECT_DEATH(device.get()[0] = 1, report);
  EXPECT_DEATH(EXPECT_NE(device.get()[3], 1), report);
  const auto write = [](void* data) { *static_cast<float*>(data) = 1; };
  EXPECT_DEATH(static_cast<void>(cudaLaunchHostFunc(nullptr, write, device.get())), report);
}

TEST_F(EmuMemoryDeathTest, AKernelThatRunsOverDeviceMemoryFaults) {
  const DeviceArray<float> device(64);  // ends where a page ends
  EXPECT_DEATH(static_cast<void>(Affine(device.get(), 65, 1, 1, nullptr)),
               FaultReport("fault at address 0x[0-9a-f]+, thread .64,0,0. of block .0,0,0."));
  float* freed = nullptr;
  EXPECT_CUDA(cudaMalloc(reinterpret_cast<void**>(&freed), 4));
  EXPECT_CUDA(cudaFree(freed));
  EXPECT_DEATH(static_cast<void>(Affine(freed, 1, 1, 1, nullptr)),
               FaultReport("fault at address 0x[0-9a-f]+, thread .0,0,0. of block .0,0,0."));
}

TEST_F(EmuMemoryDeathTest, WorkOnFreedMemoryIsReported) {
  EXPECT_DEATH(
      {
        cudaStream_t other;
        void* data = nullptr;
        static_cast<void>(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
        static_cast<void>(cudaMallocAsync(&data, 64, stream_));
        static_cast<void>(cudaStreamSynchronize(stream_));
        static_cast<void>(cudaMemsetAsync(data, 0, 64, other));
        static_cast<void>(cudaFreeAsync(data, stream_));  // bug: does not wait for `other`
        static_cast<void>(cudaStreamSynchronize(stream_));
        static_cast<void>(cudaStreamSynchronize(other));
      },
      "a fill writes device memory that was freed");
}

}  // namespace
}  // namespace emu::self
