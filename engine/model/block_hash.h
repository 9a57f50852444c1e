// Names of K/V blocks by what they hold: a chain of hashes over tokens and the policy of each
// (design section 3).
//
// Values only; thread safe. A wrong number of tokens is a CHECK failure. Cost: some nanoseconds a
// byte.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/model/route_policy.h"

namespace metattn {

// 128 bits, so that a chance collision (which would show another user's text) is out of the
// question.
struct BlockHash {
  std::uint64_t hi = 0, lo = 0;
  bool operator==(const BlockHash&) const = default;
};

// Chain start: everything that makes K/V of equal tokens differ (model, window, sinks, K/V dtype,
// controller).
BlockHash SeedHash(std::string_view identity);
// Next link: kBlockTokens tokens and the policy of each.
BlockHash ChainHash(const BlockHash& parent, std::span<const std::int32_t> tokens,
                    std::span<const RoutePolicy> policy);

}  // namespace metattn
