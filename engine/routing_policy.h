// The operator's policy for routing, which may change while the server runs: what requests get that
// do not ask, what they may ask for, elastic mode, the kill switch.
//
// Pure, plain data. Refusals are INVALID_ARGUMENT and start with the field's name on the wire
// (proto/metattn/v1/admin.proto, inference.proto).
#pragma once

#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/controller_file.h"
#include "engine/model/route_policy.h"
#include "engine/routing_options.h"

namespace metattn {

inline constexpr float kMaxCostWeight = 1000;
inline constexpr double kMaxTargetSeconds = 3600;

struct RoutingPolicy {
  Route route = Route::kFull;         // of requests that name none
  float cost_weight = 0;              // of routed requests that name none
  float eta = 1;                      // likewise
  std::vector<Route> allowed_routes;  // that a request may name
  float min_cost_weight = 0,
        max_cost_weight = kMaxCostWeight;  // elastic levels keep to the largest
  float min_eta = 0, max_eta = 1;
  bool elastic = false;
  double queue_wait_s = 2, inter_token_s = 0.25;  // above one of them: load
  bool force_full = false;                        // the kill switch: every token reads everything

  bool operator==(const RoutingPolicy&) const = default;
};

// What is set changes, the rest stays.
struct RoutingChange {
  std::optional<Route> route;
  std::optional<float> cost_weight, eta;
  std::optional<std::vector<Route>> allowed_routes;
  std::optional<float> min_cost_weight, max_cost_weight, min_eta, max_eta;
  std::optional<bool> elastic;
  std::optional<double> queue_wait_s, inter_token_s;
  std::optional<bool> force_full;
};

// What a server can do at all.
struct RoutingAbilities {
  bool controller = false;
  bool deterministic = false;  // no elastic mode: it depends on the clock
};

// As the server starts: the controller's defaults (may be null), then the operator's changes.
absl::StatusOr<RoutingPolicy> InitialRouting(const RoutingChange& flags,
                                             const ControllerFile* controller, bool deterministic);
// All or nothing.
absl::StatusOr<RoutingPolicy> ChangeRouting(const RoutingPolicy& policy,
                                            const RoutingChange& change,
                                            const RoutingAbilities& abilities);

// A request's own wishes within the operator's bounds; what it leaves open follows the policy, also
// when that changes. Asking for a cost weight or an eta means routed.
absl::StatusOr<RouteOptions> CheckWish(const RouteOptions& wish, const RoutingPolicy& policy,
                                       bool has_controller);
// What its next token is computed under. cost_weight_floor: the elastic level's.
RoutePolicy EffectivePolicy(const RouteOptions& wish, const RoutingPolicy& policy,
                            float cost_weight_floor);

const char* RouteName(Route route);

}  // namespace metattn
