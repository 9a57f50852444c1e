#include "rpc/client.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "metattn/v1/admin.grpc.pb.h"
#include "metattn/v1/inference.grpc.pb.h"
#include "metattn/v1/jobs.grpc.pb.h"
#include "rpc/wire.h"

namespace metattn {

struct CallHandle::State {
  grpc::ClientContext context;
};
CallHandle::CallHandle() : state_(std::make_unique<State>()) {}
CallHandle::~CallHandle() = default;
void CallHandle::Cancel() { state_->context.TryCancel(); }

class ClientImpl final : public Client {
 public:
  explicit ClientImpl(const std::string& address) : address_(address) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // servers are on loopback or inside
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    auto channel =
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    inference_ = v1::InferenceService::NewStub(channel);
    jobs_ = v1::JobService::NewStub(channel);
    admin_ = v1::AdminService::NewStub(channel);
    health_ = grpc::health::v1::Health::NewStub(channel);
  }

  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<bool(const v1::GenerateResponse&)>& on_response,
                        CallHandle* handle) override {
    CallHandle own;
    grpc::ClientContext& context = (handle ? handle : &own)->state_->context;
    auto reader = inference_->Generate(&context, request);
    return Drain<v1::GenerateResponse>(*reader, on_response, context);
  }

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) override {
    grpc::ClientContext context;
    v1::TokenizeResponse response;
    return Answer(inference_->Tokenize(&context, request, &response), response);
  }
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) override {
    grpc::ClientContext context;
    v1::DetokenizeResponse response;
    return Answer(inference_->Detokenize(&context, request, &response), response);
  }
  absl::StatusOr<v1::Model> GetModel(const std::string& name) override {
    grpc::ClientContext context;
    v1::GetModelRequest request;
    request.set_model(name);
    v1::Model response;
    return Answer(inference_->GetModel(&context, request, &response), response);
  }

  absl::StatusOr<v1::Job> Submit(const v1::SubmitJobRequest& request) override {
    grpc::ClientContext context;
    v1::Job job;
    return Answer(jobs_->Submit(&context, request, &job), job);
  }
  absl::StatusOr<v1::Job> GetJob(const std::string& id) override {
    grpc::ClientContext context;
    v1::GetJobRequest request;
    request.set_id(id);
    v1::Job job;
    return Answer(jobs_->Get(&context, request, &job), job);
  }
  absl::StatusOr<v1::Job> CancelJob(const std::string& id) override {
    grpc::ClientContext context;
    v1::CancelJobRequest request;
    request.set_id(id);
    v1::Job job;
    return Answer(jobs_->Cancel(&context, request, &job), job);
  }
  absl::Status WatchJob(const v1::WatchJobRequest& request,
                        const std::function<bool(const v1::WatchJobResponse&)>& on_response,
                        CallHandle* handle) override {
    CallHandle own;
    grpc::ClientContext& context = (handle ? handle : &own)->state_->context;
    auto reader = jobs_->Watch(&context, request);
    return Drain<v1::WatchJobResponse>(*reader, on_response, context);
  }

  absl::StatusOr<v1::RoutingStatus> GetRouting() override {
    grpc::ClientContext context;
    v1::RoutingStatus response;
    return Answer(admin_->GetRouting(&context, v1::GetRoutingRequest(), &response), response);
  }
  absl::StatusOr<v1::RoutingPolicy> SetRoutingPolicy(const v1::RoutingPolicy& change) override {
    grpc::ClientContext context;
    v1::SetRoutingPolicyRequest request;
    *request.mutable_policy() = change;
    v1::RoutingPolicy response;
    return Answer(admin_->SetRoutingPolicy(&context, request, &response), response);
  }

  absl::StatusOr<std::string> Health(const std::string& service, double timeout_s) override {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(static_cast<int>(timeout_s * 1000)));
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    grpc::health::v1::HealthCheckResponse response;
    auto answer = Answer(health_->Check(&context, request, &response), response);
    if (!answer.ok()) return answer.status();
    return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(answer->status());
  }

 private:
  template <typename Response>
  absl::Status Drain(grpc::ClientReader<Response>& reader,
                     const std::function<bool(const Response&)>& on_response,
                     grpc::ClientContext& context) {
    Response response;
    while (reader.Read(&response)) {
      if (!on_response(response)) context.TryCancel();
    }
    return Explain(reader.Finish());
  }

  template <typename Response>
  absl::StatusOr<Response> Answer(const grpc::Status& status, Response& response) {
    if (!status.ok()) return Explain(status);
    return std::move(response);
  }

  absl::Status Explain(const grpc::Status& status) {
    absl::Status result = FromGrpc(status);
    if (!absl::IsUnavailable(result)) return result;
    return absl::UnavailableError(absl::StrCat(address_, ": ", status.error_message()));
  }

  const std::string address_;
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

std::unique_ptr<Client> Client::Connect(const std::string& address) {
  return std::make_unique<ClientImpl>(address);
}

}  // namespace metattn
