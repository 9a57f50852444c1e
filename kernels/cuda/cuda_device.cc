#include "kernels/cuda/cuda_device.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/check.h"

namespace metattn::cuda {
namespace {

std::byte* Range(View view, std::size_t bytes) {
  METATTN_CHECK(view, "copy with an absent view");
  METATTN_CHECK(view.offset_bytes <= view.buffer->bytes() &&
                    bytes <= view.buffer->bytes() - view.offset_bytes,
                absl::StrFormat("copy of %d bytes at %d in a buffer of %d", bytes,
                                view.offset_bytes, view.buffer->bytes()));
  return view.As<std::byte>();
}

}  // namespace

absl::Status FromCuda(cudaError_t error, const char* what, int device) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message = absl::StrFormat("%s on CUDA device %d: %s (%s)", what, device,
                                              cudaGetErrorName(error), cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

absl::StatusOr<std::unique_ptr<CudaStream>> CudaStream::Create(int device) {
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return FromCuda(error, "a new stream", device);
  return std::unique_ptr<CudaStream>(new CudaStream(device, stream));
}

CudaStream::~CudaStream() {
  (void)cudaSetDevice(device_);
  (void)cudaStreamSynchronize(stream_);
  for (const cudaEvent_t event : events_) (void)cudaEventDestroy(event);
  (void)cudaStreamDestroy(stream_);
}

absl::Status CudaStream::Synchronize() {
  Note(cudaStreamSynchronize(stream_), "waiting for a stream");
  return std::exchange(failed_, absl::OkStatus());
}

int CudaStream::Mark() {
  const cudaStream_t stream = get();
  if (marks_ == events_.size()) {
    cudaEvent_t event = nullptr;
    Note(cudaEventCreate(&event), "a new event");
    events_.push_back(event);
  }
  Note(cudaEventRecord(events_[marks_], stream), "recording an event");
  return static_cast<int>(marks_++);
}

double CudaStream::SecondsBetween(int from, int to) const {
  float milliseconds = 0;
  const cudaError_t error = cudaEventElapsedTime(&milliseconds, events_.at(from), events_.at(to));
  return error == cudaSuccess ? milliseconds * 1e-3 : 0;
}

void CudaStream::Note(cudaError_t error, const char* what) {
  if (error != cudaSuccess && failed_.ok()) failed_ = FromCuda(error, what, device_);
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(int device) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) devices = 0;
  if (device < 0 || device >= devices) {
    return absl::NotFoundError(
        absl::StrFormat("CUDA device %d: this machine has %d (%s)", device, devices,
                        error == cudaSuccess ? "the driver answers" : cudaGetErrorString(error)));
  }
  return std::unique_ptr<CudaDevice>(new CudaDevice(device));
}

absl::StatusOr<Buffer> CudaDevice::Allocate(std::size_t bytes) {
  void* data = nullptr;
  cudaError_t error = cudaSetDevice(device_);
  // Never empty, so that the data pointer is always a real one.
  if (error == cudaSuccess) error = cudaMalloc(&data, bytes + (bytes == 0 ? 1 : 0));
  if (error != cudaSuccess) {
    return FromCuda(error, absl::StrFormat("allocating %d bytes", bytes).c_str(), device_);
  }
  return Buffer(data, bytes, [device = device_](void* p) {
    (void)cudaSetDevice(device);
    (void)cudaFree(p);
  });
}

absl::StatusOr<std::unique_ptr<Stream>> CudaDevice::NewStream() {
  auto stream = CudaStream::Create(device_);
  if (!stream.ok()) return stream.status();
  return std::unique_ptr<Stream>(std::move(*stream));
}

void CudaDevice::CopyBytes(const void* from, void* to, std::size_t bytes, cudaMemcpyKind kind,
                           Stream& stream) {
  auto& cuda = static_cast<CudaStream&>(stream);
  cuda.Note(cudaMemcpyAsync(to, from, bytes, kind, cuda.get()), "a copy");
}

void CudaDevice::CopyIn(const void* host, View to, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  CopyBytes(host, Range(to, bytes), bytes, cudaMemcpyHostToDevice, stream);
  // The host's memory may change as soon as this returns.
  auto& cuda = static_cast<CudaStream&>(stream);
  cuda.Note(cudaStreamSynchronize(cuda.get()), "a copy to the device");
}

void CudaDevice::CopyOut(View from, void* host, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  CopyBytes(Range(from, bytes), host, bytes, cudaMemcpyDeviceToHost, stream);
  auto& cuda = static_cast<CudaStream&>(stream);
  cuda.Note(cudaStreamSynchronize(cuda.get()), "a copy to the host");
}

void CudaDevice::Copy(View from, View to, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  CopyBytes(Range(from, bytes), Range(to, bytes), bytes, cudaMemcpyDeviceToDevice, stream);
}

}  // namespace metattn::cuda
