// Which CUDA device a rank uses: its number on its host, or what --rank-devices says.
//
// Pure: the same list and places give the same answer, error included, on every rank. Errors:
// INVALID_ARGUMENT naming rank, host and device. Whether the machine has that device is not known
// here. Example: ranks 0, 1 on host a and 2 on b have devices 0, 1, 0; with --rank-devices 3,2,0
// they have 3, 2, 0; with 1,1,0 it is an error, because one device serves one rank.
#pragma once

#include <span>

#include "absl/status/statusor.h"
#include "parallel/topology.h"

namespace metattn {

// wanted: --rank-devices, one for each rank, or empty.
absl::StatusOr<int> RankDevice(std::span<const int> wanted, std::span<const RankPlace> places,
                               int rank);

}  // namespace metattn
