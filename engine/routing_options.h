// The operator's default policy, and what a request's own wishes make of it.
//
// Pure. INVALID_ARGUMENT names the flag or field.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/controller_file.h"
#include "engine/model/route_policy.h"

namespace metattn {

// What is not set comes from the controller: routed with its cost weight and eta; without a
// controller: full.
struct RouteOptions {
  std::optional<Route> route;        // --route
  std::optional<float> cost_weight;  // --cost-weight, lambda >= 0
  std::optional<float> eta;          // --eta, in [0, 1]
};

// controller: null without one.
absl::StatusOr<RoutePolicy> ResolvePolicy(const RouteOptions& options,
                                          const ControllerFile* controller);

[[nodiscard]] absl::Status CheckPolicy(const RoutePolicy& policy, bool has_controller);

}  // namespace metattn
