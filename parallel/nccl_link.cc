#include "parallel/nccl_link.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

namespace metattn {
namespace {

constexpr std::chrono::milliseconds kPoll{100};

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Words for a result that is an error.
std::string Words(ncclResult_t result, ncclComm_t comm) {
  const char* detail = ncclGetLastError(comm);
  return absl::StrFormat("%s%s%s", ncclGetErrorString(result),
                         detail != nullptr && *detail != '\0' ? ": " : "",
                         detail == nullptr ? "" : detail);
}

}  // namespace

// ---- start and end ------------------------------------------------------------------------------

absl::StatusOr<ncclUniqueId> NcclLink::ShareId(Communicator& control) {
  ncclUniqueId id = {};
  ncclResult_t made = ncclSuccess;
  std::vector<std::byte> message;
  if (rank_ == 0) {
    made = ncclGetUniqueId(&id);
    const auto* bytes = reinterpret_cast<const std::byte*>(id.internal);
    // Without an id the others must hear that, too.
    if (made == ncclSuccess) message.assign(bytes, bytes + sizeof id.internal);
  }
  if (absl::Status s = control.Broadcast(message); !s.ok()) return s;
  if (message.size() != sizeof id.internal) {
    return absl::UnavailableError(absl::StrFormat("rank %d: rank 0 has no unique id of NCCL%s%s",
                                                  rank_, rank_ == 0 ? ": " : "",
                                                  rank_ == 0 ? Words(made, nullptr) : ""));
  }
  std::memcpy(id.internal, message.data(), message.size());
  return id;
}

absl::Status NcclLink::Start(Communicator& control) {
  const absl::StatusOr<ncclUniqueId> id = ShareId(control);
  if (!id.ok()) return id.status();
  if (const cudaError_t error = cudaSetDevice(device_); error != cudaSuccess) {
    return cuda::FromCuda(error, absl::StrFormat("rank %d: selecting", rank_).c_str(), device_);
  }
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const Clock::time_point start = Clock::now();
  ncclResult_t result = ncclCommInitRankConfig(&comm_, size_, *id, rank_, &config);
  while (result == ncclInProgress && SecondsSince(start) < deadline_s_) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    result = State();
  }
  if (result != ncclSuccess) {
    const std::string words = Words(result, comm_);
    if (comm_ != nullptr) (void)ncclCommAbort(std::exchange(comm_, nullptr));
    if (result != ncclInProgress) {
      return absl::UnavailableError(
          absl::StrFormat("rank %d: NCCL cannot start on device %d: %s", rank_, device_, words));
    }
    return absl::DeadlineExceededError(absl::StrFormat(
        "rank %d of %d: NCCL has not started within %.1f s: a rank is missing or cannot be reached",
        rank_, size_, deadline_s_));
  }
  // Signals are for the program's own threads: this one starts with all of them blocked.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { WatchOn(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return absl::OkStatus();
}

NcclLink::~NcclLink() {
  if (thread_.joinable()) {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  if (comm_ == nullptr) return;
  (void)cudaSetDevice(device_);
  const bool ended = !abandoned_ && WaitUntilIdle(ncclCommFinalize(comm_)) == ncclSuccess;
  (void)(ended ? ncclCommDestroy(comm_) : ncclCommAbort(comm_));
}

// ---- operations ---------------------------------------------------------------------------------

ncclResult_t NcclLink::State() {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
  return asked == ncclSuccess ? state : asked;
}

// What a call on the non-blocking communicator comes to; ncclInProgress: past the deadline.
ncclResult_t NcclLink::WaitUntilIdle(ncclResult_t result) {
  const Clock::time_point start = Clock::now();
  while (result == ncclInProgress && SecondsSince(start) < deadline_s_) {
    result = State();
    if (result == ncclInProgress) std::this_thread::yield();
  }
  return result;
}

absl::Status NcclLink::TakenIn(const char* what, ncclResult_t result) {
  result = WaitUntilIdle(result);
  if (result == ncclSuccess) return absl::OkStatus();
  if (result == ncclInProgress) {
    EndLost(absl::StrFormat("%s could not be enqueued within %.1f s", what, deadline_s_));
  }
  return absl::UnavailableError(
      absl::StrFormat("rank %d: %s failed in NCCL: %s", rank_, what, Words(result, comm_)));
}

void NcclLink::WatchLocked(const char* what, cudaEvent_t end) {
  watched_ = end;
  watched_what_ = what;
  watched_since_ = Clock::now();
}

void NcclLink::Watch(const char* what, cuda::CudaStream& stream, cudaEvent_t end) {
  const std::lock_guard lock(mutex_);
  stream.RecordEvent(end);
  WatchLocked(what, end);
}

// ---- faults -------------------------------------------------------------------------------------

void NcclLink::WatchOn() {
  (void)cudaSetDevice(device_);
  // What this thread asks must not spoil a graph that another captures meanwhile.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  (void)cudaThreadExchangeStreamCaptureMode(&mode);
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kPoll, [this] { return stop_; })) Look();
}

void NcclLink::Look() {
  const ncclResult_t state = State();
  if (state != ncclSuccess && state != ncclInProgress) {
    EndLost(absl::StrFormat("NCCL reports: %s; the last operation was: %s", Words(state, comm_),
                            watched_what_));
  }
  const double age = SecondsSince(watched_since_);
  if (watched_ == nullptr || age <= deadline_s_) return;
  if (cudaEventQuery(watched_) == cudaErrorNotReady) {
    EndLost(
        absl::StrFormat("%s, or one before it in its stream, has not finished after %.1f s "
                        "(deadline %.1f s)",
                        watched_what_, age, deadline_s_));
  }
  watched_ = nullptr;  // done; what went wrong otherwise its stream's Synchronize says
}

// The caller may wait for the device for ever, so nothing but the process's end helps.
void NcclLink::EndLost(const std::string& what) {
  const std::string line =
      absl::StrFormat("metattn: rank %d of %d: %s: a peer is lost or wedged; ending this process\n",
                      rank_, size_, what);
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  std::thread([] {  // should the abort hang
    std::this_thread::sleep_for(std::chrono::seconds(2));
    ::_exit(kPeerLostExit);
  })
      .detach();
  (void)ncclCommAbort(comm_);
  ::_exit(kPeerLostExit);
}

}  // namespace metattn
