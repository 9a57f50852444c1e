// How an emulated NCCL operation runs: messages over MPI, the device's memory before and after.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "tests/emu/collectives.h"
#include "tests/emu/nccl_faults.h"
#include "tests/emu/nccl_state.h"

namespace emu {
namespace {

// Before the data of each message.
struct Header {
  NcclKind kind;
  std::int32_t type, root;
  std::uint64_t count;
};

const char* NameOf(NcclKind kind) {
  switch (kind) {
    case NcclKind::kAllReduce:
      return "all-reduce";
    case NcclKind::kAllGather:
      return "all-gather";
    case NcclKind::kBroadcast:
      return "broadcast";
    case NcclKind::kPointToPoint:
      return "send and receive";
  }
  return "?";
}

Header HeaderOf(const NcclCall& call) { return {call.kind, call.type, call.root, call.count}; }

void CheckAlive(const void* data, std::size_t bytes) {
  if (bytes == 0) return;
  const Allocation* found = FindAllocation(Runtime::Get(), data, bytes);
  if (found == nullptr || found->type != cudaMemoryTypeDevice) {
    Fail("an NCCL operation uses device memory that was freed");
  }
}

double Milliseconds(NcclClock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

bool Completed(MPI_Request* request) {
  int done = 0;
  MPI_Test(request, &done, MPI_STATUS_IGNORE);
  return done != 0;
}

}  // namespace

std::size_t NcclTypeBytes(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
    default:
      return 0;
  }
}

std::size_t NcclCall::bytes() const {
  return count * NcclTypeBytes(static_cast<ncclDataType_t>(type));
}

Running::Running(NcclOperation what) : operation(std::move(what)) { ++operation.comm->operations; }

int Running::TagOf(const NcclCall& call) const {
  return operation.comm->tag() + (call.kind == NcclKind::kPointToPoint ? 1 : 0);
}

void Running::Send(std::size_t call, int rank) {
  const NcclCall& c = operation.calls[call];
  const Header header = HeaderOf(c);
  auto message = std::make_unique<Outgoing>();
  message->data.resize(sizeof header + own_[call].size());
  std::memcpy(message->data.data(), &header, sizeof header);
  std::copy(own_[call].begin(), own_[call].end(), message->data.begin() + sizeof header);
  MPI_Isend(message->data.data(), static_cast<int>(message->data.size()), MPI_BYTE,
            operation.comm->world[static_cast<std::size_t>(rank)], TagOf(c), MPI_COMM_WORLD,
            &message->request);
  outgoing_.push_back(std::move(message));
}

void Running::Start() {
  const ncclComm& comm = *operation.comm;
  own_.resize(operation.calls.size());
  for (std::size_t i = 0; i < operation.calls.size(); ++i) {
    const NcclCall& c = operation.calls[i];
    if (c.gives && c.count > 0) {
      CheckAlive(c.send, c.bytes());
      const auto* from = static_cast<const char*>(c.send);
      own_[i].assign(from, from + c.bytes());
    }
    const auto receive = [&](int rank) {
      incoming_.push_back(std::make_unique<Incoming>());
      incoming_.back()->call = i;
      incoming_.back()->rank = rank;
    };
    if (c.kind == NcclKind::kPointToPoint) {
      c.gives ? Send(i, c.peer) : receive(c.peer);
      continue;
    }
    for (int rank = 0; rank < comm.ranks; ++rank) {
      if (rank == comm.rank) continue;
      if (c.gives) Send(i, rank);
      if (c.kind != NcclKind::kBroadcast || rank == c.root) receive(rank);
    }
  }
}

void Running::CheckHeader(const Incoming& message) const {
  const ncclComm& comm = *operation.comm;
  const NcclCall& c = operation.calls[message.call];
  Header theirs;
  std::memcpy(&theirs, message.data.data(), sizeof theirs);
  if (theirs.kind == c.kind && theirs.type == c.type && theirs.root == c.root &&
      theirs.count == c.count) {
    return;
  }
  char text[256];
  std::snprintf(text, sizeof text,
                "NCCL operations do not fit: %s of %llu values of type %d, root %d, on rank %d; %s "
                "of %llu of type %d, root %d, on rank %d",
                NameOf(c.kind), static_cast<unsigned long long>(c.count), c.type, c.root, comm.rank,
                NameOf(theirs.kind), static_cast<unsigned long long>(theirs.count), theirs.type,
                theirs.root, message.rank);
  Fail(text);
}

// Messages between two ranks come in the order in which they were sent: while one has not come, no
// later one of the same rank and tag is looked for.
bool Running::Receive() {
  std::vector<std::pair<int, int>> waiting;
  bool all = true;
  for (const auto& message : incoming_) {
    const int source = operation.comm->world[static_cast<std::size_t>(message->rank)];
    const std::pair<int, int> from = {source, TagOf(operation.calls[message->call])};
    if (!message->matched && std::find(waiting.begin(), waiting.end(), from) == waiting.end()) {
      int found = 0, bytes = 0;
      MPI_Message handle = MPI_MESSAGE_NULL;
      MPI_Status status;
      MPI_Improbe(from.first, from.second, MPI_COMM_WORLD, &found, &handle, &status);
      if (found != 0) {
        MPI_Get_count(&status, MPI_BYTE, &bytes);
        message->data.resize(static_cast<std::size_t>(bytes));
        MPI_Imrecv(message->data.data(), bytes, MPI_BYTE, &handle, &message->request);
        message->matched = true;
      }
    }
    if (!message->matched) waiting.push_back(from);
    if (message->matched && !message->arrived && Completed(&message->request)) {
      message->arrived = true;
      CheckHeader(*message);
    }
    all = all && message->arrived;
  }
  return all;
}

const char* Running::DataFrom(std::size_t call, int rank) const {
  if (rank == operation.comm->rank && operation.calls[call].gives) return own_[call].data();
  for (const auto& message : incoming_) {
    if (message->call == call && message->rank == rank) {
      return message->data.data() + sizeof(Header);
    }
  }
  return nullptr;  // not asked for: every call waits for all that it reads
}

void Running::FinishCall(std::size_t call) {
  const NcclCall& c = operation.calls[call];
  const ncclComm& comm = *operation.comm;
  if (c.receive == nullptr || c.count == 0) return;
  auto* to = static_cast<char*>(c.receive);
  switch (c.kind) {
    case NcclKind::kAllReduce: {
      CheckAlive(to, c.bytes());
      std::vector<float> sum(c.count), part(c.count);
      for (int rank = 0; rank < comm.ranks; ++rank) {  // in rank order: the same bits on every rank
        std::memcpy(part.data(), DataFrom(call, rank), c.bytes());
        for (std::size_t i = 0; i < c.count; ++i) sum[i] = rank == 0 ? part[i] : sum[i] + part[i];
      }
      std::memcpy(to, sum.data(), c.bytes());
      return;
    }
    case NcclKind::kAllGather:
      CheckAlive(to, c.bytes() * static_cast<std::size_t>(comm.ranks));
      for (int rank = 0; rank < comm.ranks; ++rank) {
        std::memcpy(to + c.bytes() * static_cast<std::size_t>(rank), DataFrom(call, rank),
                    c.bytes());
      }
      return;
    case NcclKind::kBroadcast:
    case NcclKind::kPointToPoint:
      CheckAlive(to, c.bytes());
      std::memcpy(to, DataFrom(call, c.kind == NcclKind::kBroadcast ? c.root : c.peer), c.bytes());
      return;
  }
}

bool Running::Poll() {
  const ncclComm& comm = *operation.comm;
  const NcclFaults& faults = CurrentNcclFaults();
  if (faults.lost_rank == comm.rank && comm.operations >= faults.lost_from) return false;
  if (faults.late_rank == comm.rank &&
      Milliseconds(NcclClock::now() - began) < static_cast<double>(faults.late_ms)) {
    return false;
  }
  if (!started_) Start();
  started_ = true;
  bool done = Receive();
  for (const auto& message : outgoing_) done = Completed(&message->request) && done;
  if (!done) return false;
  for (std::size_t call = 0; call < operation.calls.size(); ++call) FinishCall(call);
  return true;
}

std::function<bool()> AsStreamWork(NcclOperation operation) {
  return [operation = std::move(operation), mine = std::shared_ptr<Running>()]() mutable {
    ncclComm& comm = *operation.comm;
    if (comm.state == ncclComm::State::kGone) {
      // Aborted: whatever stands in the stream ends. MPI may still touch what was on its way.
      static auto* const abandoned = new std::vector<std::shared_ptr<Running>>;
      if (mine != nullptr) abandoned->push_back(mine);
      return true;
    }
    if (comm.running != nullptr && comm.running != mine) return false;
    if (mine == nullptr) comm.running = mine = std::make_shared<Running>(operation);
    if (!mine->Poll()) return false;
    comm.running = nullptr;
    return true;
  };
}

}  // namespace emu
