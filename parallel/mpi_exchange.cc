#include "parallel/mpi_exchange.h"

#include <cstddef>

#include "absl/strings/str_format.h"
#include "parallel/mpi_world.h"

namespace metattn {

absl::Status MpiExchange::CheckSizes(std::span<const Transfer> sends,
                                     std::span<const Transfer> recvs) const {
  for (const std::span<const Transfer> list : {sends, recvs}) {
    for (const Transfer& t : list) {
      if (t.peer == rank_ || t.bytes <= kMostBytes) continue;
      return absl::InternalError(absl::StrFormat(
          "rank %d: exchange: a message of %d bytes with rank %d is over MPI's limit of %d: send "
          "it in parts",
          rank_, t.bytes, t.peer, kMostBytes));
    }
  }
  return absl::OkStatus();
}

absl::Status MpiExchange::Run(std::span<const Transfer> sends, std::span<const Transfer> recvs) {
  requests_.clear();
  int code = MPI_SUCCESS;
  const auto post = [&](const Transfer& t, auto* call) {
    if (t.peer == rank_ || code != MPI_SUCCESS) return;
    requests_.push_back(MPI_REQUEST_NULL);
    code = call(t.data.As<std::byte>(), static_cast<int>(t.bytes), MPI_BYTE, t.peer, kExchangeTag,
                comm_, &requests_.back());
  };
  for (const Transfer& t : recvs) post(t, &MPI_Irecv);
  for (const Transfer& t : sends) post(t, &MPI_Isend);
  if (code != MPI_SUCCESS) return FromMpi(code, rank_, "exchange");
  return WaitForAll(recvs);
}

// Receives stand first in requests_, those from this rank left out. All are waited for, whatever
// one says, because MPI may use their memory. One by one: Open MPI 4.1.4's MPI_Waitall now and then
// never returns from a receive that is cut short, its MPI_Wait does (20,000 of 20,000).
absl::Status MpiExchange::WaitForAll(std::span<const Transfer> recvs) {
  absl::Status first;
  std::size_t at = 0;
  for (const Transfer& t : recvs) {
    if (t.peer == rank_) continue;
    MPI_Status status;
    const int code = MPI_Wait(&requests_[at++], &status);
    if (first.ok()) first = Judge(t, code, status);
  }
  for (; at < requests_.size(); ++at) {
    const int code = MPI_Wait(&requests_[at], MPI_STATUS_IGNORE);
    if (first.ok()) first = FromMpi(code, rank_, "exchange");
  }
  return first;
}

absl::Status MpiExchange::Judge(const Transfer& expected, int code,
                                const MPI_Status& status) const {
  int kind = MPI_SUCCESS, came = 0;
  MPI_Error_class(code, &kind);
  if (kind != MPI_SUCCESS && kind != MPI_ERR_TRUNCATE) return FromMpi(code, rank_, "exchange");
  MPI_Get_count(&status, MPI_BYTE, &came);
  if (came == expected.bytes && kind == MPI_SUCCESS) return absl::OkStatus();
  return absl::InternalError(
      absl::StrFormat("exchange: rank %d sends %d bytes to rank %d, which expects %d",
                      expected.peer, came, rank_, expected.bytes));
}

}  // namespace metattn
