#include "rpc/convert_routing.h"

#include <optional>
#include <string>

#include "absl/strings/str_format.h"

namespace metattn {
namespace {

absl::StatusOr<Route> ToRoute(v1::Route route, const char* field) {
  switch (route) {
    case v1::ROUTE_FULL:
      return Route::kFull;
    case v1::ROUTE_LOCAL:
      return Route::kLocal;
    case v1::ROUTE_LINEAR:
      return Route::kLinear;
    case v1::ROUTE_ROUTED:
      return Route::kRouted;
    default:
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: %d is no known route", field, static_cast<int>(route)));
  }
}

v1::RoutingShares SharesToWire(const RoutingCounts& counts) {
  v1::RoutingShares shares;
  *shares.mutable_summary() = SummaryToWire(counts);
  shares.set_decisions(counts.eligible());
  shares.set_routed(counts.routed_rows);
  shares.set_attention_bytes_read(counts.bytes_read);
  shares.set_attention_bytes_dense(counts.bytes_dense);
  return shares;
}

}  // namespace

v1::Route RouteToWire(Route route) {
  switch (route) {
    case Route::kFull:
      return v1::ROUTE_FULL;
    case Route::kLinear:
      return v1::ROUTE_LINEAR;
    case Route::kLocal:
      return v1::ROUTE_LOCAL;
    case Route::kRouted:
      return v1::ROUTE_ROUTED;
  }
  return v1::ROUTE_UNSPECIFIED;
}

absl::StatusOr<RouteOptions> ToWish(const v1::GenerateRequest& request) {
  RouteOptions wish;
  if (request.route() != v1::ROUTE_UNSPECIFIED) {
    auto route = ToRoute(request.route(), "route");
    if (!route.ok()) return route.status();
    wish.route = *route;
  }
  if (request.has_cost_weight()) wish.cost_weight = request.cost_weight();
  if (request.has_eta()) wish.eta = request.eta();
  return wish;
}

absl::StatusOr<RoutingChange> ToChange(const v1::SetRoutingPolicyRequest& request) {
  if (!request.has_policy()) return absl::InvalidArgumentError("policy: is missing");
  const v1::RoutingPolicy& wire = request.policy();
  RoutingChange change;
  if (wire.has_default_route()) {
    auto route = ToRoute(wire.default_route(), "default_route");
    if (!route.ok()) return route.status();
    change.route = *route;
  }
  if (wire.has_allowed_routes()) {
    change.allowed_routes.emplace();
    for (const int value : wire.allowed_routes().routes()) {
      auto route = ToRoute(static_cast<v1::Route>(value), "allowed_routes");
      if (!route.ok()) return route.status();
      change.allowed_routes->push_back(*route);
    }
  }
  if (wire.has_cost_weight()) change.cost_weight = wire.cost_weight();
  if (wire.has_eta()) change.eta = wire.eta();
  if (wire.has_min_cost_weight()) change.min_cost_weight = wire.min_cost_weight();
  if (wire.has_max_cost_weight()) change.max_cost_weight = wire.max_cost_weight();
  if (wire.has_min_eta()) change.min_eta = wire.min_eta();
  if (wire.has_max_eta()) change.max_eta = wire.max_eta();
  if (wire.has_elastic()) change.elastic = wire.elastic();
  if (wire.has_elastic_queue_wait_seconds())
    change.queue_wait_s = wire.elastic_queue_wait_seconds();
  if (wire.has_elastic_inter_token_seconds()) {
    change.inter_token_s = wire.elastic_inter_token_seconds();
  }
  if (wire.has_force_full()) change.force_full = wire.force_full();
  return change;
}

v1::RoutingPolicy PolicyToWire(const RoutingPolicy& policy) {
  v1::RoutingPolicy wire;
  wire.set_default_route(RouteToWire(policy.route));
  wire.set_cost_weight(policy.cost_weight);
  wire.set_eta(policy.eta);
  for (const Route route : policy.allowed_routes) {
    wire.mutable_allowed_routes()->add_routes(RouteToWire(route));
  }
  wire.set_min_cost_weight(policy.min_cost_weight);
  wire.set_max_cost_weight(policy.max_cost_weight);
  wire.set_min_eta(policy.min_eta);
  wire.set_max_eta(policy.max_eta);
  wire.set_elastic(policy.elastic);
  wire.set_elastic_queue_wait_seconds(policy.queue_wait_s);
  wire.set_elastic_inter_token_seconds(policy.inter_token_s);
  wire.set_force_full(policy.force_full);
  return wire;
}

v1::RoutingSummary SummaryToWire(const RoutingCounts& counts) {
  const auto share = [](auto part, auto whole) {
    return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
  };
  v1::RoutingSummary summary;
  summary.set_full(share(counts.rows[0], counts.eligible()));
  summary.set_linear(share(counts.rows[1], counts.eligible()));
  summary.set_local(share(counts.rows[2], counts.eligible()));
  summary.set_mixture(share(counts.mixture_rows, counts.eligible()));
  summary.set_mean_uncertainty(share(counts.uncertainty, counts.routed_rows));
  summary.set_attention_bytes_ratio(share(counts.bytes_read, counts.bytes_dense));
  return summary;
}

v1::RoutingStatus StatusToWire(const RoutingState& state, const ControllerFile* controller) {
  v1::RoutingStatus status;
  *status.mutable_policy() = PolicyToWire(state.policy);
  status.set_cost_weight_now(state.cost_weight);
  for (const float level : state.cost_weight_levels) status.add_cost_weight_levels(level);
  if (controller != nullptr) status.set_controller(controller->spec().name);
  RoutingCounts total;
  for (const RoutingCounts& layer : state.layers) {
    total.Add(layer);
    *status.add_layers() = SharesToWire(layer);
  }
  *status.mutable_since_start() = SharesToWire(total);
  *status.mutable_last_minute() = SharesToWire(state.recent);
  return status;
}

}  // namespace metattn
