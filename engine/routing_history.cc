#include "engine/routing_history.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace metattn {
namespace {

std::int64_t SlotNumber(double now_s) {
  return static_cast<std::int64_t>(std::floor(now_s / RoutingHistory::kSlotSeconds));
}

}  // namespace

void RoutingHistory::Add(double now_s, const StepRouting& step) {
  layers_.resize(std::max(layers_.size(), step.layers.size()));
  for (std::size_t i = 0; i < step.layers.size(); ++i) layers_[i].Add(step.layers[i]);
  const std::int64_t number = SlotNumber(now_s);
  Slot& slot = slots_[static_cast<std::size_t>(number % kSlots)];
  if (slot.number != number) slot = {number, {}};
  slot.counts.Add(step.Total());
}

RoutingCounts RoutingHistory::Total() const {
  RoutingCounts total;
  for (const RoutingCounts& layer : layers_) total.Add(layer);
  return total;
}

RoutingCounts RoutingHistory::Recent(double now_s) const {
  const std::int64_t now = SlotNumber(now_s);
  RoutingCounts recent;
  for (const Slot& slot : slots_) {
    if (slot.number >= 0 && slot.number > now - kSlots) recent.Add(slot.counts);
  }
  return recent;
}

}  // namespace metattn
