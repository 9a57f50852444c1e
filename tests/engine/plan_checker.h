// An independent judge of step plans: knows the contract of step_plan.h and what each sequence's
// tokens are, nothing of the scheduler. Remembers who wrote which block slot, so that a wrong
// table, a lost prefix or a block with two writers shows. One thread.
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
  PlanChecker(std::int64_t blocks, int max_sequences, int max_batch_tokens);

  // What stands at one position of a block: enough to tell whether a reader sees its own context.
  struct Slot {
    std::int32_t token = -1;
    std::int32_t position = -1;
    std::uint8_t route = 0;
    std::uint64_t history = 0;  // digest of every (token, route) up to here
    bool operator==(const Slot&) const = default;
  };

  // Empty: the plan is valid. Otherwise what is wrong. Applies the plan's writes.
  std::string Check(const StepPlan& plan);

  // The context of logit row i of the last checked plan, read back through its block table.
  const std::vector<std::vector<std::int32_t>>& contexts() const { return contexts_; }

  static std::uint64_t Extend(std::uint64_t history, std::int32_t token, std::uint8_t route);

 private:
  std::string CheckShape(const StepPlan& plan) const;
  std::string CheckWriters(const StepPlan& plan) const;
  std::string Write(const StepPlan& plan);
  std::string Read(const StepPlan& plan);

  const std::int64_t blocks_;
  const int max_sequences_;
  const int max_batch_tokens_;
  std::uint64_t last_step_ = 0;
  std::vector<std::vector<Slot>> store_;  // [block][kBlockTokens]
  std::vector<std::vector<std::int32_t>> contexts_;
};

}  // namespace metattn
