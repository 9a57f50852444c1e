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
  // As with a controller: sequences own state slots, the state of a sequence whose last row was at
  // position t holds the whole blocks before t - window + 1.
  struct LinearStates {
    int slots = 0;  // 0: there are none
    int window = 256;
  };
  PlanChecker(std::int64_t blocks, int max_sequences, int max_batch_tokens, LinearStates states);
  PlanChecker(std::int64_t blocks, int max_sequences, int max_batch_tokens)
      : PlanChecker(blocks, max_sequences, max_batch_tokens, LinearStates{}) {}

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

  // The context of logit row i of the last checked plan, read back through its block table, and
  // that of row i of which only the best token is wanted.
  using Contexts = std::vector<std::vector<std::int32_t>>;
  const Contexts& contexts() const { return contexts_; }
  const Contexts& best_contexts() const { return best_contexts_; }

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
  std::string CheckSlots(const StepPlan& plan) const;
  std::int32_t StateTokens(std::int32_t position) const;
  std::uint64_t HistoryBefore(const StepSequence& s, std::int32_t tokens) const;

  const std::int64_t blocks_;
  const int max_sequences_;
  const int max_batch_tokens_;
  const LinearStates linear_;
  std::uint64_t last_step_ = 0;
  std::vector<std::vector<Slot>> store_;  // [block][kBlockTokens]
  Contexts contexts_, best_contexts_;
  // Policy of each position of a sequence when it was first computed or found.
  std::map<std::uint64_t, std::vector<RoutePolicy>> first_policies_;
  struct LinearState {
    std::int32_t tokens = 0;
    std::uint64_t history = 0;  // of them
    bool operator==(const LinearState&) const = default;
  };
  std::map<std::int32_t, LinearState> states_;  // by slot
};

}  // namespace metattn
