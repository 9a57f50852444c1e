// The emulated CUDA runtime's state and its stream engine; internal to tests/emu. Other emulated
// libraries (NCCL, cuBLASLt) enqueue their work here too.
//
// A stream is a queue of operations. Who drives it: an eager stream (Options::eager_mask) runs
// whatever may run after every runtime call; a lazy one runs only as far as somebody waits for it.
// Ownership: handles own their queue, operations in other queues share it. Thread safety: one lock
// for everything, kernels run under it; Api takes it, all else expects it held. Errors: CUDA error
// codes. Cost: a heap allocation per operation.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tests/emu/control.h"
#include "tests/emu/fault_report.h"

namespace emu {

struct Queue;

// A place in a queue: passed when that many of its operations are done.
struct Point {
  std::shared_ptr<Queue> queue;
  std::uint64_t position = 0;
  bool Passed() const;
};

struct Operation {
  // Returns true when finished, false to be asked again (it waits for another process).
  std::function<bool()> run;
  Point after;  // must be passed first; the null queue means nothing to wait for
};

struct Queue {
  int device = 0;
  int index = -1;  // in the eager mask; -1: a device's legacy stream
  std::deque<Operation> operations;
  std::uint64_t done = 0;
  std::uint64_t End() const { return done + operations.size(); }
};

// ---- capture ------------------------------------------------------------------------------------

struct Node {
  std::function<bool()> run;
  std::vector<int> after;  // earlier nodes of the graph
  int branch = -1;         // index of the stream it was captured on: decides eagerness at replay
  cudaEvent_t event = nullptr;  // that every launch records at this node (cudaEventRecordExternal)
};

struct Capture {
  std::uint64_t id = 0;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::uintptr_t thread = 0;
  cudaStream_t origin = nullptr;
  std::vector<Node> nodes;
  bool invalid = false;
  bool ended = false;
};

}  // namespace emu

// The toolkit declares these and leaves their definition to the library.
struct CUstream_st {
  std::shared_ptr<emu::Queue> queue;
  bool blocking = true;  // synchronises with the legacy stream
  std::shared_ptr<emu::Capture> capture;
  std::vector<int> frontier;  // nodes that the next captured operation follows
};

struct CUevent_st {
  bool timing = true;
  int device = 0;
  emu::Point point;  // null queue: never recorded
  std::shared_ptr<double> milliseconds;
  std::shared_ptr<emu::Capture> capture;  // last recorded in this one
  std::vector<int> frontier;
};

struct CUgraph_st {
  std::vector<emu::Node> nodes;
};

struct CUgraphExec_st {
  std::vector<emu::Node> nodes;
  emu::Point last;  // the end of its previous launch: launches of one graph never overlap
};

namespace emu {

struct Allocation {
  std::size_t bytes = 0;
  int device = 0;
  cudaMemoryType type = cudaMemoryTypeUnregistered;
  bool registered = false;  // the caller's memory (cudaHostRegister)
};

struct Runtime {
  static Runtime& Get();

  std::mutex mutex;
  Options options;
  std::map<std::uintptr_t, Allocation> memory;
  std::vector<std::size_t> bytes_in_use;       // per device
  std::vector<std::shared_ptr<Queue>> legacy;  // per device
  std::vector<cudaStream_t> streams;           // in order of creation
  std::set<cudaEvent_t> events;
  std::set<cudaGraph_t> graphs;
  std::set<cudaGraphExec_t> executables;
  std::vector<std::shared_ptr<Capture>> captures;     // active ones
  std::map<const void*, int> dynamic_shared_limit;    // kernels that asked for more than 48 KB
  std::map<const void*, std::shared_ptr<void>> blas;  // cuBLASLt's objects, by handle
  int next_stream = 0;
  std::uint64_t next_capture = 1;

  std::map<std::string, std::int64_t, std::less<>> calls;
  std::map<int, std::int64_t> bytes_copied;
  std::int64_t kernels_run = 0;
  struct Failure {
    cudaError_t error;
    int after;
  };
  std::map<std::string, Failure, std::less<>> failures;

  // Counts the call; not success: the failure that a test asked for.
  cudaError_t Enter(std::string_view function);

  // The handle's stream; null where it is unknown. Null and legacy handles give the legacy queue
  // with `stream` null.
  struct Target {
    cudaStream_t stream = nullptr;
    std::shared_ptr<Queue> queue;  // null: no such stream
  };
  Target Find(cudaStream_t handle);

  // Puts an operation into a stream (or its capture: then each launch of the graph runs a copy of
  // `run` as it was captured, so what it changes in itself does not outlive one launch). For a
  // legacy stream: runs it, after all work of the device's blocking streams.
  cudaError_t Enqueue(cudaStream_t handle, std::function<bool()> run);
  // Records it behind all that its stream has been given.
  cudaError_t RecordNow(cudaEvent_t event, cudaStream_t handle);
  void Settle();                      // lets eager streams run
  bool Step(Queue& queue);            // one operation; false if it cannot run yet
  void RunUntil(const Point& point);  // blocks until passed
  void RunAll();
  void PauseLock();  // lets other threads in while waiting for another process

  // Whether a call that would synchronise or allocate is allowed now; a capture that forbids it is
  // invalidated, as CUDA does.
  cudaError_t CheckUncaptured();
};

int CurrentDevice();
std::uintptr_t ThisThread();
bool& InHostFunction();                   // of this thread; CUDA calls are forbidden there
cudaStreamCaptureMode& CaptureMode();     // of this thread: what others' captures forbid it
cudaError_t Remember(cudaError_t error);  // for cudaGetLastError

// The frame of every runtime function.
template <typename Body>
cudaError_t Api(std::string_view function, const Body& body) {
  if (InHostFunction()) return Remember(cudaErrorNotPermitted);
  ReportFaults();
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  cudaError_t error = runtime.Enter(function);
  if (error == cudaSuccess) error = body(runtime);
  runtime.Settle();
  return Remember(error);
}

// Finds the allocation that holds all of [data, data + bytes); null if there is none.
const Allocation* FindAllocation(const Runtime& runtime, const void* data, std::size_t bytes);
void ReleaseAllMemory(Runtime& runtime);

}  // namespace emu
