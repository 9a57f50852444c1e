// Devices, versions, kernel attributes and error texts of the emulated runtime.

#include <algorithm>
#include <cstdio>

#include "tests/emu/runtime_state.h"

namespace emu {
namespace {

thread_local int current_device = 0;

// Limits per architecture, from the tables of compute capabilities in the CUDA programming guide;
// multiprocessors of one card each (T4, A100, H100 SXM, B200, RTX 5090). Host code that sizes its
// work by them is tested with them; nothing here is a claim about speed.
struct Architecture {
  int sm;
  int multiprocessors;
  int shared_per_multiprocessor;  // bytes; a block may have 1 KB less
  int threads_per_multiprocessor;
  int blocks_per_multiprocessor;
};
constexpr Architecture kArchitectures[] = {
    {75, 40, 64 * 1024, 1024, 16},    {80, 108, 164 * 1024, 2048, 32},
    {90, 132, 228 * 1024, 2048, 32},  {100, 148, 228 * 1024, 2048, 32},
    {120, 170, 100 * 1024, 1536, 24},
};
constexpr int kReservedShared = 1024;
constexpr int kRegisters = 65536;

const Architecture& ArchitectureOf(const Options& options) {
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.sm == options.sm) return architecture;
  }
  return kArchitectures[2];  // OptionsFromEnvironment and Reset let no other pass
}

bool IsDevice(const Runtime& runtime, int device) {
  return device >= 0 && device < runtime.options.devices;
}

cudaDeviceProp Properties(const Runtime& runtime, int device) {
  const Architecture& a = ArchitectureOf(runtime.options);
  cudaDeviceProp p = {};
  std::snprintf(p.name, sizeof p.name, "CPU emulation of sm_%d", a.sm);
  p.major = a.sm / 10;
  p.minor = a.sm % 10;
  p.totalGlobalMem = runtime.options.device_memory;
  p.multiProcessorCount = a.multiprocessors;
  p.sharedMemPerBlock = 48 * 1024;
  p.sharedMemPerBlockOptin = static_cast<size_t>(a.shared_per_multiprocessor - kReservedShared);
  p.sharedMemPerMultiprocessor = static_cast<size_t>(a.shared_per_multiprocessor);
  p.reservedSharedMemPerBlock = kReservedShared;
  p.maxThreadsPerMultiProcessor = a.threads_per_multiprocessor;
  p.maxBlocksPerMultiProcessor = a.blocks_per_multiprocessor;
  p.regsPerBlock = p.regsPerMultiprocessor = kRegisters;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 0x7fffffff;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.unifiedAddressing = p.concurrentKernels = p.memoryPoolsSupported = 1;
  p.pciBusID = device + 1;
  return p;
}

// Null: not one of those emulated.
const int* Attribute(const cudaDeviceProp& p, cudaDeviceAttr attribute, int& converted) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return &p.major;
    case cudaDevAttrComputeCapabilityMinor:
      return &p.minor;
    case cudaDevAttrMultiProcessorCount:
      return &p.multiProcessorCount;
    case cudaDevAttrMaxThreadsPerBlock:
      return &p.maxThreadsPerBlock;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return &p.maxThreadsPerMultiProcessor;
    case cudaDevAttrWarpSize:
      return &p.warpSize;
    case cudaDevAttrMemoryPoolsSupported:
      return &p.memoryPoolsSupported;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      converted = static_cast<int>(p.sharedMemPerBlockOptin);
      return &converted;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      converted = static_cast<int>(p.sharedMemPerMultiprocessor);
      return &converted;
    default:
      return nullptr;
  }
}

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};
#define EMU_ERROR(name, text) \
  { name, #name, text }
constexpr ErrorText kErrors[] = {
    EMU_ERROR(cudaSuccess, "no error"),
    EMU_ERROR(cudaErrorInvalidValue, "invalid argument"),
    EMU_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    EMU_ERROR(cudaErrorInitializationError, "initialization error"),
    EMU_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    EMU_ERROR(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    EMU_ERROR(cudaErrorInsufficientDriver,
              "CUDA driver version is insufficient for CUDA runtime version"),
    EMU_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    EMU_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    EMU_ERROR(cudaErrorNoKernelImageForDevice,
              "no kernel image is available for execution on the device"),
    EMU_ERROR(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    EMU_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    EMU_ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    EMU_ERROR(cudaErrorNotReady, "device not ready"),
    EMU_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    EMU_ERROR(cudaErrorHostMemoryAlreadyRegistered,
              "part or all of the requested memory range is already mapped"),
    EMU_ERROR(cudaErrorHostMemoryNotRegistered,
              "pointer does not correspond to a registered memory region"),
    EMU_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    EMU_ERROR(cudaErrorNotPermitted, "operation not permitted"),
    EMU_ERROR(cudaErrorNotSupported, "operation not supported"),
    EMU_ERROR(cudaErrorStreamCaptureUnsupported,
              "operation not permitted when stream is capturing"),
    EMU_ERROR(cudaErrorStreamCaptureInvalidated,
              "operation failed due to a previous error during capture"),
    EMU_ERROR(cudaErrorStreamCaptureMerge,
              "operation would result in a merge of separate capture sequences"),
    EMU_ERROR(cudaErrorStreamCaptureUnmatched,
              "capture was not ended in the same stream as it began"),
    EMU_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    EMU_ERROR(cudaErrorStreamCaptureIsolation,
              "dependency created on uncaptured work in another stream"),
    EMU_ERROR(cudaErrorStreamCaptureImplicit,
              "operation would make the legacy stream depend on a capturing blocking stream"),
    EMU_ERROR(cudaErrorCapturedEvent,
              "operation not permitted on an event last recorded in a capturing stream"),
    EMU_ERROR(cudaErrorStreamCaptureWrongThread,
              "attempt to terminate a thread-local capture sequence from another thread"),
};
#undef EMU_ERROR

const ErrorText* FindError(cudaError_t error) {
  const auto* found = std::find_if(std::begin(kErrors), std::end(kErrors),
                                   [&](const ErrorText& e) { return e.error == error; });
  return found == std::end(kErrors) ? nullptr : found;
}

}  // namespace

int CurrentDevice() { return current_device; }

}  // namespace emu

using emu::Api;
using emu::Runtime;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  return Api("cudaGetDeviceCount", [&](Runtime& runtime) {
    *count = runtime.options.devices;
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
  });
}

cudaError_t cudaSetDevice(int device) {
  return Api("cudaSetDevice", [&](Runtime& runtime) {
    if (runtime.options.devices == 0) return cudaErrorNoDevice;
    if (!emu::IsDevice(runtime, device)) return cudaErrorInvalidDevice;
    emu::current_device = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return Api("cudaGetDevice", [&](Runtime& runtime) {
    *device = emu::current_device;
    return runtime.options.devices > 0 ? cudaSuccess : cudaErrorNoDevice;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return Api("cudaGetDeviceProperties", [&](Runtime& runtime) {
    if (!emu::IsDevice(runtime, device)) return cudaErrorInvalidDevice;
    *properties = emu::Properties(runtime, device);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return Api("cudaDeviceGetAttribute", [&](Runtime& runtime) {
    if (!emu::IsDevice(runtime, device)) return cudaErrorInvalidDevice;
    const cudaDeviceProp properties = emu::Properties(runtime, device);
    int converted = 0;
    const int* found = emu::Attribute(properties, attribute, converted);
    if (found == nullptr) return cudaErrorInvalidValue;
    *value = *found;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int device) {
  return Api("cudaDeviceGetPCIBusId", [&](Runtime& runtime) {
    if (!emu::IsDevice(runtime, device)) return cudaErrorInvalidDevice;
    const int written = std::snprintf(id, static_cast<size_t>(bytes), "0000:%02x:00.0", device + 1);
    return written < bytes ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return Api("cudaDeviceGetStreamPriorityRange", [&](Runtime&) {
    *least = *greatest = 0;
    return cudaSuccess;
  });
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  return Api("cudaRuntimeGetVersion", [&](Runtime&) {
    *version = CUDART_VERSION;
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  return Api("cudaDriverGetVersion", [&](Runtime&) {
    *version = CUDART_VERSION;
    return cudaSuccess;
  });
}

// Of the attributes only what those who look for an image ask for: whether there is one.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  return Api("cudaFuncGetAttributes", [&](Runtime& runtime) {
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (!runtime.options.has_kernels()) return cudaErrorNoKernelImageForDevice;
    *attributes = {};
    return cudaSuccess;
  });
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return Api("cudaFuncSetAttribute", [&](Runtime& runtime) {
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    const int limit = emu::ArchitectureOf(runtime.options).shared_per_multiprocessor;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        value > limit - emu::kReservedShared) {
      return cudaErrorInvalidValue;
    }
    runtime.dynamic_shared_limit[kernel] = value;
    return cudaSuccess;
  });
}

const char* cudaGetErrorName(cudaError_t error) {
  const emu::ErrorText* found = emu::FindError(error);
  return found == nullptr ? "unrecognized error code" : found->name;
}

const char* cudaGetErrorString(cudaError_t error) {
  const emu::ErrorText* found = emu::FindError(error);
  return found == nullptr ? "unrecognized error code" : found->text;
}

}  // extern "C"
