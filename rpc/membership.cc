#include "rpc/membership.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "grpcpp/grpcpp.h"
#include "metattn/v1/worker_control.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "rpc/server.h"
#include "rpc/wire.h"

namespace metattn {
namespace {

std::string HostName() {
  std::array<char, 256> name = {};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::string RandomToken() {
  std::random_device device;
  std::string token(32, '\0');
  for (std::size_t i = 0; i < token.size(); i += sizeof(unsigned)) {
    const unsigned bits = device();
    std::memcpy(&token[i], &bits, sizeof(bits));
  }
  return token;
}

// Takes time that depends on the length only.
bool SameSecret(const std::string& a, const std::string& b) {
  unsigned char diff = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    diff |= static_cast<unsigned char>(a[i] ^ b[i]);
  }
  return diff == 0;
}

// What the streams of rank 0 share; they may outlive the server object by a callback.
struct Roster {
  std::mutex mutex;
  std::condition_variable changed;
  std::string token;
  int expected = 0;
  std::map<int, class AttachCall*> attached;
  bool leaving = false;
  std::atomic<bool> lost = false;
  std::function<void(const std::string&)> on_lost;
};

// One worker's stream, rank 0's end.
class AttachCall final : public grpc::ServerBidiReactor<v1::WorkerStatus, v1::WorkerCommand> {
 public:
  explicit AttachCall(std::shared_ptr<Roster> roster) : roster_(std::move(roster)) {
    StartRead(&in_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Closed();
    if (rank_ == 0) {
      if (const absl::Status status = Admit(); !status.ok()) {
        return Finish(ToGrpc(status));  // never attached: nothing to notice when it goes
      }
    }
    if (in_.leaving()) leaving_ = true;
    StartRead(&in_);
  }
  void OnDone() override {
    {
      std::lock_guard lock(roster_->mutex);
      if (auto it = roster_->attached.find(rank_);
          it != roster_->attached.end() && it->second == this) {
        roster_->attached.erase(it);
      }
    }
    roster_->changed.notify_all();
    delete this;
  }

  // Under the roster's lock, once.
  void SendLeave() {
    if (closed_) return;
    leave_.set_leave(true);
    StartWrite(&leave_);
  }

 private:
  absl::Status Admit() {
    std::lock_guard lock(roster_->mutex);
    if (!SameSecret(in_.token(), roster_->token)) {
      return absl::PermissionDeniedError("token: is not this launch's");
    }
    if (in_.rank() < 1 || in_.rank() > roster_->expected ||
        roster_->attached.count(in_.rank()) != 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("rank: %d is out of range or attached already", in_.rank()));
    }
    rank_ = in_.rank();
    host_ = in_.host();
    pid_ = in_.pid();
    roster_->attached[rank_] = this;
    roster_->changed.notify_all();
    return absl::OkStatus();
  }

  void Closed() {
    bool planned = leaving_ || rank_ == 0;
    {
      std::lock_guard lock(roster_->mutex);
      if (std::exchange(closed_, true)) return;
      planned = planned || roster_->leaving;
    }
    if (!planned && !roster_->lost.exchange(true) && roster_->on_lost) {
      roster_->on_lost(
          absl::StrFormat("rank %d (host %s, pid %d) is lost: its connection closed without a "
                          "goodbye",
                          rank_, host_, pid_));
    }
    Finish(grpc::Status::OK);
  }

  const std::shared_ptr<Roster> roster_;
  v1::WorkerStatus in_;
  v1::WorkerCommand leave_;
  int rank_ = 0;  // 0: has not said who it is
  std::string host_;
  std::int64_t pid_ = 0;
  bool leaving_ = false;
  bool closed_ = false;  // protected by the roster's mutex
};

class ControlService final : public v1::WorkerControl::CallbackService {
 public:
  explicit ControlService(std::shared_ptr<Roster> roster) : roster_(std::move(roster)) {}
  grpc::ServerBidiReactor<v1::WorkerStatus, v1::WorkerCommand>* Attach(
      grpc::CallbackServerContext*) override {
    return new AttachCall(roster_);
  }

 private:
  std::shared_ptr<Roster> roster_;
};

class ServerEnd final : public MembershipServer {
 public:
  ServerEnd(const MembershipOptions& options, int expected) : timeout_s_(options.join_timeout_s) {
    roster_->token = RandomToken();
    roster_->expected = expected;
    roster_->on_lost = options.on_lost;
  }
  ~ServerEnd() override {
    {
      std::lock_guard lock(roster_->mutex);
      roster_->leaving = true;
    }
    if (server_ != nullptr) server_->Shutdown(0.2);
  }

  absl::Status Listen(const MembershipOptions& options, const std::string& host) {
    ServerOptions server;
    server.host = host;
    server.port = 0;
    server.port_flag = "the liveness port";
    server.max_message_bytes = 1 << 16;
    server.public_services = false;
    server.keepalive_ms = options.ping_ms;
    auto started = Server::Start(server, {&service_});
    if (!started.ok()) return started.status();
    server_ = *std::move(started);
    return absl::OkStatus();
  }

  int port() const override { return server_->port(); }
  const std::string& token() const override { return roster_->token; }
  bool lost() const override { return roster_->lost; }

  absl::Status WaitForAll() override {
    std::unique_lock lock(roster_->mutex);
    const bool all = roster_->changed.wait_for(
        lock, std::chrono::duration<double>(timeout_s_),
        [&] { return static_cast<int>(roster_->attached.size()) == roster_->expected; });
    if (all) return absl::OkStatus();
    std::vector<int> missing;
    for (int rank = 1; rank <= roster_->expected; ++rank) {
      if (roster_->attached.count(rank) == 0) missing.push_back(rank);
    }
    return absl::DeadlineExceededError(
        absl::StrFormat("rank(s) %s did not connect to rank 0 within %g s: is a firewall between "
                        "the hosts?",
                        absl::StrJoin(missing, ", "), timeout_s_));
  }

  void Leave() override {
    std::lock_guard lock(roster_->mutex);
    if (std::exchange(roster_->leaving, true)) return;
    for (const auto& [rank, call] : roster_->attached) call->SendLeave();
  }

 private:
  const double timeout_s_;
  const std::shared_ptr<Roster> roster_ = std::make_shared<Roster>();
  ControlService service_{roster_};
  std::unique_ptr<Server> server_;
};

class ClientEnd final : public MembershipClient {
 public:
  explicit ClientEnd(const MembershipOptions& options) : on_lost_(options.on_lost) {}

  ~ClientEnd() override {
    Leave();
    if (stream_ != nullptr) {
      stream_->WritesDone();
      context_.TryCancel();
    }
    if (reader_.joinable()) reader_.join();
  }

  absl::Status Connect(const MembershipOptions& options, const std::string& address,
                       const std::string& token, const WorkerIdentity& self) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, options.ping_ms);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options.ping_ms);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    auto channel =
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    const auto until = std::chrono::system_clock::now() +
                       std::chrono::milliseconds(static_cast<int>(options.join_timeout_s * 1000));
    if (!channel->WaitForConnected(until)) {
      return absl::UnavailableError(absl::StrCat("cannot reach rank 0 at ", address));
    }
    stub_ = v1::WorkerControl::NewStub(channel);
    stream_ = stub_->Attach(&context_);
    v1::WorkerStatus hello;
    hello.set_rank(self.rank);
    hello.set_host(self.host);
    hello.set_pid(self.pid);
    hello.set_token(token);
    if (!stream_->Write(hello)) return FromGrpc(stream_->Finish());
    address_ = address;
    reader_ = std::thread([this] { Read(); });
    return absl::OkStatus();
  }

  bool lost() const override { return lost_; }
  void Leave() override {
    if (leaving_.exchange(true) || stream_ == nullptr) return;
    v1::WorkerStatus bye;
    bye.set_leaving(true);
    stream_->Write(bye);
  }

 private:
  void Read() {
    v1::WorkerCommand command;
    while (stream_->Read(&command)) {
      if (command.leave()) leaving_ = true;
    }
    const grpc::Status status = stream_->Finish();
    if (leaving_) return;
    lost_ = true;
    if (on_lost_) {
      const std::string why =
          status.ok() ? "the connection closed without a goodbye" : status.error_message();
      on_lost_(absl::StrCat("rank 0 (", address_, ") is lost: ", why));
    }
  }

  const std::function<void(const std::string&)> on_lost_;
  std::string address_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::WorkerControl::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerStatus, v1::WorkerCommand>> stream_;
  std::thread reader_;
  std::atomic<bool> leaving_ = false;
  std::atomic<bool> lost_ = false;
};

// Addresses under which other hosts may reach this one, IPv4 before IPv6.
std::vector<std::string> HostAddresses() {
  std::vector<std::string> v4, v6;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return v4;
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || (i->ifa_flags & IFF_LOOPBACK) || !(i->ifa_flags & IFF_UP)) {
      continue;
    }
    std::array<char, NI_MAXHOST> text = {};
    const int family = i->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    if (getnameinfo(i->ifa_addr, length, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST)) {
      continue;
    }
    if (std::strchr(text.data(), '%') != nullptr) continue;  // link-local
    (family == AF_INET ? v4 : v6).push_back(text.data());
  }
  freeifaddrs(list);
  v4.insert(v4.end(), v6.begin(), v6.end());
  return v4;
}

class Joined final : public Membership {
 public:
  std::unique_ptr<MembershipServer> server;  // rank 0 of several
  std::unique_ptr<MembershipClient> client;  // the others
  bool lost() const override { return (server && server->lost()) || (client && client->lost()); }
  void Leave() override {
    if (server) server->Leave();
    if (client) client->Leave();
  }
};

constexpr std::size_t kHostBytes = 256;
constexpr char kFromRoot[] = "rank 0: ";

// Rank 0: whether all ranks run on this host. Collective.
absl::StatusOr<bool> OneHost(Communicator& comm, const std::string& host) {
  std::vector<std::byte> record(kHostBytes), all;
  std::memcpy(record.data(), host.data(), std::min(host.size(), kHostBytes - 1));
  if (comm.rank() == 0) all.resize(kHostBytes * comm.size());
  if (auto s = comm.GatherRecords(record, all); !s.ok()) return s;
  for (std::size_t r = 0; r * kHostBytes < all.size(); ++r) {
    if (std::memcmp(&all[r * kHostBytes], record.data(), kHostBytes) != 0) return false;
  }
  return true;
}

absl::Status SendJson(Communicator& comm, const nlohmann::json& json) {
  const std::vector<std::uint8_t> packed = nlohmann::json::to_cbor(json);
  std::vector<std::byte> message(packed.size());
  std::memcpy(message.data(), packed.data(), packed.size());
  return comm.Broadcast(message);
}

absl::StatusOr<nlohmann::json> ReceiveJson(Communicator& comm) {
  std::vector<std::byte> message;
  if (auto s = comm.Broadcast(message); !s.ok()) return s;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(message.data());
  auto json = nlohmann::json::from_cbor(bytes, bytes + message.size(), true, false);
  if (!json.is_object()) return absl::InternalError("rank 0 sent a damaged start message");
  return json;
}

// "127.0.0.1:5" or "[::1]:5".
std::string Join(const std::string& host, int port) {
  return host.find(':') == std::string::npos ? absl::StrCat(host, ":", port)
                                             : absl::StrCat("[", host, "]:", port);
}

absl::Status JoinAsRoot(const MembershipOptions& options, const absl::Status& problem,
                        Communicator& comm, Joined* joined) {
  auto one_host = OneHost(comm, HostName());
  if (!one_host.ok()) return one_host.status();
  absl::Status status = problem;
  if (status.ok()) {
    auto server =
        MembershipServer::Start(options, *one_host ? "127.0.0.1" : "0.0.0.0", comm.size() - 1);
    status = server.status();
    if (server.ok()) joined->server = *std::move(server);
  }
  nlohmann::json start = {{"code", static_cast<int>(status.code())},
                          {"message", std::string(status.message())}};
  if (status.ok()) {
    std::vector<std::string> addresses = {Join("127.0.0.1", joined->server->port())};
    if (!*one_host) {
      for (const std::string& address : HostAddresses()) {
        addresses.push_back(Join(address, joined->server->port()));
      }
    }
    start["host"] = HostName();
    start["addresses"] = addresses;
    const std::string& token = joined->server->token();
    start["token"] = std::vector<std::uint8_t>(token.begin(), token.end());
  }
  if (auto s = SendJson(comm, start); !s.ok()) return s;
  if (!status.ok()) return status;
  return joined->server->WaitForAll();
}

absl::Status JoinAsWorker(const MembershipOptions& options, Communicator& comm, Joined* joined) {
  const std::string host = HostName();
  if (auto s = OneHost(comm, host); !s.ok()) return s.status();
  auto start = ReceiveJson(comm);
  if (!start.ok()) return start.status();
  const auto code = static_cast<absl::StatusCode>(start->value("code", 2));
  if (code != absl::StatusCode::kOk) {
    return absl::Status(code, absl::StrCat(kFromRoot, start->value("message", "")));
  }
  const auto bytes = start->value("token", std::vector<std::uint8_t>());
  const std::string token(bytes.begin(), bytes.end());
  std::vector<std::string> addresses = start->value("addresses", std::vector<std::string>());
  // Loopback comes first and is rank 0 only on its own host; elsewhere it would be someone else.
  if (host != start->value("host", "") && addresses.size() > 1) addresses.erase(addresses.begin());
  absl::Status last = absl::InternalError("rank 0 gave no address");
  MembershipOptions attempt = options;
  attempt.join_timeout_s = options.join_timeout_s / std::max<std::size_t>(addresses.size(), 1);
  for (const std::string& address : addresses) {
    auto client = MembershipClient::Attach(
        attempt, address, token, {comm.rank(), host, static_cast<std::int64_t>(getpid())});
    if (client.ok()) {
      joined->client = *std::move(client);
      return absl::OkStatus();
    }
    last = client.status();
  }
  return last;
}

}  // namespace

bool IsFromRoot(const absl::Status& status) {
  return absl::StartsWith(status.message(), kFromRoot);
}

absl::StatusOr<std::unique_ptr<MembershipServer>> MembershipServer::Start(
    const MembershipOptions& options, const std::string& host, int expected) {
  auto end = std::make_unique<ServerEnd>(options, expected);
  if (auto s = end->Listen(options, host); !s.ok()) return s;
  return end;
}

absl::StatusOr<std::unique_ptr<MembershipClient>> MembershipClient::Attach(
    const MembershipOptions& options, const std::string& address, const std::string& token,
    const WorkerIdentity& self) {
  auto end = std::make_unique<ClientEnd>(options);
  if (auto s = end->Connect(options, address, token, self); !s.ok()) return s;
  return end;
}

absl::StatusOr<std::unique_ptr<Membership>> Membership::Join(const MembershipOptions& options,
                                                             const absl::Status& problem,
                                                             Communicator& comm) {
  auto joined = std::make_unique<Joined>();
  if (comm.size() == 1) {
    if (!problem.ok()) return problem;
    return joined;
  }
  absl::Status status = comm.rank() == 0 ? JoinAsRoot(options, problem, comm, joined.get())
                                         : JoinAsWorker(options, comm, joined.get());
  if (!status.ok()) return status;
  return joined;
}

}  // namespace metattn
