#include "parallel/launch_env.h"

#include <cstdlib>
#include <initializer_list>

#include "absl/strings/numbers.h"

namespace metattn {
namespace {

// 0 when no name is set to a positive number.
int FirstPositive(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* text = std::getenv(name);
    int value = 0;
    if (text != nullptr && absl::SimpleAtoi(text, &value) && value > 0) return value;
  }
  return 0;
}

}  // namespace

LaunchEnv ReadLaunchEnv() {
  LaunchEnv env;
  const int world = FirstPositive({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"});
  const int local = FirstPositive({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"});
  env.launched = world > 0;
  if (world > 0) env.world_size = world;
  if (local > 0) env.local_size = local;
  env.bound = FirstPositive({"OMPI_MCA_orte_bound_at_launch"}) > 0;
  return env;
}

}  // namespace metattn
