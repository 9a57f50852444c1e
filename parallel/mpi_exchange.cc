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
  statuses_.resize(requests_.size());
  code = MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), statuses_.data());
  return JudgeReceives(recvs, code);
}

// Receives stand first in requests_ and statuses_, those from this rank left out.
absl::Status MpiExchange::JudgeReceives(std::span<const Transfer> recvs, int code) const {
  std::size_t at = 0;
  for (const Transfer& t : recvs) {
    if (t.peer == rank_) continue;
    const MPI_Status& status = statuses_[at++];
    const int error = code == MPI_ERR_IN_STATUS ? status.MPI_ERROR : MPI_SUCCESS;
    int kind = MPI_SUCCESS, came = 0;
    MPI_Error_class(error, &kind);
    if (kind != MPI_SUCCESS && kind != MPI_ERR_TRUNCATE) return FromMpi(error, rank_, "exchange");
    MPI_Get_count(&status, MPI_BYTE, &came);
    if (came == t.bytes && kind == MPI_SUCCESS) continue;
    return absl::InternalError(
        absl::StrFormat("exchange: rank %d sends %d bytes to rank %d, which expects %d", t.peer,
                        came, rank_, t.bytes));
  }
  return FromMpi(code, rank_, "exchange");
}

}  // namespace metattn
