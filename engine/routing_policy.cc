#include "engine/routing_policy.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace metattn {
namespace {

absl::Status Bad(const char* field, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

// NaN is within nothing.
absl::Status CheckRange(const char* field, double value, double least, double most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Bad(field, absl::StrFormat("%g is outside [%g, %g]", value, least, most));
}

absl::Status CheckRoute(const char* field, Route route, bool has_controller) {
  if (route > Route::kRouted) {
    return Bad(field, absl::StrFormat("%d is no known route", static_cast<int>(route)));
  }
  if (has_controller || route == Route::kFull || route == Route::kLocal) return absl::OkStatus();
  return Bad(field, absl::StrCat(RouteName(route),
                                 " needs a controller (--controller), and there is none"));
}

bool Holds(const std::vector<Route>& routes, Route route) {
  return std::find(routes.begin(), routes.end(), route) != routes.end();
}

std::string Names(const std::vector<Route>& routes) {
  std::string names;
  for (const Route route : routes)
    absl::StrAppend(&names, names.empty() ? "" : ", ", RouteName(route));
  return names;
}

absl::Status CheckBounds(const RoutingPolicy& p) {
  absl::Status s = CheckRange("min_cost_weight", p.min_cost_weight, 0, kMaxCostWeight);
  if (s.ok())
    s = CheckRange("max_cost_weight", p.max_cost_weight, p.min_cost_weight, kMaxCostWeight);
  if (s.ok()) s = CheckRange("min_eta", p.min_eta, 0, 1);
  if (s.ok()) s = CheckRange("max_eta", p.max_eta, p.min_eta, 1);
  if (s.ok()) s = CheckRange("cost_weight", p.cost_weight, p.min_cost_weight, p.max_cost_weight);
  if (s.ok()) s = CheckRange("eta", p.eta, p.min_eta, p.max_eta);
  return s;
}

absl::Status CheckElastic(const RoutingPolicy& p, const RoutingAbilities& abilities) {
  for (const auto& [field, seconds] : {std::pair("elastic_queue_wait_seconds", p.queue_wait_s),
                                       std::pair("elastic_inter_token_seconds", p.inter_token_s)}) {
    if (seconds > 0 && seconds <= kMaxTargetSeconds) continue;
    return Bad(field, absl::StrFormat("%g is outside (0, %g]", seconds, kMaxTargetSeconds));
  }
  if (!p.elastic) return absl::OkStatus();
  if (!abilities.controller) {
    return Bad("elastic", "needs a controller (--controller), and there is none");
  }
  if (abilities.deterministic) {
    return Bad("elastic", "follows the clock, which --deterministic excludes");
  }
  return absl::OkStatus();
}

absl::Status CheckAll(const RoutingPolicy& p, const RoutingAbilities& abilities) {
  if (p.allowed_routes.empty()) return Bad("allowed_routes", "is empty; allow at least one");
  for (const Route route : p.allowed_routes) {
    if (auto s = CheckRoute("allowed_routes", route, abilities.controller); !s.ok()) return s;
  }
  if (auto s = CheckRoute("default_route", p.route, abilities.controller); !s.ok()) return s;
  if (!Holds(p.allowed_routes, p.route)) {
    return Bad("default_route", absl::StrCat(RouteName(p.route), " is none of the allowed ones: ",
                                             Names(p.allowed_routes)));
  }
  if (auto s = CheckBounds(p); !s.ok()) return s;
  return CheckElastic(p, abilities);
}

template <typename T>
void Take(const std::optional<T>& from, T& to) {
  if (from) to = *from;
}

}  // namespace

const char* RouteName(Route route) {
  switch (route) {
    case Route::kFull:
      return "full";
    case Route::kLinear:
      return "linear";
    case Route::kLocal:
      return "local";
    case Route::kRouted:
      return "routed";
  }
  return "unknown";
}

absl::StatusOr<RoutingPolicy> ChangeRouting(const RoutingPolicy& policy,
                                            const RoutingChange& change,
                                            const RoutingAbilities& abilities) {
  if (!abilities.controller && (change.cost_weight || change.eta)) {
    return Bad(change.cost_weight ? "cost_weight" : "eta",
               "needs a controller (--controller), and there is none");
  }
  RoutingPolicy next = policy;
  Take(change.route, next.route);
  Take(change.cost_weight, next.cost_weight);
  Take(change.eta, next.eta);
  Take(change.allowed_routes, next.allowed_routes);
  Take(change.min_cost_weight, next.min_cost_weight);
  Take(change.max_cost_weight, next.max_cost_weight);
  Take(change.min_eta, next.min_eta);
  Take(change.max_eta, next.max_eta);
  Take(change.elastic, next.elastic);
  Take(change.queue_wait_s, next.queue_wait_s);
  Take(change.inter_token_s, next.inter_token_s);
  Take(change.force_full, next.force_full);
  if (auto s = CheckAll(next, abilities); !s.ok()) return s;
  return next;
}

absl::StatusOr<RoutingPolicy> InitialRouting(const RoutingChange& flags,
                                             const ControllerFile* controller, bool deterministic) {
  RoutingPolicy policy;
  policy.allowed_routes = {Route::kFull, Route::kLocal};
  if (controller != nullptr) {
    policy.allowed_routes = {Route::kFull, Route::kLinear, Route::kLocal, Route::kRouted};
    policy.route = Route::kRouted;
    policy.cost_weight = controller->spec().cost_weight;
    policy.eta = controller->spec().eta;
  }
  return ChangeRouting(policy, flags, {controller != nullptr, deterministic});
}

absl::StatusOr<RouteOptions> CheckWish(const RouteOptions& wish, const RoutingPolicy& policy,
                                       bool has_controller) {
  RouteOptions checked = wish;
  if (wish.route) {
    if (auto s = CheckRoute("route", *wish.route, has_controller); !s.ok()) return s;
    if (!Holds(policy.allowed_routes, *wish.route)) {
      return Bad("route", absl::StrCat(RouteName(*wish.route), " is not allowed here; allowed: ",
                                       Names(policy.allowed_routes)));
    }
  }
  if (!wish.cost_weight && !wish.eta) return checked;
  const char* field = wish.cost_weight ? "cost_weight" : "eta";
  if (const Route route = wish.route.value_or(policy.route); route != Route::kRouted) {
    return Bad(field, absl::StrCat("is of route routed, this request's is ", RouteName(route)));
  }
  checked.route = Route::kRouted;
  if (wish.cost_weight) {
    if (auto s =
            CheckRange(field, *wish.cost_weight, policy.min_cost_weight, policy.max_cost_weight);
        !s.ok()) {
      return s;
    }
  }
  if (wish.eta) {
    if (auto s = CheckRange("eta", *wish.eta, policy.min_eta, policy.max_eta); !s.ok()) return s;
  }
  return checked;
}

RoutePolicy EffectivePolicy(const RouteOptions& wish, const RoutingPolicy& policy,
                            float cost_weight_floor) {
  RoutePolicy effective;
  if (policy.force_full) return effective;
  effective.route = wish.route.value_or(policy.route);
  if (effective.route != Route::kRouted) return effective;
  effective.cost_weight =
      std::max(wish.cost_weight.value_or(policy.cost_weight), cost_weight_floor);
  effective.eta = wish.eta.value_or(policy.eta);
  return effective;
}

}  // namespace metattn
