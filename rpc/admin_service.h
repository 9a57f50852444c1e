// metattn.v1.AdminService on gRPC's callback interface: what operators see and set.
//
// Borrows the gate and the observer (may be null), which outlive it. Thread safe. Calls take a lock
// of the engine for as long as it takes to copy a few kilobytes. Errors: rpc/README.md.
#pragma once

#include "metattn/v1/admin.grpc.pb.h"
#include "rpc/call.h"
#include "rpc/served_model.h"

namespace metattn {

using RawAdminService = v1::AdminService::WithRawCallbackMethod_GetRouting<
    v1::AdminService::WithRawCallbackMethod_SetRoutingPolicy<v1::AdminService::Service>>;

class AdminService final : public RawAdminService {
 public:
  AdminService(const ServingGate* gate, CallObserver* observer)
      : gate_(gate), observer_(observer) {}

  grpc::ServerUnaryReactor* GetRouting(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* SetRoutingPolicy(grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* in,
                                             grpc::ByteBuffer* out) override;

 private:
  const ServingGate* gate_;
  CallObserver* observer_;
};

}  // namespace metattn
