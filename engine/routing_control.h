// The routing policy in force while the engine runs: the operator's, moved by load in elastic mode.
//
// Owned by the engine's loop and used from its thread only. No clock: times are arguments (seconds,
// never going back). Not deterministic across runs in elastic mode, which --deterministic excludes.
#pragma once

#include <vector>

#include "engine/elastic.h"
#include "engine/model/route_policy.h"
#include "engine/routing_policy.h"

namespace metattn {

class RoutingControl {
 public:
  // levels: the controller's cost_weight_levels; empty without one.
  // elastic: its times; the targets are the policy's.
  RoutingControl(const RoutingPolicy& policy, std::vector<float> levels,
                 const ElasticOptions& elastic = {});

  void Set(const RoutingPolicy& policy);
  // inter_token_s: mean over the tokens of a step; 0 when none is being waited for.
  void ObserveTokens(double now_s, double inter_token_s) { tokens_.Add(now_s, inter_token_s); }
  // Before a step. queue_wait_s: of the request that waits longest; 0: none waits.
  void Observe(double now_s, double queue_wait_s);
  // True once after anything changed what requests run under.
  bool TakeChanged();

  const RoutingPolicy& policy() const { return policy_; }
  RoutePolicy Effective(const RouteOptions& wish) const {
    return EffectivePolicy(wish, policy_, elastic_.floor());
  }
  // Of a routed request that asks for nothing; 0 when the kill switch is on.
  float cost_weight() const;
  // Time alone will change something: the loop must be called though nothing runs.
  bool raised() const { return elastic_.level() > 0; }

 private:
  RoutingPolicy policy_;
  const std::vector<float> levels_;
  const ElasticOptions options_;
  Elastic elastic_;
  RecentMean tokens_;
  bool changed_ = false;
};

}  // namespace metattn
