#include "parallel/mpi_world.h"

#include <cstddef>
#include <cstring>
#include <memory>

#include "absl/strings/str_format.h"
#include "parallel/shared_sum.h"

namespace metattn {
namespace {

// With many ranks every one reading every slot would cost more than MPI's halving.
constexpr int kSharedSumRanks = 4;

// Collective among the ranks of one host: shared memory of MPI's making, which goes when the last
// rank does, however it ends. nullptr on every rank unless all have it; else zeroed, on a cache
// line.
void* ShareMemory(MPI_Comm host, std::size_t bytes, MPI_Win* window) {
  int rank = 0;
  MPI_Comm_rank(host, &rank);
  void* memory = nullptr;
  const auto asked = static_cast<MPI_Aint>(rank == 0 ? bytes + SharedSum::kAlignment : 0);
  if (MPI_Win_allocate_shared(asked, 1, MPI_INFO_NULL, host, &memory, window) == MPI_SUCCESS) {
    MPI_Aint size = 0;
    int unit = 0;
    MPI_Win_shared_query(*window, 0, &size, &unit, &memory);
    auto space = static_cast<std::size_t>(size);
    memory = std::align(SharedSum::kAlignment, bytes, memory, space);
    if (rank == 0 && memory != nullptr) std::memset(memory, 0, bytes);
  }
  // All have it or none uses it; and nobody looks at it before it is zeroed.
  int mine = memory != nullptr ? 1 : 0, everyones = 0;
  MPI_Allreduce(&mine, &everyones, 1, MPI_INT, MPI_MIN, host);
  return everyones != 0 ? memory : nullptr;
}

// Collective. Who shares memory: the bell on rank 0's host (others poll), sums where one host has
// all.
int JoinHost(World* world) {
  MPI_Comm host;
  int code =
      MPI_Comm_split_type(world->comm, MPI_COMM_TYPE_SHARED, world->rank, MPI_INFO_NULL, &host);
  if (code != MPI_SUCCESS) return code;
  int ranks_here = 0, has_root = world->rank == 0 ? 1 : 0;
  MPI_Comm_size(host, &ranks_here);
  MPI_Bcast(&has_root, 1, MPI_INT, 0, host);  // ordered by world rank: rank 0 is its host's first
  int same = ranks_here == world->size ? 1 : 0, all_same = 0;
  code = MPI_Allreduce(&same, &all_same, 1, MPI_INT, MPI_MIN, world->comm);
  world->one_host = all_same != 0;
  if (has_root != 0 && ranks_here > 1) {
    const bool sums = world->one_host && ranks_here <= kSharedSumRanks;
    const std::size_t bytes = sizeof(Doorbell::Shared) + (sums ? SharedSum::Bytes(ranks_here) : 0);
    auto* memory = static_cast<std::byte*>(ShareMemory(host, bytes, &world->window));
    world->bell = reinterpret_cast<Doorbell::Shared*>(memory);
    if (memory != nullptr && sums) world->sum = memory + sizeof(Doorbell::Shared);
  }
  MPI_Comm_free(&host);
  return code;
}

}  // namespace

absl::StatusOr<World> JoinWorld(MPI_Comm parent) {
  World world;
  MPI_Comm_set_errhandler(parent, MPI_ERRORS_RETURN);
  MPI_Comm_rank(parent, &world.rank);
  MPI_Comm_size(parent, &world.size);
  int code = MPI_Comm_dup(parent, &world.comm);
  if (code == MPI_SUCCESS) code = JoinHost(&world);
  if (code != MPI_SUCCESS) return FromMpi(code, world.rank, "joining the world");
  MPI_Comm_set_errhandler(world.comm, MPI_ERRORS_RETURN);
  return world;
}

void LeaveWorld(World* world) {
  if (world->window != MPI_WIN_NULL) MPI_Win_free(&world->window);
  MPI_Comm_free(&world->comm);
}

absl::Status FromMpi(int code, int rank, const char* operation) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return absl::UnavailableError(
      absl::StrFormat("rank %d: %s failed in MPI: %s", rank, operation, text));
}

}  // namespace metattn
