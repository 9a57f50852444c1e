// What decides a token's mechanism: the policy in force when it is computed. Plain data.
//
// A token's K and V depend on its policy from layer 1 on, so it is part of the identity of cached
// blocks (page_pool.h) and stays with the token through preemption.
#pragma once

#include <cstdint>

#include "kernels/routing_ops.h"
#include "kernels/types.h"

namespace metattn {

enum class Route : std::uint8_t {
  kFull = static_cast<std::uint8_t>(Mechanism::kFull),
  kLinear = static_cast<std::uint8_t>(Mechanism::kLinear),
  kLocal = static_cast<std::uint8_t>(Mechanism::kLocal),
  kRouted = metattn::kRouted,  // the meta-controller decides per layer and KV head
};

struct RoutePolicy {
  Route route = Route::kFull;
  // Of kRouted only; both zero for forced routes, so that equal policies compare equal.
  float cost_weight = 0;  // lambda >= 0
  float eta = 0;          // in [0, 1]; from 1 on no row counts as uncertain

  bool operator==(const RoutePolicy&) const = default;
};

}  // namespace metattn
