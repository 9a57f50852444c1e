#include "rpc/admin_service.h"

#include "rpc/convert_routing.h"
#include "spdlog/spdlog.h"

namespace metattn {

grpc::ServerUnaryReactor* AdminService::GetRouting(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* in,
                                                   grpc::ByteBuffer* out) {
  return RunUnary<v1::GetRoutingRequest, v1::RoutingStatus>(
      context, "GetRouting", observer_, in, out,
      [this](const v1::GetRoutingRequest&, v1::RoutingStatus* response) -> absl::Status {
        auto served = gate_->Get();
        if (!served.ok()) return served.status();
        *response = StatusToWire((*served)->engine->Routing(), (*served)->controller);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* AdminService::SetRoutingPolicy(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* in,
                                                         grpc::ByteBuffer* out) {
  return RunUnary<v1::SetRoutingPolicyRequest, v1::RoutingPolicy>(
      context, "SetRoutingPolicy", observer_, in, out,
      [this](const v1::SetRoutingPolicyRequest& request,
             v1::RoutingPolicy* response) -> absl::Status {
        auto served = gate_->Get();
        if (!served.ok()) return served.status();
        auto change = ToChange(request);
        if (!change.ok()) return change.status();
        auto policy = (*served)->engine->SetRouting(*change);
        if (!policy.ok()) return policy.status();
        *response = PolicyToWire(*policy);
        spdlog::info("routing policy is now: {}", response->ShortDebugString());
        return absl::OkStatus();
      });
}

}  // namespace metattn
