// Memory and order of execution of one backend: Buffer, View, Stream, Device.
//
// Ownership: a Buffer owns its memory and frees it when it goes; a View borrows one. Host code
// never dereferences either: only the bodies in kernels/ (and communicator bodies in parallel/)
// call data(). Work is enqueued on a Stream and runs in order; a CPU body may complete inline.
// Thread safety: a Stream and what is enqueued on it belong to one thread at a time; Device is
// thread safe. Errors: running out of memory is a Status from Allocate; what a device can report
// late comes from Synchronize. Cost: CopyIn/CopyOut move the bytes once, by way of pinned memory
// where the device is not the host, and wait for the stream only when they exceed what is free of
// that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace metattn {

// Device memory, 64-byte aligned, uninitialised unless said otherwise. Move only.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, std::size_t bytes, std::function<void(void*)> free)
      : data_(data, std::move(free)), bytes_(bytes) {}

  std::size_t bytes() const { return bytes_; }
  std::byte* data() const { return static_cast<std::byte*>(data_.get()); }

 private:
  std::unique_ptr<void, std::function<void(void*)>> data_{nullptr, [](void*) {}};
  std::size_t bytes_ = 0;
};

// A place inside a Buffer. An empty View (no buffer) means "absent" where an op allows it.
struct View {
  const Buffer* buffer = nullptr;
  std::size_t offset_bytes = 0;

  explicit operator bool() const { return buffer != nullptr; }
  template <typename T>
  T* As() const {  // for kernel and communicator bodies only
    return buffer == nullptr ? nullptr : reinterpret_cast<T*>(buffer->data() + offset_bytes);
  }
};

// What Stream::Repeat did.
enum class Repeated { kRun, kRecorded, kReplayed };

class Stream {
 public:
  virtual ~Stream() = default;
  // Waits for all that was enqueued; reports what went wrong on the device since the last call.
  [[nodiscard]] virtual absl::Status Synchronize() = 0;
  // Puts a time stamp into the stream and returns its index since the last ResetMarks.
  virtual int Mark() = 0;
  // Seconds between two marks; both must have been passed (call Synchronize first).
  virtual double SecondsBetween(int from, int to) const = 0;
  virtual void ResetMarks() = 0;
  // What is enqueued here from now on begins after what `other` has so far, of the same device;
  // the host waits for nothing. Neither may be inside Repeat.
  virtual void WaitFor([[maybe_unused]] Stream& other) {}
  // Whether Repeat records.
  virtual bool records() const { return false; }
  // Enqueues what `enqueue` does. A stream that can records it when it meets `key` for the second
  // time and from then on enqueues the record in one call, without calling `enqueue`. So equal keys
  // mean equal operations on the same places, of which only the contents may differ, and nothing
  // inside may wait for the stream. Marks inside have the numbers they had, and times of their own.
  virtual Repeated Repeat([[maybe_unused]] std::string_view key,
                          const std::function<void()>& enqueue) {
    enqueue();
    return Repeated::kRun;
  }
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string_view name() const = 0;
  // RESOURCE_EXHAUSTED names the bytes asked for.
  virtual absl::StatusOr<Buffer> Allocate(std::size_t bytes) = 0;
  // Bytes that Allocate can still give, of a device with memory of its own; nothing where the
  // memory is the host's.
  virtual std::optional<std::int64_t> MemoryLeft() const { return std::nullopt; }
  virtual absl::StatusOr<std::unique_ptr<Stream>> NewStream() = 0;
  // The host's memory may change as soon as this returns. In order with the stream's other work;
  // another stream sees the bytes after a Synchronize only.
  virtual void CopyIn(const void* host, View to, std::size_t bytes, Stream& stream) = 0;
  // The bytes are there after the stream's next Synchronize, if that reports no error; until then
  // the host's memory must stay.
  virtual void CopyOut(View from, void* host, std::size_t bytes, Stream& stream) = 0;
  // Between two places of this device that do not overlap.
  virtual void Copy(View from, View to, std::size_t bytes, Stream& stream) = 0;
};

// Host memory and inline streams: the device of the ref and cpu backends. Fresh memory is zeroed.
std::unique_ptr<Device> MakeHostDevice();

}  // namespace metattn
