// The world this process belongs to: MPI under mpirun, else one rank that talks to nobody. The
// rest of the tree includes this header and never an MPI one.
//
// MakeWorld is collective under mpirun and may be called once per process there; the caller owns
// the result and destroys it last, after everything that communicates (its destructor finalises
// MPI). Errors: FAILED_PRECONDITION when several ranks were launched but this build has no MPI
// (METATTN_MPI=OFF), or MPI cannot start; the message says what to do.
// EndWorld ends every rank at once with the given exit code, from any thread, without waiting for
// operations in flight: for a peer known to be lost, and for fatal errors after start.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/communicator.h"

namespace metattn {

absl::StatusOr<std::unique_ptr<Communicator>> MakeWorld(const CommOptions& options);
[[noreturn]] void EndWorld(int exit_code);

}  // namespace metattn
