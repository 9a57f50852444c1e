#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/scheduler_fixture.h"

namespace metattn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

using Row = std::pair<std::uint64_t, int>;

TEST_F(SchedulerTest, NothingToRunGivesNoPlan) {
  Make(4, 4, 64);
  EXPECT_FALSE(scheduler_->Next().has_value());
}

TEST_F(SchedulerTest, DecodesFirstThenPrefillFillsTheBudget) {
  Make(100, 8, 64);
  Add(Spec(1, 10));
  const ScheduledStep first = Step();
  EXPECT_THAT(Rows(first), ElementsAre(Row{1, 10}));
  EXPECT_THAT(first.samples, ElementsAre(1));
  EXPECT_THAT(first.first_scheduled, ElementsAre(1));
  EXPECT_THAT(first.plan.logit_rows, ElementsAre(9));

  Add(Spec(2, 100, 100, 0, 1000));
  const ScheduledStep second = Step();
  EXPECT_THAT(Rows(second), ElementsAre(Row{1, 1}, Row{2, 63}));
  EXPECT_THAT(second.samples, ElementsAre(1));  // 2 is not through its prompt
  EXPECT_THAT(second.first_scheduled, ElementsAre(2));
  const ScheduledStep third = Step();
  EXPECT_THAT(Rows(third), ElementsAre(Row{1, 1}, Row{2, 37}));
  EXPECT_THAT(third.samples, ElementsAre(1, 2));
  EXPECT_THAT(third.plan.logit_rows, ElementsAre(0, 37));
  EXPECT_THAT(third.first_scheduled, IsEmpty());
}

TEST_F(SchedulerTest, PrefillIsOrderedByPriorityThenArrival) {
  Make(100, 8, 30);
  Add(Spec(1, 10, 5, 1, 0));
  Add(Spec(2, 10, 5, 1, 100));
  Add(Spec(3, 10, 5, 0, 200));
  Add(Spec(4, 10, 5, -1, 300));
  EXPECT_THAT(Rows(Step()), ElementsAre(Row{4, 10}, Row{3, 10}, Row{1, 10}));
}

TEST_F(SchedulerTest, ACachedPrefixIsNotComputedAgain) {
  Make(100, 8, 512);
  Add(Spec(1, 200));
  Step();
  Add(Spec(2, 200));
  const ScheduledStep step = Step();
  EXPECT_THAT(Rows(step), ElementsAre(Row{1, 1}, Row{2, 200 - 192}));
  EXPECT_EQ(scheduler_->cached_tokens(2), 192);
  EXPECT_EQ(scheduler_->cached_tokens(1), 0);
}

TEST_F(SchedulerTest, TheLastPromptTokenIsAlwaysComputed) {
  Make(100, 8, 512);
  Add(Spec(1, 128));
  Step();
  Add(Spec(2, 128));
  Step();
  EXPECT_EQ(scheduler_->cached_tokens(2), 64);  // not 128: its logits are wanted
}

TEST_F(SchedulerTest, BlocksOutliveTheirSequenceAndCountAsAvailable) {
  Make(10, 8, 512);
  Add(Spec(1, 300));
  Step();
  EXPECT_EQ(scheduler_->blocks_used(), 5);
  scheduler_->Remove(1);
  EXPECT_EQ(scheduler_->blocks_used(), 0);
  Add(Spec(2, 300));
  Step();
  EXPECT_EQ(scheduler_->cached_tokens(2), 256);
}

TEST_F(SchedulerTest, AnotherRouteIsAnotherPrefix) {
  Make(100, 8, 512);
  Add(Spec(1, 200));
  Step();
  SequenceSpec local = Spec(2, 200);
  local.policy.route = Route::kLocal;
  Add(local);
  const ScheduledStep step = Step();
  EXPECT_EQ(scheduler_->cached_tokens(2), 0);
  EXPECT_EQ(step.plan.policy.front(), RoutePolicy{Route::kFull});
  EXPECT_EQ(step.plan.policy.back(), RoutePolicy{Route::kLocal});
}

TEST_F(SchedulerTest, PrefixReuseCanBeTurnedOff) {
  Make(100, 8, 512, /*reuse=*/false);
  Add(Spec(1, 200));
  Step();
  Add(Spec(2, 200));
  EXPECT_THAT(Rows(Step()), ElementsAre(Row{1, 1}, Row{2, 200}));
}

TEST_F(SchedulerTest, GeneratedTokensAreReusedToo) {
  Make(100, 8, 512);
  Add(Spec(1, 60, 100));
  std::vector<std::int32_t> tokens = Spec(1, 60).prompt;
  for (int i = 0; i < 70; ++i) {  // 60 prompt tokens, then sevens
    Step();
    tokens.push_back(7);
  }
  SequenceSpec next = Spec(2, 1);
  next.prompt = tokens;  // 130 tokens: the next turn of a chat
  Add(next);
  Step();
  EXPECT_EQ(scheduler_->cached_tokens(2), 128);
}

TEST_F(SchedulerTest, WhenBlocksRunOutTheLastInLineIsPreemptedAndComesBack) {
  Make(4, 8, 512, /*reuse=*/false);
  Add(Spec(1, 126, 100));
  Add(Spec(2, 127, 100, 0, 1000));
  EXPECT_THAT(Step().samples, ElementsAre(1, 2));  // 4 blocks are taken
  EXPECT_THAT(Step().samples, ElementsAre(1, 2));  // positions 126 and 127
  const ScheduledStep third = Step();              // 1 fits still (127), 2 needs a block
  EXPECT_THAT(third.preempted, ElementsAre(2));
  EXPECT_THAT(third.samples, ElementsAre(1));
  EXPECT_EQ(scheduler_->waiting(), 1);
  EXPECT_THAT(Rows(Step()), ElementsAre(Row{1, 1}));  // 3 blocks; 2 knows 129 tokens, needs 3
  scheduler_->Remove(1);
  const ScheduledStep back = Step();
  EXPECT_THAT(Rows(back), ElementsAre(Row{2, 129}));  // prompt and what it had generated
  EXPECT_THAT(back.first_scheduled, IsEmpty());
  EXPECT_THAT(back.plan.tokens, testing::Contains(7).Times(2));
}

TEST_F(SchedulerTest, AnUrgentSequenceTakesBlocksFromALessUrgentOne) {
  Make(4, 8, 512, /*reuse=*/false);
  Add(Spec(1, 200, 20, /*priority=*/5));
  Step();
  Add(Spec(2, 200, 20, /*priority=*/0));
  const ScheduledStep step = Step();
  EXPECT_THAT(step.preempted, ElementsAre(1));
  EXPECT_THAT(Rows(step), ElementsAre(Row{2, 200}));
}

TEST_F(SchedulerTest, AnEqualOrLessUrgentSequenceWaits) {
  Make(4, 8, 512, /*reuse=*/false);
  Add(Spec(1, 200, 20));
  Step();
  Add(Spec(2, 200, 20));
  const ScheduledStep step = Step();
  EXPECT_THAT(step.preempted, IsEmpty());
  EXPECT_THAT(Rows(step), ElementsAre(Row{1, 1}));
  EXPECT_EQ(scheduler_->waiting(), 1);
}

TEST_F(SchedulerTest, NobodyOvertakesTheFirstInLine) {
  Make(4, 8, 512, /*reuse=*/false);
  Add(Spec(1, 100, 20));
  Step();
  Add(Spec(2, 200, 20));  // does not fit beside 1
  Add(Spec(3, 10, 20));   // would fit, but comes later
  EXPECT_THAT(Rows(Step()), ElementsAre(Row{1, 1}));
  EXPECT_EQ(scheduler_->waiting(), 2);
}

TEST_F(SchedulerTest, NoMoreSequencesRunThanTheBudgetHasRows) {
  Make(100, 64, 4);
  for (std::uint64_t id = 1; id <= 6; ++id) Add(Spec(id, 2, 10));
  for (int i = 0; i < 4; ++i) Step();
  EXPECT_EQ(scheduler_->running(), 4);
  EXPECT_EQ(Step().samples.size(), 4u);
}

TEST_F(SchedulerTest, WhatCouldNeverFitIsRefused) {
  Make(3, 8, 512);
  const absl::Status memory = scheduler_->Add(Spec(1, 100, 94));  // 193 positions
  EXPECT_EQ(memory.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(memory.message()), HasSubstr("need 4 K/V blocks, the cache has 3"));
  EXPECT_TRUE(scheduler_->Add(Spec(1, 100, 93)).ok());  // the last token needs no place
  const absl::Status context = scheduler_->Add(Spec(2, 4000, 97));
  EXPECT_EQ(context.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(context.message()), HasSubstr("context of 4096"));
}

TEST_F(SchedulerTest, UnknownIdsAreIgnored) {
  Make(4, 8, 512);
  scheduler_->Remove(17);
  EXPECT_EQ(scheduler_->cached_tokens(17), 0);
}

using SchedulerDeathTest = SchedulerTest;

TEST_F(SchedulerDeathTest, BrokenContractsAbort) {
  Make(4, 8, 512);
  EXPECT_DEATH(scheduler_->Complete({}), "no plan is outstanding");
  Add(Spec(1, 10, 1));
  EXPECT_DEATH(scheduler_->Add(Spec(1, 10)).IgnoreError(), "unique");
  auto step = scheduler_->Next();
  EXPECT_DEATH(scheduler_->Next(), "Complete comes before");
  EXPECT_DEATH(scheduler_->Remove(1), "between steps");
  EXPECT_DEATH(scheduler_->Complete({}), "one token per sample");
  scheduler_->Complete(std::vector<std::int32_t>{7});
  EXPECT_DEATH(scheduler_->Next(), "must be removed");
}

}  // namespace
}  // namespace metattn
