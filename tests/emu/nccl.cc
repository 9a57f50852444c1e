// The part of NCCL's API that the engine uses, over MPI. See nccl_state.h.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "tests/emu/collectives.h"
#include "tests/emu/nccl_faults.h"
#include "tests/emu/nccl_state.h"

namespace emu {
namespace {

constexpr int kHelloTag = 1 << 20;

// What an ncclUniqueId holds.
struct UniqueId {
  int magic = 0x454d55;
  int creator = 0;
  int number = 0;
};

// {number, rank, ranks, device, world rank}
constexpr std::size_t kHelloInts = 5;
using Hello = std::vector<int>;

std::set<ncclComm*>& Known() {
  static auto* const known = new std::set<ncclComm*>;
  return *known;
}

std::string& LastError() {
  static auto* const text = new std::string;
  return *text;
}

ncclResult_t Refuse(ncclResult_t result, const std::string& why) {
  LastError() = why;
  return result;
}

int WorldRank() {
  int initialised = 0, rank = 0;
  MPI_Initialized(&initialised);
  if (initialised == 0) Fail("the emulated NCCL runs over MPI, which was not initialised");
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

// The frame of every NCCL function.
template <typename Body>
ncclResult_t NcclApi(const char* function, const Body& body) {
  if (InHostFunction()) return ncclInvalidUsage;
  ReportFaults();
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  if (runtime.Enter(function) != cudaSuccess) {
    return Refuse(ncclUnhandledCudaError, std::string(function) + " fails, as a test asked for");
  }
  const ncclResult_t result = body(runtime);
  runtime.Settle();
  return result;
}

ncclComm& Alive(ncclComm_t comm, const char* function) {
  if (comm == nullptr || Known().count(comm) == 0) {
    Fail((std::string(function) + ": no such communicator").c_str());
  }
  if (comm->state == ncclComm::State::kGone) {
    Fail((std::string(function) + ": the communicator was aborted or destroyed").c_str());
  }
  return *comm;
}

// ---- groups -------------------------------------------------------------------------------------

struct Grouped {
  ncclComm* comm;
  cudaStream_t stream;
  NcclCall call;
};
thread_local int group_depth = 0;
thread_local std::vector<Grouped> grouped;
thread_local ncclResult_t group_error = ncclSuccess;

ncclResult_t Launch(Runtime& runtime) {
  std::vector<Grouped> calls = std::exchange(grouped, {});
  const ncclResult_t error = std::exchange(group_error, ncclSuccess);
  if (error != ncclSuccess) return error;
  const bool any = !calls.empty();
  while (!calls.empty()) {  // one stream operation for each communicator and stream
    ncclComm* const comm = calls.front().comm;
    const cudaStream_t stream = calls.front().stream;
    NcclOperation operation = {comm, {}};
    for (const Grouped& g : calls) {
      if (g.comm == comm && g.stream == stream) operation.calls.push_back(g.call);
    }
    std::erase_if(calls, [&](const Grouped& g) { return g.comm == comm && g.stream == stream; });
    const cudaError_t status = runtime.Enqueue(stream, AsStreamWork(std::move(operation)));
    if (status != cudaSuccess) {
      return Refuse(ncclUnhandledCudaError, std::string("the stream: ") + cudaGetErrorName(status));
    }
    comm->answers_in_progress = 1;
  }
  // As a non-blocking communicator may always answer; callers must ask until it is done.
  return any ? ncclInProgress : ncclSuccess;
}

ncclResult_t CheckMemory(const Runtime& runtime, const void* data, std::size_t bytes,
                         const char* function) {
  if (bytes == 0) return ncclSuccess;
  const Allocation* found = data == nullptr ? nullptr : FindAllocation(runtime, data, bytes);
  if (found != nullptr && found->type == cudaMemoryTypeDevice) return ncclSuccess;
  return Refuse(ncclInvalidArgument, std::string(function) + ": the memory is not the device's");
}

struct Extents {
  std::size_t send, receive;  // bytes
};

ncclResult_t Check(const Runtime& runtime, const ncclComm& comm, const NcclCall& call,
                   const Extents& extents, const char* function) {
  if (comm.state != ncclComm::State::kReady) {
    return Refuse(ncclInvalidUsage, std::string(function) + ": the communicator is not ready");
  }
  if (comm.answers_in_progress > 0) {
    Fail((std::string(function) + ": the call before it is still in progress").c_str());
  }
  if (NcclTypeBytes(static_cast<ncclDataType_t>(call.type)) == 0) {
    return Refuse(ncclInvalidArgument, std::string(function) + ": a type that is not emulated");
  }
  const int other = call.kind == NcclKind::kPointToPoint ? call.peer : call.root;
  if (other < 0 || other >= comm.ranks) {
    return Refuse(ncclInvalidArgument, std::string(function) + ": no such rank");
  }
  ncclResult_t result = CheckMemory(runtime, call.send, extents.send, function);
  if (result == ncclSuccess) result = CheckMemory(runtime, call.receive, extents.receive, function);
  return result;
}

ncclResult_t Issue(ncclComm_t handle, cudaStream_t stream, const NcclCall& call,
                   const Extents& extents, const char* function) {
  return NcclApi(function, [&](Runtime& runtime) {
    ncclComm& comm = Alive(handle, function);
    const ncclResult_t error = Check(runtime, comm, call, extents, function);
    if (group_depth > 0 && group_error == ncclSuccess) group_error = error;
    if (error != ncclSuccess) return error;
    grouped.push_back({&comm, stream, call});
    return group_depth > 0 ? ncclSuccess : Launch(runtime);
  });
}

// ---- starting -----------------------------------------------------------------------------------

// The hellos of unique ids that this process made, by number.
std::map<int, std::vector<Hello>>& Hellos() {
  static auto* const hellos = new std::map<int, std::vector<Hello>>;
  return *hellos;
}

bool ReceiveInts(int source, int tag, std::vector<int>* data) {
  int found = 0, count = 0;
  MPI_Message message = MPI_MESSAGE_NULL;
  MPI_Status status;
  MPI_Improbe(source, tag, MPI_COMM_WORLD, &found, &message, &status);
  if (found == 0) return false;
  MPI_Get_count(&status, MPI_INT, &count);
  data->resize(static_cast<std::size_t>(count));
  MPI_Mrecv(data->data(), count, MPI_INT, &message, MPI_STATUS_IGNORE);  // small: it is here
  return true;
}

// The table that every member gets: world ranks in rank order; empty: the members do not fit.
std::vector<int> TableOf(const ncclComm& comm, const std::vector<Hello>& hellos) {
  std::vector<int> table(static_cast<std::size_t>(comm.ranks), -1);
  std::set<int> devices;
  for (const Hello& hello : hellos) {
    const auto rank = static_cast<std::size_t>(hello[1]);
    // Of one host all, so a device that two name is the same: NCCL refuses that.
    if (hello[2] != comm.ranks || table[rank] >= 0 || !devices.insert(hello[3]).second) return {};
    table[rank] = hello[4];
  }
  return table;
}

}  // namespace

void SayHello(ncclComm& comm) {
  comm.hello_data = {comm.number, comm.rank, comm.ranks, comm.device, WorldRank()};
  MPI_Isend(comm.hello_data.data(), kHelloInts, MPI_INT, comm.creator, kHelloTag, MPI_COMM_WORLD,
            &comm.hello);
}

void ProgressStart(ncclComm& comm) {
  if (WorldRank() == comm.creator) {
    for (Hello hello; ReceiveInts(MPI_ANY_SOURCE, kHelloTag, &hello);) {
      Hellos()[hello[0]].push_back(hello);
    }
    const std::vector<Hello>& hellos = Hellos()[comm.number];
    if (static_cast<int>(hellos.size()) == comm.ranks) {
      const std::vector<int> table = TableOf(comm, hellos);
      for (const Hello& hello : hellos) {
        MPI_Send(table.data(), static_cast<int>(table.size()), MPI_INT, hello[4], comm.tag() + 2,
                 MPI_COMM_WORLD);
      }
      Hellos().erase(comm.number);
    }
  }
  if (!ReceiveInts(comm.creator, comm.tag() + 2, &comm.world)) return;
  comm.state = ncclComm::State::kReady;
  if (comm.world.empty()) {
    comm.error = ncclInvalidUsage;
    LastError() = "two ranks on one device, or ranks that do not fit";
  }
}

namespace {

// Real devices go on by themselves; lazy streams do so while the communicator is being finalised.
void ProgressFinalize(Runtime& runtime, ncclComm& comm) {
  const std::vector<cudaStream_t> streams = runtime.streams;
  for (const cudaStream_t stream : streams) {
    while (runtime.Step(*stream->queue)) {
    }
  }
  if (comm.running == nullptr) comm.state = ncclComm::State::kFinalized;
}

ncclResult_t AsyncState(Runtime& runtime, ncclComm& comm) {
  if (comm.error != ncclSuccess) return comm.error;
  const int patience = CurrentNcclFaults().error_ms;
  if (comm.running != nullptr && patience >= 0 &&
      NcclClock::now() - comm.running->began > std::chrono::milliseconds(patience)) {
    LastError() = "a peer does not answer, as a test asked for";
    return comm.error = ncclRemoteError;
  }
  if (comm.state == ncclComm::State::kStarting) {
    ProgressStart(comm);
    return comm.state == ncclComm::State::kStarting ? ncclInProgress : comm.error;
  }
  if (comm.state == ncclComm::State::kFinalizing) {
    ProgressFinalize(runtime, comm);
    return comm.state == ncclComm::State::kFinalizing ? ncclInProgress : ncclSuccess;
  }
  return comm.answers_in_progress > 0 && comm.answers_in_progress-- > 0 ? ncclInProgress
                                                                        : ncclSuccess;
}

ncclResult_t Start(ncclComm_t* handle, int ranks, const ncclUniqueId& id, int rank) {
  UniqueId data;
  std::memcpy(&data, id.internal, sizeof data);
  if (handle == nullptr || data.magic != UniqueId().magic || ranks < 1 || rank < 0 ||
      rank >= ranks) {
    return Refuse(ncclInvalidArgument, "ncclCommInitRankConfig: unique id or ranks are wrong");
  }
  auto* const comm = new ncclComm;  // never freed
  comm->ranks = ranks;
  comm->rank = rank;
  comm->device = CurrentDevice();
  comm->creator = data.creator;
  comm->number = data.number;
  Known().insert(comm);
  const NcclFaults& faults = CurrentNcclFaults();
  if (faults.lost_rank != rank || faults.lost_from > 0) SayHello(*comm);
  *handle = comm;
  return ncclInProgress;
}

const char* TextOf(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}

}  // namespace
}  // namespace emu

using emu::Alive;
using emu::NcclApi;
using emu::NcclKind;
using emu::Runtime;

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  return NcclApi("ncclGetUniqueId", [&](Runtime&) {
    static int next = 0;
    const emu::UniqueId data = {emu::UniqueId().magic, emu::WorldRank(), next++};
    *id = {};
    std::memcpy(id->internal, &data, sizeof data);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  return NcclApi("ncclCommInitRankConfig", [&](Runtime&) {
    if (config == nullptr || config->blocking != 0) {
      return emu::Refuse(ncclInvalidUsage, "only non-blocking communicators are emulated");
    }
    return emu::Start(comm, ranks, id, rank);
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  return NcclApi("ncclCommGetAsyncError", [&](Runtime& runtime) {
    *state = emu::AsyncState(runtime, Alive(comm, "ncclCommGetAsyncError"));
    return ncclSuccess;
  });
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  return NcclApi("ncclCommFinalize", [&](Runtime&) {
    Alive(comm, "ncclCommFinalize").state = ncclComm::State::kFinalizing;
    return ncclInProgress;
  });
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  return NcclApi("ncclCommDestroy", [&](Runtime&) {
    ncclComm& gone = Alive(comm, "ncclCommDestroy");
    if (gone.state == ncclComm::State::kFinalizing) {
      emu::Fail("ncclCommDestroy: ncclCommFinalize is still in progress");
    }
    gone.state = ncclComm::State::kGone;
    return ncclSuccess;
  });
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  return NcclApi("ncclCommAbort", [&](Runtime&) {
    Alive(comm, "ncclCommAbort").state = ncclComm::State::kGone;
    return ncclSuccess;
  });
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (op != ncclSum || type != ncclFloat32) return ncclInvalidArgument;  // all that is emulated
  const emu::NcclCall call = {NcclKind::kAllReduce, type, 0, count, send, receive};
  return emu::Issue(comm, stream, call, {call.bytes(), call.bytes()}, "ncclAllReduce");
}

ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  const emu::NcclCall call = {NcclKind::kAllGather, type, 0, count, send, receive};
  const std::size_t all = call.bytes() * static_cast<size_t>(Alive(comm, "ncclAllGather").ranks);
  return emu::Issue(comm, stream, call, {call.bytes(), all}, "ncclAllGather");
}

ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  const bool gives = Alive(comm, "ncclBroadcast").rank == root;
  const emu::NcclCall call = {NcclKind::kBroadcast, type, root, count, send, receive, -1, gives};
  return emu::Issue(comm, stream, call, {gives ? call.bytes() : 0, call.bytes()}, "ncclBroadcast");
}

ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  const emu::NcclCall call = {NcclKind::kPointToPoint, type, 0, count, send, nullptr, peer};
  return emu::Issue(comm, stream, call, {call.bytes(), 0}, "ncclSend");
}

ncclResult_t ncclRecv(void* receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  const emu::NcclCall call = {
      NcclKind::kPointToPoint, type, 0, count, nullptr, receive, peer, false};
  return emu::Issue(comm, stream, call, {0, call.bytes()}, "ncclRecv");
}

ncclResult_t ncclGroupStart() {
  ++emu::group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  return NcclApi("ncclGroupEnd", [](Runtime& runtime) {
    if (emu::group_depth == 0) return emu::Refuse(ncclInvalidUsage, "ncclGroupEnd: no group");
    return --emu::group_depth > 0 ? ncclSuccess : emu::Launch(runtime);
  });
}

const char* ncclGetErrorString(ncclResult_t result) { return emu::TextOf(result); }

const char* ncclGetLastError(ncclComm_t) { return emu::LastError().c_str(); }

}  // extern "C"
