#include "parallel/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/cuda/cuda_device.h"
#include "parallel/host_tensor.h"
#include "parallel/nccl_link.h"
#include "parallel/transfers.h"
#include "parallel/wait_meter.h"

namespace metattn {
namespace {

// Timed operations between two TakeStats; then they are read early.
constexpr std::size_t kMostTimed = 4096;

// calls(note) makes the calls of one group and notes what each answers; the first error of all.
template <typename Calls>
ncclResult_t Grouped(const Calls& calls) {
  ncclResult_t first = ncclGroupStart();
  calls([&](ncclResult_t result) {
    if (first == ncclSuccess) first = result;
  });
  const ncclResult_t ended = ncclGroupEnd();
  return first == ncclSuccess ? ended : first;
}

// Within the device; nothing for a place that is the same.
void CopyIfApart(void* to, const void* from, std::int64_t bytes, cuda::CudaStream& stream) {
  if (bytes == 0 || to == from) return;
  stream.Note(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                              stream.get()),
              "what a rank gives itself");
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Communicator& control, int device, const CommOptions& options)
      : control_(control), device_(device), options_(options) {}
  // A channel, whose control messages have one of their own.
  NcclCommunicator(std::unique_ptr<Communicator> control, int device, const CommOptions& options)
      : own_control_(std::move(control)),
        control_(*own_control_),
        device_(device),
        options_(options) {}
  ~NcclCommunicator() override;

  // Collective; only with several ranks.
  absl::Status Start();

  int rank() const override { return control_.rank(); }
  int size() const override { return control_.size(); }
  std::string_view transport() const override { return size() == 1 ? "none" : "nccl"; }

  absl::Status AllReduceSum(View data, std::int64_t count, Stream& stream) override;
  absl::Status GatherV(View send, View recv, std::span<const std::int64_t> counts, int root,
                       Stream& stream) override;
  absl::Status Exchange(std::span<const Transfer> sends, std::span<const Transfer> recvs,
                        Stream& stream) override;
  absl::Status AllGatherV(View own, View all, std::span<const std::int64_t> counts,
                          Stream& stream) override;
  absl::Status BroadcastFrom(int root, View data, std::int64_t bytes, Stream& stream) override;
  absl::StatusOr<std::unique_ptr<Communicator>> NewChannel() override;
  absl::Status Broadcast(std::vector<std::byte>& message) override {
    return control_.Broadcast(message);
  }
  absl::Status GatherRecords(std::span<const std::byte> record, std::span<std::byte> all) override {
    return control_.GatherRecords(record, all);
  }
  absl::Status Barrier() override { return control_.Barrier(); }
  CommStats TakeStats() override;
  void AfterRepeat(std::string_view key, Repeated how, Stream& stream) override;

 private:
  // One operation's time on the device.
  struct Timed {
    cudaEvent_t begin = nullptr, end = nullptr;
    std::int64_t bytes = 0;
  };
  // The operations of a record of a stream.
  struct Recorded {
    std::vector<Timed> timed;
    std::int64_t bytes = 0, calls = 0;
    bool launched = false;  // since its times were collected
  };

  template <typename Work>
  absl::Status Enqueue(const char* what, std::int64_t bytes, cuda::CudaStream& stream,
                       const Work& work);
  static Timed NewTimed(cuda::CudaStream& stream);
  Timed& NextTimed(cuda::CudaStream& stream);
  void CollectTime(const Timed& timed);
  void CollectTimes();
  static void Destroy(std::vector<Timed>* all);
  absl::Status Check(View view, std::int64_t count, const char* what);
  absl::Status Fail(absl::Status status) {
    dead_ = std::move(status);
    if (link_.has_value()) link_->Abandon();
    return dead_;
  }
  // An operation without messages is one too, in a record as elsewhere.
  absl::Status Count(std::int64_t bytes, const cuda::CudaStream& stream) {
    stats_.bytes += bytes;
    ++stats_.calls;
    if (size() > 1 && stream.recording()) {
      recording_.bytes += bytes;
      ++recording_.calls;
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<Communicator> own_control_;
  Communicator& control_;
  const int device_;
  const CommOptions options_;
  absl::Status dead_;
  CommStats stats_;  // calls and bytes; the seconds are the meter's
  WaitMeter meter_;
  std::vector<Timed> timed_;  // used again after TakeStats
  std::size_t timed_count_ = 0;
  Recorded recording_;  // what the stream is recording now
  std::map<std::string, Recorded, std::less<>> recorded_;
  cudaEvent_t after_record_ = nullptr;
  std::optional<NcclLink> link_;  // with several ranks
};

// ---- start and end ------------------------------------------------------------------------------

absl::Status NcclCommunicator::Start() {
  link_.emplace(control_, device_, options_.deadline_s);
  return link_->Start(control_);
}

NcclCommunicator::~NcclCommunicator() {
  link_.reset();
  (void)cudaSetDevice(device_);
  Destroy(&timed_);
  Destroy(&recording_.timed);
  for (auto& [key, recorded] : recorded_) Destroy(&recorded.timed);
  if (after_record_ != nullptr) (void)cudaEventDestroy(after_record_);
}

// A unique id of its own instead of ncclCommSplit, which wants that nothing is under way on the
// communicator that is split.
absl::StatusOr<std::unique_ptr<Communicator>> NcclCommunicator::NewChannel() {
  if (!dead_.ok()) return dead_;
  auto control = control_.NewChannel();
  if (!control.ok()) return Fail(control.status());
  auto channel = std::make_unique<NcclCommunicator>(std::move(*control), device_, options_);
  if (size() > 1) {
    if (absl::Status s = channel->Start(); !s.ok()) return Fail(std::move(s));
  }
  return channel;
}

void NcclCommunicator::Destroy(std::vector<Timed>* all) {
  for (const Timed& t : *all) {
    (void)cudaEventDestroy(t.begin);
    (void)cudaEventDestroy(t.end);
  }
  all->clear();
}

// ---- operations ---------------------------------------------------------------------------------

NcclCommunicator::Timed NcclCommunicator::NewTimed(cuda::CudaStream& stream) {
  Timed made;
  stream.Note(cudaEventCreate(&made.begin), "a new event");
  stream.Note(cudaEventCreate(&made.end), "a new event");
  return made;
}

NcclCommunicator::Timed& NcclCommunicator::NextTimed(cuda::CudaStream& stream) {
  if (stream.recording()) {
    return recording_.timed.emplace_back(NewTimed(stream));
  }
  if (timed_count_ == kMostTimed) CollectTimes();
  if (timed_count_ == timed_.size()) timed_.push_back(NewTimed(stream));
  return timed_[timed_count_++];
}

template <typename Work>
absl::Status NcclCommunicator::Enqueue(const char* what, std::int64_t bytes,
                                       cuda::CudaStream& stream, const Work& work) {
  Timed& timed = NextTimed(stream);
  timed.bytes = bytes;
  stream.RecordEvent(timed.begin);
  absl::Status status = link_->Issue(what, stream, timed.end, work);
  return status.ok() ? status : Fail(std::move(status));
}

void NcclCommunicator::AfterRepeat(std::string_view key, Repeated how, Stream& stream) {
  if (size() == 1 || how == Repeated::kRun) return;
  auto& cuda = static_cast<cuda::CudaStream&>(stream);
  Recorded& recorded = recorded_[std::string(key)];
  if (how == Repeated::kRecorded) {
    Destroy(&recorded.timed);
    recorded.bytes = std::exchange(recording_.bytes, 0);
    recorded.calls = std::exchange(recording_.calls, 0);
    recorded.timed.swap(recording_.timed);
  } else {
    stats_.bytes += recorded.bytes;
    stats_.calls += recorded.calls;
  }
  recorded.launched = true;
  if (after_record_ == nullptr) cuda.Note(cudaEventCreate(&after_record_), "a new event");
  link_->Watch("a recorded step", cuda, after_record_);
}

absl::Status NcclCommunicator::Check(View view, std::int64_t count, const char* what) {
  if (!dead_.ok()) return dead_;
  absl::Status s = CheckFloats(view, count, rank(), what);
  return s.ok() ? s : Fail(std::move(s));
}

absl::Status NcclCommunicator::AllReduceSum(View data, std::int64_t count, Stream& stream) {
  if (absl::Status s = Check(data, count, "all-reduce"); !s.ok()) return s;
  auto& cuda = static_cast<cuda::CudaStream&>(stream);
  if (size() == 1 || count == 0) return Count(0, cuda);
  const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(float));
  const absl::Status status = Enqueue("all-reduce", bytes, cuda, [&](ncclComm_t comm) {
    return ncclAllReduce(data.As<float>(), data.As<float>(), static_cast<std::size_t>(count),
                         ncclFloat32, ncclSum, comm, cuda.get());
  });
  return status.ok() ? Count(2 * bytes * (size() - 1) / size(), cuda) : status;
}

absl::Status NcclCommunicator::GatherV(View send, View recv, std::span<const std::int64_t> counts,
                                       int root, Stream& stream) {
  const std::int64_t total = SumOfCounts(counts);
  if (std::ssize(counts) != size() || total < 0 || root < 0 || root >= size()) {
    return Fail(absl::InternalError(
        absl::StrFormat("rank %d: gather with %d counts (sum %d) to root %d among %d ranks", rank(),
                        counts.size(), total, root, size())));
  }
  const auto self = static_cast<std::size_t>(rank());
  const bool receives = rank() == root;
  if (absl::Status s = Check(send, counts[self], "gather"); !s.ok()) return s;
  if (absl::Status s = Check(recv, receives ? total : 0, "gather"); !s.ok()) return s;
  auto& cuda = static_cast<cuda::CudaStream&>(stream);
  std::int64_t offset = 0;
  for (std::size_t r = 0; r < self; ++r) offset += counts[r];
  if (receives) CopyIfApart(recv.As<float>() + offset, send.As<float>(), counts[self] * 4, cuda);
  const std::int64_t moved = receives ? total - counts[self] : counts[self];
  if (moved == 0) return Count(0, cuda);
  const auto work = [&](ncclComm_t comm) {
    return Grouped([&](const auto& note) {
      if (!receives) {
        note(ncclSend(send.As<float>(), static_cast<std::size_t>(counts[self]), ncclFloat32, root,
                      comm, cuda.get()));
      }
      float* to = recv.As<float>();
      for (int r = 0; receives && r < size(); to += counts[static_cast<std::size_t>(r++)]) {
        const auto count = static_cast<std::size_t>(counts[static_cast<std::size_t>(r)]);
        if (r != root && count > 0) note(ncclRecv(to, count, ncclFloat32, r, comm, cuda.get()));
      }
    });
  };
  const absl::Status status = Enqueue("gather", total * 4, cuda, work);
  return status.ok() ? Count(moved * 4, cuda) : status;
}

absl::Status NcclCommunicator::Exchange(std::span<const Transfer> sends,
                                        std::span<const Transfer> recvs, Stream& stream) {
  if (!dead_.ok()) return dead_;
  const Messages mine = {sends, recvs};
  if (absl::Status s = CheckMessages(mine, rank(), size()); !s.ok()) return Fail(std::move(s));
  auto& cuda = static_cast<cuda::CudaStream&>(stream);
  ForPairs(mine, rank(), mine, rank(), [&](const Transfer& send, const Transfer& recv) {
    CopyIfApart(recv.data.As<std::byte>(), send.data.As<std::byte>(), send.bytes, cuda);
  });
  const std::int64_t bytes = BytesToAndFromOthers(mine, rank());
  if (bytes == 0) return Count(0, cuda);
  const auto work = [&](ncclComm_t comm) {
    return Grouped([&](const auto& note) {
      // Both ends leave out what is empty.
      const auto ours = [&](const Transfer& t) { return t.peer != rank() && t.bytes > 0; };
      for (const Transfer& t : sends) {
        if (!ours(t)) continue;
        note(ncclSend(t.data.As<std::byte>(), static_cast<std::size_t>(t.bytes), ncclUint8, t.peer,
                      comm, cuda.get()));
      }
      for (const Transfer& t : recvs) {
        if (!ours(t)) continue;
        note(ncclRecv(t.data.As<std::byte>(), static_cast<std::size_t>(t.bytes), ncclUint8, t.peer,
                      comm, cuda.get()));
      }
    });
  };
  const absl::Status status = Enqueue("exchange", bytes, cuda, work);
  return status.ok() ? Count(bytes, cuda) : status;
}

absl::Status NcclCommunicator::AllGatherV(View own, View all, std::span<const std::int64_t> counts,
                                          Stream& stream) {
  const std::int64_t total = SumOfCounts(counts);
  if (std::ssize(counts) != size() || total < 0) {
    return Fail(absl::InternalError(
        absl::StrFormat("rank %d: all-gather with %d counts (sum %d) among %d ranks", rank(),
                        counts.size(), total, size())));
  }
  const std::int64_t mine = counts[static_cast<std::size_t>(rank())];
  if (absl::Status s = Check(own, mine, "all-gather"); !s.ok()) return s;
  if (absl::Status s = Check(all, total, "all-gather"); !s.ok()) return s;
  auto& cuda = static_cast<cuda::CudaStream&>(stream);
  const bool equal = std::ranges::count(counts, mine) == std::ssize(counts);
  // NCCL's own all-gather copies a rank's part itself.
  if (!equal || size() == 1) {
    const std::int64_t before = SumOfCounts(counts.first(static_cast<std::size_t>(rank())));
    CopyIfApart(all.As<float>() + before, own.As<float>(), mine * 4, cuda);
  }
  if (size() == 1 || total == 0) return Count(0, cuda);
  const auto work = [&](ncclComm_t comm) {
    if (equal) {
      return ncclAllGather(own.As<float>(), all.As<float>(), static_cast<std::size_t>(mine),
                           ncclFloat32, comm, cuda.get());
    }
    return Grouped([&](const auto& note) {
      float* to = all.As<float>();
      for (int r = 0; r < size(); to += counts[static_cast<std::size_t>(r++)]) {
        const auto count = static_cast<std::size_t>(counts[static_cast<std::size_t>(r)]);
        if (r == rank()) continue;
        if (mine > 0) {
          note(ncclSend(own.As<float>(), static_cast<std::size_t>(mine), ncclFloat32, r, comm,
                        cuda.get()));
        }
        if (count > 0) note(ncclRecv(to, count, ncclFloat32, r, comm, cuda.get()));
      }
    });
  };
  const absl::Status status = Enqueue("all-gather", total * 4, cuda, work);
  return status.ok() ? Count((total - mine) * 4, cuda) : status;
}

absl::Status NcclCommunicator::BroadcastFrom(int root, View data, std::int64_t bytes,
                                             Stream& stream) {
  if (!dead_.ok()) return dead_;
  absl::Status s = CheckRoot(root, rank(), size(), "broadcast of a tensor");
  if (s.ok()) s = CheckBytes(data, bytes, rank(), "broadcast of a tensor");
  if (!s.ok()) return Fail(std::move(s));
  auto& cuda = static_cast<cuda::CudaStream&>(stream);
  if (size() == 1 || bytes == 0) return Count(0, cuda);
  const absl::Status status = Enqueue("broadcast of a tensor", bytes, cuda, [&](ncclComm_t comm) {
    return ncclBroadcast(data.As<std::byte>(), data.As<std::byte>(),
                         static_cast<std::size_t>(bytes), ncclUint8, root, comm, cuda.get());
  });
  return status.ok() ? Count(rank() == root ? bytes * (size() - 1) : bytes, cuda) : status;
}

// ---- statistics ---------------------------------------------------------------------------------

void NcclCommunicator::CollectTime(const Timed& timed) {
  float milliseconds = 0;
  if (cudaEventElapsedTime(&milliseconds, timed.begin, timed.end) == cudaSuccess) {
    meter_.Estimated(timed.bytes, milliseconds * 1e-3);
  }
}

void NcclCommunicator::CollectTimes() {
  for (std::size_t i = 0; i < timed_count_; ++i) CollectTime(timed_[i]);
  timed_count_ = 0;
  for (auto& [key, recorded] : recorded_) {
    if (!std::exchange(recorded.launched, false)) continue;
    for (const Timed& timed : recorded.timed) CollectTime(timed);
  }
}

CommStats NcclCommunicator::TakeStats() {
  CollectTimes();
  CommStats stats = std::exchange(stats_, {});
  const CommStats control = control_.TakeStats();
  stats.calls += control.calls;
  stats.bytes += control.bytes;
  stats.wait_seconds = meter_.TakeWait() + control.wait_seconds;
  stats.transfer_seconds = meter_.TakeTransfer() + control.transfer_seconds;
  return stats;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(Communicator& control,
                                                                   int device,
                                                                   const CommOptions& options) {
  if (options.ordered_sum) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "rank %d: NCCL does not add in rank order: no bitwise equal sums on GPUs", control.rank()));
  }
  auto made = std::make_unique<NcclCommunicator>(control, device, options);
  if (control.size() > 1) {
    if (absl::Status s = made->Start(); !s.ok()) return s;
  }
  return made;
}

}  // namespace metattn
