// What happens in one turn of the engine: schedule, run the step, sample, hand tokens out.
//
// Owns scheduler and requests, borrows the worker. No threads and no locks: the engine's thread is
// the only caller. Sinks and the observer are called from here. Errors: Step reports a failed
// worker; after that only Accept and EndAll may be called. Cost beside the step itself: O(running +
// V per sampled row).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/active_request.h"
#include "engine/metrics.h"
#include "engine/routing_control.h"
#include "engine/routing_history.h"
#include "engine/scheduler.h"
#include "engine/worker.h"

namespace metattn {

class EngineLoop {
 public:
  using Clock = ActiveRequest::Clock;

  struct Args {
    SchedulerOptions scheduler;
    std::int64_t vocab = 0;
    RoutingPolicy routing;
    std::vector<float> cost_weight_levels;  // elastic; the controller's
    ElasticOptions elastic;
    double shadow_rate = 0;  // share of routed decode rows that are compared with full attention
  };
  EngineLoop(const Args& args, Worker& worker, EngineObserver* observer);

  void Accept(std::unique_ptr<ActiveRequest> request);
  void Cancel(std::uint64_t id);  // unknown: nothing
  void ExpireDeadlines(Clock::time_point now);
  void EndAll(FinishReason reason, const absl::Status& status);
  // From the next step on, for what runs, waits and comes.
  void SetRouting(const RoutingPolicy& policy) { control_.Set(policy); }
  // One forward pass, if there is anything to run. Call it every now and then while
  // routing().raised(), also without requests: load that is gone shows in time only.
  [[nodiscard]] absl::Status Step();

  int live() const { return static_cast<int>(requests_.size()); }
  std::uint64_t steps() const { return steps_; }
  const Scheduler& scheduler() const { return scheduler_; }
  const RoutingControl& routing() const { return control_; }
  const RoutingHistory& history() const { return history_; }
  // Seconds on the history's clock.
  double SecondsAt(Clock::time_point now) const;

 private:
  void ApplyRouting(Clock::time_point now);
  void NoteSchedule(const ScheduledStep& step);
  void PickBestRows(ScheduledStep& step) const;
  absl::Status CheckOutput(const StepPlan& plan, const StepOutput& output) const;
  void Deliver(const ScheduledStep& step, StepOutput& output);
  void End(std::uint64_t id, FinishReason reason, absl::Status status);
  void Forget(std::uint64_t id);

  Scheduler scheduler_;
  const std::int64_t vocab_;
  const double shadow_rate_;
  Worker& worker_;
  EngineObserver* observer_;
  RoutingControl control_;
  RoutingHistory history_;
  const Clock::time_point epoch_ = Clock::now();
  std::map<std::uint64_t, std::unique_ptr<ActiveRequest>> requests_;
  std::set<std::pair<Clock::time_point, std::uint64_t>> deadlines_;
  std::uint64_t steps_ = 0;
  bool failed_ = false;  // a step did; the scheduler must not be touched any more
};

}  // namespace metattn
