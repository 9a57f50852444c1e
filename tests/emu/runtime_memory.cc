// Memory of the emulated runtime: allocations, fills and copies.

#include <cstdlib>
#include <cstring>
#include <optional>

#include "tests/emu/collectives.h"
#include "tests/emu/device_pages.h"
#include "tests/emu/runtime_state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#endif

namespace emu {
namespace {

std::size_t RoundUp(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

std::uintptr_t Address(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

void* AllocateHost(std::size_t bytes) {
  void* data = std::aligned_alloc(kAlign, RoundUp(bytes));
  if (data == nullptr) return nullptr;
  std::memset(data, kNanByte, RoundUp(bytes));
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(data) + bytes, RoundUp(bytes) - bytes);
  return data;
}

void Unmap(void* data, const Allocation& allocation) {
  if (allocation.registered) return;
  if (allocation.type == cudaMemoryTypeDevice) {
    UnmapDevicePages(data, allocation.bytes);
  } else {
    std::free(data);
  }
}

cudaError_t Allocate(Runtime& runtime, void** result, std::size_t bytes, cudaMemoryType type) {
  if (result == nullptr) return cudaErrorInvalidValue;
  *result = nullptr;
  if (bytes == 0) return cudaSuccess;
  const auto device = static_cast<std::size_t>(CurrentDevice());
  if (device >= runtime.bytes_in_use.size()) return cudaErrorNoDevice;
  const std::size_t rounded = RoundUp(bytes);
  const bool on_device = type == cudaMemoryTypeDevice;
  if (rounded < bytes) return cudaErrorMemoryAllocation;
  if (on_device && rounded > runtime.options.device_memory - runtime.bytes_in_use[device]) {
    return cudaErrorMemoryAllocation;
  }
  void* data = on_device ? MapDevicePages(bytes) : AllocateHost(bytes);
  if (data == nullptr) return cudaErrorMemoryAllocation;
  if (on_device) runtime.bytes_in_use[device] += rounded;
  runtime.memory[Address(data)] = {bytes, CurrentDevice(), type, false};
  *result = data;
  return cudaSuccess;
}

cudaError_t Release(Runtime& runtime, void* data, cudaMemoryType type) {
  if (data == nullptr) return cudaSuccess;
  const auto found = runtime.memory.find(Address(data));
  if (found == runtime.memory.end() || found->second.type != type || found->second.registered) {
    return cudaErrorInvalidValue;
  }
  const Allocation allocation = found->second;
  runtime.memory.erase(found);
  if (type == cudaMemoryTypeDevice) {
    runtime.bytes_in_use[static_cast<std::size_t>(allocation.device)] -= RoundUp(allocation.bytes);
  }
  Unmap(data, allocation);
  return cudaSuccess;
}

cudaError_t ReleaseNow(Runtime& runtime, void* data, cudaMemoryType type) {
  const cudaError_t error = runtime.CheckUncaptured();
  if (error != cudaSuccess) return error;
  runtime.RunAll();  // frees of CUDA wait for the device
  return Release(runtime, data, type);
}

struct CopyShape {
  void* to;
  std::size_t to_pitch;
  const void* from;
  std::size_t from_pitch;
  std::size_t width, height;
  cudaMemcpyKind kind;
};

std::size_t Extent(std::size_t pitch, const CopyShape& copy) {
  return pitch * (copy.height - 1) + copy.width;
}

// Work runs later than it was asked for: the memory may be gone by then, a bug of the program.
void CheckAlive(const void* data, std::size_t bytes, const char* what) {
  const Allocation* found = FindAllocation(Runtime::Get(), data, bytes);
  if (found == nullptr || found->type != cudaMemoryTypeDevice) Fail(what);
}

void Perform(const CopyShape& copy) {
  if (copy.kind == cudaMemcpyHostToDevice || copy.kind == cudaMemcpyDeviceToDevice) {
    CheckAlive(copy.to, Extent(copy.to_pitch, copy), "a copy writes device memory that was freed");
  }
  if (copy.kind == cudaMemcpyDeviceToHost || copy.kind == cudaMemcpyDeviceToDevice) {
    CheckAlive(copy.from, Extent(copy.from_pitch, copy),
               "a copy reads device memory that was freed");
  }
  for (std::size_t row = 0; row < copy.height; ++row) {
    std::memcpy(static_cast<char*>(copy.to) + row * copy.to_pitch,
                static_cast<const char*>(copy.from) + row * copy.from_pitch, copy.width);
  }
  Runtime::Get().bytes_copied[copy.kind] += static_cast<std::int64_t>(copy.width * copy.height);
}

// Stricter than the hardware, which looks at addresses: a side named device must lie in one device
// allocation, a side named host must not. Null where it is not so.
std::optional<cudaMemcpyKind> CheckedKind(const Runtime& runtime, const CopyShape& copy) {
  const auto on_device = [&](const void* p, std::size_t pitch, bool& whole) {
    const Allocation* at = FindAllocation(runtime, p, 1);
    whole = at == nullptr || FindAllocation(runtime, p, Extent(pitch, copy)) == at;
    return at != nullptr && at->type == cudaMemoryTypeDevice;
  };
  bool to_whole = false, from_whole = false;
  const bool to = on_device(copy.to, copy.to_pitch, to_whole);
  const bool from = on_device(copy.from, copy.from_pitch, from_whole);
  if (!to_whole || !from_whole) return std::nullopt;
  const cudaMemcpyKind actual = to ? (from ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                                   : (from ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
  if (copy.kind != cudaMemcpyDefault && copy.kind != actual) return std::nullopt;
  return actual;
}

bool Pageable(const Runtime& runtime, const void* p) {
  return FindAllocation(runtime, p, 1) == nullptr;
}

cudaError_t Copy(Runtime& runtime, CopyShape copy, cudaStream_t handle) {
  if (copy.width > copy.to_pitch || copy.width > copy.from_pitch) return cudaErrorInvalidPitchValue;
  if (copy.width == 0 || copy.height == 0) return cudaSuccess;
  const auto kind = CheckedKind(runtime, copy);
  if (!kind.has_value()) return cudaErrorInvalidValue;
  copy.kind = *kind;
  const Runtime::Target target = runtime.Find(handle);
  const bool captured = target.stream != nullptr && target.stream->capture != nullptr;
  const bool pageable_from = Pageable(runtime, copy.from);
  const bool pageable_to = Pageable(runtime, copy.to);
  if (captured && (pageable_from || pageable_to)) {
    target.stream->capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  if (pageable_from) {  // CUDA stages such a source before the call returns
    auto staged = std::make_shared<std::vector<char>>(
        static_cast<const char*>(copy.from),
        static_cast<const char*>(copy.from) + Extent(copy.from_pitch, copy));
    copy.from = staged->data();
    return runtime.Enqueue(handle, [copy, staged] {
      Perform(copy);
      return true;
    });
  }
  const cudaError_t error = runtime.Enqueue(handle, [copy] {
    Perform(copy);
    return true;
  });
  if (error == cudaSuccess && pageable_to && target.queue != nullptr) {
    runtime.RunUntil(
        {target.queue, target.queue->End()});  // and returns only when such a one is filled
  }
  return error;
}

cudaError_t CopyWhenUncaptured(Runtime& runtime, const CopyShape& copy) {
  const cudaError_t error = runtime.CheckUncaptured();
  return error == cudaSuccess ? Copy(runtime, copy, nullptr) : error;
}

cudaError_t Fill(Runtime& runtime, void* data, int value, std::size_t bytes, cudaStream_t handle) {
  if (bytes == 0) return cudaSuccess;
  const Allocation* found = FindAllocation(runtime, data, bytes);
  if (found == nullptr || found->type != cudaMemoryTypeDevice) return cudaErrorInvalidValue;
  return runtime.Enqueue(handle, [data, value, bytes] {
    CheckAlive(data, bytes, "a fill writes device memory that was freed");
    std::memset(data, value, bytes);
    return true;
  });
}

}  // namespace

const Allocation* FindAllocation(const Runtime& runtime, const void* data, std::size_t bytes) {
  auto after = runtime.memory.upper_bound(Address(data));
  if (after == runtime.memory.begin()) return nullptr;
  const auto& [begin, allocation] = *--after;
  const std::size_t offset = Address(data) - begin;
  return offset < allocation.bytes && bytes <= allocation.bytes - offset ? &allocation : nullptr;
}

void ReleaseAllMemory(Runtime& runtime) {
  for (const auto& [address, allocation] : runtime.memory) {
    Unmap(reinterpret_cast<void*>(address), allocation);
  }
  runtime.memory.clear();
}

}  // namespace emu

using emu::Api;
using emu::Runtime;

extern "C" {

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return Api("cudaMalloc", [&](Runtime& runtime) {
    const cudaError_t error = runtime.CheckUncaptured();
    if (error != cudaSuccess) return error;
    return emu::Allocate(runtime, data, bytes, cudaMemoryTypeDevice);
  });
}

cudaError_t cudaFree(void* data) {
  return Api("cudaFree", [&](Runtime& runtime) {
    return emu::ReleaseNow(runtime, data, cudaMemoryTypeDevice);
  });
}

// Memory belongs to the stream from its place in it on: what others wrote there before is lost.
cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t stream) {
  return Api("cudaMallocAsync", [&](Runtime& runtime) {
    const Runtime::Target target = runtime.Find(stream);
    if (target.queue == nullptr) return cudaErrorInvalidResourceHandle;
    if (target.stream != nullptr && target.stream->capture != nullptr) {
      return cudaErrorStreamCaptureUnsupported;  // memory nodes are not emulated
    }
    cudaError_t error = emu::Allocate(runtime, data, bytes, cudaMemoryTypeDevice);
    if (error == cudaErrorMemoryAllocation) {
      runtime.RunAll();  // pending frees may make room
      error = emu::Allocate(runtime, data, bytes, cudaMemoryTypeDevice);
    }
    return error == cudaSuccess ? emu::Fill(runtime, *data, emu::kNanByte, bytes, stream) : error;
  });
}

cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  return Api("cudaFreeAsync", [&](Runtime& runtime) {
    const Runtime::Target target = runtime.Find(stream);
    if (target.stream != nullptr && target.stream->capture != nullptr) {
      return cudaErrorStreamCaptureUnsupported;
    }
    const emu::Allocation* found = emu::FindAllocation(runtime, data, 1);
    if (data != nullptr && (found == nullptr || found->type != cudaMemoryTypeDevice)) {
      return cudaErrorInvalidValue;
    }
    return runtime.Enqueue(stream, [&runtime, data] {
      emu::Release(runtime, data, cudaMemoryTypeDevice);
      return true;
    });
  });
}

cudaError_t cudaMallocHost(void** data, size_t bytes) {
  return Api("cudaMallocHost", [&](Runtime& runtime) {
    const cudaError_t error = runtime.CheckUncaptured();
    if (error != cudaSuccess) return error;
    return emu::Allocate(runtime, data, bytes, cudaMemoryTypeHost);
  });
}

cudaError_t cudaFreeHost(void* data) {
  return Api("cudaFreeHost",
             [&](Runtime& runtime) { return emu::ReleaseNow(runtime, data, cudaMemoryTypeHost); });
}

cudaError_t cudaHostRegister(void* data, size_t bytes, unsigned int) {
  return Api("cudaHostRegister", [&](Runtime& runtime) {
    if (data == nullptr || bytes == 0) return cudaErrorInvalidValue;
    if (emu::FindAllocation(runtime, data, 1) != nullptr) {
      return cudaErrorHostMemoryAlreadyRegistered;
    }
    runtime.memory[emu::Address(data)] = {bytes, emu::CurrentDevice(), cudaMemoryTypeHost, true};
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* data) {
  return Api("cudaHostUnregister", [&](Runtime& runtime) {
    const auto found = runtime.memory.find(emu::Address(data));
    if (found == runtime.memory.end() || !found->second.registered) {
      return cudaErrorHostMemoryNotRegistered;
    }
    runtime.RunAll();
    runtime.memory.erase(found);
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return Api("cudaMemGetInfo", [&](Runtime& runtime) {
    const auto device = static_cast<std::size_t>(emu::CurrentDevice());
    if (device >= runtime.bytes_in_use.size()) return cudaErrorNoDevice;
    *total = runtime.options.device_memory;
    *free = *total - runtime.bytes_in_use[device];
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  return Api("cudaPointerGetAttributes", [&](Runtime& runtime) {
    *attributes = {};
    const emu::Allocation* found = emu::FindAllocation(runtime, data, 1);
    attributes->type = found == nullptr ? cudaMemoryTypeUnregistered : found->type;
    attributes->device = found == nullptr ? cudaInvalidDeviceId : found->device;
    if (found != nullptr) attributes->devicePointer = const_cast<void*>(data);
    if (found != nullptr && found->type == cudaMemoryTypeHost) {
      attributes->hostPointer = const_cast<void*>(data);
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return Api("cudaMemcpy", [&](Runtime& runtime) {
    return emu::CopyWhenUncaptured(runtime, {to, bytes, from, bytes, bytes, 1, kind});
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Api("cudaMemcpyAsync", [&](Runtime& runtime) {
    return emu::Copy(runtime, {to, bytes, from, bytes, bytes, 1, kind}, stream);
  });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  return Api("cudaMemcpy2DAsync", [&](Runtime& runtime) {
    return emu::Copy(runtime, {to, to_pitch, from, from_pitch, width, height, kind}, stream);
  });
}

cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  return Api("cudaMemset",
             [&](Runtime& runtime) { return emu::Fill(runtime, data, value, bytes, nullptr); });
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  return Api("cudaMemsetAsync",
             [&](Runtime& runtime) { return emu::Fill(runtime, data, value, bytes, stream); });
}

}  // extern "C"
