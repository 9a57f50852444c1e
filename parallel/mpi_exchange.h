// An Exchange over MPI: every message posted at once, then waited for. Internal to the MPI body.
//
// Ownership: borrows the communicator of MPI; keeps its requests between calls. Thread safety: one
// caller. Errors: INTERNAL for a message over kMostBytes (before anything is sent) and for one that
// came with another size than expected, naming both ranks and both sizes; UNAVAILABLE for what MPI
// reports. A message without another end is not seen: it waits for ever, or fills the next one.
// Cost: two calls of MPI a message.
#pragma once

#include <mpi.h>

#include <climits>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "parallel/communicator.h"

namespace metattn {

class MpiExchange {
 public:
  static constexpr std::int64_t kMostBytes = INT_MAX;  // MPI counts are ints

  MpiExchange(MPI_Comm comm, int rank) : comm_(comm), rank_(rank) {}

  // Lists that CheckMessages has passed; messages of the rank to itself are left to the caller.
  absl::Status CheckSizes(std::span<const Transfer> sends, std::span<const Transfer> recvs) const;
  absl::Status Run(std::span<const Transfer> sends, std::span<const Transfer> recvs);

 private:
  absl::Status WaitForAll(std::span<const Transfer> recvs);
  absl::Status Judge(const Transfer& expected, int code, const MPI_Status& status) const;

  const MPI_Comm comm_;
  const int rank_;
  std::vector<MPI_Request> requests_;  // receives, then sends
};

}  // namespace metattn
