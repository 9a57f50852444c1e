#include "tests/emu/control.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "tests/emu/async_copies.h"
#include "tests/emu/block.h"
#include "tests/emu/runtime_state.h"

namespace emu {
namespace {

long FromEnvironment(const char* name, long fallback, long least, long most) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text, &end, 0);
  if (*end != '\0' || errno != 0 || value < least || value > most) {
    std::fprintf(stderr, "emu: %s=%s is not a number from %ld to %ld\n", name, text, least, most);
    std::abort();
  }
  return value;
}

void CheckArchitecture(int sm) {
  if (sm == 75 || sm == 80 || sm == 90 || sm == 100 || sm == 120) return;
  std::fprintf(stderr, "emu: architecture %d is not one of 75, 80, 90, 100, 120\n", sm);
  std::abort();
}

void AddLine(std::string& text, std::size_t count, const char* what) {
  if (count > 0) text += std::to_string(count) + " " + what + "\n";
}

}  // namespace

ThreadSchedule ThreadScheduleFromEnvironment() {
  return {static_cast<ThreadOrder>(FromEnvironment("EMU_ORDER", 0, 0, 2)),
          static_cast<unsigned>(FromEnvironment("EMU_SEED", 1, 0, 0xffffffffL))};
}

void SetThreadSchedule(const ThreadSchedule& schedule) {
  const std::lock_guard lock(Runtime::Get().mutex);
  Block::Get().SetSchedule(schedule);
}

Options OptionsFromEnvironment() {
  Options options;
  options.devices = static_cast<int>(FromEnvironment("EMU_DEVICES", options.devices, 0, 64));
  const long megabytes = FromEnvironment("EMU_DEVICE_MEMORY_MB", 1024, 1, 1L << 30);
  options.device_memory = static_cast<std::size_t>(megabytes) << 20;
  options.sm = static_cast<int>(FromEnvironment("EMU_SM", options.sm, 0, 1000));
  options.eager_mask = static_cast<unsigned>(FromEnvironment("EMU_EAGER_MASK", 0, 0, 0xffffffffL));
  CheckArchitecture(options.sm);
  return options;
}

void Reset(const Options& options) {
  CheckArchitecture(options.sm);
  Runtime& runtime = Runtime::Get();
  {
    const std::lock_guard lock(runtime.mutex);
    for (const cudaStream_t stream : runtime.streams) delete stream;
    for (const cudaEvent_t event : runtime.events) delete event;
    for (const cudaGraph_t graph : runtime.graphs) delete graph;
    for (const cudaGraphExec_t executable : runtime.executables) delete executable;
    runtime.streams.clear();
    runtime.events.clear();
    runtime.graphs.clear();
    runtime.executables.clear();
    runtime.captures.clear();
    runtime.blas.clear();
    runtime.dynamic_shared_limit.clear();
    runtime.failures.clear();
    runtime.legacy.clear();
    runtime.next_stream = 0;
    ReleaseAllMemory(runtime);
    runtime.options = options;
  }
  if (options.devices > 0) static_cast<void>(cudaSetDevice(0));
  static_cast<void>(cudaGetLastError());
  ResetCounters();
}

std::string Leaks() {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  std::size_t device = 0, host = 0;
  for (const auto& [address, allocation] : runtime.memory) {
    (allocation.type == cudaMemoryTypeDevice ? device : host) += 1;
  }
  std::string text;
  AddLine(text, device, "device allocations");
  AddLine(text, host, "host allocations or registrations");
  AddLine(text, runtime.streams.size(), "streams");
  AddLine(text, runtime.events.size(), "events");
  AddLine(text, runtime.graphs.size(), "graphs");
  AddLine(text, runtime.executables.size(), "executable graphs");
  AddLine(text, runtime.blas.size(), "cuBLASLt objects");
  return text;
}

std::int64_t Calls(std::string_view function) {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  const auto found = runtime.calls.find(function);
  return found == runtime.calls.end() ? 0 : found->second;
}

std::int64_t KernelsRun() {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  return runtime.kernels_run;
}

std::int64_t BytesCopied(cudaMemcpyKind kind) {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  return runtime.bytes_copied[kind];
}

std::int64_t BytesReadAsync() {
  const std::lock_guard lock(Runtime::Get().mutex);
  return AsyncCopies::BytesRead();
}

void ResetCounters() {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  runtime.calls.clear();
  runtime.bytes_copied.clear();
  runtime.kernels_run = 0;
  AsyncCopies::BytesRead() = 0;
}

std::size_t DeviceBytesInUse(int device) {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  const auto index = static_cast<std::size_t>(device);
  return index < runtime.bytes_in_use.size() ? runtime.bytes_in_use[index] : 0;
}

void FailCall(std::string_view function, cudaError_t error, int after) {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  runtime.failures[std::string(function)] = {error, after};
}

}  // namespace emu
