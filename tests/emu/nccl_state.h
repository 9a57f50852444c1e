// Communicators and operations of the emulated NCCL; internal to tests/emu.
//
// An operation is work of a stream, as a kernel is. It sends what it has to send, each message with
// a header that says what it belongs to, and is asked again until all that it waits for has come;
// data stands in host memory meanwhile, because MPI touches it at any time. The operations of a
// communicator run one at a time, in the order in which the streams reach them. Two ranks whose
// operations do not fit (kind, type, count, root) are a bug of the program: a report, and the end.
//
// Ownership: handles are never freed, so that late uses are told from others. Thread safety: the
// runtime's lock for everything; MPI with MPI_THREAD_MULTIPLE. Errors: ncclResult_t; misuse that
// NCCL answers with a hang or with wrong numbers is printed ("emu: ...") and aborts. Cost: every
// rank sends to every other.
#pragma once

#include <mpi.h>
#include <nccl.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/emu/runtime_state.h"

namespace emu {

struct Running;

// One call, what the others must agree on first.
enum class NcclKind : std::int32_t { kAllReduce, kAllGather, kBroadcast, kPointToPoint };
struct NcclCall {
  NcclKind kind = NcclKind::kAllReduce;
  std::int32_t type = ncclFloat32;
  std::int32_t root = 0;  // of a broadcast
  std::uint64_t count = 0;
  const void* send = nullptr;
  void* receive = nullptr;
  int peer = -1;      // point to point only
  bool gives = true;  // this rank has something for others: not where it only receives

  std::size_t bytes() const;
};

}  // namespace emu

// nccl.h declares it and leaves its definition to the library.
struct ncclComm {
  enum class State { kStarting, kReady, kFinalizing, kFinalized, kGone };

  State state = State::kStarting;
  int ranks = 0, rank = 0, device = 0;
  int creator = 0;  // the world rank that made the unique id
  int number = 0;   // of the unique id among that rank's
  std::vector<int> world;
  ncclResult_t error = ncclSuccess;       // asynchronous; stays
  int answers_in_progress = 0;            // so many polls say ncclInProgress before success
  std::int64_t operations = 0;            // begun on this rank
  std::shared_ptr<emu::Running> running;  // at most one
  MPI_Request hello = MPI_REQUEST_NULL;
  std::vector<int> hello_data;

  int tag() const { return (creator * 256 + number) * 4; }
};

namespace emu {

using NcclClock = std::chrono::steady_clock;

// One stream operation: the calls of a group.
struct NcclOperation {
  ncclComm* comm = nullptr;
  std::vector<NcclCall> calls;
};

// What an NcclOperation is while it runs. Poll: true when all is done.
struct Running {
  explicit Running(NcclOperation what);
  bool Poll();

  NcclOperation operation;
  NcclClock::time_point began = NcclClock::now();

 private:
  struct Outgoing {
    std::vector<char> data;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  struct Incoming {
    std::size_t call;
    int rank;
    std::vector<char> data;
    MPI_Request request = MPI_REQUEST_NULL;
    bool matched = false, arrived = false;
  };

  void Start();
  void Send(std::size_t call, int rank);
  bool Receive();
  void CheckHeader(const Incoming& message) const;
  void Finish();
  void FinishCall(std::size_t call);
  const char* DataFrom(std::size_t call, int rank) const;
  int TagOf(const NcclCall& call) const;

  bool started_ = false;
  std::vector<std::vector<char>> own_;  // per call: what this rank gives
  std::vector<std::unique_ptr<Outgoing>> outgoing_;
  std::vector<std::unique_ptr<Incoming>> incoming_;
};

// The function to enqueue: each copy of it runs the operation once.
std::function<bool()> AsStreamWork(NcclOperation operation);

// A step of starting: ranks say hello to the creator of the id, it tells all who is who.
void SayHello(ncclComm& comm);
void ProgressStart(ncclComm& comm);

std::size_t NcclTypeBytes(ncclDataType_t type);  // 0: not emulated

}  // namespace emu
