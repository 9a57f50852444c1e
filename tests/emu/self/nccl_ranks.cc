// One rank of the tests of the emulated NCCL; nccl_test starts it under mpirun. One argument: the
// test's name. Exit code 0 when all is as it should be.
#include <mpi.h>
#include <nccl.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "tests/emu/control.h"
#include "tests/emu/self/test_kernels.h"

#define REQUIRE(condition)                                                                \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "rank %d: %s:%d: %s\n", rank, __FILE__, __LINE__, #condition); \
      MPI_Abort(MPI_COMM_WORLD, 1);                                                       \
    }                                                                                     \
  } while (false)
#define REQUIRE_CUDA(call) REQUIRE((call) == cudaSuccess)

namespace emu::self {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kCount = 100;
int rank = 0, ranks = 0;

ncclResult_t State(ncclComm_t comm) {
  ncclResult_t state = ncclSuccess;
  REQUIRE(ncclCommGetAsyncError(comm, &state) == ncclSuccess);
  return state;
}

ncclResult_t Await(ncclComm_t comm, double seconds = 20) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (State(comm) == ncclInProgress && Clock::now() < end) std::this_thread::yield();
  return State(comm);
}

ncclComm_t Begin(int device) {
  REQUIRE_CUDA(cudaSetDevice(device));
  ncclUniqueId id;
  if (rank == 0) REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
  MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  REQUIRE(ncclCommInitRankConfig(&comm, ranks, id, rank, &config) == ncclInProgress);
  return comm;
}

ncclComm_t Join() {
  ncclComm_t comm = Begin(rank);
  REQUIRE(Await(comm) == ncclSuccess);
  return comm;
}

void Leave(ncclComm_t comm) {
  REQUIRE(ncclCommFinalize(comm) == ncclInProgress);
  REQUIRE(Await(comm) == ncclSuccess);
  REQUIRE(ncclCommDestroy(comm) == ncclSuccess);
}

// Every enqueueing call of a non-blocking communicator answers so.
void Enqueued(ncclResult_t result, ncclComm_t comm) {
  REQUIRE(result == ncclInProgress);
  REQUIRE(Await(comm) == ncclSuccess);
}

void Restart(unsigned mask) {
  Options options;
  options.devices = ranks;
  options.eager_mask = mask;
  Reset(options);
  REQUIRE_CUDA(cudaSetDevice(rank));
}

// Two streams, device memory for each rank's share, pinned memory to look at it.
struct Scene {
  cudaStream_t main = nullptr, side = nullptr;
  cudaEvent_t event = nullptr;
  float *device = nullptr, *all = nullptr, *host = nullptr;

  Scene() {
    for (cudaStream_t* stream : {&main, &side}) {
      REQUIRE_CUDA(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
    }
    REQUIRE_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    REQUIRE_CUDA(cudaMalloc(reinterpret_cast<void**>(&device), kCount * 4));
    REQUIRE_CUDA(cudaMalloc(reinterpret_cast<void**>(&all), ranks * kCount * 4));
    REQUIRE_CUDA(cudaMallocHost(reinterpret_cast<void**>(&host), ranks * kCount * 4));
  }

  // device[i] = i * (rank + 1), written by a kernel of the stream that uses it next.
  void Fill() {
    for (int i = 0; i < kCount; ++i) host[i] = static_cast<float>(i);
    REQUIRE_CUDA(cudaMemcpyAsync(device, host, kCount * 4, cudaMemcpyHostToDevice, main));
    REQUIRE_CUDA(Affine(device, kCount, static_cast<float>(rank + 1), 0, main));
  }
  void Follow(cudaStream_t before, cudaStream_t after) {
    REQUIRE_CUDA(cudaEventRecord(event, before));
    REQUIRE_CUDA(cudaStreamWaitEvent(after, event, 0));
  }
  void Show(const float* from, int count, cudaStream_t stream) {
    REQUIRE_CUDA(cudaMemcpyAsync(host, from, static_cast<std::size_t>(count) * 4,
                                 cudaMemcpyDeviceToHost, stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
  }
};

float SumOfRanks() { return static_cast<float>(ranks * (ranks + 1) / 2); }

// A kernel's result is summed on another stream; a kernel there doubles the sum.
void AllReduce(ncclComm_t comm) {
  Scene s;
  s.Fill();
  s.Follow(s.main, s.side);
  Enqueued(ncclAllReduce(s.device, s.device, kCount, ncclFloat32, ncclSum, comm, s.side), comm);
  REQUIRE_CUDA(Affine(s.device, kCount, 2, 0, s.side));
  s.Show(s.device, kCount, s.side);
  for (int i = 0; i < kCount; ++i) {
    REQUIRE(s.host[i] == 2 * SumOfRanks() * static_cast<float>(i));
  }
}

void AllGatherAndBroadcast(ncclComm_t comm) {
  Scene s;
  s.Fill();
  Enqueued(ncclAllGather(s.device, s.all, kCount, ncclFloat32, comm, s.main), comm);
  s.Show(s.all, ranks * kCount, s.main);
  for (int i = 0; i < ranks * kCount; ++i) {
    REQUIRE(s.host[i] == static_cast<float>(i % kCount * (i / kCount + 1)));
  }
  const int root = ranks - 1;
  Enqueued(ncclBroadcast(s.device, s.all, 2 * kCount, ncclBfloat16, root, comm, s.main), comm);
  s.Show(s.all, kCount, s.main);
  for (int i = 0; i < kCount; ++i) REQUIRE(s.host[i] == static_cast<float>(i * ranks));
}

// Uneven parts to rank 0, its own included, and nothing from rank 1; then a ring.
void SendAndReceive(ncclComm_t comm) {
  Scene s;
  s.Fill();
  const auto part = [](int r) { return static_cast<std::size_t>(r == 1 ? 0 : 10 * (r + 1)); };
  REQUIRE(ncclGroupStart() == ncclSuccess);
  REQUIRE(ncclSend(s.device, part(rank), ncclFloat32, 0, comm, s.main) == ncclSuccess);
  for (int r = 0; rank == 0 && r < ranks; ++r) {
    REQUIRE(ncclRecv(s.all + r * kCount, part(r), ncclFloat32, r, comm, s.main) == ncclSuccess);
  }
  Enqueued(ncclGroupEnd(), comm);
  s.Show(s.all, ranks * kCount, s.main);
  for (int r = 0; rank == 0 && r < ranks; ++r) {
    for (std::size_t i = 0; i < part(r); ++i) {
      REQUIRE(s.host[static_cast<std::size_t>(r * kCount) + i] == static_cast<float>(i) * (r + 1));
    }
  }
  const int next = (rank + 1) % ranks, before = (rank + ranks - 1) % ranks;
  REQUIRE(ncclGroupStart() == ncclSuccess);
  REQUIRE(ncclSend(s.device, kCount, ncclFloat32, next, comm, s.main) == ncclSuccess);
  REQUIRE(ncclRecv(s.all, kCount, ncclFloat32, before, comm, s.main) == ncclSuccess);
  Enqueued(ncclGroupEnd(), comm);
  s.Show(s.all, kCount, s.main);
  for (int i = 0; i < kCount; ++i) REQUIRE(s.host[i] == static_cast<float>(i * (before + 1)));
}

void Operations() {
  for (unsigned mask = 0; mask < 4; ++mask) {
    Restart(mask);
    ncclComm_t comm = Join();
    AllReduce(comm);
    AllGatherAndBroadcast(comm);
    SendAndReceive(comm);
    Leave(comm);
  }
}

// A kernel, a sum on a forked stream and a kernel, captured and replayed; another communicator is
// used between.
void Graph() {
  for (unsigned mask = 0; mask < 4; ++mask) {
    Restart(mask);
    ncclComm_t comm = Join(), other = Join();
    Scene s;
    s.Fill();
    REQUIRE_CUDA(cudaStreamSynchronize(s.main));
    REQUIRE_CUDA(cudaStreamBeginCapture(s.main, cudaStreamCaptureModeThreadLocal));
    REQUIRE_CUDA(Affine(s.device, kCount, 1, 1, s.main));
    s.Follow(s.main, s.side);
    Enqueued(ncclAllReduce(s.device, s.device, kCount, ncclFloat32, ncclSum, comm, s.side), comm);
    s.Follow(s.side, s.main);
    cudaGraph_t graph = nullptr;
    REQUIRE_CUDA(cudaStreamEndCapture(s.main, &graph));
    cudaGraphExec_t executable = nullptr;
    REQUIRE_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    float expected = 0;  // in place 5, where rank r had 5 (r + 1)
    for (int replay = 0; replay < 3; ++replay) {
      REQUIRE_CUDA(cudaGraphLaunch(executable, s.main));
      Enqueued(ncclAllReduce(s.all, s.all, 1, ncclFloat32, ncclSum, other, s.side), other);
      s.Show(s.device, kCount, s.main);
      expected = replay == 0 ? 5 * SumOfRanks() + static_cast<float>(ranks)
                             : (expected + 1) * static_cast<float>(ranks);
      REQUIRE(s.host[5] == expected);
    }
    REQUIRE_CUDA(cudaStreamSynchronize(s.side));
    REQUIRE_CUDA(cudaGraphExecDestroy(executable));
    REQUIRE_CUDA(cudaGraphDestroy(graph));
    Leave(comm);
    Leave(other);
  }
}

void Refused() {
  Restart(0);
  ncclComm_t comm = Begin(rank);
  Scene s;
  const auto sum = [&](void* data, std::size_t count) {
    return ncclAllReduce(data, data, count, ncclFloat32, ncclSum, comm, s.main);
  };
  REQUIRE(sum(s.device, kCount) == ncclInvalidUsage);  // has not started
  REQUIRE(Await(comm) == ncclSuccess);
  REQUIRE(sum(s.host, kCount) == ncclInvalidArgument);
  REQUIRE(std::strstr(ncclGetLastError(comm), "not the device's") != nullptr);
  REQUIRE(sum(s.device, kCount + 1) == ncclInvalidArgument);
  REQUIRE(ncclSend(s.device, 1, ncclFloat32, ranks, comm, s.main) == ncclInvalidArgument);
  REQUIRE(ncclSend(s.device, 1, ncclFloat8e4m3, 0, comm, s.main) == ncclInvalidArgument);
  REQUIRE(ncclAllReduce(s.device, s.device, 1, ncclInt32, ncclSum, comm, s.main) ==
          ncclInvalidArgument);
  REQUIRE(ncclGroupStart() == ncclSuccess);
  REQUIRE(sum(s.host, kCount) == ncclInvalidArgument);
  REQUIRE(ncclGroupEnd() == ncclInvalidArgument);
  REQUIRE(ncclGroupEnd() == ncclInvalidUsage);
  FailCall("ncclAllReduce", cudaErrorUnknown);
  REQUIRE(sum(s.device, kCount) == ncclUnhandledCudaError);
  REQUIRE(std::string(ncclGetErrorString(ncclUnhandledCudaError)) == "unhandled cuda error");
  ncclUniqueId id = {};
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclComm_t none = nullptr;
  REQUIRE(ncclCommInitRankConfig(&none, 1, id, 0, &config) == ncclInvalidUsage);  // blocking
  config.blocking = 0;
  REQUIRE(ncclCommInitRankConfig(&none, 1, id, 0, &config) == ncclInvalidArgument);  // no id
  Leave(comm);
}

void SameDevice() {
  Restart(0);
  REQUIRE(Await(Begin(0)) == ncclInvalidUsage);
}

void OtherCounts() {
  Restart(0);
  ncclComm_t comm = Join();
  Scene s;
  s.Fill();
  const auto count = static_cast<std::size_t>(rank == 1 ? kCount - 1 : kCount);
  Enqueued(ncclAllReduce(s.device, s.device, count, ncclFloat32, ncclSum, comm, s.main), comm);
  REQUIRE_CUDA(cudaStreamSynchronize(s.main));
}

void Aborted() {
  Restart(0);
  ncclComm_t comm = Join();
  Scene s;
  REQUIRE(ncclCommAbort(comm) == ncclSuccess);
  (void)ncclAllReduce(s.device, s.device, 1, ncclFloat32, ncclSum, comm, s.main);
}

void Unasked() {  // a call while the one before it is in progress
  Restart(0);
  ncclComm_t comm = Join();
  Scene s;
  for (int i = 0; i < 2; ++i) {
    (void)ncclAllReduce(s.device, s.device, 1, ncclFloat32, ncclSum, comm, s.main);
  }
}

// EMU_NCCL_LOST=1@0: rank 1 never comes, so nobody starts.
void NeverStarts() {
  Restart(0);
  ncclComm_t comm = Begin(rank);
  REQUIRE(Await(comm, 0.3) == ncclInProgress);
  REQUIRE(ncclCommAbort(comm) == ncclSuccess);
}

// EMU_NCCL_LOST=1@2: the second sum ends nowhere; with EMU_NCCL_ERROR_MS that is noticed. After
// the abort the stream ends.
void Silent() {
  Restart(0);
  ncclComm_t comm = Join();
  AllReduce(comm);
  Scene s;
  s.Fill();
  Enqueued(ncclAllReduce(s.device, s.device, kCount, ncclFloat32, ncclSum, comm, s.main), comm);
  const auto end = Clock::now() + std::chrono::seconds(20);
  while (State(comm) == ncclSuccess && Clock::now() < end) {
    REQUIRE(cudaStreamQuery(s.main) == cudaErrorNotReady);
  }
  REQUIRE(State(comm) == ncclRemoteError);
  REQUIRE(ncclCommAbort(comm) == ncclSuccess);
  REQUIRE_CUDA(cudaStreamSynchronize(s.main));
}

void Late() {  // EMU_NCCL_LATE=1@60
  Restart(0);
  ncclComm_t comm = Join();
  const auto start = Clock::now();
  AllReduce(comm);
  REQUIRE(Clock::now() - start >= std::chrono::milliseconds(60));
  Leave(comm);
}

int Main(const std::string& name) {
  const std::map<std::string, void (*)()> tests = {
      {"operations", Operations}, {"graph", Graph},
      {"refused", Refused},       {"same-device", SameDevice},
      {"counts", OtherCounts},    {"aborted", Aborted},
      {"unasked", Unasked},       {"never", NeverStarts},
      {"silent", Silent},         {"late", Late}};
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  tests.at(name)();
  std::printf("rank %d: passed %s\n", rank, name.c_str());
  MPI_Finalize();
  return 0;
}

}  // namespace
}  // namespace emu::self

int main(int argc, char** argv) { return emu::self::Main(argc > 1 ? argv[1] : "operations"); }
