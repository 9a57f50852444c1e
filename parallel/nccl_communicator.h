// Ranks whose tensors live on GPUs: sums and gathers go over NCCL, one GPU a rank; control messages
// (Broadcast, GatherRecords, Barrier) go over another communicator.
//
// Make is collective over `control`, which it borrows for its life: rank 0 makes NCCL's unique id,
// `control` brings it to the others. The function is there where nccl_communicator.cc is linked in
// (weak, as kernels/cuda_backend.h): ask HasNcclCommunicator first. With one rank NCCL is not
// touched. Tensors are Buffers of CUDA device `device`, Streams are its CudaStreams.
//
// A tensor operation only enqueues: it never waits for the device, and may stand in Stream::Repeat.
// It may wait on the host for NCCL itself (a non-blocking communicator says "in progress" while it
// sets up connections), up to the deadline.
//
// Errors: INVALID_ARGUMENT for ordered sums (NCCL adds in an order of its own); DEADLINE_EXCEEDED
// when not all ranks start within the deadline; UNAVAILABLE with NCCL's words. After it has
// started, a thread asks NCCL for asynchronous errors ten times a second. Such an error, or an
// operation that is not done a deadline after it was enqueued (what stands before it in its stream
// counts: the deadline must be longer than a step), prints one line with rank and operation, aborts
// the communicator and ends the process with kPeerLostExit, like any lost rank. Operations that a
// stream repeats (AfterRepeat) are watched as one.
// Thread safety: as Communicator.
//
// Statistics: bytes and calls of every operation; seconds from two events around each, on the
// device, split into waiting and transfer by estimate (WaitMeter::Estimated), those of a repeated
// record included, of its last launch. Operations not finished at TakeStats have no seconds. What
// `control` has counted is included. Cost: two events an operation; on the host a few microseconds.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/communicator.h"

namespace metattn {

[[gnu::weak]] absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    Communicator& control, int device, const CommOptions& options);

inline bool HasNcclCommunicator() { return &MakeNcclCommunicator != nullptr; }

}  // namespace metattn
