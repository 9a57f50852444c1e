#include "tests/emu/runtime_state.h"

#include <algorithm>
#include <thread>

#include "tests/emu/device_pages.h"

namespace emu {
namespace {

thread_local bool in_host_function = false;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

bool Point::Passed() const { return queue == nullptr || queue->done >= position; }

Runtime& Runtime::Get() {
  static Runtime* const runtime = [] {  // never destroyed: handles may outlive main
    auto* made = new Runtime;
    made->options = OptionsFromEnvironment();
    return made;
  }();
  return *runtime;
}

cudaError_t Runtime::Enter(std::string_view function) {
  if (legacy.empty()) {
    for (int device = 0; device < options.devices; ++device) {
      legacy.push_back(std::make_shared<Queue>());
      legacy.back()->device = device;
    }
    bytes_in_use.assign(legacy.size(), 0);
  }
  ++calls[std::string(function)];
  const auto failure = failures.find(function);
  if (failure == failures.end() || failure->second.after-- > 0) return cudaSuccess;
  const cudaError_t error = failure->second.error;
  failures.erase(failure);
  return error;
}

Runtime::Target Runtime::Find(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) {
    const auto device = static_cast<std::size_t>(CurrentDevice());
    return {nullptr, device < legacy.size() ? legacy[device] : nullptr};
  }
  if (std::find(streams.begin(), streams.end(), handle) == streams.end()) return {};
  return {handle, handle->queue};
}

bool Runtime::Step(Queue& queue) {
  if (queue.operations.empty()) return false;
  Operation& front = queue.operations.front();
  if (!front.after.Passed()) return false;
  {
    const DeviceAccess access;
    if (!front.run()) return false;
  }
  queue.operations.pop_front();
  ++queue.done;
  return true;
}

void Runtime::Settle() {
  for (bool moved = true; moved;) {
    moved = false;
    for (const cudaStream_t stream : streams) {
      Queue& queue = *stream->queue;
      if (queue.index >= 32 || (options.eager_mask >> queue.index & 1U) == 0) continue;
      while (Step(queue)) moved = true;
    }
  }
}

void Runtime::PauseLock() {
  mutex.unlock();
  std::this_thread::yield();
  mutex.lock();
}

void Runtime::RunUntil(const Point& point) {
  while (!point.Passed()) {
    Settle();
    if (point.Passed()) return;
    Queue& queue = *point.queue;
    if (!queue.operations.front().after.Passed()) {
      const Point before = queue.operations.front().after;  // a copy: the queue moves meanwhile
      RunUntil(before);
    } else if (!Step(queue)) {
      // It waits for another process, which may wait for what this one has in other streams.
      const std::vector<cudaStream_t> others = streams;
      for (const cudaStream_t other : others) {
        if (other->queue != point.queue) Step(*other->queue);
      }
      PauseLock();
    }
  }
}

void Runtime::RunAll() {
  std::vector<Point> ends;
  for (const cudaStream_t stream : streams) ends.push_back({stream->queue, stream->queue->End()});
  for (const Point& end : ends) RunUntil(end);
}

cudaError_t Runtime::Enqueue(cudaStream_t handle, std::function<bool()> run) {
  const Target target = Find(handle);
  if (target.queue == nullptr) return cudaErrorInvalidResourceHandle;
  if (target.queue->device != CurrentDevice()) return cudaErrorInvalidResourceHandle;
  if (target.stream != nullptr && target.stream->capture != nullptr) {
    Capture& capture = *target.stream->capture;
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    capture.nodes.push_back({std::move(run), target.stream->frontier, target.queue->index});
    target.stream->frontier = {static_cast<int>(capture.nodes.size()) - 1};
    return cudaSuccess;
  }
  if (target.stream != nullptr) {
    target.queue->operations.push_back({std::move(run), {}});
    return cudaSuccess;
  }
  for (const cudaStream_t stream : streams) {
    if (!stream->blocking || stream->capture == nullptr) continue;
    stream->capture->invalid = true;
    return cudaErrorStreamCaptureImplicit;
  }
  const std::vector<cudaStream_t> now = streams;
  for (const cudaStream_t stream : now) {
    const auto& queue = stream->queue;
    if (stream->blocking && queue->device == CurrentDevice()) RunUntil({queue, queue->End()});
  }
  target.queue->operations.push_back({std::move(run), {}});
  RunUntil({target.queue, target.queue->End()});
  return cudaSuccess;
}

cudaError_t Runtime::CheckUncaptured() {
  if (CaptureMode() == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (const auto& capture : captures) {
    const bool mine = capture->thread == ThisThread();
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (!mine && capture->mode != cudaStreamCaptureModeGlobal) continue;
    if (!mine && CaptureMode() == cudaStreamCaptureModeThreadLocal) continue;
    capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  return cudaSuccess;
}

std::uintptr_t ThisThread() { return reinterpret_cast<std::uintptr_t>(&last_error); }

bool& InHostFunction() { return in_host_function; }
cudaStreamCaptureMode& CaptureMode() { return capture_mode; }

cudaError_t Remember(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

}  // namespace emu

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = emu::last_error;
  emu::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return emu::last_error; }

}  // extern "C"
