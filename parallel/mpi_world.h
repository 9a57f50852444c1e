// Ranks under MPI who find each other: their communicator of MPI, who shares memory with whom.
// Internal to the MPI body.
//
// JoinWorld is collective among the ranks of `parent`, after MPI_Init. Ownership: what LeaveWorld
// frees, collective too. Thread safety: one caller. Errors: UNAVAILABLE naming the rank. Cost: some
// collectives of MPI; on a host of several ranks the shared memory that World names.
#pragma once

#include <mpi.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/doorbell.h"

namespace metattn {

// What the ranks agree on at the start.
struct World {
  MPI_Comm comm = MPI_COMM_NULL;  // our own copy of the parent
  int rank = 0;
  int size = 1;
  bool one_host = false;             // all ranks share memory
  MPI_Win window = MPI_WIN_NULL;     // the host's shared memory: a bell, then slots of sums
  Doorbell::Shared* bell = nullptr;  // only on the host of rank 0
  void* sum = nullptr;               // of a SharedSum; only when all ranks share a host
};

// Of point-to-point messages.
inline constexpr int kBroadcastTag = 1, kExchangeTag = 2;

absl::StatusOr<World> JoinWorld(MPI_Comm parent);
void LeaveWorld(World* world);

// OK, or UNAVAILABLE: what MPI says of a call's result.
absl::Status FromMpi(int code, int rank, const char* operation);

}  // namespace metattn
