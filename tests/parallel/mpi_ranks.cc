// One rank of the tests under mpirun; mpi_test starts it. Modes:
//   contract [ordered]   every check of communicator_contract, exit 1 at the first difference
//   loop                 prints "rank R pid P", then steps until something ends the world
//   hang DEADLINE        as loop, but rank 1 stops taking part after a few steps
//   late                 rank 0 broadcasts only after three deadlines: no rank may complain
//   misfit BYTES [late]  rank 1 expects BYTES of the 16 that rank 0 sends, late: it looks when they
//                        are there; all say what they saw
//   abort CODE           rank 1 ends the world while the others wait
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "parallel/bootstrap.h"
#include "parallel/topology.h"
#include "tests/parallel/communicator_contract.h"
#include "tests/parallel/host_world.h"

namespace metattn {
namespace {

int Report(const Communicator& comm, std::string_view what, const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "rank %d: %.*s: %s\n", comm.rank(), static_cast<int>(what.size()),
               what.data(), status.ToString().c_str());
  return 1;
}

int Contract(Communicator& comm, bool ordered) {
  HostTestDevice device;
  for (const ContractCheck& check : ContractChecks()) {
    const absl::Status status = check.run(comm, device, ordered);
    if (Report(comm, check.name, status) != 0) EndWorld(1);  // the others would wait for us
    if (comm.rank() == 0) std::printf("passed %s\n", check.name.c_str());
  }
  const auto places = ExchangeTopology(comm, 1);
  if (Report(comm, "topology", places.status()) != 0) EndWorld(1);
  const RankPlace& mine = (*places)[comm.rank()];
  if (mine.pid != getpid() || mine.ranks_on_host != comm.size()) {
    std::fprintf(stderr, "rank %d: wrong place in the topology\n", comm.rank());
    EndWorld(1);
  }
  return 0;
}

int Step(Communicator& comm) {
  InlineStream stream;
  Buffer row = HostFloats(576);
  std::fill_n(reinterpret_cast<float*>(row.data()), 576, 1.0f);
  std::vector<std::byte> plan(comm.rank() == 0 ? 100 : 0);
  if (Report(comm, "broadcast", comm.Broadcast(plan)) != 0) return 1;
  return Report(comm, "all-reduce", comm.AllReduceSum({&row, 0}, 576, stream));
}

int Loop(Communicator& comm, bool rank_one_hangs) {
  std::printf("rank %d pid %d\n", comm.rank(), getpid());
  std::fflush(stdout);
  for (int step = 0;; ++step) {
    if (rank_one_hangs && comm.rank() == 1 && step == 5) {
      std::this_thread::sleep_for(std::chrono::hours(1));
    }
    if (Step(comm) != 0) return 1;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

int Late(Communicator& comm, double deadline_s) {
  if (comm.rank() == 0) std::this_thread::sleep_for(std::chrono::duration<double>(3 * deadline_s));
  return Step(comm);
}

int Misfit(Communicator& comm, std::int64_t expected, bool late) {
  InlineStream stream;
  // Claims more than it has, for a size that is refused before anything is touched.
  Buffer data(std::calloc(64, 1), std::size_t{1} << 32, [](void* p) { std::free(p); });
  const std::int64_t bytes = expected > 64 ? expected : comm.rank() == 0 ? 16 : expected;
  const Transfer t = {1 - comm.rank(), {&data}, bytes};
  const std::span<const Transfer> one(&t, 1), none;
  const bool sends = comm.rank() == 0;
  if (late && !sends) std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const absl::Status s = comm.Exchange(sends ? one : none, sends ? none : one, stream);
  std::printf("rank %d: %s\n", comm.rank(), s.ToString().c_str());
  return 0;
}

int Abort(Communicator& comm, int code) {
  std::printf("rank %d pid %d\n", comm.rank(), getpid());
  std::fflush(stdout);
  if (comm.rank() == 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    EndWorld(code);
  }
  return Report(comm, "barrier", comm.Barrier());
}

int Main(int argc, char** argv) {
  const std::string_view mode = argc > 1 ? argv[1] : "contract";
  const std::string_view argument = argc > 2 ? argv[2] : "";
  CommOptions options;
  options.ordered_sum = argument == "ordered";
  options.spin = !LooksOversubscribed(1);
  if (mode == "hang" || mode == "late") options.deadline_s = std::atof(argv[2]);
  auto world = MakeWorld(options);
  if (!world.ok()) {
    std::fprintf(stderr, "%s\n", world.status().ToString().c_str());
    return 2;
  }
  Communicator& comm = **world;
  if (mode == "loop") return Loop(comm, false);
  if (mode == "hang") return Loop(comm, true);
  if (mode == "late") return Late(comm, options.deadline_s);
  if (mode == "misfit") return Misfit(comm, std::atoll(argv[2]), argc > 3);
  if (mode == "abort") return Abort(comm, std::atoi(argv[2]));
  return Contract(comm, options.ordered_sum);
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) { return metattn::Main(argc, argv); }
