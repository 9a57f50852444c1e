// metattn.v1.InferenceService on gRPC's callback interface: no thread per stream.
//
// Borrows the gate and the observer (may be null), which outlive it. Thread safe. Generate queues
// the engine's events per stream and writes as fast as the client reads; a stream's queue is
// bounded by the context, since a request ends there. A client that goes away, or whose gRPC
// deadline passes, cancels its request between steps. Errors: rpc/README.md.
#pragma once

#include "metattn/v1/inference.grpc.pb.h"
#include "rpc/call.h"
#include "rpc/served_model.h"

namespace metattn {

using RawInferenceService = v1::InferenceService::WithRawCallbackMethod_Generate<
    v1::InferenceService::WithRawCallbackMethod_Tokenize<
        v1::InferenceService::WithRawCallbackMethod_Detokenize<
            v1::InferenceService::WithRawCallbackMethod_GetModel<v1::InferenceService::Service>>>>;

class InferenceService final : public RawInferenceService {
 public:
  InferenceService(const ServingGate* gate, CallObserver* observer)
      : gate_(gate), observer_(observer) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* in, grpc::ByteBuffer* out) override;

 private:
  const ServingGate* gate_;
  CallObserver* observer_;
};

}  // namespace metattn
