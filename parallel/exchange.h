// Small records of equal size from every rank to every rank.
//
// Collective. Errors: those of the communicator; INTERNAL when the ranks' records differ in size.
// Cost: two control messages a peer.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "parallel/communicator.h"

namespace metattn {

// In rank order.
template <typename T>
absl::StatusOr<std::vector<T>> ExchangeRecords(Communicator& comm, const T& mine) {
  static_assert(std::is_trivially_copyable_v<T>);
  const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(comm.size());
  std::vector<std::byte> message(comm.rank() == 0 ? bytes : 0);
  absl::Status status = comm.GatherRecords(std::as_bytes(std::span(&mine, 1)), message);
  if (status.ok()) status = comm.Broadcast(message);
  if (!status.ok()) return status;
  if (message.size() != bytes) {
    return absl::InternalError(
        absl::StrFormat("rank %d got records of %d bytes, not %d, from %d ranks: do all ranks run "
                        "the same program?",
                        comm.rank(), message.size(), bytes, comm.size()));
  }
  std::vector<T> all(static_cast<std::size_t>(comm.size()));
  std::memcpy(all.data(), message.data(), bytes);
  return all;
}

}  // namespace metattn
