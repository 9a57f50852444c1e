// Ranks as processes under mpirun. The only header of the MPI body; mpi.h stays in its .cc.
//
// UnderMpirun tells from the environment whether mpirun started this process, without touching MPI.
// Make initialises MPI once per process (MPI_THREAD_MULTIPLE) and starts the watchdog; the
// destructor finalises when nothing failed. AbortAll ends every rank with the given exit code at
// once.
//
// Errors: FAILED_PRECONDITION when MPI was initialised before or lacks thread support; what MPI
// reports becomes UNAVAILABLE naming rank and operation. An operation that outlives its deadline
// ends this process with kPeerLostExit after one line on stderr; mpirun then ends the others.
// Tensor operations complete inline, on host memory. One message of an exchange has less than 2
// GiB. Channels are duplicates that live until they are destroyed, before this one; each may be
// used by a thread of its own. An exchange says INTERNAL on the receiver of a message of another
// size than it expects; a message without another end is not seen (it waits, or fills the next
// receive). Waiting: blocking collectives look without sleeping but yield the core between looks
// (OMPI_MCA_mpi_yield_when_idle=1 unless the launcher says otherwise). A receiver of a Broadcast
// does the same for 1 ms after its last operation, then sleeps until rank 0 rings a bell in memory
// their host shares; on other hosts it polls every 0.3 ms. Options.spin false adds a yield to our
// own looks, whatever the launcher said.
// Costs between two ranks of one host: README.md.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/communicator.h"

namespace metattn {

bool UnderMpirun();
absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(const CommOptions& options);
[[noreturn]] void AbortAll(int exit_code);

}  // namespace metattn
