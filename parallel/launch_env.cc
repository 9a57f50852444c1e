#include "parallel/launch_env.h"

#include <algorithm>
#include <cstdlib>
#include <initializer_list>

#include "absl/strings/numbers.h"

namespace metattn {
namespace {

// The first of these variables that holds a number >= least, else -1.
int FirstOf(std::initializer_list<const char*> names, int least) {
  for (const char* name : names) {
    const char* text = std::getenv(name);
    int value = 0;
    if (text != nullptr && absl::SimpleAtoi(text, &value) && value >= least) return value;
  }
  return -1;
}

}  // namespace

LaunchEnv ReadLaunchEnv() {
  LaunchEnv env;
  const int world = FirstOf({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}, 1);
  if (world < 1) return env;
  env.launched = true;
  env.world_size = world;
  env.world_rank = std::max(0, FirstOf({"OMPI_COMM_WORLD_RANK", "PMI_RANK"}, 0));
  env.local_size = std::max(1, FirstOf({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"}, 1));
  env.bound = FirstOf({"OMPI_MCA_orte_bound_at_launch"}, 0) > 0;
  return env;
}

}  // namespace metattn
