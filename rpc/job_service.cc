#include "rpc/job_service.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace metattn {
namespace {

// One Watch stream: reads what is new in the store each time it is told to, one write at a time.
class WatchCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                        public std::enable_shared_from_this<WatchCall> {
 public:
  WatchCall(std::shared_ptr<JobRunner> runner, CallObserver* observer)
      : runner_(std::move(runner)), observer_(observer) {}

  void Start(const grpc::ByteBuffer& bytes) {
    self_ = shared_from_this();
    if (auto status = Begin(bytes); !status.ok()) {
      std::unique_lock lock(mutex_);
      End(status, lock);
      return;
    }
    Pump();
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      if (!ok) broken_ = true;
    }
    Pump();
  }
  void OnCancel() override {
    {
      std::lock_guard lock(mutex_);
      broken_ = true;
    }
    Pump();
  }
  void OnDone() override {
    if (handle_ != 0) runner_->Unsubscribe(handle_);
    std::shared_ptr<WatchCall> last = std::move(self_);  // may free this
  }

 private:
  absl::Status Begin(const grpc::ByteBuffer& bytes) {
    v1::WatchJobRequest request;
    if (auto s = ParseMessage(bytes, &request); !s.ok()) return s;
    if (runner_ == nullptr) return absl::UnavailableError("the model is still loading");
    if (request.offset() < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("offset: %d is negative", request.offset()));
    }
    auto job = runner_->Get(request.id());
    if (!job.ok()) return job.status();
    if (request.offset() > job->token_ids_size()) {
      return absl::OutOfRangeError(absl::StrFormat("offset: %d, the job has %d tokens so far",
                                                   request.offset(), job->token_ids_size()));
    }
    id_ = request.id();
    offset_ = request.offset();
    handle_ = runner_->Subscribe(id_, [call = shared_from_this()] { call->Pump(); });
    return absl::OkStatus();
  }

  void Pump() {
    std::unique_lock lock(mutex_);
    if (writing_ || finished_) return;
    if (broken_) return End(absl::CancelledError("the client went away"), lock);
    if (last_sent_) return End(absl::OkStatus(), lock);
    auto progress = runner_->Read(id_, offset_, after_);
    if (!progress.ok()) return End(progress.status(), lock);
    if (progress->chunks.empty() && !progress->ended) return;
    v1::WatchJobResponse response;
    for (const OutputChunk& chunk : progress->chunks) Append(chunk, &response);
    response.set_offset(offset_);
    if (progress->ended) {
      auto job = runner_->Get(id_);
      if (!job.ok()) return End(job.status(), lock);
      *response.mutable_job() = *std::move(job);
      last_sent_ = true;
    }
    out_ = SerializeMessage(response);
    writing_ = true;
    lock.unlock();
    StartWrite(&out_);
  }

  void Append(const OutputChunk& chunk, v1::WatchJobResponse* response) {
    const auto skip = static_cast<std::ptrdiff_t>(
        std::min<std::int64_t>(std::max<std::int64_t>(offset_ - chunk.offset, 0),
                               static_cast<std::int64_t>(chunk.tokens.size())));
    response->mutable_token_ids()->Add(chunk.tokens.begin() + skip, chunk.tokens.end());
    response->mutable_text()->append(chunk.text);
    offset_ = std::max(offset_, chunk.offset + static_cast<std::int64_t>(chunk.tokens.size()));
    after_ = chunk.serial;
  }

  void End(const absl::Status& status, std::unique_lock<std::mutex>& lock) {
    finished_ = true;
    lock.unlock();
    const grpc::Status wire = ToGrpc(status);
    if (observer_ != nullptr) observer_->OnCall("Watch", CodeName(wire.error_code()));
    Finish(wire);
  }

  const std::shared_ptr<JobRunner> runner_;
  CallObserver* const observer_;
  std::shared_ptr<WatchCall> self_;
  std::string id_;
  std::uint64_t handle_ = 0;

  std::mutex mutex_;  // protects all below
  std::int64_t offset_ = 0;
  std::int64_t after_ = -1;  // serial of the last chunk sent
  grpc::ByteBuffer out_;
  bool writing_ = false;
  bool broken_ = false;
  bool last_sent_ = false;
  bool finished_ = false;
};

// "id: is not valid": ids are looked up as they are, an empty one is a forgotten field.
absl::Status CheckId(const std::string& id) {
  return id.empty() ? absl::InvalidArgumentError("id: is empty") : absl::OkStatus();
}

}  // namespace

void JobService::SetRunner(std::shared_ptr<JobRunner> runner) {
  std::lock_guard lock(mutex_);
  runner_ = std::move(runner);
}

absl::StatusOr<std::shared_ptr<JobRunner>> JobService::Runner() const {
  std::lock_guard lock(mutex_);
  if (runner_ == nullptr) return absl::UnavailableError("the server is loading or stopping");
  return runner_;
}

grpc::ServerUnaryReactor* JobService::Submit(grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* in, grpc::ByteBuffer* out) {
  return RunUnary<v1::SubmitJobRequest, v1::Job>(
      context, "Submit", observer_, in, out,
      [this](const v1::SubmitJobRequest& request, v1::Job* response) -> absl::Status {
        if (auto served = gate_->Get(); !served.ok()) return served.status();
        auto runner = Runner();
        if (!runner.ok()) return runner.status();
        auto job = (*runner)->Submit(request);
        if (!job.ok()) return job.status();
        *response = *std::move(job);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* JobService::Get(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* in, grpc::ByteBuffer* out) {
  return RunUnary<v1::GetJobRequest, v1::Job>(
      context, "Get", observer_, in, out,
      [this](const v1::GetJobRequest& request, v1::Job* response) -> absl::Status {
        if (auto s = CheckId(request.id()); !s.ok()) return s;
        auto runner = Runner();
        if (!runner.ok()) return runner.status();
        auto job = (*runner)->Get(request.id());
        if (!job.ok()) return job.status();
        *response = *std::move(job);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* JobService::Cancel(grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* in, grpc::ByteBuffer* out) {
  return RunUnary<v1::CancelJobRequest, v1::Job>(
      context, "Cancel", observer_, in, out,
      [this](const v1::CancelJobRequest& request, v1::Job* response) -> absl::Status {
        if (auto s = CheckId(request.id()); !s.ok()) return s;
        auto runner = Runner();
        if (!runner.ok()) return runner.status();
        auto job = (*runner)->Cancel(request.id());
        if (!job.ok()) return job.status();
        *response = *std::move(job);
        return absl::OkStatus();
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* JobService::Watch(grpc::CallbackServerContext*,
                                                              const grpc::ByteBuffer* request) {
  auto runner = Runner();
  auto call =
      std::make_shared<WatchCall>(runner.ok() ? *runner : std::shared_ptr<JobRunner>(), observer_);
  call->Start(*request);
  return call.get();
}

}  // namespace metattn
