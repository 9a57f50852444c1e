#include "rpc/server.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"

namespace metattn {
namespace {

std::string Address(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return v6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

class GrpcServer final : public Server {
 public:
  GrpcServer(std::unique_ptr<grpc::Server> server, int port)
      : server_(std::move(server)), port_(port) {}
  ~GrpcServer() override { Shutdown(0); }

  int port() const override { return port_; }

  void SetServing(bool serving) override {
    serving_ = serving;
    // Sets every name at once: "" and each service registered below.
    if (auto* health = server_->GetHealthCheckService()) {
      for (const char* name : {"", "metattn.v1.InferenceService", "metattn.v1.JobService",
                               "metattn.v1.AdminService"}) {
        health->SetServingStatus(name, serving);
      }
    }
  }
  bool serving() const override { return serving_; }

  void Shutdown(double grace_s) override {
    if (down_.exchange(true)) return;
    server_->Shutdown(std::chrono::system_clock::now() +
                      std::chrono::milliseconds(static_cast<int>(grace_s * 1000)));
    server_->Wait();
  }

 private:
  std::unique_ptr<grpc::Server> server_;
  const int port_;
  std::atomic<bool> serving_ = false;
  std::atomic<bool> down_ = false;
};

void AddLimits(const ServerOptions& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(options.max_message_bytes);
  // Otherwise a second server on the same port would silently take half of the connections.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams_per_connection);
  if (options.keepalive_ms > 0) {
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, options.keepalive_ms);
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options.keepalive_ms);
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                                options.keepalive_ms / 2);
    builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  }
}

}  // namespace

absl::Status CheckPortFree(const std::string& host, int port, const std::string& flag) {
  const std::string where = Address(host, port);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int rc = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (rc != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--host: '", host, "' is no address: ", gai_strerror(rc)));
  }
  const int fd = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
  int error = fd < 0 ? errno : 0;
  if (fd >= 0) {
    const int one = 1;  // as servers do: sockets in TIME_WAIT do not count
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) error = errno;
    close(fd);
  }
  freeaddrinfo(found);
  if (error == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("cannot listen on ", where, ": ",
                                                    std::strerror(error), "; choose another with ",
                                                    flag, " (0: any free)"));
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const std::vector<grpc::Service*>& services) {
  if (auto s = CheckPortFree(options.host, options.port, options.port_flag); !s.ok()) return s;
  if (options.public_services) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  }
  grpc::ServerBuilder builder;
  AddLimits(options, &builder);
  int port = 0;
  builder.AddListeningPort(Address(options.host, options.port), grpc::InsecureServerCredentials(),
                           &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {  // taken between the check and now
    return absl::FailedPreconditionError(absl::StrCat("cannot listen on ",
                                                      Address(options.host, options.port),
                                                      "; choose another with ", options.port_flag));
  }
  auto result = std::make_unique<GrpcServer>(std::move(server), port);
  result->SetServing(false);
  return result;
}

}  // namespace metattn
