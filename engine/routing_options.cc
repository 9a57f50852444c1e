#include "engine/routing_options.h"

#include <cmath>

namespace metattn {

absl::Status CheckPolicy(const RoutePolicy& policy, bool has_controller) {
  if (!has_controller && (policy.route == Route::kRouted || policy.route == Route::kLinear)) {
    return absl::InvalidArgumentError(
        "route must be full or local: routed and linear need a controller (--controller), and "
        "there is none");
  }
  if (!(policy.cost_weight >= 0) || std::isinf(policy.cost_weight)) {
    return absl::InvalidArgumentError("cost_weight must be a number >= 0");
  }
  if (!(policy.eta >= 0 && policy.eta <= 1)) {
    return absl::InvalidArgumentError("eta must be a number from 0 to 1");
  }
  return absl::OkStatus();
}

absl::StatusOr<RoutePolicy> ResolvePolicy(const RouteOptions& options,
                                          const ControllerFile* controller) {
  RoutePolicy policy;
  policy.route = options.route.value_or(controller == nullptr ? Route::kFull : Route::kRouted);
  if (policy.route == Route::kRouted && controller != nullptr) {
    policy.cost_weight = options.cost_weight.value_or(controller->spec().cost_weight);
    policy.eta = options.eta.value_or(controller->spec().eta);
  } else if (options.cost_weight || options.eta) {
    return absl::InvalidArgumentError("cost_weight and eta need route routed and a controller");
  }
  if (absl::Status s = CheckPolicy(policy, controller != nullptr); !s.ok()) return s;
  return policy;
}

}  // namespace metattn
