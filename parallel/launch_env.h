// What the launcher (mpirun, srun) says about this process in its environment; read without MPI.
// Pure reading of environment variables; not to be called while another thread changes them.
#pragma once

namespace metattn {

struct LaunchEnv {
  bool launched = false;  // by mpirun or srun
  int world_size = 1;     // ranks
  int world_rank = 0;
  int local_size = 1;  // ranks on this host; 1 when the launcher does not say
  bool bound = false;  // every rank has an affinity mask of its own (Open MPI only)
};

// Knows Open MPI (OMPI_COMM_WORLD_*), MPICH and Slurm's PMI (PMI_SIZE, PMI_RANK,
// MPI_LOCALNRANKS). Values
// that are no positive numbers count as absent.
LaunchEnv ReadLaunchEnv();

}  // namespace metattn
