#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cstring>
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
  Forget();
  for (const cudaEvent_t event : events_) (void)cudaEventDestroy(event);
  if (reached_ != nullptr) (void)cudaEventDestroy(reached_);
  (void)cudaStreamDestroy(stream_);
}

void CudaStream::Wait() {
  Note(cudaStreamSynchronize(stream_), "waiting for a stream");
  staging_.Release(failed_.ok());
}

absl::Status CudaStream::Synchronize() {
  Wait();
  return std::exchange(failed_, absl::OkStatus());
}

// Null after a failure, which is noted.
std::byte* CudaStream::Pinned(std::size_t bytes) {
  METATTN_CHECK(!recording_, "a copy from or to the host inside a record");
  cudaError_t error = cudaSetDevice(device_);
  std::byte* space = error == cudaSuccess ? staging_.Take(bytes, &error) : nullptr;
  if (space == nullptr && error == cudaSuccess) {
    Wait();
    space = staging_.Take(bytes, &error);
  }
  Note(error, "pinned host memory");
  return space;
}

void CudaStream::CopyIn(const void* host, std::byte* to, std::size_t bytes) {
  const auto* from = static_cast<const std::byte*>(host);
  for (std::size_t piece; bytes > 0; bytes -= piece, from += piece, to += piece) {
    piece = std::min(bytes, Staging::kBytes);
    std::byte* pinned = Pinned(piece);
    if (pinned == nullptr) return;
    std::memcpy(pinned, from, piece);
    Note(cudaMemcpyAsync(to, pinned, piece, cudaMemcpyHostToDevice, stream_),
         "a copy to the device");
  }
}

void CudaStream::CopyOut(const std::byte* from, void* host, std::size_t bytes) {
  auto* to = static_cast<std::byte*>(host);
  for (std::size_t piece; bytes > 0; bytes -= piece, from += piece, to += piece) {
    piece = std::min(bytes, Staging::kBytes);
    std::byte* pinned = Pinned(piece);
    if (pinned == nullptr) return;
    Note(cudaMemcpyAsync(pinned, from, piece, cudaMemcpyDeviceToHost, stream_),
         "a copy to the host");
    staging_.Promise(pinned, to, piece);
  }
}

int CudaStream::Mark() {
  if (marks_ == events_.size()) {
    (void)cudaSetDevice(device_);
    cudaEvent_t event = nullptr;
    Note(cudaEventCreate(&event), "a new event");
    events_.push_back(event);
  }
  RecordEvent(events_[marks_]);
  return static_cast<int>(marks_++);
}

void CudaStream::RecordEvent(cudaEvent_t event) {
  const unsigned flags = recording_ ? cudaEventRecordExternal : cudaEventRecordDefault;
  Note(cudaEventRecordWithFlags(event, get(), flags), "recording an event");
}

void CudaStream::WaitFor(Stream& other) {
  auto& before = static_cast<CudaStream&>(other);
  METATTN_CHECK(!recording_ && !before.recording_, "one stream waits for another in a record");
  (void)cudaSetDevice(device_);
  if (before.reached_ == nullptr) {
    Note(cudaEventCreateWithFlags(&before.reached_, cudaEventDisableTiming), "a new event");
  }
  Note(cudaEventRecord(before.reached_, before.stream_), "recording an event");
  Note(cudaStreamWaitEvent(stream_, before.reached_, 0), "waiting for another stream");
}

double CudaStream::SecondsBetween(int from, int to) const {
  float milliseconds = 0;
  const cudaError_t error = cudaEventElapsedTime(&milliseconds, events_.at(from), events_.at(to));
  return error == cudaSuccess ? milliseconds * 1e-3 : 0;
}

Repeated CudaStream::Repeat(std::string_view key, const std::function<void()>& enqueue) {
  const auto found = records_.find(key);
  if (found == records_.end()) {
    enqueue();  // scratch may grow, which cannot be recorded and forgets what was
    if (records_.size() == kMostRecords) Forget();
    records_.emplace(key, Record{});
    return Repeated::kRun;
  }
  Record& record = found->second;
  const bool replay = record.graph != nullptr && record.first_mark == marks_;
  if (!replay && !Capture(enqueue, &record)) return Repeated::kRun;
  Note(cudaGraphLaunch(record.graph, get()), "launching a recorded step");
  if (!replay) return Repeated::kRecorded;
  marks_ += record.marks;
  return Repeated::kReplayed;
}

bool CudaStream::Capture(const std::function<void()>& enqueue, Record* record) {
  if (record->graph != nullptr) (void)cudaGraphExecDestroy(std::exchange(record->graph, nullptr));
  record->first_mark = marks_;
  const cudaStream_t stream = get();
  cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  if (error == cudaSuccess) {
    recording_ = true;
    enqueue();
    recording_ = false;
    cudaGraph_t graph = nullptr;
    error = cudaStreamEndCapture(stream, &graph);
    if (error == cudaSuccess) error = cudaGraphInstantiateWithFlags(&record->graph, graph, 0);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
  }
  record->marks = marks_ - record->first_mark;
  Note(error, "recording a step");
  return error == cudaSuccess;
}

void CudaStream::Forget() {
  for (const auto& [key, record] : records_) {
    if (record.graph != nullptr) (void)cudaGraphExecDestroy(record.graph);
  }
  records_.clear();
}

void CudaStream::Note(cudaError_t error, const char* what) {
  if (error != cudaSuccess) Fail(FromCuda(error, what, device_));
}

void CudaStream::Fail(const absl::Status& status) {
  if (failed_.ok()) failed_ = status;
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(int device, double memory_fraction) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) devices = 0;
  if (device < 0 || device >= devices) {
    return absl::NotFoundError(
        absl::StrFormat("CUDA device %d: this machine has %d (%s)", device, devices,
                        error == cudaSuccess ? "the driver answers" : cudaGetErrorString(error)));
  }
  std::size_t free = 0, total = 0;
  cudaError_t asked = cudaSetDevice(device);
  if (asked == cudaSuccess) asked = cudaMemGetInfo(&free, &total);
  if (asked != cudaSuccess) return FromCuda(asked, "asking for its memory", device);
  const auto budget = static_cast<std::int64_t>(static_cast<double>(total) * memory_fraction);
  if (static_cast<std::int64_t>(free) < budget) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "CUDA device %d: --device-memory-fraction %g of its %d bytes of memory are %d, and %d are "
        "free: another process has the rest",
        device, memory_fraction, total, budget, free));
  }
  return std::unique_ptr<CudaDevice>(new CudaDevice(device, budget));
}

absl::StatusOr<Buffer> CudaDevice::Allocate(std::size_t bytes) {
  const auto taken = static_cast<std::int64_t>(bytes);
  if (bytes > static_cast<std::uint64_t>(budget_) || used_->fetch_add(taken) > budget_ - taken) {
    if (bytes <= static_cast<std::uint64_t>(budget_)) *used_ -= taken;
    return absl::ResourceExhaustedError(absl::StrFormat(
        "allocating %d bytes on CUDA device %d: %d of its budget of %d bytes are left "
        "(--device-memory-fraction)",
        bytes, device_, *MemoryLeft(), budget_));
  }
  void* data = nullptr;
  cudaError_t error = cudaSetDevice(device_);
  // Never empty, so that the data pointer is always a real one.
  if (error == cudaSuccess) error = cudaMalloc(&data, bytes + (bytes == 0 ? 1 : 0));
  if (error != cudaSuccess) {
    *used_ -= taken;
    return FromCuda(error, absl::StrFormat("allocating %d bytes", bytes).c_str(), device_);
  }
  return Buffer(data, bytes, [device = device_, used = used_, taken](void* p) {
    (void)cudaSetDevice(device);
    (void)cudaFree(p);
    *used -= taken;
  });
}

std::optional<std::int64_t> CudaDevice::MemoryLeft() const {
  return std::max<std::int64_t>(0, budget_ - *used_);
}

absl::StatusOr<std::unique_ptr<Stream>> CudaDevice::NewStream() {
  auto stream = CudaStream::Create(device_);
  if (!stream.ok()) return stream.status();
  return std::unique_ptr<Stream>(std::move(*stream));
}

void CudaDevice::CopyIn(const void* host, View to, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  static_cast<CudaStream&>(stream).CopyIn(host, Range(to, bytes), bytes);
}

void CudaDevice::CopyOut(View from, void* host, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  static_cast<CudaStream&>(stream).CopyOut(Range(from, bytes), host, bytes);
}

void CudaDevice::Copy(View from, View to, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  auto& cuda = static_cast<CudaStream&>(stream);
  cuda.Note(cudaMemcpyAsync(Range(to, bytes), Range(from, bytes), bytes, cudaMemcpyDeviceToDevice,
                            cuda.get()),
            "a copy");
}

}  // namespace metattn::cuda
