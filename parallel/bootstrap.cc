#include "parallel/bootstrap.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_format.h"
#include "parallel/launch_env.h"
#include "parallel/local_communicator.h"
#ifdef METATTN_HAVE_MPI
#include "parallel/mpi_communicator.h"
#endif

namespace metattn {

absl::StatusOr<std::unique_ptr<Communicator>> MakeWorld(const CommOptions& options) {
#ifdef METATTN_HAVE_MPI
  if (UnderMpirun()) return MakeMpiCommunicator(options);
#else
  // Without this, every process of a launched world would believe it is the only one.
  if (const LaunchEnv env = ReadLaunchEnv(); env.world_size > 1) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "launched as one of %d ranks, but this program was built without MPI: build it with "
        "METATTN_MPI=ON or start it without mpirun",
        env.world_size));
  }
#endif
  return std::move(MakeLocalCommunicators(1, options).front());
}

void EndWorld(int exit_code) {
#ifdef METATTN_HAVE_MPI
  if (UnderMpirun()) AbortAll(exit_code);
#endif
  ::_exit(exit_code);
}

}  // namespace metattn
