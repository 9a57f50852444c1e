// Ranks whose tensors live on GPUs: tensor operations go over NCCL, one GPU a rank; control
// messages (Broadcast, GatherRecords, Barrier) go over another communicator.
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
// Channels. NewChannel makes a second communicator of NCCL with an id of its own, not by splitting,
// which wants nothing under way on the first; it has a watching thread and a channel of `control`.
// NCCL's kernels occupy the device while they wait for their peers. So operations of two channels
// may be on one device at once, on two streams, only while
// - all ranks issue the operations of both in one order, a launched record counting as all that it
//   holds: else one rank runs A and waits to run B, another the other way round, and neither ends.
//   One thread issues both, or threads agree on the order first;
// - nobody does what waits for the whole device while such an operation is under way and a peer may
//   still have to issue its part: allocating or freeing device memory, making a channel, the first
//   exchange with a peer (NCCL then allocates; exchange once before work begins);
// - both fit on the device side by side. NCCL does not promise that; where it is in doubt, an event
//   that makes one stream wait for the other's operation gives up the overlap for certainty.
// NCCL_LAUNCH_ORDER_IMPLICIT=1 (NCCL 2.26 on) orders what one process issues, as such events would;
// whether for records too is not known here. None of this was tried on a GPU.
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
