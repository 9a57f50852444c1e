// One rank of the tests of the NCCL body over the emulated NCCL; nccl_test starts it. Modes:
//   contract        every check of communicator_contract, refusals, repeated operations
//   start DEADLINE  makes the communicator, prints what came of it
//   sums DEADLINE   sums for ever
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kernels/cuda/cuda_device.h"
#include "parallel/bootstrap.h"
#include "parallel/nccl_communicator.h"
#include "tests/emu/control.h"
#include "tests/parallel/communicator_contract.h"

namespace metattn {
namespace {

// What is not OK ends all ranks: the others would wait for this one.
void Require(const Communicator& comm, const std::string& what, const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "rank %d: %s: %s\n", comm.rank(), what.c_str(), status.ToString().c_str());
  EndWorld(1);
}

void RequireThat(const Communicator& comm, const char* what, bool is_so) {
  if (!is_so) Require(comm, what, absl::InternalError("it is not so"));
}

void Use(const Communicator& comm, unsigned mask) {
  emu::Options options;
  options.devices = comm.size();
  options.eager_mask = mask;
  emu::Reset(options);
}

// A sum that the stream records: counted, timed and watched like others, and the watching thread
// must not spoil the record.
void RepeatedSum(Communicator& comm, Device& device, cuda::CudaStream& stream) {
  Buffer buffer = device.Allocate(sizeof(float)).value();
  float value = 1;
  device.CopyIn(&value, {&buffer}, sizeof value, stream);
  constexpr Repeated kExpected[] = {Repeated::kRun, Repeated::kRecorded, Repeated::kReplayed,
                                    Repeated::kReplayed};
  float expected = 1;
  CommStats first;
  for (const Repeated how : kExpected) {
    (void)comm.TakeStats();
    stream.ResetMarks();
    const int begin = stream.Mark();
    const Repeated did = stream.Repeat("a sum", [&] {
      Require(comm, "a sum to repeat", comm.AllReduceSum({&buffer}, 1, stream));
      usleep(300 * 1000);  // the watching thread has looked
      (void)stream.Mark();
    });
    comm.AfterRepeat("a sum", did, stream);
    RequireThat(comm, "a stream runs, records, replays", did == how);
    RequireThat(comm, "marks keep their numbers", stream.Mark() == begin + 2);
    Require(comm, "waiting for a sum", stream.Synchronize());
    RequireThat(comm, "a mark inside has the time of its launch",
                stream.SecondsBetween(begin, begin + 1) >= 0 &&
                    stream.SecondsBetween(begin + 1, begin + 2) >= 0);
    const CommStats stats = comm.TakeStats();
    if (how == Repeated::kRun) first = stats;
    RequireThat(comm, "repeated sums count",
                stats.calls == first.calls && stats.bytes == first.bytes && stats.calls > 0);
    RequireThat(comm, "repeated sums take time", stats.wait_seconds + stats.transfer_seconds > 0);
    expected *= static_cast<float>(comm.size());
  }
  device.CopyOut({&buffer}, &value, sizeof value, stream);
  Require(comm, "waiting for the value", stream.Synchronize());
  RequireThat(comm, "the sum of a record that ran", value == expected);
}

// What a step with helpers records: messages around a ring that leaves out the last rank (with two
// ranks: nobody) and one to oneself, then operations of all. Replays move what lies there then.
void RepeatedMessages(Communicator& comm, Device& device, cuda::CudaStream& stream) {
  const int ranks = comm.size(), me = comm.rank(), members = ranks == 2 ? 2 : ranks - 1;
  const auto place = [](int i) { return sizeof(float) * static_cast<std::size_t>(i); };
  // {own, from the one before, own again, the last rank's, all ranks' own}
  std::vector<float> values(static_cast<std::size_t>(4 + ranks));
  Buffer buffer = device.Allocate(place(4 + ranks)).value();
  std::vector<Transfer> sends = {{me, {&buffer}, 4}}, recvs = {{me, {&buffer, place(2)}, 4}};
  if (me < members) {
    sends.push_back({(me + 1) % members, {&buffer}, 4});
    recvs.push_back({(me + members - 1) % members, {&buffer, place(1)}, 4});
  } else {
    sends.clear();
    recvs.clear();
  }
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(ranks), 1);
  CommStats first;
  for (int round = 0; round < 4; ++round) {
    std::ranges::fill(values, -1.0f);
    values[0] = static_cast<float>(10 * round + me);
    if (me == ranks - 1) values[3] = values[0];
    device.CopyIn(values.data(), {&buffer}, place(4 + ranks), stream);
    (void)comm.TakeStats();
    const Repeated did = stream.Repeat("messages", [&] {
      Require(comm, "messages to repeat", comm.Exchange(sends, recvs, stream));
      Require(comm, "a gather to repeat",
              comm.AllGatherV({&buffer}, {&buffer, place(4)}, counts, stream));
      Require(comm, "a broadcast to repeat",
              comm.BroadcastFrom(ranks - 1, {&buffer, place(3)}, 4, stream));
    });
    comm.AfterRepeat("messages", did, stream);
    RequireThat(comm, "messages run, are recorded, are replayed",
                did == (round == 0   ? Repeated::kRun
                        : round == 1 ? Repeated::kRecorded
                                     : Repeated::kReplayed));
    device.CopyOut({&buffer}, values.data(), place(4 + ranks), stream);
    Require(comm, "waiting for messages", stream.Synchronize());
    const auto of = [&](int rank) { return static_cast<float>(10 * round + rank); };
    const bool in = me < members;
    RequireThat(comm, "a message", values[1] == (in ? of((me + members - 1) % members) : -1));
    RequireThat(comm, "a message to itself", values[2] == (in ? of(me) : -1));
    RequireThat(comm, "a broadcast", values[3] == of(ranks - 1));
    for (int r = 0; r < ranks; ++r) {
      RequireThat(comm, "a gather", values[static_cast<std::size_t>(4 + r)] == of(r));
    }
    const CommStats stats = comm.TakeStats();
    if (round == 0) first = stats;
    RequireThat(comm, "repeated messages count",
                stats.calls == 3 && stats.bytes == first.bytes && stats.bytes > 0);
  }
}

// What must be refused by every rank, before anything is exchanged; the communicator is dead then.
void Refuses(Communicator& control, int device) {
  CommOptions ordered;
  ordered.ordered_sum = true;
  RequireThat(control, "ordered sums are refused",
              absl::IsInvalidArgument(MakeNcclCommunicator(control, device, ordered).status()));
  emu::FailCall("ncclGetUniqueId", cudaErrorUnknown);
  const absl::Status no_id = MakeNcclCommunicator(control, device, {}).status();
  RequireThat(control, "no unique id is unavailable", absl::IsUnavailable(no_id));
  auto made = MakeNcclCommunicator(control, device, {});
  Require(control, "a third communicator", made.status());
  auto stream = cuda::CudaStream::Create(device);
  Buffer host(std::malloc(64), 64, [](void* p) { std::free(p); });
  const absl::Status wrong = (*made)->AllReduceSum({&host}, 1, **stream);
  RequireThat(control, "host memory is refused", absl::IsUnavailable(wrong));
  RequireThat(control, "no channel of a dead communicator",
              (*made)->NewChannel().status() == wrong);
  RequireThat(control, "an error stays", (*made)->AllReduceSum({}, 0, **stream) == wrong);
}

// Calls that a tensor operation must not make: it only enqueues.
void CheckThatNothingWaits(Communicator& comm, Device& device, cuda::CudaStream& stream) {
  Buffer buffer = device.Allocate(256).value();
  emu::ResetCounters();
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(comm.size()), 1);
  const int next = (comm.rank() + 1) % comm.size();
  const int before = (comm.rank() + comm.size() - 1) % comm.size();
  for (int i = 0; i < 4; ++i) {
    Require(comm, "a sum", comm.AllReduceSum({&buffer}, 8, stream));
    const View all = comm.rank() == 0 ? View{&buffer, 128} : View{};
    Require(comm, "a gather", comm.GatherV({&buffer}, all, counts, 0, stream));
    const Transfer send = {next, {&buffer}, 16}, recv = {before, {&buffer, 16}, 16};
    Require(comm, "messages", comm.Exchange({&send, 1}, {&recv, 1}, stream));
    Require(comm, "a gather on all", comm.AllGatherV({&buffer}, {&buffer, 128}, counts, stream));
    Require(comm, "a broadcast", comm.BroadcastFrom(0, {&buffer}, 16, stream));
  }
  for (const char* call : {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventQuery",
                           "cudaEventSynchronize", "cudaStreamQuery"}) {
    RequireThat(comm, call, emu::Calls(call) == 0);
  }
  Require(comm, "waiting", stream.Synchronize());
}

int Contract(Communicator& control) {
  for (unsigned mask = 0; mask < 2; ++mask) {
    Use(control, mask == 0 ? 0 : ~0U);
    auto device = cuda::CudaDevice::Create(control.rank());
    Require(control, "a device", device.status());
    auto made = MakeNcclCommunicator(control, control.rank(), {});
    Require(control, "a communicator", made.status());
    Communicator& comm = **made;
    for (const ContractCheck& check : ContractChecks()) {
      Require(comm, check.name, check.run(comm, **device, false));
    }
    auto stream = cuda::CudaStream::Create(control.rank());
    CheckThatNothingWaits(comm, **device, **stream);
    if (comm.size() > 1) {
      RepeatedSum(comm, **device, **stream);
      RepeatedMessages(comm, **device, **stream);
      auto channel = comm.NewChannel();
      Require(control, "a channel", channel.status());
      auto other = cuda::CudaStream::Create(control.rank());
      RepeatedMessages(**channel, **device, **other);
    }
  }
  if (control.size() > 1) Refuses(control, control.rank());
  RequireThat(control, "nothing is left behind", emu::Leaks().empty());
  std::printf("rank %d: passed\n", control.rank());
  return 0;
}

int Start(Communicator& control, const CommOptions& options) {
  Use(control, 0);
  const auto made = MakeNcclCommunicator(control, control.rank(), options);
  std::printf("rank %d: %s\n", control.rank(), made.status().ToString().c_str());
  std::fflush(stdout);
  return 0;
}

int Sums(Communicator& control, const CommOptions& options) {
  Use(control, 0);
  auto device = cuda::CudaDevice::Create(control.rank());
  Require(control, "a device", device.status());
  auto made = MakeNcclCommunicator(control, control.rank(), options);
  Require(control, "a communicator", made.status());
  auto stream = cuda::CudaStream::Create(control.rank());
  Buffer buffer = (*device)->Allocate(64).value();
  for (;;) {
    Require(control, "a sum", (*made)->AllReduceSum({&buffer}, 16, **stream));
    Require(control, "waiting", (*stream)->Synchronize());
  }
}

int Main(int argc, char** argv) {
  const std::string_view mode = argc > 1 ? argv[1] : "contract";
  CommOptions options;
  if (argc > 2) options.deadline_s = std::atof(argv[2]);
  auto world = MakeWorld({});
  if (!world.ok()) {
    std::fprintf(stderr, "%s\n", world.status().ToString().c_str());
    return 2;
  }
  if (mode == "start") return Start(**world, options);
  if (mode == "sums") return Sums(**world, options);
  return Contract(**world);
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) { return metattn::Main(argc, argv); }
