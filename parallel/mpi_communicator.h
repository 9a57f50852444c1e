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
// Tensor operations complete inline, on host memory. A message of an exchange has less than 2 GiB;
// one of another size than its receiver expects is INTERNAL there, one without another end is not
// seen (it waits, or fills the next receive). Channels are duplicates that end before this one, and
// each may have a thread of its own.
// Waiting: blocking collectives look without sleeping but yield the core between looks
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
