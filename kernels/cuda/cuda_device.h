// Device memory and streams of one GPU through the CUDA runtime.
//
// Ownership: a Buffer frees its memory on its own device. Thread safety: as kernels/device.h says;
// every call selects the device that it needs for its thread.
// Errors: Allocate says RESOURCE_EXHAUSTED with the bytes asked for and the device; a failing copy
// or launch is kept in its stream and reported by Synchronize, the first one, with what was tried.
// Cost: copies from and to pageable host memory are staged by the runtime; CopyOut waits for the
// stream, because callers may read at once what it brought (contract of kernels/device.h for inline
// bodies).
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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

  // For a call on the stream. Selects its device for this thread: the one that loaded a model may
  // not be the one that runs it.
  cudaStream_t get() const {
    (void)cudaSetDevice(device_);
    return stream_;
  }
  // Remembers the first failure.
  void Note(cudaError_t error, const char* what);

 private:
  CudaStream(int device, cudaStream_t stream) : device_(device), stream_(stream) {}

  const int device_;
  cudaStream_t stream_;
  absl::Status failed_;
  std::vector<cudaEvent_t> events_;  // used again after ResetMarks
  std::size_t marks_ = 0;
};

class CudaDevice final : public Device {
 public:
  // NOT_FOUND when there is no such device, with how many there are.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(int device);

  std::string_view name() const override { return "cuda"; }
  absl::StatusOr<Buffer> Allocate(std::size_t bytes) override;
  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override;
  void CopyIn(const void* host, View to, std::size_t bytes, Stream& stream) override;
  void CopyOut(View from, void* host, std::size_t bytes, Stream& stream) override;
  void Copy(View from, View to, std::size_t bytes, Stream& stream) override;

 private:
  explicit CudaDevice(int device) : device_(device) {}
  void CopyBytes(const void* from, void* to, std::size_t bytes, cudaMemcpyKind kind,
                 Stream& stream);

  const int device_;
};

// "what: cudaErrorName (text)" as INTERNAL, RESOURCE_EXHAUSTED when memory ended.
absl::Status FromCuda(cudaError_t error, const char* what, int device);

}  // namespace metattn::cuda
