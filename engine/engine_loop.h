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

#include "absl/status/status.h"
#include "engine/active_request.h"
#include "engine/metrics.h"
#include "engine/scheduler.h"
#include "engine/worker.h"

namespace metattn {

class EngineLoop {
 public:
  using Clock = ActiveRequest::Clock;

  EngineLoop(const SchedulerOptions& options, std::int64_t vocab, Worker& worker,
             EngineObserver* observer);

  void Accept(std::unique_ptr<ActiveRequest> request);
  void Cancel(std::uint64_t id);  // unknown: nothing
  void ExpireDeadlines(Clock::time_point now);
  void EndAll(FinishReason reason, const absl::Status& status);
  // One forward pass, if there is anything to run.
  [[nodiscard]] absl::Status Step();

  int live() const { return static_cast<int>(requests_.size()); }
  std::uint64_t steps() const { return steps_; }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  void NoteSchedule(const ScheduledStep& step);
  void Deliver(const ScheduledStep& step, std::span<float> logits);
  void End(std::uint64_t id, FinishReason reason, absl::Status status);
  void Forget(std::uint64_t id);

  Scheduler scheduler_;
  const std::int64_t vocab_;
  Worker& worker_;
  EngineObserver* observer_;
  std::map<std::uint64_t, std::unique_ptr<ActiveRequest>> requests_;
  std::set<std::pair<Clock::time_point, std::uint64_t>> deadlines_;
  std::uint64_t steps_ = 0;
  bool failed_ = false;  // a step did; the scheduler must not be touched any more
};

}  // namespace metattn
