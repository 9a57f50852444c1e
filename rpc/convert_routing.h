// Routing on the wire and in the engine: a request's wishes, the operator's policy, what was read.
//
// Pure. INVALID_ARGUMENT starts with the field. What values are allowed decides
// engine/routing_policy.h; here only what the engine's types cannot hold is refused.
#pragma once

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "metattn/v1/admin.pb.h"
#include "metattn/v1/inference.pb.h"

namespace metattn {

v1::Route RouteToWire(Route route);
absl::StatusOr<RouteOptions> ToWish(const v1::GenerateRequest& request);

absl::StatusOr<RoutingChange> ToChange(const v1::SetRoutingPolicyRequest& request);
v1::RoutingPolicy PolicyToWire(const RoutingPolicy& policy);
v1::RoutingSummary SummaryToWire(const RoutingCounts& counts);
// controller: null for none.
v1::RoutingStatus StatusToWire(const RoutingState& state, const ControllerFile* controller);

}  // namespace metattn
