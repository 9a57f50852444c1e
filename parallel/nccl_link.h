// One communicator of NCCL: how it starts, takes in operations, is watched, and ends. Internal to
// the NCCL body; alone there to call NCCL's functions of communicators.
//
// Start is collective. Afterwards a thread asks NCCL for asynchronous errors ten times a second and
// looks at the event behind the last operation; what it finds ends the process (nccl_communicator.h
// says how). Ownership: owns the communicator and the thread. The destructor is collective unless
// Abandon was called: all ranks end together, or this one aborts after a deadline.
// Thread safety: one caller. Errors: as nccl_communicator.h. Cost: a lock an operation, and waiting
// on the host while NCCL says that it is in progress.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_device.h"
#include "parallel/communicator.h"

namespace metattn {

class NcclLink {
 public:
  // `control` is used only by Start.
  NcclLink(const Communicator& control, int device, double deadline_s)
      : rank_(control.rank()), size_(control.size()), device_(device), deadline_s_(deadline_s) {}
  ~NcclLink();
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;

  absl::Status Start(Communicator& control);

  // Calls enqueue(communicator), waits until NCCL has taken in what that enqueued on the stream,
  // and watches `end`, an event that it records behind it (not while the stream records).
  // `what` must be a literal.
  template <typename Work>
  absl::Status Issue(const char* what, cuda::CudaStream& stream, cudaEvent_t end,
                     const Work& enqueue) {
    const std::lock_guard lock(mutex_);
    if (absl::Status s = TakenIn(what, enqueue(comm_)); !s.ok()) return s;
    stream.RecordEvent(end);
    if (!stream.recording()) WatchLocked(what, end);
    return absl::OkStatus();
  }
  // Records `end` behind what the stream has and watches it.
  void Watch(const char* what, cuda::CudaStream& stream, cudaEvent_t end);
  // After an error: the end does not wait for the other ranks.
  void Abandon() { abandoned_ = true; }

 private:
  using Clock = std::chrono::steady_clock;

  absl::StatusOr<ncclUniqueId> ShareId(Communicator& control);
  ncclResult_t State();
  ncclResult_t WaitUntilIdle(ncclResult_t result);
  absl::Status TakenIn(const char* what, ncclResult_t result);
  void WatchLocked(const char* what, cudaEvent_t end);
  void WatchOn();
  void Look();
  [[noreturn]] void EndLost(const std::string& what);

  const int rank_, size_, device_;
  const double deadline_s_;
  bool abandoned_ = false;

  // Every call of NCCL after the start is made under the lock, which the watching thread takes too.
  std::mutex mutex_;
  ncclComm_t comm_ = nullptr;
  cudaEvent_t watched_ = nullptr;  // after the operation that was enqueued last; null: none
  const char* watched_what_ = "";
  Clock::time_point watched_since_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace metattn
