#include "parallel/transfers.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "parallel/host_tensor.h"

namespace metattn {
namespace {

std::int64_t CountWith(int peer, std::span<const Transfer> list) {
  return std::ranges::count(list, peer, &Transfer::peer);
}

absl::Status CheckList(std::span<const Transfer> list, int rank, int size, const char* what) {
  for (const Transfer& t : list) {
    if (t.peer < 0 || t.peer >= size) {
      return absl::InternalError(
          absl::StrFormat("rank %d: exchange: a %s names rank %d of %d", rank, what, t.peer, size));
    }
    if (absl::Status s = CheckBytes(t.data, t.bytes, rank, what); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckMessages(const Messages& mine, int rank, int size) {
  absl::Status s = CheckList(mine.sends, rank, size, "send of an exchange");
  if (s.ok()) s = CheckList(mine.recvs, rank, size, "receive of an exchange");
  return s.ok() ? CheckPair(mine, rank, mine, rank) : s;
}

absl::Status CheckPair(const Messages& theirs, int from, const Messages& mine, int to) {
  absl::Status status;
  int place = 0;
  ForPairs(theirs, from, mine, to, [&](const Transfer& send, const Transfer& recv) {
    if (status.ok() && send.bytes != recv.bytes) {
      status = absl::InternalError(absl::StrFormat(
          "exchange: message %d from rank %d to rank %d: rank %d sends %d bytes, rank %d expects "
          "%d",
          place, from, to, from, send.bytes, to, recv.bytes));
    }
    ++place;
  });
  const std::int64_t sent = CountWith(to, theirs.sends), expected = CountWith(from, mine.recvs);
  if (status.ok() && sent != expected) {
    status = absl::InternalError(
        absl::StrFormat("exchange: rank %d sends %d messages to rank %d, which expects %d", from,
                        sent, to, expected));
  }
  return status;
}

std::int64_t BytesToAndFromOthers(const Messages& mine, int rank) {
  std::int64_t bytes = 0;
  for (const std::span<const Transfer> list : {mine.sends, mine.recvs}) {
    for (const Transfer& t : list) bytes += t.peer == rank ? 0 : t.bytes;
  }
  return bytes;
}

}  // namespace metattn
