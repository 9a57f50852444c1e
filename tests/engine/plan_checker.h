// An independent judge of step plans: knows the contract of step_plan.h and what each sequence's
// tokens are, nothing of the scheduler. Remembers who wrote which block slot and whose linear state
// lies in which state slot, so that a wrong table, a lost prefix, a block with two writers, a token
// computed again under another policy or a state that is not the reader's own shows. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/model/step_plan.h"

namespace metattn {

class PlanChecker {
 public:
  // linear_states: sequences own state slots, as with a controller.
  PlanChecker(std::int64_t blocks, int max_sequences, int max_batch_tokens,
              bool linear_states = false);

  // What stands at one position of a block: enough to tell whether a reader sees its own context.
  struct Slot {
    std::int32_t token = -1;
    std::int32_t position = -1;
    RoutePolicy policy;
    std::uint64_t history = 0;  // digest of every (token, policy) up to here
    bool operator==(const Slot&) const = default;
  };

  // Empty: the plan is valid. Otherwise what is wrong. Applies the plan's writes.
  std::string Check(const StepPlan& plan);

  // The context of logit row i of the last checked plan, read back through its block table.
  const std::vector<std::vector<std::int32_t>>& contexts() const { return contexts_; }

  // The policy that each position of a sequence was first computed or found under.
  const std::vector<RoutePolicy>& policies(std::uint64_t id) { return first_policies_[id]; }
  // The sequence is gone, its id may come again.
  void Forget(std::uint64_t id) { first_policies_.erase(id); }

  static std::uint64_t Extend(std::uint64_t history, std::int32_t token,
                              const RoutePolicy& policy = {});

 private:
  std::string CheckShape(const StepPlan& plan) const;
  std::string CheckWriters(const StepPlan& plan) const;
  std::string Write(const StepPlan& plan);
  std::string Read(const StepPlan& plan);
  std::string CheckStates(const StepPlan& plan);

  const std::int64_t blocks_;
  const int max_sequences_;
  const int max_batch_tokens_;
  const bool linear_states_;
  std::uint64_t last_step_ = 0;
  std::vector<std::vector<Slot>> store_;  // [block][kBlockTokens]
  std::vector<std::vector<std::int32_t>> contexts_;
  // Policy of each position of a sequence when it was first computed or found.
  std::map<std::uint64_t, std::vector<RoutePolicy>> first_policies_;
  struct LinearState {
    std::uint64_t id = 0;
    std::int32_t position = -1;
    std::uint64_t history = 0;
  };
  std::map<std::int32_t, LinearState> states_;  // by slot
};

}  // namespace metattn
