// Ranks as processes under mpirun. The only header of the MPI body; mpi.h stays in its .cc.
//
// UnderMpirun tells from the environment whether mpirun started this process, without touching MPI.
// Make initialises MPI once per process (MPI_THREAD_MULTIPLE) and starts the watchdog; the
// destructor finalises when nothing failed. AbortAll ends every rank with the given exit code at
// once.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/communicator.h"

namespace metattn {

bool UnderMpirun();
absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(const CommOptions& options);
[[noreturn]] void AbortAll(int exit_code);

}  // namespace metattn
