// Policies of tokens, and the slots of linear states: what the scheduler promises about both.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/scheduler_fixture.h"

namespace metattn {
namespace {

using testing::Each;
using testing::ElementsAre;

class SchedulerPolicyTest : public SchedulerTest {
 protected:
  static SequenceSpec With(SequenceSpec spec, const RoutePolicy& policy) {
    spec.policy = policy;
    return spec;
  }
  // (slot, state_position) of every sequence of the plan.
  static std::vector<std::pair<int, int>> States(const ScheduledStep& step) {
    std::vector<std::pair<int, int>> states;
    for (const StepSequence& s : step.plan.sequences) {
      states.emplace_back(s.state_slot, s.state_position);
    }
    return states;
  }
};

using State = std::pair<int, int>;

constexpr RoutePolicy kFull{};
constexpr RoutePolicy kLocal{Route::kLocal, 0, 0};
constexpr RoutePolicy kRoutedPolicy{Route::kRouted, 0.5f, 0.98f};
constexpr RoutePolicy kPolicies[] = {
    kFull,
    {Route::kLinear, 0, 0},
    kLocal,
    kRoutedPolicy,
    {Route::kRouted, 1.0f, 0.98f},  // another cost weight
    {Route::kRouted, 0.5f, 0.97f},  // another eta
};

TEST_F(SchedulerPolicyTest, BlocksUnderAnotherPolicyAreNeverReused) {
  Make(100, 8, 2048);
  std::uint64_t id = 0;
  for (const RoutePolicy& policy : kPolicies) {
    Add(With(Spec(++id, 200), policy));
    EXPECT_THAT(Step().plan.policy, testing::Contains(policy).Times(200));
    EXPECT_EQ(scheduler_->cached_tokens(id), 0);
    scheduler_->Remove(id);
  }
  for (const RoutePolicy& policy : kPolicies) {  // all of them are there, each for its own
    Add(With(Spec(++id, 200), policy));
    EXPECT_THAT(Step().plan.policy, Each(policy));
    EXPECT_EQ(scheduler_->cached_tokens(id), 192);
    scheduler_->Remove(id);
  }
}

TEST_F(SchedulerPolicyTest, SetPolicyMattersForLaterTokensOnly) {
  Make(100, 8, 80);
  Add(Spec(1, 200));
  EXPECT_THAT(Step().plan.policy, Each(kFull));
  scheduler_->SetPolicy(1, kLocal);
  EXPECT_THAT(Step().plan.policy, Each(kLocal));
  scheduler_->SetPolicy(1, kRoutedPolicy);
  const ScheduledStep last = Step();
  EXPECT_THAT(last.plan.policy, Each(kRoutedPolicy));
  EXPECT_THAT(last.samples, ElementsAre(1));
  EXPECT_THAT(Step().plan.policy, ElementsAre(kRoutedPolicy));
  scheduler_->SetPolicy(1, kFull);
  EXPECT_THAT(Step().plan.policy, ElementsAre(kFull));
  scheduler_->SetPolicy(17, kFull);  // unknown ids are ignored
}

TEST_F(SchedulerPolicyTest, APolicyThatChangedMidPromptIsAnotherPrefixFromThereOn) {
  Make(100, 8, 64);
  const auto run = [&](std::uint64_t id) {  // to the end of its prompt
    for (int i = 0; i < 8; ++i) {
      if (!Step().samples.empty()) break;
    }
    const std::int32_t cached = scheduler_->cached_tokens(id);
    scheduler_->Remove(id);
    return cached;
  };
  Add(With(Spec(1, 250), kFull));
  Step();
  scheduler_->SetPolicy(1, kLocal);  // tokens 64 .. 249
  EXPECT_EQ(run(1), 0);
  Add(With(Spec(2, 250), kFull));
  EXPECT_EQ(run(2), 64) << "full up to 64 only";
  Add(With(Spec(3, 250), kLocal));
  EXPECT_EQ(run(3), 0) << "the first block is of another policy, and the chain hangs on it";
  Add(With(Spec(4, 250), kFull));
  EXPECT_EQ(run(4), 192) << "by now all of it was computed as full";
}

TEST_F(SchedulerPolicyTest, AChangeInTheMiddleOfABlockIsAnotherBlock) {
  Make(100, 8, 40);
  Add(Spec(1, 130));
  Step();
  scheduler_->SetPolicy(1, kLocal);  // tokens 40 .. 129
  for (int i = 0; i < 3; ++i) Step();
  scheduler_->Remove(1);
  for (const RoutePolicy& policy : {kFull, kLocal}) {
    Add(With(Spec(2, 130), policy));
    Step();
    EXPECT_EQ(scheduler_->cached_tokens(2), 0);
    scheduler_->Remove(2);
    checker_->Forget(2);
  }
}

TEST_F(SchedulerPolicyTest, WhatIsComputedAgainKeepsItsPolicy) {
  for (const bool reuse : {false, true}) {
    SCOPED_TRACE(reuse);
    Make(4, 8, 512, reuse);
    Add(Spec(1, 126, 100));
    Add(With(Spec(2, 127, 100, 0, 1000), kLocal));
    Step();
    scheduler_->SetPolicy(2, kRoutedPolicy);
    Step();                              // 2's token 127 is routed
    scheduler_->SetPolicy(2, kFull);     // the next one will not be
    const ScheduledStep third = Step();  // 2 needs a block
    ASSERT_THAT(third.preempted, ElementsAre(2));
    scheduler_->SetPolicy(2, {Route::kLinear, 0, 0});  // while it waits
    scheduler_->Remove(1);
    const ScheduledStep back = Step();
    ASSERT_EQ(back.plan.sequences.size(), 1u);
    const StepSequence& s = back.plan.sequences[0];
    ASSERT_EQ(s.start, reuse ? 128 : 0);
    ASSERT_EQ(s.start + s.rows, 129);
    for (int p = s.start; p < 129; ++p) {
      const RoutePolicy& now = back.plan.policy[static_cast<std::size_t>(p - s.start)];
      if (p < 127) {
        EXPECT_EQ(now, kLocal) << p;
      } else if (p == 127) {
        EXPECT_EQ(now, kRoutedPolicy);
      } else {
        EXPECT_EQ(now.route, Route::kLinear) << "never computed: the policy in force";
      }
    }
  }
}

TEST_F(SchedulerPolicyTest, RunningSequencesOwnStateSlots) {
  linear_states_ = true;
  Make(100, 3, 600);
  for (std::uint64_t id = 1; id <= 4; ++id) Add(Spec(id, 70, 100, 0, 1000 * static_cast<int>(id)));
  EXPECT_THAT(States(Step()), ElementsAre(State{0, -1}, State{1, -1}, State{2, -1}));
  EXPECT_THAT(States(Step()), ElementsAre(State{0, 69}, State{1, 69}, State{2, 69}));
  scheduler_->Remove(2);  // 4 takes its slot, and must not take its state
  EXPECT_THAT(States(Step()), ElementsAre(State{0, 70}, State{2, 70}, State{1, -1}));
  EXPECT_THAT(States(Step()), ElementsAre(State{0, 71}, State{2, 71}, State{1, 69}));
}

TEST_F(SchedulerPolicyTest, AStateStaysWithItsSequenceWhileOthersHaveTheStep) {
  linear_states_ = true;
  Make(100, 8, 64);
  Add(Spec(1, 60));
  Step();
  Add(Spec(2, 300, 100, 0, 1000));
  EXPECT_THAT(States(Step()), ElementsAre(State{0, 59}, State{1, -1}));
  EXPECT_THAT(States(Step()), ElementsAre(State{0, 60}, State{1, 62}));
}

TEST_F(SchedulerPolicyTest, AReusedPrefixAndAPreemptionLeaveNoState) {
  linear_states_ = true;
  Make(4, 8, 512);
  Add(Spec(1, 126, 100));
  Add(Spec(2, 127, 100, 0, 1000));
  Step();
  Step();
  ASSERT_THAT(Step().preempted, ElementsAre(2));
  scheduler_->Remove(1);
  const ScheduledStep back = Step();
  EXPECT_GT(back.plan.sequences[0].start, 0) << "its own blocks were found again";
  EXPECT_EQ(back.plan.sequences[0].state_position, -1);
  EXPECT_EQ(Step().plan.sequences[0].state_position, 128);
  scheduler_->Remove(2);
  Add(Spec(3, 127, 20, 0, 1000));
  const ScheduledStep reused = Step();
  EXPECT_EQ(reused.plan.sequences[0].start, 64);
  EXPECT_EQ(reused.plan.sequences[0].state_position, -1);
}

TEST_F(SchedulerPolicyTest, WithoutLinearStatesPlansNameNone) {
  Make(100, 8, 512);
  Add(Spec(1, 70));
  Add(Spec(2, 70));
  Step();
  EXPECT_THAT(States(Step()), Each(State{0, -1}));
}

using SchedulerPolicyDeathTest = SchedulerPolicyTest;

TEST_F(SchedulerPolicyDeathTest, PoliciesChangeBetweenStepsOnly) {
  Make(4, 8, 512);
  Add(Spec(1, 10));
  const auto step = scheduler_->Next();
  EXPECT_DEATH(scheduler_->SetPolicy(1, kLocal), "between steps");
}

}  // namespace
}  // namespace metattn
