// What routing did since the start, by layer, and over about the last minute.
//
// Pure: times are arguments (seconds, never going back). Copied as a whole for readers on other
// threads: a few kilobytes. Cost of a step: O(layers).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/model/routing_counts.h"

namespace metattn {

class RoutingHistory {
 public:
  // The recent past is kSlots - 1 to kSlots times as long as a slot.
  static constexpr double kSlotSeconds = 5;
  static constexpr int kSlots = 12;

  void Add(double now_s, const StepRouting& step);
  const std::vector<RoutingCounts>& layers() const { return layers_; }  // since the start
  RoutingCounts Total() const;
  RoutingCounts Recent(double now_s) const;

 private:
  struct Slot {
    std::int64_t number = -1;  // of the slot's time
    RoutingCounts counts;
  };
  std::vector<RoutingCounts> layers_;
  std::array<Slot, kSlots> slots_;
};

}  // namespace metattn
