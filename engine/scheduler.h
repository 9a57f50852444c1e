// Decides which tokens of which sequences form the next step: continuous batching under a token
// budget, chunked prefill, prefix reuse, preemption by recompute, priorities. Pure and
// deterministic: no clock, device or thread.
//
// Use: Add sequences; Next gives a plan; after it ran, Complete hands the sampled tokens in; Remove
// takes a sequence out between steps (finished, cancelled, past its deadline). One plan is
// outstanding at a time. Decoding sequences go first, then prefill in (priority, arrival) order,
// the budget's rest. When blocks run out, the running sequence with the largest (priority, arrival)
// is preempted: its blocks are released and it is recomputed later, in its old place. A sequence
// that could never fit is refused by Add. Blocks that become full are published with their chained
// hash, which covers the policy each token was computed under. Contract violations are CHECK
// failures. Cost: O(running + admitted) per step.
//
// Linear states: a running sequence owns a slot. Its state is kept as a snapshot every
// snapshot_tokens tokens and when it stops; a sequence that starts on found blocks loads the
// longest snapshot of them, and workers rebuild what is behind it from the pages.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/page_pool.h"
#include "engine/model/step_plan.h"

namespace metattn {

struct SchedulerOptions {
  std::int64_t blocks = 0;     // capacity
  int max_sequences = 64;      // in one step
  int max_batch_tokens = 512;  // rows of one step
  int max_context = 0;         // positions of one sequence
  bool prefix_reuse = true;
  bool linear_states = false;  // the model has a controller: running sequences own a state slot
  int state_snapshots = 0;     // slots beside those; used with prefix_reuse only
  int snapshot_tokens = 1024;
  int window = 256;           // the near window: how far a linear state is behind its sequence
  std::string hash_identity;  // SeedHash argument: model, window, sinks, K/V dtype
};

struct SequenceSpec {
  std::uint64_t id = 0;  // unique among live sequences
  std::vector<std::int32_t> prompt;
  std::int32_t max_tokens = 0;  // tokens it may generate at most
  std::int32_t priority = 0;    // lower first
  RoutePolicy policy;
};

struct ScheduledStep {
  StepPlan plan;                               // logit_rows in the order of `samples`
  std::vector<std::uint64_t> samples;          // sequences that get a token from this step
  std::vector<std::uint64_t> first_scheduled;  // sequences that ran for the first time
  std::vector<std::uint64_t> preempted;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);
  ~Scheduler();

  // RESOURCE_EXHAUSTED: more blocks than there are; INVALID_ARGUMENT: longer than max_context.
  [[nodiscard]] absl::Status Add(SequenceSpec spec);
  // Nothing when there is nothing to run.
  std::optional<ScheduledStep> Next();
  // tokens[i] belongs to samples[i] of the outstanding plan.
  void Complete(std::span<const std::int32_t> tokens);
  // Between steps: the policy of tokens that were never computed before. What was computed keeps
  // its own, also when it is computed again. Unknown ids are ignored.
  void SetPolicy(std::uint64_t id, const RoutePolicy& policy);
  // Between steps: tokens that must be computed again (after a preemption) take the policy in
  // force, whatever they were computed under before. Unknown ids are ignored.
  void ForgetPolicies(std::uint64_t id);
  // Between steps. Unknown ids are ignored.
  void Remove(std::uint64_t id);

  int waiting() const;
  int running() const;
  std::int64_t blocks_used() const;
  std::int64_t blocks_capacity() const;
  std::int32_t cached_tokens(std::uint64_t id) const;  // prompt tokens taken from reused blocks

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace metattn
