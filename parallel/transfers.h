// What the communicator bodies share about the messages of an Exchange: what a rank can check of
// its own lists, and how the messages of two ranks pair up. Internal to parallel/.
//
// Stateless, thread safe. Errors: INTERNAL naming the ranks and their sizes. Cost: every list is
// read once per peer asked about; nothing is allocated unless there is an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "parallel/communicator.h"

namespace metattn {

struct Messages {
  std::span<const Transfer> sends, recvs;
};

// Peers are ranks, messages lie inside their buffers, and what the rank says to itself pairs up.
absl::Status CheckMessages(const Messages& mine, int rank, int size);

// Every message from rank `from` to rank `to` has two ends of one size.
absl::Status CheckPair(const Messages& theirs, int from, const Messages& mine, int to);

// Sent to and received from other ranks.
std::int64_t BytesToAndFromOthers(const Messages& mine, int rank);

// The place of the first message with `peer` at or after `at`; the list's size when there is none.
inline std::size_t NextWith(int peer, std::span<const Transfer> list, std::size_t at) {
  while (at < list.size() && list[at].peer != peer) ++at;
  return at;
}

// use(send, recv) for every message from rank `from` to rank `to`, in order.
template <typename Use>
void ForPairs(const Messages& theirs, int from, const Messages& mine, int to, const Use& use) {
  std::size_t s = NextWith(to, theirs.sends, 0), r = NextWith(from, mine.recvs, 0);
  while (s < theirs.sends.size() && r < mine.recvs.size()) {
    use(theirs.sends[s], mine.recvs[r]);
    s = NextWith(to, theirs.sends, s + 1);
    r = NextWith(from, mine.recvs, r + 1);
  }
}

}  // namespace metattn
