// The fixture of the scheduler's tests: a scheduler whose every plan PlanChecker judges.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "engine/scheduler.h"
#include "tests/engine/plan_checker.h"

namespace metattn {

// A small language: Add(id, prompt length), Step() runs one plan whose samples all become token 7.
class SchedulerTest : public testing::Test {
 protected:
  void Make(std::int64_t blocks, int max_sequences, int max_batch_tokens, bool reuse = true) {
    options_.blocks = blocks;
    options_.max_sequences = max_sequences;
    options_.max_batch_tokens = max_batch_tokens;
    options_.max_context = 4096;
    options_.prefix_reuse = reuse;
    options_.hash_identity = "test";
    options_.linear_states = linear_states_;
    options_.state_snapshots = state_snapshots_;
    options_.window = 1;
    scheduler_ = std::make_unique<Scheduler>(options_);
    checker_ =
        std::make_unique<PlanChecker>(blocks, max_sequences, max_batch_tokens, StatesOf(options_));
  }

  static SequenceSpec Spec(std::uint64_t id, int prompt, int max_tokens = 100, int priority = 0,
                           std::int32_t first = 0) {
    SequenceSpec spec;
    spec.id = id;
    spec.prompt.resize(static_cast<std::size_t>(prompt));
    std::iota(spec.prompt.begin(), spec.prompt.end(), first);
    spec.max_tokens = max_tokens;
    spec.priority = priority;
    return spec;
  }

  void Add(SequenceSpec spec) {
    const absl::Status status = scheduler_->Add(std::move(spec));
    ASSERT_TRUE(status.ok()) << status;
  }

  ScheduledStep Step() {
    auto step = scheduler_->Next();
    if (!step) {
      ADD_FAILURE() << "nothing to run";
      return {};
    }
    EXPECT_EQ(checker_->Check(step->plan), "");
    scheduler_->Complete(std::vector<std::int32_t>(step->samples.size(), 7));
    return *std::move(step);
  }

  static std::vector<std::pair<std::uint64_t, int>> Rows(const ScheduledStep& step) {
    std::vector<std::pair<std::uint64_t, int>> rows;
    for (const StepSequence& s : step.plan.sequences) rows.emplace_back(s.id, s.rows);
    return rows;
  }

  static PlanChecker::LinearStates StatesOf(const SchedulerOptions& o) {
    const int slots = std::min(o.max_sequences, o.max_batch_tokens) + o.state_snapshots;
    return {o.linear_states ? slots : 0, o.window};
  }

  bool linear_states_ = false;  // these two before Make
  int state_snapshots_ = 0;
  SchedulerOptions options_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<PlanChecker> checker_;
};

}  // namespace metattn
