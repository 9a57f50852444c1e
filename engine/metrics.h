// What the engine tells about itself: an observer it calls, and a snapshot others may read. No
// vendor types here; rpc/metrics_http turns both into Prometheus metrics.
//
// Observer calls come from the engine's thread and must not block. Defaults do nothing.
#pragma once

#include <cstdint>

#include "engine/request.h"
#include "engine/worker.h"

namespace metattn {

class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnStep(const StepOutput& /*output*/, int /*rows*/) {}
  virtual void OnFirstToken(double /*seconds_since_submission*/) {}
  virtual void OnInterToken(double /*seconds*/) {}
  virtual void OnPreemption() {}
  virtual void OnFinish(const GenerationEvent& /*last*/) {}
};

struct EngineSnapshot {
  int queued = 0;
  int running = 0;
  std::int64_t blocks_used = 0;
  std::int64_t blocks_capacity = 0;
  std::uint64_t steps = 0;
  double seconds_in_current_step = 0;  // 0 when no step is running: idle is healthy, wedged is not
  float cost_weight = 0;    // lambda of a routed request that asks for none, elastic level included
  bool force_full = false;  // the kill switch
  bool draining = false;
  bool failed = false;  // a step failed; nothing will run any more
};

}  // namespace metattn
