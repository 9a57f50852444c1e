#include "engine/routing_control.h"

#include <algorithm>
#include <utility>

namespace metattn {
namespace {

// One slow step among quick ones is no load; a second of slow ones is.
constexpr double kInterTokenMemorySeconds = 1;

}  // namespace

RoutingControl::RoutingControl(const RoutingPolicy& policy, std::vector<float> levels,
                               const ElasticOptions& elastic)
    : levels_(std::move(levels)), options_(elastic), tokens_(kInterTokenMemorySeconds) {
  Set(policy);
}

void RoutingControl::Set(const RoutingPolicy& policy) {
  policy_ = policy;
  ElasticOptions options = options_;
  options.queue_wait_s = policy.queue_wait_s;
  options.inter_token_s = policy.inter_token_s;
  elastic_.Configure(
      options, policy.elastic ? ElasticFloors(levels_, policy.cost_weight, policy.max_cost_weight)
                              : std::vector<float>{0});
  changed_ = true;
}

void RoutingControl::Observe(double now_s, double queue_wait_s) {
  if (!policy_.elastic) return;
  const float before = elastic_.floor();
  elastic_.Observe(now_s, queue_wait_s, tokens_.value());
  if (elastic_.floor() != before) changed_ = true;
}

bool RoutingControl::TakeChanged() { return std::exchange(changed_, false); }

float RoutingControl::cost_weight() const {
  return policy_.force_full ? 0 : std::max(policy_.cost_weight, elastic_.floor());
}

}  // namespace metattn
