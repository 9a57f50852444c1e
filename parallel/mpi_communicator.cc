#include "parallel/mpi_communicator.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "parallel/doorbell.h"
#include "parallel/host_tensor.h"
#include "parallel/launch_env.h"
#include "parallel/mpi_exchange.h"
#include "parallel/mpi_world.h"
#include "parallel/shared_sum.h"
#include "parallel/transfers.h"
#include "parallel/wait_meter.h"
#include "parallel/watchdog.h"

namespace metattn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kMaxMessageBytes = std::int64_t{1} << 30;
// Ordered sums gather and add a part of this many values at a time: the gathered copies of all
// ranks then stay in cache and scratch memory is bounded whatever the batch.
constexpr std::int64_t kOrderedPart = std::int64_t{16} << 10;
// Between ranks of one host larger sums go through shared memory (README.md has both times).
constexpr std::int64_t kSharedSumFloats = 8 * 1024;
constexpr std::int64_t kReducePart = std::int64_t{1} << 28;  // MPI counts are ints
constexpr std::int64_t kBroadcastPart = std::int64_t{8}
                                        << 20;  // as well; small enough to be tested
// Processes start one after another, so a short deadline of operations says nothing about this.
constexpr double kStartSeconds = 30;
// A receiver that has just worked expects the next plan within a step's host work, so it looks
// without sleeping for that long. Then it sleeps until rank 0 rings the bell of its host; should a
// ring come before its message is visible, it looks without sleeping again.
constexpr auto kSpinAfterCall = std::chrono::microseconds(1000);
constexpr auto kBellTimeout = std::chrono::milliseconds(50);
// On other hosts than rank 0's there is no bell: sleep, the kernel's timer slack (50 us) and the
// poll itself together stay under the 0.5 ms that communicator.h promises.
constexpr auto kPollSleep = std::chrono::microseconds(300);

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// Runs on the watchdog's thread while the main thread is stuck inside MPI, which may hold any
// lock: no MPI call, no allocation, no exit handlers.
[[noreturn]] void EndLostWorld(int rank, int size, double deadline_s, const char* operation,
                               double seconds) {
  char line[256];
  const int n = std::snprintf(line, sizeof(line),
                              "metattn: rank %d of %d: %s has not finished after %.1f s (deadline "
                              "%.1f s): a peer is lost or wedged; ending this process\n",
                              rank, size, operation, seconds, deadline_s);
  if (n > 0) {
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line, static_cast<size_t>(n));
  }
  ::_exit(kPeerLostExit);
}

enum class Whose { kProcess, kChannel };

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(const World& world, const CommOptions& options, Whose whose)
      : whose_(whose),
        world_(world),
        comm_(world.comm),
        rank_(world.rank),
        size_(world.size),
        options_(options),
        bell_(world.bell),
        watchdog_(options.deadline_s,
                  [this](const char* operation, double seconds) {
                    EndLostWorld(rank_, size_, options_.deadline_s, operation, seconds);
                  }),
        exchange_(world.comm, world.rank) {
    if (world.sum != nullptr) shared_sum_.emplace(world.sum, rank_, size_, options.spin);
  }

  ~MpiCommunicator() override {
    // After a failure peers may be gone and finalising would wait for them; mpirun treats a
    // process that ends without finalising as failed, which is then the truth.
    if (!dead_.ok()) return;
    const bool last = whose_ == Whose::kProcess;
    watchdog_.Begin(last ? "finalising MPI" : "closing a channel", Clock::now());
    LeaveWorld(&world_);
    if (last) MPI_Finalize();
    watchdog_.End();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string_view transport() const override {
    return size_ == 1 ? "none" : world_.one_host ? "mpi/shared memory" : "mpi/tcp";
  }

  absl::Status AllReduceSum(View data, std::int64_t count, Stream& stream) override {
    if (absl::Status s = Ready(stream, data, count, "all-reduce"); !s.ok()) return s;
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(float));
    auto* values = data.As<float>();
    if (size_ == 1 || count == 0) return Count(0);
    if (shared_sum_ && count >= kSharedSumFloats) return SumOnHost(values, count);
    if (!options_.ordered_sum) {
      return Collective("all-reduce", bytes, 2 * bytes * (size_ - 1) / size_,
                        [&] { return PlainSum(values, count); });
    }
    return Collective("ordered all-reduce", bytes, bytes * (size_ - 1),
                      [&] { return OrderedSum(values, count); });
  }

  absl::Status GatherV(View send, View recv, std::span<const std::int64_t> counts, int root,
                       Stream& stream) override {
    const std::int64_t total = SumOfCounts(counts);
    if (std::ssize(counts) != size_ || total < 0 || total > INT_MAX || root < 0 || root >= size_) {
      return Fail(absl::InternalError(
          absl::StrFormat("rank %d: gather with %d counts (sum %d) to root %d among %d ranks",
                          rank_, counts.size(), total, root, size_)));
    }
    if (absl::Status s = Ready(stream, send, counts[rank_], "gather"); !s.ok()) return s;
    if (rank_ == root) {
      if (absl::Status s = Ready(stream, recv, total, "gather"); !s.ok()) return s;
    }
    LayOut(counts);
    const float* from = send.As<float>();
    auto* to = rank_ == root ? recv.As<float>() : nullptr;
    const bool in_place = to != nullptr && from == to + offsets_[rank_];
    const std::int64_t moved = rank_ == root ? total - counts[rank_] : counts[rank_];
    return Collective("gather", total * 4, moved * 4, [&] {
      return MPI_Gatherv(in_place ? MPI_IN_PLACE : from, lengths_[rank_], MPI_FLOAT, to,
                         lengths_.data(), offsets_.data(), MPI_FLOAT, root, comm_);
    });
  }

  absl::Status Exchange(std::span<const Transfer> sends, std::span<const Transfer> recvs,
                        Stream& stream) override {
    const Messages mine = {sends, recvs};
    if (!dead_.ok()) return dead_;
    absl::Status s = stream.Synchronize();
    if (s.ok()) s = CheckMessages(mine, rank_, size_);
    if (s.ok()) s = exchange_.CheckSizes(sends, recvs);
    if (!s.ok()) return Fail(std::move(s));
    ForPairs(mine, rank_, mine, rank_, [](const Transfer& send, const Transfer& recv) {
      CopyIfApart(recv.data.As<std::byte>(), send.data.As<std::byte>(), send.bytes);
    });
    const std::int64_t bytes = BytesToAndFromOthers(mine, rank_);
    const Clock::time_point start = Begin("exchange");
    s = exchange_.Run(sends, recvs);
    exchange_meter_.Estimated(bytes, End(start));
    return s.ok() ? Count(bytes) : Fail(std::move(s));
  }

  absl::Status AllGatherV(View own, View all, std::span<const std::int64_t> counts,
                          Stream& stream) override {
    const std::int64_t total = SumOfCounts(counts);
    if (std::ssize(counts) != size_ || total < 0 || total > INT_MAX) {
      return Fail(absl::InternalError(
          absl::StrFormat("rank %d: all-gather with %d counts (sum %d) among %d ranks", rank_,
                          counts.size(), total, size_)));
    }
    if (absl::Status s = Ready(stream, own, counts[rank_], "all-gather"); !s.ok()) return s;
    if (absl::Status s = Ready(stream, all, total, "all-gather"); !s.ok()) return s;
    LayOut(counts);
    // In place is something that MPI wants of all ranks or none.
    auto* to = all.As<float>();
    if (total > 0) CopyIfApart(to + offsets_[rank_], own.As<float>(), counts[rank_] * 4);
    if (size_ == 1 || total == 0) return Count(0);
    return Collective("all-gather", total * 4, (total - counts[rank_]) * 4, [&] {
      return MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, to, lengths_.data(),
                            offsets_.data(), MPI_FLOAT, comm_);
    });
  }

  absl::Status BroadcastFrom(int root, View data, std::int64_t bytes, Stream& stream) override {
    if (!dead_.ok()) return dead_;
    absl::Status s = stream.Synchronize();
    if (s.ok()) s = CheckRoot(root, rank_, size_, "broadcast of a tensor");
    if (s.ok()) s = CheckBytes(data, bytes, rank_, "broadcast of a tensor");
    if (!s.ok()) return Fail(std::move(s));
    if (size_ == 1 || bytes == 0) return Count(0);
    const std::int64_t moved = rank_ == root ? bytes * (size_ - 1) : bytes;
    return Collective("broadcast of a tensor", bytes, moved, [&] {
      int code = MPI_SUCCESS;
      for (std::int64_t at = 0; at < bytes && code == MPI_SUCCESS; at += kBroadcastPart) {
        const int n = static_cast<int>(std::min(kBroadcastPart, bytes - at));
        code = MPI_Bcast(data.As<std::byte>() + at, n, MPI_BYTE, root, comm_);
      }
      return code;
    });
  }

  absl::StatusOr<std::unique_ptr<Communicator>> NewChannel() override {
    if (!dead_.ok()) return dead_;
    const Clock::time_point start = Begin("opening of a channel");
    const absl::StatusOr<World> world = JoinWorld(comm_);
    End(start);
    if (!world.ok()) return Fail(world.status());
    return std::make_unique<MpiCommunicator>(*world, options_, Whose::kChannel);
  }

  absl::Status Broadcast(std::vector<std::byte>& message) override {
    if (!dead_.ok()) return dead_;
    if (size_ == 1) return Count(0);
    return rank_ == 0 ? SendToAll(message) : ReceiveFromRoot(message);
  }

  absl::Status GatherRecords(std::span<const std::byte> record, std::span<std::byte> all) override {
    if (!dead_.ok()) return dead_;
    if (record.size() > INT_MAX ||
        (rank_ == 0 && all.size() != record.size() * static_cast<std::size_t>(size_))) {
      return Fail(
          absl::InternalError(absl::StrFormat("rank %d: %d records of %d bytes, room for %d", rank_,
                                              size_, record.size(), all.size())));
    }
    const Clock::time_point start = Begin("gather of records");
    const int length = static_cast<int>(record.size());
    const int code =
        MPI_Gather(record.data(), length, MPI_BYTE, all.data(), length, MPI_BYTE, 0, comm_);
    const double seconds = End(start);
    // Records are a few bytes: what rank 0 spends here is waiting for the last rank.
    rank_ == 0 ? meter_.Waited(seconds) : meter_.Transferred(seconds);
    return Done(code, "gather of records",
                rank_ == 0 ? std::int64_t{length} * (size_ - 1) : length);
  }

  absl::Status Barrier() override {
    if (!dead_.ok()) return dead_;
    const Clock::time_point start = Begin("barrier");
    const int code = MPI_Barrier(comm_);
    meter_.Waited(End(start));
    return Done(code, "barrier", 0);
  }

  CommStats TakeStats() override {
    CommStats stats = std::exchange(stats_, {});
    stats.wait_seconds = meter_.TakeWait() + exchange_meter_.TakeWait();
    stats.transfer_seconds = meter_.TakeTransfer() + exchange_meter_.TakeTransfer();
    return stats;
  }

 private:
  absl::Status Ready(Stream& stream, View view, std::int64_t count, const char* what) {
    if (!dead_.ok()) return dead_;
    absl::Status s = stream.Synchronize();
    if (s.ok()) s = CheckFloats(view, count, rank_, what);
    return s.ok() ? s : Fail(std::move(s));
  }

  void LayOut(std::span<const std::int64_t> counts) {
    int offset = 0;
    lengths_.resize(size_);
    offsets_.resize(size_);
    for (int r = 0; r < size_; offset += lengths_[r], ++r) {
      lengths_[r] = static_cast<int>(counts[r]);
      offsets_[r] = offset;
    }
  }

  absl::Status Fail(absl::Status status) {
    dead_ = std::move(status);
    return dead_;
  }

  absl::Status Count(std::int64_t bytes) {
    stats_.bytes += bytes;
    ++stats_.calls;
    return absl::OkStatus();
  }

  absl::Status Done(int code, const char* operation, std::int64_t bytes) {
    if (code != MPI_SUCCESS) return Fail(FromMpi(code, rank_, operation));
    return Count(bytes);
  }

  Clock::time_point Begin(const char* operation) {
    const Clock::time_point now = Clock::now();
    watchdog_.Begin(operation, now);
    return now;
  }

  double End(Clock::time_point start) {
    watchdog_.End();
    last_call_ = Clock::now();
    return Seconds(last_call_ - start);
  }

  template <typename Work>
  absl::Status Collective(const char* operation, std::int64_t bytes, std::int64_t moved,
                          const Work& work) {
    const bool measure = meter_.ShouldMeasure(bytes);
    const Clock::time_point start = Begin(operation);
    int code = MPI_SUCCESS;
    double waited = 0;
    if (measure) {
      code = MPI_Barrier(comm_);
      waited = Seconds(Clock::now() - start);
    }
    if (code == MPI_SUCCESS) code = work();
    const double total = End(start);
    if (measure) {
      meter_.Measured(bytes, waited, total - waited);
    } else {
      meter_.Unmeasured(bytes, total);
    }
    return Done(code, operation, moved);
  }

  // In rank order, so it serves ordered sums too; and it knows itself how long it waited.
  absl::Status SumOnHost(float* values, std::int64_t count) {
    const Clock::time_point start = Begin("all-reduce");
    const double waited = shared_sum_->Sum(values, count);
    const double total = End(start);
    meter_.Waited(waited);
    meter_.Transferred(total - waited);
    return Count(count * static_cast<std::int64_t>(sizeof(float)) * (size_ - 1));
  }

  int PlainSum(float* values, std::int64_t count) {
    int code = MPI_SUCCESS;
    for (std::int64_t at = 0; at < count && code == MPI_SUCCESS; at += kReducePart) {
      const int n = static_cast<int>(std::min(kReducePart, count - at));
      code = MPI_Allreduce(MPI_IN_PLACE, values + at, n, MPI_FLOAT, MPI_SUM, comm_);
    }
    return code;
  }

  int OrderedSum(float* values, std::int64_t count) {
    const std::int64_t stride = std::min(count, kOrderedPart);
    gathered_.resize(std::max(gathered_.size(), static_cast<std::size_t>(stride * size_)));
    parts_.resize(size_);
    for (std::int64_t at = 0; at < count; at += kOrderedPart) {
      const std::int64_t n = std::min(kOrderedPart, count - at);
      const int code = MPI_Allgather(values + at, static_cast<int>(n), MPI_FLOAT, gathered_.data(),
                                     static_cast<int>(n), MPI_FLOAT, comm_);
      if (code != MPI_SUCCESS) return code;
      for (int r = 0; r < size_; ++r) parts_[r] = gathered_.data() + r * n;
      SumInRankOrder(parts_, n, values + at);
    }
    return MPI_SUCCESS;
  }

  absl::Status SendToAll(const std::vector<std::byte>& message) {
    const auto bytes = static_cast<std::int64_t>(message.size());
    if (bytes > kMaxMessageBytes) {
      return Fail(absl::InternalError(absl::StrFormat(
          "rank 0: a broadcast of %d bytes is over the limit of %d", bytes, kMaxMessageBytes)));
    }
    const Clock::time_point start = Begin("broadcast");
    requests_.assign(size_ - 1, MPI_REQUEST_NULL);
    int code = MPI_SUCCESS;
    for (int r = 1; r < size_ && code == MPI_SUCCESS; ++r) {
      code = MPI_Isend(message.data(), static_cast<int>(bytes), MPI_BYTE, r, kBroadcastTag, comm_,
                       &requests_[r - 1]);
    }
    if (world_.bell != nullptr) bell_.Ring();
    if (code == MPI_SUCCESS) {
      code = MPI_Waitall(size_ - 1, requests_.data(), MPI_STATUSES_IGNORE);
    }
    meter_.Transferred(End(start));
    return Done(code, "broadcast", bytes * (size_ - 1));
  }

  // Waits outside the watchdog: waiting for work is no fault. An own message per peer, found by
  // probing, instead of MPI_Bcast: its length comes with it, and no rank that sleeps stands
  // between root and another.
  absl::Status ReceiveFromRoot(std::vector<std::byte>& message) {
    MPI_Message envelope = MPI_MESSAGE_NULL;
    MPI_Status status;
    Clock::time_point awake_until = last_call_ + kSpinAfterCall;
    for (;;) {
      const std::uint32_t seen = world_.bell != nullptr ? bell_.rings() : 0;
      int arrived = 0;
      const int code = MPI_Improbe(0, kBroadcastTag, comm_, &arrived, &envelope, &status);
      if (code != MPI_SUCCESS) return Fail(FromMpi(code, rank_, "waiting for a broadcast"));
      if (arrived != 0) break;
      Pause(seen, &awake_until);
    }
    const Clock::time_point start = Begin("broadcast");
    int bytes = 0;
    int code = MPI_Get_count(&status, MPI_BYTE, &bytes);
    if (code == MPI_SUCCESS) {
      message.resize(static_cast<std::size_t>(bytes));
      code = MPI_Mrecv(message.data(), bytes, MPI_BYTE, &envelope, MPI_STATUS_IGNORE);
    }
    meter_.Transferred(End(start));
    return Done(code, "broadcast", bytes);
  }

  void Pause(std::uint32_t seen, Clock::time_point* awake_until) {
    if (Clock::now() < *awake_until) {
      if (!options_.spin) std::this_thread::yield();
    } else if (world_.bell == nullptr) {
      std::this_thread::sleep_for(kPollSleep);
    } else {
      bell_.Wait(seen, kBellTimeout);
      if (bell_.rings() != seen) *awake_until = Clock::now() + kSpinAfterCall;
    }
  }

  const Whose whose_;
  World world_;
  const MPI_Comm comm_;
  const int rank_;
  const int size_;
  const CommOptions options_;
  Doorbell bell_;  // used only where world_.bell is
  Watchdog watchdog_;
  absl::Status dead_;
  CommStats stats_;  // calls and bytes; the seconds are the meters'
  WaitMeter meter_;
  // Of its own: ranks name different sizes, and the other counts them to decide alike on all.
  WaitMeter exchange_meter_;
  MpiExchange exchange_;
  std::optional<SharedSum> shared_sum_;
  Clock::time_point last_call_ = Clock::now();
  // Scratch, kept between calls.
  std::vector<float> gathered_;
  std::vector<const float*> parts_;
  std::vector<int> lengths_, offsets_;
  std::vector<MPI_Request> requests_;
};

}  // namespace

bool UnderMpirun() { return ReadLaunchEnv().launched; }

absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(const CommOptions& options) {
  int initialised = 0;
  MPI_Initialized(&initialised);
  if (initialised != 0) {
    return absl::FailedPreconditionError(
        "MPI was initialised before in this process; it can be only once");
  }
  // Read by Open MPI when it starts; what the launcher says comes first. Yielding costs nothing
  // measurable on a quiet machine, and on a busy one it saves a whole time slice whenever the rank
  // that is waited for has lost its core (README.md).
  ::setenv("OMPI_MCA_mpi_yield_when_idle", "1", /*overwrite=*/0);
  const LaunchEnv env = ReadLaunchEnv();
  const double start_s = std::max(options.deadline_s, kStartSeconds);
  Watchdog watchdog(start_s, [&](const char* operation, double seconds) {
    EndLostWorld(env.world_rank, env.world_size, start_s, operation, seconds);
  });
  watchdog.Begin("starting MPI", Clock::now());
  int provided = MPI_THREAD_SINGLE;
  if (const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);
      code != MPI_SUCCESS) {
    return FromMpi(code, env.world_rank, "starting MPI");
  }
  if (provided < MPI_THREAD_MULTIPLE) {
    return absl::FailedPreconditionError(
        "this MPI library lacks MPI_THREAD_MULTIPLE; use one built with it (Open MPI is)");
  }
  absl::StatusOr<World> world = JoinWorld(MPI_COMM_WORLD);
  if (!world.ok()) return world.status();
  return std::make_unique<MpiCommunicator>(*world, options, Whose::kProcess);
}

void AbortAll(int exit_code) {
  // MPI_Abort tells the launcher but may block on a lock that a stuck thread holds.
  std::thread([exit_code] {
    std::this_thread::sleep_for(std::chrono::seconds(2));
    ::_exit(exit_code);
  }).detach();
  int initialised = 0, finalised = 0;
  MPI_Initialized(&initialised);
  MPI_Finalized(&finalised);
  if (initialised != 0 && finalised == 0) MPI_Abort(MPI_COMM_WORLD, exit_code);
  ::_exit(exit_code);
}

}  // namespace metattn
