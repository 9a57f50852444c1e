// Device memory and streams of one GPU through the CUDA runtime.
//
// Ownership: a Buffer frees its memory on its own device. Thread safety: as kernels/device.h says;
// every call selects the device that it needs for its thread.
// Errors: Allocate says RESOURCE_EXHAUSTED with the bytes asked for and the device, also when they
// exceed the budget, a part of the GPU's memory; a failing copy
// or launch is kept in its stream and reported by Synchronize, the first one, with what was tried.
// Cost: copies from and to the host go through the stream's pinned memory (staging.h).
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/staging.h"
#include "kernels/device.h"

namespace metattn::cuda {

class CudaStream final : public Stream {
 public:
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create(int device);
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  absl::Status Synchronize() override;
  int Mark() override;
  double SecondsBetween(int from, int to) const override;
  void ResetMarks() override { marks_ = 0; }
  void WaitFor(Stream& other) override;
  bool records() const override { return true; }
  // Records CUDA graphs, at most kMostRecords.
  Repeated Repeat(std::string_view key, const std::function<void()>& enqueue) override;

  // As Device::CopyIn and CopyOut; not inside a record.
  void CopyIn(const void* host, std::byte* to, std::size_t bytes);
  void CopyOut(const std::byte* from, void* host, std::size_t bytes);

  // Records an event behind what the stream has; inside a record: behind it in every launch.
  void RecordEvent(cudaEvent_t event);
  // Memory that records may name is about to change: they are made again.
  void Forget();
  bool recording() const { return recording_; }

  // For a call on the stream. Selects its device for this thread: the one that loaded a model may
  // not be the one that runs it.
  cudaStream_t get() const {
    (void)cudaSetDevice(device_);
    return stream_;
  }
  // Remembers the first failure, for Synchronize.
  void Note(cudaError_t error, const char* what);
  void Fail(const absl::Status& status);

 private:
  static constexpr std::size_t kMostRecords = 128;
  struct Record {
    cudaGraphExec_t graph = nullptr;        // null: the key was met once
    std::size_t first_mark = 0, marks = 0;  // those inside
  };

  CudaStream(int device, cudaStream_t stream) : device_(device), stream_(stream) {}
  bool Capture(const std::function<void()>& enqueue, Record* record);
  std::byte* Pinned(std::size_t bytes);
  void Wait();

  const int device_;
  cudaStream_t stream_;
  Staging staging_;
  absl::Status failed_;
  cudaEvent_t reached_ = nullptr;    // of WaitFor: how far this stream is
  std::vector<cudaEvent_t> events_;  // used again after ResetMarks
  std::size_t marks_ = 0;
  std::map<std::string, Record, std::less<>> records_;
  bool recording_ = false;
};

class CudaDevice final : public Device {
 public:
  // NOT_FOUND when there is no such device, with how many there are; RESOURCE_EXHAUSTED when less
  // than memory_fraction (0 to 1) of its memory is free.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(int device,
                                                            double memory_fraction = 0.9);

  std::string_view name() const override { return "cuda"; }
  absl::StatusOr<Buffer> Allocate(std::size_t bytes) override;
  std::optional<std::int64_t> MemoryLeft() const override;
  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override;
  void CopyIn(const void* host, View to, std::size_t bytes, Stream& stream) override;
  void CopyOut(View from, void* host, std::size_t bytes, Stream& stream) override;
  void Copy(View from, View to, std::size_t bytes, Stream& stream) override;

 private:
  CudaDevice(int device, std::int64_t budget) : device_(device), budget_(budget) {}

  const int device_;
  const std::int64_t budget_;  // bytes
  // Bytes of buffers that live; shared with them, because a buffer may outlive its device.
  const std::shared_ptr<std::atomic<std::int64_t>> used_ =
      std::make_shared<std::atomic<std::int64_t>>(0);
};

// "what: cudaErrorName (text)" as INTERNAL, RESOURCE_EXHAUSTED when memory ended.
absl::Status FromCuda(cudaError_t error, const char* what, int device);

}  // namespace metattn::cuda
