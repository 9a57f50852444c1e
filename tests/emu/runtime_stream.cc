// Streams, events, host functions and kernel launches of the emulated runtime.

#include <algorithm>
#include <chrono>
#include <utility>

#include "tests/emu/block.h"
#include "tests/emu/device_pages.h"
#include "tests/emu/launch.h"
#include "tests/emu/runtime_state.h"

namespace emu {
namespace {

constexpr std::size_t kDefaultDynamicShared = 48 * 1024;

cudaError_t CheckShape(const Runtime& runtime, const void* kernel, const LaunchShape& shape) {
  const dim3 grid = shape.grid, block = shape.block;
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffffU || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  const auto limit = runtime.dynamic_shared_limit.find(kernel);
  const std::size_t allowed = limit == runtime.dynamic_shared_limit.end()
                                  ? kDefaultDynamicShared
                                  : static_cast<std::size_t>(limit->second);
  return shape.shared_bytes > allowed ? cudaErrorInvalidValue : cudaSuccess;
}

bool Known(const Runtime& runtime, cudaEvent_t event) { return runtime.events.count(event) != 0; }

double Now() {
  using Milliseconds = std::chrono::duration<double, std::milli>;
  return Milliseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

cudaError_t Record(Runtime& runtime, cudaEvent_t event, cudaStream_t handle) {
  const Runtime::Target target = runtime.Find(handle);
  if (!Known(runtime, event) || target.queue == nullptr) return cudaErrorInvalidResourceHandle;
  if (target.queue->device != event->device) return cudaErrorInvalidResourceHandle;
  if (target.stream != nullptr && target.stream->capture != nullptr) {
    event->capture = target.stream->capture;
    event->frontier = target.stream->frontier;
    return cudaSuccess;
  }
  return runtime.RecordNow(event, handle);
}

// An event of the graph's launches, not of the capture.
cudaError_t RecordExternal(Runtime& runtime, cudaEvent_t event, cudaStream_t handle) {
  const Runtime::Target target = runtime.Find(handle);
  if (target.stream == nullptr || target.stream->capture == nullptr) {
    return Record(runtime, event, handle);
  }
  if (!Known(runtime, event) || target.queue->device != event->device) {
    return cudaErrorInvalidResourceHandle;
  }
  const cudaError_t error = runtime.Enqueue(handle, [] { return true; });
  if (error == cudaSuccess) target.stream->capture->nodes.back().event = event;
  return error;
}

// A capturing stream may wait only for events of its capture; a stream that waits for such an event
// joins the capture.
cudaError_t WaitInCapture(CUstream_st& stream, const CUevent_st& event) {
  if (event.capture == nullptr) {
    if (event.point.queue == nullptr) return cudaSuccess;
    stream.capture->invalid = true;
    return cudaErrorStreamCaptureIsolation;
  }
  if (event.capture->ended) return cudaErrorCapturedEvent;
  if (stream.capture != nullptr && stream.capture != event.capture) {
    return cudaErrorStreamCaptureMerge;
  }
  if (stream.capture == nullptr) stream.frontier.clear();
  stream.capture = event.capture;
  for (const int node : event.frontier) {
    if (std::find(stream.frontier.begin(), stream.frontier.end(), node) == stream.frontier.end()) {
      stream.frontier.push_back(node);
    }
  }
  return cudaSuccess;
}

cudaError_t WaitEvent(Runtime& runtime, cudaStream_t handle, cudaEvent_t event) {
  const Runtime::Target target = runtime.Find(handle);
  if (!Known(runtime, event) || target.queue == nullptr) return cudaErrorInvalidResourceHandle;
  const bool capturing = target.stream != nullptr && target.stream->capture != nullptr;
  if (target.stream == nullptr && event->capture != nullptr) return cudaErrorStreamCaptureImplicit;
  if (capturing || event->capture != nullptr) return WaitInCapture(*target.stream, *event);
  if (event->point.Passed()) return cudaSuccess;
  if (target.stream == nullptr) {
    runtime.RunUntil(event->point);
  } else {
    target.queue->operations.push_back({[] { return true; }, event->point});
  }
  return cudaSuccess;
}

// What asking for an event's state needs: known, and not part of a capture.
cudaError_t CheckEvent(Runtime& runtime, cudaEvent_t event) {
  if (!Known(runtime, event)) return cudaErrorInvalidResourceHandle;
  if (event->capture != nullptr) {
    event->capture->invalid = true;
    return cudaErrorCapturedEvent;
  }
  return runtime.CheckUncaptured();
}

// One operation of the queue, or of what it waits for, so that polling comes to an end.
void Nudge(Runtime& runtime, const Point& point) {
  const Point* at = &point;
  while (!at->Passed() && !at->queue->operations.front().after.Passed()) {
    at = &at->queue->operations.front().after;
  }
  if (!at->Passed()) runtime.Step(*at->queue);
}

cudaError_t Synchronize(Runtime& runtime, cudaStream_t handle) {
  const Runtime::Target target = runtime.Find(handle);
  if (target.queue == nullptr) return cudaErrorInvalidResourceHandle;
  if (target.stream != nullptr && target.stream->capture != nullptr) {
    target.stream->capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  runtime.RunUntil({target.queue, target.queue->End()});
  return cudaSuccess;
}

cudaError_t MakeStream(cudaStream_t* stream, unsigned flags) {
  return Api("cudaStreamCreate", [&](Runtime& runtime) {
    if (stream == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    if (runtime.legacy.empty()) return cudaErrorNoDevice;
    auto queue = std::make_shared<Queue>();
    queue->device = CurrentDevice();
    queue->index = runtime.next_stream++;
    *stream = new CUstream_st{queue, flags != cudaStreamNonBlocking, nullptr, {}};
    runtime.streams.push_back(*stream);
    return cudaSuccess;
  });
}

cudaError_t MakeEvent(cudaEvent_t* event, unsigned flags) {
  return Api("cudaEventCreate", [&](Runtime& runtime) {
    if (event == nullptr) return cudaErrorInvalidValue;
    if (runtime.legacy.empty()) return cudaErrorNoDevice;
    *event = new CUevent_st;
    (*event)->timing = (flags & cudaEventDisableTiming) == 0;
    (*event)->device = CurrentDevice();
    runtime.events.insert(*event);
    return cudaSuccess;
  });
}

}  // namespace

cudaError_t Runtime::RecordNow(cudaEvent_t event, cudaStream_t handle) {
  event->capture = nullptr;
  auto milliseconds = std::make_shared<double>(0);
  event->milliseconds = milliseconds;
  const cudaError_t error = Enqueue(handle, [milliseconds] {
    *milliseconds = Now();
    return true;
  });
  const Target target = Find(handle);
  event->point = {target.queue, target.queue->End()};
  return error;
}

cudaError_t Launch(const void* kernel, const LaunchShape& shape, cudaStream_t stream,
                   std::function<void()> body) {
  return Api("cudaLaunchKernel", [&](Runtime& runtime) {
    if (!runtime.options.has_kernels()) return cudaErrorNoKernelImageForDevice;
    const cudaError_t error = CheckShape(runtime, kernel, shape);
    if (error != cudaSuccess) return error;
    return runtime.Enqueue(stream, [&runtime, shape, body = std::move(body)] {
      Block::Get().RunGrid(shape, body);
      ++runtime.kernels_run;
      return true;
    });
  });
}

}  // namespace emu

using emu::Api;
using emu::Runtime;

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return emu::MakeStream(stream, 0); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return emu::MakeStream(stream, flags);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int) {
  return emu::MakeStream(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return Api("cudaStreamDestroy", [&](Runtime& runtime) {
    const Runtime::Target target = runtime.Find(stream);
    if (target.stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->capture != nullptr) stream->capture->invalid = true;
    runtime.RunUntil({target.queue, target.queue->End()});
    std::erase(runtime.streams, stream);
    delete stream;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Api("cudaStreamSynchronize",
             [&](Runtime& runtime) { return emu::Synchronize(runtime, stream); });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return Api("cudaStreamQuery", [&](Runtime& runtime) {
    const Runtime::Target target = runtime.Find(stream);
    if (target.queue == nullptr) return cudaErrorInvalidResourceHandle;
    if (target.stream != nullptr && stream->capture != nullptr) {
      stream->capture->invalid = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    const emu::Point end = {target.queue, target.queue->End()};
    emu::Nudge(runtime, end);
    return end.Passed() ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return Api("cudaDeviceSynchronize", [](Runtime& runtime) {
    const cudaError_t error = runtime.CheckUncaptured();
    if (error == cudaSuccess) runtime.RunAll();
    return error;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return Api("cudaLaunchHostFunc", [&](Runtime& runtime) {
    return runtime.Enqueue(stream, [function, data] {
      const emu::DeviceAccess none(false);
      emu::InHostFunction() = true;
      function(data);
      emu::InHostFunction() = false;
      return true;
    });
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return emu::MakeEvent(event, 0); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return emu::MakeEvent(event, flags);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return Api("cudaEventDestroy", [&](Runtime& runtime) {
    if (runtime.events.erase(event) == 0) return cudaErrorInvalidResourceHandle;
    delete event;
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return Api("cudaEventRecord",
             [&](Runtime& runtime) { return emu::Record(runtime, event, stream); });
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int flags) {
  return Api("cudaEventRecord", [&](Runtime& runtime) {
    if (flags == cudaEventRecordExternal) return emu::RecordExternal(runtime, event, stream);
    return flags == 0 ? emu::Record(runtime, event, stream) : cudaErrorInvalidValue;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  return Api("cudaStreamWaitEvent",
             [&](Runtime& runtime) { return emu::WaitEvent(runtime, stream, event); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Api("cudaEventSynchronize", [&](Runtime& runtime) {
    const cudaError_t error = emu::CheckEvent(runtime, event);
    if (error == cudaSuccess) runtime.RunUntil(event->point);
    return error;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return Api("cudaEventQuery", [&](Runtime& runtime) {
    const cudaError_t error = emu::CheckEvent(runtime, event);
    if (error != cudaSuccess) return error;
    emu::Nudge(runtime, event->point);
    return event->point.Passed() ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return Api("cudaEventElapsedTime", [&](Runtime& runtime) {
    for (const cudaEvent_t event : {start, end}) {
      const cudaError_t error = emu::CheckEvent(runtime, event);
      if (error != cudaSuccess) return error;
      if (!event->timing || event->milliseconds == nullptr) return cudaErrorInvalidResourceHandle;
      if (!event->point.Passed()) return cudaErrorNotReady;
    }
    *milliseconds = static_cast<float>(*end->milliseconds - *start->milliseconds);
    return cudaSuccess;
  });
}

}  // extern "C"
