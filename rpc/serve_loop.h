// Signals and liveness of a serving process, apart from what it serves.
//
// BlockStopSignals must run before any thread starts; the StopWatcher then takes SIGTERM and SIGINT
// on a thread of its own: the first calls on_first, the second on_second. Destruction stops it.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

#include "engine/metrics.h"

namespace metattn {

void BlockStopSignals();

class StopWatcher {
 public:
  StopWatcher(std::function<void()> on_first, std::function<void()> on_second);
  ~StopWatcher();
  StopWatcher(const StopWatcher&) = delete;
  StopWatcher& operator=(const StopWatcher&) = delete;

 private:
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

// Health from step progress: idle is healthy; a step that runs longer than the bound is not.
bool IsHealthy(const EngineSnapshot& snapshot, double max_step_seconds);

}  // namespace metattn
