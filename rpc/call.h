// What every service method shares: parse the raw request, answer, count.
//
// CallObserver hears of each finished call; it is called from gRPC's threads and must be thread
// safe and quick. RunUnary runs `handler` inline and finishes the call with its status.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "rpc/wire.h"

namespace metattn {

class CallObserver {
 public:
  virtual ~CallObserver() = default;
  virtual void OnCall(std::string_view /*method*/, std::string_view /*code*/) {}
};

// handler: absl::Status(const Request&, Response*).
template <typename Request, typename Response, typename Handler>
grpc::ServerUnaryReactor* RunUnary(grpc::CallbackServerContext* context, std::string_view method,
                                   CallObserver* observer, const grpc::ByteBuffer* in,
                                   grpc::ByteBuffer* out, Handler&& handler) {
  Request request;
  Response response;
  absl::Status status = ParseMessage(*in, &request);
  if (status.ok()) status = handler(request, &response);
  if (status.ok()) *out = SerializeMessage(response);
  const grpc::Status wire = ToGrpc(status);
  if (observer != nullptr) observer->OnCall(method, CodeName(wire.error_code()));
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(wire);
  return reactor;
}

}  // namespace metattn
