#include "engine/rank_device.h"

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace metattn {

absl::StatusOr<int> RankDevice(std::span<const int> wanted, std::span<const RankPlace> places,
                               int rank) {
  if (wanted.empty()) return places[static_cast<std::size_t>(rank)].rank_on_host;
  if (wanted.size() != places.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--rank-devices: %d devices for %d ranks", wanted.size(), places.size()));
  }
  for (std::size_t r = 0; r < places.size(); ++r) {
    if (wanted[r] < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("--rank-devices: rank %d cannot have device %d", r, wanted[r]));
    }
    for (std::size_t other = 0; other < r; ++other) {
      if (wanted[other] != wanted[r] || places[other].host != places[r].host) continue;
      return absl::InvalidArgumentError(absl::StrFormat(
          "--rank-devices: ranks %d and %d both have device %d of host %s; a device serves one "
          "rank",
          other, r, wanted[r], places[r].host));
    }
  }
  return wanted[static_cast<std::size_t>(rank)];
}

}  // namespace metattn
