// A client of the services and of health, for metattnctl and tests: blocking calls, plain
// statuses. One per server; thread safe. A server that cannot be reached is UNAVAILABLE and the
// message says where it was looked for.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "metattn/v1/admin.pb.h"
#include "metattn/v1/inference.pb.h"
#include "metattn/v1/jobs.pb.h"

namespace metattn {

// Handles to a call that runs; Cancel may come from any thread.
class CallHandle {
 public:
  CallHandle();
  ~CallHandle();
  void Cancel();

 private:
  friend class ClientImpl;
  struct State;
  std::unique_ptr<State> state_;
};

class Client {
 public:
  // address: host:port.
  static std::unique_ptr<Client> Connect(const std::string& address);
  virtual ~Client() = default;

  // Calls on_response for each message; a false return cancels the call.
  virtual absl::Status Generate(const v1::GenerateRequest& request,
                                const std::function<bool(const v1::GenerateResponse&)>& on_response,
                                CallHandle* handle = nullptr) = 0;
  virtual absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) = 0;
  virtual absl::StatusOr<v1::DetokenizeResponse> Detokenize(
      const v1::DetokenizeRequest& request) = 0;
  virtual absl::StatusOr<v1::Model> GetModel(const std::string& name) = 0;

  virtual absl::StatusOr<v1::Job> Submit(const v1::SubmitJobRequest& request) = 0;
  virtual absl::StatusOr<v1::Job> GetJob(const std::string& id) = 0;
  virtual absl::StatusOr<v1::Job> CancelJob(const std::string& id) = 0;
  virtual absl::Status WatchJob(const v1::WatchJobRequest& request,
                                const std::function<bool(const v1::WatchJobResponse&)>& on_response,
                                CallHandle* handle = nullptr) = 0;

  virtual absl::StatusOr<v1::RoutingStatus> GetRouting() = 0;
  virtual absl::StatusOr<v1::RoutingPolicy> SetRoutingPolicy(const v1::RoutingPolicy& change) = 0;

  // "SERVING", "NOT_SERVING", ... of grpc.health.v1; timeout in seconds.
  virtual absl::StatusOr<std::string> Health(const std::string& service, double timeout_s) = 0;
};

}  // namespace metattn
