#include "parallel/local_communicator.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "parallel/host_tensor.h"
#include "parallel/transfers.h"

namespace metattn {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// What a rank brings to a meeting. Everything but `memory` must agree between the ranks.
struct Call {
  const char* operation = "";
  std::int64_t count = 0;
  int root = 0;
  const void* memory = nullptr;        // where the others read this rank's data
  bool patient = false;                // ranks other than root wait for root for ever
  const Messages* messages = nullptr;  // of an exchange
};

// Where the ranks meet. Begin returns when all have brought their Call, Finish when all are done
// with each other's memory. Begin can fail; Finish cannot, and has no deadline: between the two
// only our own copying runs, and returning early would free memory that another rank still reads.
class Hub {
 public:
  Hub(int size, const CommOptions& options)
      : size_(size),
        options_(options),
        deadline_(std::chrono::duration_cast<Clock::duration>(
            std::chrono::duration<double>(options.deadline_s))),
        calls_(size),
        here_(size, false),
        arrival_(size),
        waited_(size, 0.0) {}

  // Out: the seconds spent waiting for the last rank (for a patient rank: since root came).
  absl::Status Begin(int rank, const Call& call, double* waited) {
    std::unique_lock lock(mutex_);
    if (!dead_.ok()) return dead_;
    calls_[rank] = call;
    const std::int64_t meeting = Arrive(rank);
    if (meeting == meeting_) WaitForAll(lock, rank, call, meeting);
    if (meeting == meeting_) return dead_;  // never completed
    *waited = waited_[rank];
    return verdict_;
  }

  void Finish(int rank) {
    std::unique_lock lock(mutex_);
    const std::int64_t meeting = Arrive(rank);
    changed_.wait(lock, [&] { return meeting != meeting_; });
  }

  // The first failure wins; everybody returns it from then on.
  absl::Status Fail(absl::Status status) {
    std::lock_guard lock(mutex_);
    Die(std::move(status));
    return dead_;
  }

  void Close(int rank) {
    std::lock_guard lock(mutex_);
    Die(absl::AbortedError(absl::StrFormat(
        "rank %d of %d has gone: its end of the communicator was destroyed", rank, size_)));
  }

  const Call& call(int rank) const { return calls_[rank]; }  // valid between Begin and Finish
  const CommOptions& options() const { return options_; }

 private:
  // Returns the number of the meeting this rank waits for; the last to come completes it.
  std::int64_t Arrive(int rank) {
    const std::int64_t meeting = meeting_;
    here_[rank] = true;
    arrival_[rank] = Clock::now();
    if (++arrived_ == size_) {
      arrived_ = 0;
      std::fill(here_.begin(), here_.end(), false);
      verdict_ = Verdict();
      for (int r = 0; r < size_; ++r) waited_[r] = Seconds(arrival_[rank] - Since(r));
      ++meeting_;
    }
    changed_.notify_all();  // a patient rank also wakes when root comes, to start its deadline
    return meeting;
  }

  void WaitForAll(std::unique_lock<std::mutex>& lock, int rank, const Call& call,
                  std::int64_t meeting) {
    while (meeting == meeting_ && dead_.ok()) {
      if (call.patient && rank != call.root && !here_[call.root]) {
        changed_.wait(lock);
        continue;
      }
      if (changed_.wait_until(lock, Since(rank) + deadline_) == std::cv_status::timeout &&
          meeting == meeting_ && dead_.ok()) {
        Die(absl::DeadlineExceededError(
            absl::StrFormat("%s: %s did not come within %.3g s (rank %d waited)", call.operation,
                            MissingRanks(), Seconds(deadline_), rank)));
      }
    }
  }

  // When this rank's waiting began; call it once the rank, and root for a patient one, are here.
  Clock::time_point Since(int rank) const {
    const Call& call = calls_[rank];
    return call.patient ? std::max(arrival_[rank], arrival_[call.root]) : arrival_[rank];
  }

  absl::Status Verdict() {
    for (int r = 1; r < size_; ++r) {
      const Call &a = calls_[0], &b = calls_[r];
      if (std::strcmp(a.operation, b.operation) == 0 && a.count == b.count && a.root == b.root) {
        continue;
      }
      Die(absl::InternalError(absl::StrFormat(
          "ranks disagree: rank 0 calls %s (count %d, root %d), rank %d calls %s (count %d, root "
          "%d)",
          a.operation, a.count, a.root, r, b.operation, b.count, b.root)));
      return dead_;
    }
    return MessagesFit();
  }

  absl::Status MessagesFit() {
    for (int from = 0; calls_[0].messages != nullptr && from < size_; ++from) {
      for (int to = 0; to < size_; ++to) {
        absl::Status s = CheckPair(*calls_[from].messages, from, *calls_[to].messages, to);
        if (s.ok()) continue;
        Die(std::move(s));
        return dead_;
      }
    }
    return absl::OkStatus();
  }

  std::string MissingRanks() const {
    std::string names;
    for (int r = 0; r < size_; ++r) {
      if (!here_[r]) names += absl::StrFormat("%srank %d", names.empty() ? "" : ", ", r);
    }
    return names;
  }

  void Die(absl::Status status) {  // with mutex_ held
    if (dead_.ok()) dead_ = std::move(status);
    changed_.notify_all();
  }

  const int size_;
  const CommOptions options_;
  const Clock::duration deadline_;
  std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status dead_;
  absl::Status verdict_;      // of the meeting just completed
  std::int64_t meeting_ = 0;  // completed so far
  int arrived_ = 0;           // at the meeting to come
  std::vector<Call> calls_;   // per rank; stable between Begin and Finish
  std::vector<bool> here_;    // per rank: at the meeting to come
  std::vector<Clock::time_point> arrival_;
  std::vector<double> waited_;  // per rank: seconds, at the meeting just completed
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(int rank, int size, std::shared_ptr<Hub> hub)
      : rank_(rank), size_(size), hub_(std::move(hub)) {}
  ~LocalCommunicator() override { hub_->Close(rank_); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string_view transport() const override { return size_ == 1 ? "none" : "threads"; }

  absl::Status AllReduceSum(View data, std::int64_t count, Stream& stream) override {
    if (absl::Status s = Ready(stream, data, count, "all-reduce"); !s.ok()) return s;
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(float));
    return Run({"all-reduce", count, 0, data.As<float>()}, count == 0,
               2 * bytes * (size_ - 1) / size_, [&] { SumMyPart(count); });
  }

  absl::Status GatherV(View send, View recv, std::span<const std::int64_t> counts, int root,
                       Stream& stream) override {
    const std::int64_t total = SumOfCounts(counts);
    if (std::ssize(counts) != size_ || total < 0 || root < 0 || root >= size_) {
      return hub_->Fail(absl::InternalError(
          absl::StrFormat("rank %d: gather with %d counts (sum %d) to root %d among %d ranks",
                          rank_, counts.size(), total, root, size_)));
    }
    if (absl::Status s = Ready(stream, send, counts[rank_], "gather"); !s.ok()) return s;
    if (rank_ == root) {
      if (absl::Status s = Ready(stream, recv, total, "gather"); !s.ok()) return s;
    }
    const std::int64_t moved = rank_ == root ? total - counts[rank_] : counts[rank_];
    return Run({"gather", total, root, send.As<float>()}, false, moved * 4, [&] {
      if (rank_ != root) return;
      float* out = recv.As<float>();
      for (int r = 0; r < size_; out += counts[r], ++r) {
        CopyIfApart(out, hub_->call(r).memory, counts[r] * 4);
      }
    });
  }

  absl::Status Exchange(std::span<const Transfer> sends, std::span<const Transfer> recvs,
                        Stream& stream) override {
    const Messages mine = {sends, recvs};
    absl::Status s = stream.Synchronize();
    if (s.ok()) s = CheckMessages(mine, rank_, size_);
    if (!s.ok()) return hub_->Fail(std::move(s));
    Call call{"exchange"};
    call.messages = &mine;
    return Run(call, false, BytesToAndFromOthers(mine, rank_), [&] {
      for (int r = 0; r < size_; ++r) {
        const auto copy = [](const Transfer& send, const Transfer& recv) {
          CopyIfApart(recv.data.As<std::byte>(), send.data.As<std::byte>(), send.bytes);
        };
        ForPairs(*hub_->call(r).messages, r, mine, rank_, copy);
      }
    });
  }

  absl::Status AllGatherV(View own, View all, std::span<const std::int64_t> counts,
                          Stream& stream) override {
    const std::int64_t total = SumOfCounts(counts);
    if (std::ssize(counts) != size_ || total < 0) {
      return hub_->Fail(absl::InternalError(
          absl::StrFormat("rank %d: all-gather with %d counts (sum %d) among %d ranks", rank_,
                          counts.size(), total, size_)));
    }
    if (absl::Status s = Ready(stream, own, counts[rank_], "all-gather"); !s.ok()) return s;
    if (absl::Status s = Ready(stream, all, total, "all-gather"); !s.ok()) return s;
    return Run({"all-gather", total, 0, own.As<float>()}, false, (total - counts[rank_]) * 4, [&] {
      auto* out = all.As<float>();
      for (int r = 0; r < size_; out += counts[r], ++r) {
        CopyIfApart(out, hub_->call(r).memory, counts[r] * 4);
      }
    });
  }

  absl::Status BroadcastFrom(int root, View data, std::int64_t bytes, Stream& stream) override {
    absl::Status s = stream.Synchronize();
    if (s.ok()) s = CheckRoot(root, rank_, size_, "broadcast of a tensor");
    if (s.ok()) s = CheckBytes(data, bytes, rank_, "broadcast of a tensor");
    if (!s.ok()) return hub_->Fail(std::move(s));
    const std::int64_t moved = size_ == 1 ? 0 : rank_ == root ? bytes * (size_ - 1) : bytes;
    return Run({"broadcast of a tensor", bytes, root, data.As<std::byte>()}, false, moved,
               [&] { CopyIfApart(data.As<std::byte>(), hub_->call(root).memory, bytes); });
  }

  absl::StatusOr<std::unique_ptr<Communicator>> NewChannel() override {
    std::shared_ptr<Hub> hub;
    if (rank_ == 0) hub = std::make_shared<Hub>(size_, hub_->options());
    double waited = 0;
    const Call call{"opening of a channel", 0, 0, &hub};
    if (absl::Status s = hub_->Begin(rank_, call, &waited); !s.ok()) return s;
    if (rank_ != 0) hub = *static_cast<const std::shared_ptr<Hub>*>(hub_->call(0).memory);
    hub_->Finish(rank_);
    return std::make_unique<LocalCommunicator>(rank_, size_, std::move(hub));
  }

  absl::Status Broadcast(std::vector<std::byte>& message) override {
    Call call{"broadcast", 0, 0, &message, /*patient=*/true};
    absl::Status s = Run(call, false, 0, [&] {
      const auto* from = static_cast<const std::vector<std::byte>*>(hub_->call(0).memory);
      if (rank_ != 0) message = *from;
    });
    const auto bytes = static_cast<std::int64_t>(message.size());
    if (s.ok()) stats_.bytes += rank_ == 0 ? bytes * (size_ - 1) : bytes;
    return s;
  }

  absl::Status GatherRecords(std::span<const std::byte> record, std::span<std::byte> all) override {
    if (rank_ == 0 && all.size() != record.size() * static_cast<std::size_t>(size_)) {
      return hub_->Fail(
          absl::InternalError(absl::StrFormat("rank 0: %d records of %d bytes do not fill %d bytes",
                                              size_, record.size(), all.size())));
    }
    const auto bytes = static_cast<std::int64_t>(record.size());
    return Run({"gather of records", bytes, 0, record.data()}, false,
               rank_ == 0 ? bytes * (size_ - 1) : bytes, [&] {
                 for (int r = 0; rank_ == 0 && r < size_; ++r) {
                   CopyIfApart(all.data() + r * bytes, hub_->call(r).memory, bytes);
                 }
               });
  }

  absl::Status Barrier() override {
    return Run({"barrier", 0, 0, nullptr}, false, 0, [] {});
  }

  CommStats TakeStats() override { return std::exchange(stats_, {}); }

 private:
  // Waits for what was enqueued before and checks the view.
  absl::Status Ready(Stream& stream, View view, std::int64_t count, const char* what) {
    absl::Status s = stream.Synchronize();
    if (s.ok()) s = CheckFloats(view, count, rank_, what);
    return s.ok() ? s : hub_->Fail(std::move(s));
  }

  template <typename Work>
  absl::Status Run(const Call& call, bool nothing_to_do, std::int64_t bytes, const Work& work) {
    double waited = 0;
    const Clock::time_point start = Clock::now();
    if (!nothing_to_do) {
      if (absl::Status s = hub_->Begin(rank_, call, &waited); !s.ok()) return s;
      work();
      hub_->Finish(rank_);
      const double total = Seconds(Clock::now() - start);
      stats_.wait_seconds += waited;
      // A patient rank's idle time before root came is neither waiting nor moving.
      stats_.transfer_seconds += call.patient ? 0 : std::max(0.0, total - waited);
    }
    stats_.bytes += bytes;
    ++stats_.calls;
    return absl::OkStatus();
  }

  // Rank r sums the r-th part for everybody: nobody else touches that part of any rank's data.
  void SumMyPart(std::int64_t count) {
    const std::int64_t begin = count * rank_ / size_;
    const std::int64_t end = count * (rank_ + 1) / size_;
    std::vector<float*> parts(size_);
    for (int r = 0; r < size_; ++r) {
      const auto* memory = static_cast<const float*>(hub_->call(r).memory);
      parts[r] = const_cast<float*>(memory) + begin;
    }
    SumInRankOrder(std::vector<const float*>(parts.begin(), parts.end()), end - begin, parts[0]);
    for (int r = 1; r < size_; ++r) std::copy_n(parts[0], end - begin, parts[r]);
  }

  const int rank_;
  const int size_;
  const std::shared_ptr<Hub> hub_;
  CommStats stats_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(int size,
                                                                  const CommOptions& options) {
  auto hub = std::make_shared<Hub>(size, options);
  std::vector<std::unique_ptr<Communicator>> ends;
  ends.reserve(size);
  for (int r = 0; r < size; ++r) ends.push_back(std::make_unique<LocalCommunicator>(r, size, hub));
  return ends;
}

}  // namespace metattn
