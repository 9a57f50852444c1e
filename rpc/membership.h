// Who is still there: every rank other than 0 holds one stream to rank 0, and a stream that closes
// without a goodbye is a lost rank.
//
// Join is collective (it uses the communicator once: host names to rank 0, address and a random
// token back) and returns when every rank is attached. Each end calls `on_lost` at most once, from
// a thread of its own or of gRPC, with a sentence that names the peer; the caller ends the process
// there. A peer that is stopped or unreachable without closing is noticed by pings within
// 2 x ping_ms. Leave (rank 0: tells the others; both: closing is no loss from now on) precedes an
// orderly end. The server listens on loopback when all ranks share a host, else on all addresses;
// a caller without the token is refused. Cost: one thread per rank, asleep.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/communicator.h"

namespace metattn {

struct MembershipOptions {
  double join_timeout_s = 30;
  int ping_ms = 3000;
  std::function<void(const std::string&)> on_lost;
};

class Membership {
 public:
  // `problem`: rank 0's reason not to start (OK: none). It reaches every rank, and Join returns it
  // everywhere, so that all end alike.
  static absl::StatusOr<std::unique_ptr<Membership>> Join(const MembershipOptions& options,
                                                          const absl::Status& problem,
                                                          Communicator& comm);
  virtual ~Membership() = default;
  // A connection is lost now; used by rank 0 to tell a planned SIGTERM from mpirun's.
  virtual bool lost() const = 0;
  virtual void Leave() = 0;
};

// Whether Join's error is `problem`, known to every rank.
bool IsFromRoot(const absl::Status& status);

// The parts, apart from MPI, for Join and tests.
struct WorkerIdentity {
  int rank = 0;
  std::string host;
  std::int64_t pid = 0;
};

class MembershipServer {
 public:
  // Listens on `host`, any free port. expected: ranks 1 .. expected.
  static absl::StatusOr<std::unique_ptr<MembershipServer>> Start(const MembershipOptions& options,
                                                                 const std::string& host,
                                                                 int expected);
  virtual ~MembershipServer() = default;
  virtual int port() const = 0;
  virtual const std::string& token() const = 0;
  // DEADLINE_EXCEEDED names the ranks that did not come.
  virtual absl::Status WaitForAll() = 0;
  virtual bool lost() const = 0;
  virtual void Leave() = 0;
};

class MembershipClient {
 public:
  static absl::StatusOr<std::unique_ptr<MembershipClient>> Attach(const MembershipOptions& options,
                                                                  const std::string& address,
                                                                  const std::string& token,
                                                                  const WorkerIdentity& self);
  virtual ~MembershipClient() = default;
  virtual bool lost() const = 0;
  virtual void Leave() = 0;
};

}  // namespace metattn
