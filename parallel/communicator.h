// What ranks say to each other: tensors on Buffers and Streams, small control messages in host
// memory.
//
// Bodies: local (ranks as threads of one process, complete), mpi, nccl (tensors between GPUs; its
// control messages go over another body). Every rank must issue the same operations in the same
// order with the same counts. A
// tensor operation is enqueued on the stream (a CPU body may complete inline). Deadlines: an
// operation that has started but not finished within Options.deadline_s means a peer is lost or
// wedged: a watchdog logs rank, operation and seconds and ends the process with kPeerLostExit,
// because a blocked collective cannot be taken back (the local body returns DEADLINE_EXCEEDED
// instead). After an error the communicator is dead: every later call returns the same error.
// Sizes and places that cannot be are INTERNAL errors, seen before anything is sent.
// Thread safety: one caller at a time per rank and channel.
// Costs, R ranks, n bytes: AllReduceSum 2n(R-1)/R bytes per rank; ordered, and from 32 KiB on
// between up to four processes of one host: n(R-1) received per rank; GatherV: the sum of the
// counts at the root; Exchange: what a rank sends to and receives from others; AllGatherV: the sum
// of the others' counts received per rank; BroadcastFrom: n received per rank, n(R-1) sent by the
// root; control messages: one small message per peer; NewChannel: some control messages, and what
// the transport needs for connections, once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/types.h"

namespace metattn {

inline constexpr int kPeerLostExit = 75;

// Since the last TakeStats. Waiting for the last rank and moving data are told apart, because a
// slow peer and a slow link are different faults. The local body measures both. The MPI body
// measures them on sums in shared memory and on some of the operations in which all ranks name the
// same size and splits the others by estimate (wait_meter.h); it counts barriers and rank 0's
// gather of records as waiting, broadcasts of host messages as transfer. The NCCL body times
// operations on the device and splits all of them by estimate. The time a receiver idles before a
// broadcast arrives is in neither. Bytes are those of the costs above.
struct CommStats {
  double wait_seconds = 0;
  double transfer_seconds = 0;
  std::int64_t bytes = 0;
  std::int64_t calls = 0;
};

struct CommOptions {
  double deadline_s = 30;  // one tensor operation or one control message after its start
  bool ordered_sum =
      false;         // AllReduceSum adds in rank order, bitwise equal on every rank and every run
  bool spin = true;  // false: waiting yields or sleeps (more threads than cores)
};

// One message of an Exchange.
struct Transfer {
  int peer = 0;  // the rank at the other end
  View data;     // device memory
  std::int64_t bytes = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string_view transport()
      const = 0;  // "none" (one rank), "threads", "mpi/shared memory", "mpi/tcp", "nccl"

  // In place: data[i] = sum over ranks of data[i], f32.
  [[nodiscard]] virtual absl::Status AllReduceSum(View data, std::int64_t count,
                                                  Stream& stream) = 0;

  // Root's recv holds every rank's `counts[r]` f32 values one after another; counts are the same on
  // every rank. Other ranks pass an empty recv.
  [[nodiscard]] virtual absl::Status GatherV(View send, View recv,
                                             std::span<const std::int64_t> counts, int root,
                                             Stream& stream) = 0;

  // All messages of all ranks at once, of whatever sizes: the k-th send of rank a to rank b fills
  // the k-th receive of b from a, and both name the same size (the local body says INTERNAL where
  // they do not, with both ranks and sizes; the MPI body only where a message came; over NCCL
  // it is a hang that ends at the deadline). A rank's messages to itself are copies. Every rank
  // calls it, with empty lists where it has nothing to say, but it need not wait for ranks that it
  // shares no message with. Places must not overlap. The lists may go when it returns.
  [[nodiscard]] virtual absl::Status Exchange(std::span<const Transfer> sends,
                                              std::span<const Transfer> recvs, Stream& stream) = 0;

  // On every rank: all = every rank's `counts[r]` f32 values one after another; counts are the same
  // on every rank. `own` may be its place in `all`, and must not overlap it otherwise.
  [[nodiscard]] virtual absl::Status AllGatherV(View own, View all,
                                                std::span<const std::int64_t> counts,
                                                Stream& stream) = 0;

  // The root's bytes reach every rank's `data` (tensors; Broadcast below is for host messages).
  [[nodiscard]] virtual absl::Status BroadcastFrom(int root, View data, std::int64_t bytes,
                                                   Stream& stream) = 0;

  // Rank 0's message reaches every rank; `message` is resized on the others. Receivers may wait for
  // ever and cost next to nothing meanwhile (they sleep); they notice a message within 0.5 ms. The
  // deadline runs from its arrival.
  [[nodiscard]] virtual absl::Status Broadcast(std::vector<std::byte>& message) = 0;

  // Rank 0 receives size() records of `record.size()` bytes in rank order; others pass an empty
  // `all`.
  [[nodiscard]] virtual absl::Status GatherRecords(std::span<const std::byte> record,
                                                   std::span<std::byte> all) = 0;

  [[nodiscard]] virtual absl::Status Barrier() = 0;

  // Call it after Stream::Repeat of something that holds operations of this communicator, with its
  // result: repeated operations are counted, timed and watched like others.
  virtual void AfterRepeat([[maybe_unused]] std::string_view key, [[maybe_unused]] Repeated how,
                           [[maybe_unused]] Stream& stream) {}

  // Collective. A second channel between the same ranks: its operations have an order of their own,
  // so that copies on a background stream do not wait for, nor delay, those of this one. It has its
  // own statistics, deadline watching and errors. It must not outlive this one, and its end, too,
  // is collective. GPUs ask for more: nccl_communicator.h.
  [[nodiscard]] virtual absl::StatusOr<std::unique_ptr<Communicator>> NewChannel() = 0;

  virtual CommStats TakeStats() = 0;
};

}  // namespace metattn
