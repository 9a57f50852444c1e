// The gRPC server of rank 0: services, grpc.health.v1, reflection, limits.
//
// Start listens at once with health NOT_SERVING; the caller opens the gate when the model is there
// and calls SetServing. Borrows the services, which outlive it. Thread safe. Errors: a port in use
// is FAILED_PRECONDITION naming the flag. Shutdown gives running calls `grace_s`, then cancels
// them, and returns when all are gone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace grpc {
class Service;
}

namespace metattn {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8001;                        // 0: any free
  std::string port_flag = "--grpc-port";  // for messages
  int max_message_bytes = 16 << 20;       // received; more is RESOURCE_EXHAUSTED
  int max_streams_per_connection = 2048;  // further calls of that connection wait
  bool public_services = true;            // health and reflection
  int keepalive_ms = 0;                   // > 0: ping idle peers this often, drop the silent ones
};

class Server {
 public:
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const std::vector<grpc::Service*>& services);
  virtual ~Server() = default;  // shuts down without grace

  virtual int port() const = 0;
  virtual void SetServing(bool serving) = 0;
  virtual bool serving() const = 0;
  virtual void Shutdown(double grace_s) = 0;
};

// FAILED_PRECONDITION naming `flag` when host:port cannot be listened on now.
absl::Status CheckPortFree(const std::string& host, int port, const std::string& flag);

}  // namespace metattn
