#include "rpc/inference_service.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "rpc/convert.h"

namespace metattn {
namespace {

// One Generate stream. It keeps itself alive until gRPC is done with it (OnDone); the engine's sink
// holds a second reference, so that late events find a finished call rather than freed memory.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(std::shared_ptr<const ServedModel> served, CallObserver* observer)
      : served_(std::move(served)), observer_(observer) {}

  void Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes) {
    self_ = shared_from_this();
    if (auto status = Submit(context, bytes); !status.ok()) {
      std::unique_lock lock(mutex_);
      End(status, lock);
    }
  }

  void OnWriteDone(bool ok) override {
    std::unique_lock lock(mutex_);
    writing_ = false;
    if (!ok) broken_ = true;
    Pump(lock);
  }

  void OnCancel() override {
    const std::shared_ptr<const ServedModel> served = served_;
    std::unique_lock lock(mutex_);
    broken_ = true;
    const bool running = id_.has_value() && !ended_;
    const std::uint64_t id = id_.value_or(0);
    Pump(lock);
    if (lock.owns_lock()) lock.unlock();
    // Without our lock: the engine's thread may be inside OnEvent.
    if (running) served->engine->Cancel(id);
  }

  void OnDone() override {
    std::shared_ptr<GenerateCall> last = std::move(self_);  // may free this
  }

 private:
  absl::Status Submit(grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes) {
    v1::GenerateRequest wire;
    if (auto s = ParseMessage(bytes, &wire); !s.ok()) return s;
    auto request = ToEngine(wire, *served_);
    if (!request.ok()) return request.status();
    ApplyCallDeadline(*context, &*request);
    auto id = served_->engine->Submit(
        *std::move(request),
        [call = shared_from_this()](const GenerationEvent& event) { call->OnEvent(event); });
    if (!id.ok()) return id.status();
    std::unique_lock lock(mutex_);
    id_ = *id;
    const bool too_late = broken_ && !ended_;  // the client left before we knew the id
    lock.unlock();
    if (too_late) served_->engine->Cancel(*id);
    return absl::OkStatus();
  }

  // The caller's own gRPC deadline counts too: work past it would be thrown away.
  static void ApplyCallDeadline(const grpc::CallbackServerContext& context,
                                GenerationRequest* request) {
    const auto deadline = context.deadline();
    if (deadline == std::chrono::system_clock::time_point::max()) return;
    const double left =
        std::chrono::duration<double>(deadline - std::chrono::system_clock::now()).count();
    if (left > 1e8) return;  // "none" after clock conversion
    request->deadline_s = std::min(request->deadline_s.value_or(left), std::max(left, 0.001));
  }

  void OnEvent(const GenerationEvent& event) {
    std::unique_lock lock(mutex_);
    AppendEvent(event, *served_->tokenizer, &pending_);
    has_pending_ = true;
    if (event.finish != FinishReason::kNone) {
      ended_ = true;
      final_ = FinalStatus(event);
      if (absl::IsCancelled(final_) && !broken_) {  // not by its client: a drain ran out of time
        final_ = absl::UnavailableError("the server is shutting down");
      }
    }
    Pump(lock);
  }

  // Starts whatever comes next: a write of all that is pending, or the end.
  void Pump(std::unique_lock<std::mutex>& lock) {
    if (writing_ || finished_) return;
    if (broken_) {
      End(ended_ && !final_.ok() ? final_ : absl::CancelledError("the client went away"), lock);
      return;
    }
    if (has_pending_) {
      out_ = SerializeMessage(pending_);
      pending_.Clear();
      has_pending_ = false;
      writing_ = true;
      lock.unlock();
      StartWrite(&out_);
      return;
    }
    if (ended_) End(final_, lock);
  }

  void End(const absl::Status& status, std::unique_lock<std::mutex>& lock) {
    finished_ = true;
    lock.unlock();
    const grpc::Status wire = ToGrpc(status);
    if (observer_ != nullptr) observer_->OnCall("Generate", CodeName(wire.error_code()));
    Finish(wire);
  }

  const std::shared_ptr<const ServedModel> served_;
  CallObserver* const observer_;
  std::shared_ptr<GenerateCall> self_;

  std::mutex mutex_;  // protects all below
  std::optional<std::uint64_t> id_;
  v1::GenerateResponse pending_;
  bool has_pending_ = false;
  grpc::ByteBuffer out_;  // of the write in flight
  bool writing_ = false;
  bool broken_ = false;  // the client is gone
  bool ended_ = false;   // the engine sent the last event
  absl::Status final_;
  bool finished_ = false;  // Finish was called
};

// A stream that ends at once.
class RefusedCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedCall(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  auto served = gate_->Get();
  if (!served.ok()) {
    const grpc::Status status = ToGrpc(served.status());
    if (observer_ != nullptr) observer_->OnCall("Generate", CodeName(status.error_code()));
    return new RefusedCall(status);
  }
  auto call = std::make_shared<GenerateCall>(*std::move(served), observer_);
  call->Start(context, *request);
  return call
      .get();  // alive through its own reference until OnDone, which comes after this returns
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* in,
                                                     grpc::ByteBuffer* out) {
  return RunUnary<v1::TokenizeRequest, v1::TokenizeResponse>(
      context, "Tokenize", observer_, in, out,
      [this](const v1::TokenizeRequest& request, v1::TokenizeResponse* response) -> absl::Status {
        auto served = gate_->Get();
        if (!served.ok()) return served.status();
        auto ids = TokenizeInput(request, **served);
        if (!ids.ok()) return ids.status();
        response->mutable_ids()->Add(ids->begin(), ids->end());
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in,
                                                       grpc::ByteBuffer* out) {
  return RunUnary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      context, "Detokenize", observer_, in, out,
      [this](const v1::DetokenizeRequest& request,
             v1::DetokenizeResponse* response) -> absl::Status {
        auto served = gate_->Get();
        if (!served.ok()) return served.status();
        auto text = DetokenizeIds(request, **served);
        if (!text.ok()) return text.status();
        response->set_text(*std::move(text));
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* in,
                                                     grpc::ByteBuffer* out) {
  return RunUnary<v1::GetModelRequest, v1::Model>(
      context, "GetModel", observer_, in, out,
      [this](const v1::GetModelRequest& request, v1::Model* response) -> absl::Status {
        auto served = gate_->Get();
        if (!served.ok()) return served.status();
        if (auto s = CheckModelName(request.model(), **served); !s.ok()) return s;
        *response = DescribeModel(**served);
        return absl::OkStatus();
      });
}

}  // namespace metattn
