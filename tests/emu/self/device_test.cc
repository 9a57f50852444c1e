// Devices, their properties, counters and failures that a test asks for.

#include <cstdlib>
#include <utility>

#include "tests/emu/launch.h"
#include "tests/emu/self/support.h"
#include "tests/emu/self/test_kernels.h"

namespace emu::self {
namespace {

class EmuDevice : public EmuTest {
 protected:
  static void WithDevices(int count) {
    Options options;
    options.devices = count;
    Reset(options);
  }
};

TEST_F(EmuDevice, PropertiesFollowTheArchitecture) {
  const struct {
    int sm, shared_kilobytes, threads;
  } expected[] = {{80, 163, 2048}, {90, 227, 2048}, {100, 227, 2048}, {120, 99, 1536}};
  for (const auto& e : expected) {
    Options options;
    options.sm = e.sm;
    Reset(options);
    cudaDeviceProp p;
    ASSERT_CUDA(cudaGetDeviceProperties(&p, 0));
    EXPECT_EQ(p.major * 10 + p.minor, e.sm);
    EXPECT_EQ(p.sharedMemPerBlockOptin, static_cast<std::size_t>(e.shared_kilobytes) * 1024);
    EXPECT_EQ(p.maxThreadsPerMultiProcessor, e.threads);
    int value = 0;
    const std::pair<cudaDeviceAttr, int> attributes[] = {
        {cudaDevAttrComputeCapabilityMajor, e.sm / 10},
        {cudaDevAttrComputeCapabilityMinor, e.sm % 10},
        {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxThreadsPerMultiProcessor, e.threads},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMemoryPoolsSupported, 1},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, e.shared_kilobytes * 1024},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, (e.shared_kilobytes + 1) * 1024},
    };
    for (const auto& [attribute, expected_value] : attributes) {
      EXPECT_CUDA(cudaDeviceGetAttribute(&value, attribute, 0));
      EXPECT_EQ(value, expected_value) << "attribute " << attribute;
    }
    EXPECT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMaxPitch, 0), cudaErrorInvalidValue);
  }
}

TEST_F(EmuDevice, ACardThatNothingWasBuiltForRunsNoKernel) {
  Options options;
  options.sm = 75;
  Reset(options);
  cudaFuncAttributes attributes;
  const auto* kernel = reinterpret_cast<const void*>(&OptionsFromEnvironment);  // any
  EXPECT_EQ(cudaFuncGetAttributes(&attributes, kernel), cudaErrorNoKernelImageForDevice);
  EXPECT_EQ(Launch(kernel, {}, nullptr, [] { FAIL() << "a kernel ran"; }),
            cudaErrorNoKernelImageForDevice);
  Reset();
  EXPECT_CUDA(cudaFuncGetAttributes(&attributes, kernel));
  EXPECT_EQ(cudaFuncGetAttributes(&attributes, nullptr), cudaErrorInvalidDeviceFunction);
}

TEST_F(EmuDevice, WithoutADeviceEverythingSaysSo) {
  WithDevices(0);
  int count = -1;
  void* data = nullptr;
  cudaStream_t stream;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(count, 0);
  EXPECT_EQ(cudaSetDevice(0), cudaErrorNoDevice);
  EXPECT_EQ(cudaMalloc(&data, 4), cudaErrorNoDevice);
  EXPECT_EQ(cudaStreamCreate(&stream), cudaErrorNoDevice);
  EXPECT_STREQ(cudaGetErrorName(cudaErrorNoDevice), "cudaErrorNoDevice");
}

TEST_F(EmuDevice, StreamsAndMemoryBelongToTheirDevice) {
  WithDevices(2);
  int count = 0, device = -1;
  char first[32], second[32];
  EXPECT_CUDA(cudaGetDeviceCount(&count));
  EXPECT_EQ(count, 2);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  EXPECT_CUDA(cudaDeviceGetPCIBusId(first, sizeof first, 0));
  EXPECT_CUDA(cudaDeviceGetPCIBusId(second, sizeof second, 1));
  EXPECT_STRNE(first, second);
  cudaStream_t stream;
  EXPECT_CUDA(cudaStreamCreate(&stream));
  EXPECT_CUDA(cudaSetDevice(1));
  EXPECT_CUDA(cudaGetDevice(&device));
  EXPECT_EQ(device, 1);
  const DeviceArray<float> data(1);
  EXPECT_EQ(DeviceBytesInUse(0), 0U);
  EXPECT_GT(DeviceBytesInUse(1), 0U);
  cudaPointerAttributes attributes;
  EXPECT_CUDA(cudaPointerGetAttributes(&attributes, data.get()));
  EXPECT_EQ(attributes.device, 1);
  EXPECT_EQ(Affine(data.get(), 1, 1, 1, stream), cudaErrorInvalidResourceHandle);
  EXPECT_CUDA(cudaStreamDestroy(stream));
}

TEST_F(EmuDevice, CallsAndBytesAreCounted) {
  const DeviceArray<float> data(std::vector<float>(10));
  ResetCounters();
  EXPECT_EQ(Calls("cudaMemcpyAsync"), 0);
  std::vector<float> host(10);
  for (int i = 0; i < 3; ++i) {
    EXPECT_CUDA(cudaMemcpyAsync(host.data(), data.get(), 40, cudaMemcpyDeviceToHost, nullptr));
    EXPECT_CUDA(Affine(data.get(), 10, 1, 1, nullptr));
  }
  EXPECT_EQ(Calls("cudaMemcpyAsync"), 3);
  EXPECT_EQ(Calls("cudaLaunchKernel"), 3);
  EXPECT_EQ(KernelsRun(), 3);
  EXPECT_EQ(BytesCopied(cudaMemcpyDeviceToHost), 120);
  EXPECT_EQ(BytesCopied(cudaMemcpyHostToDevice), 0);
}

TEST_F(EmuDevice, ATestCanMakeACallFail) {
  FailCall("cudaStreamSynchronize", cudaErrorIllegalAddress, 1);
  EXPECT_CUDA(cudaStreamSynchronize(nullptr));
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_CUDA(cudaStreamSynchronize(nullptr));
}

TEST_F(EmuDevice, VersionsAndPrioritiesAreThere) {
  int runtime = 0, driver = 0, least = 1, greatest = 1;
  EXPECT_CUDA(cudaRuntimeGetVersion(&runtime));
  EXPECT_CUDA(cudaDriverGetVersion(&driver));
  EXPECT_EQ(runtime, CUDART_VERSION);
  EXPECT_EQ(driver, CUDART_VERSION);
  EXPECT_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  EXPECT_EQ(least, 0);
  cudaStream_t stream;
  EXPECT_CUDA(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest));
  EXPECT_CUDA(cudaStreamDestroy(stream));
}

// Sets a variable of the environment for as long as it lives.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Environment() { unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
};

TEST_F(EmuDevice, OptionsComeFromTheEnvironment) {
  const Environment devices("EMU_DEVICES", "3"), memory("EMU_DEVICE_MEMORY_MB", "64");
  const Environment sm("EMU_SM", "80"), mask("EMU_EAGER_MASK", "0x5");
  const Environment order("EMU_ORDER", "2"), seed("EMU_SEED", "9");
  const Options options = OptionsFromEnvironment();
  EXPECT_EQ(options.devices, 3);
  EXPECT_EQ(options.device_memory, std::size_t{64} << 20);
  EXPECT_EQ(options.sm, 80);
  EXPECT_EQ(options.eager_mask, 5U);
  EXPECT_EQ(ThreadScheduleFromEnvironment().order, ThreadOrder::kRandom);
  EXPECT_EQ(ThreadScheduleFromEnvironment().seed, 9U);
}

using EmuDeviceDeathTest = EmuDevice;

TEST_F(EmuDeviceDeathTest, WrongValuesOfTheEnvironmentAreNamed) {
  {
    const Environment order("EMU_ORDER", "3");
    EXPECT_DEATH(ThreadScheduleFromEnvironment(), "EMU_ORDER=3 is not a number from 0 to 2");
  }
  const Environment sm("EMU_SM", "70");
  EXPECT_DEATH(OptionsFromEnvironment(), "architecture 70 is not one of 75, 80, 90, 100, 120");
}

TEST_F(EmuDevice, ResetReleasesWhatIsLeft) {
  float *device = nullptr, *host = nullptr;
  EXPECT_CUDA(cudaMalloc(reinterpret_cast<void**>(&device), 4));
  EXPECT_CUDA(cudaMallocHost(reinterpret_cast<void**>(&host), 4));
  Reset(Options{});
  EXPECT_EQ(DeviceBytesInUse(0), 0U);
  EXPECT_EQ(Leaks(), "");
}

TEST_F(EmuDevice, LeaksAreListed) {
  cudaStream_t stream;
  cudaEvent_t event;
  EXPECT_CUDA(cudaStreamCreate(&stream));
  EXPECT_CUDA(cudaEventCreate(&event));
  {
    const DeviceArray<float> data(1);
    EXPECT_EQ(Leaks(), "1 device allocations\n1 streams\n1 events\n");
  }
  EXPECT_CUDA(cudaStreamDestroy(stream));
  EXPECT_CUDA(cudaEventDestroy(event));
  EXPECT_EQ(Leaks(), "");
}

}  // namespace
}  // namespace emu::self
