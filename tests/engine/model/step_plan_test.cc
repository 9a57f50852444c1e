#include "engine/model/step_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace metattn {
namespace {

StepPlan Example() {
  StepPlan plan;
  plan.step = 9;
  plan.sequences = {{41, 64, 2, {3, 5}}, {42, 0, 1, {7}}};
  plan.tokens = {10, 11, 12};
  plan.route = {0, 0, 2};
  plan.logit_rows = {1, 2};
  return plan;
}

TEST(StepPlan, ComesBackAsItWasSent) {
  const absl::StatusOr<StepPlan> plan = StepPlan::Decode(Example().Encode());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->step, 9u);
  ASSERT_EQ(plan->sequences.size(), 2u);
  EXPECT_EQ(plan->sequences[0].id, 41u);
  EXPECT_EQ(plan->sequences[0].start, 64);
  EXPECT_THAT(plan->sequences[0].blocks, ::testing::ElementsAre(3, 5));
  EXPECT_EQ(plan->tokens, Example().tokens);
  EXPECT_EQ(plan->route, Example().route);
  EXPECT_EQ(plan->logit_rows, Example().logit_rows);
}

TEST(StepPlan, EveryTruncationIsAnError) {
  const std::vector<std::byte> message = Example().Encode();
  for (std::size_t n = 0; n < message.size(); ++n) {
    EXPECT_FALSE(StepPlan::Decode(std::span(message).first(n)).ok()) << n;
  }
}

TEST(StepPlan, RandomBytesNeverCrash) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> message = Example().Encode();
    for (int k = 0; k < 4; ++k)
      message[random() % message.size()] = static_cast<std::byte>(random());
    (void)StepPlan::Decode(message);
  }
}

TEST(StepPlan, InconsistentPlansAreRefused) {
  auto refused = [](auto change) {
    StepPlan plan = Example();
    change(plan);
    return !StepPlan::Decode(plan.Encode()).ok();
  };
  EXPECT_TRUE(refused([](StepPlan& p) { p.sequences[0].blocks = {3}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.tokens.pop_back(); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.route[0] = 3; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.logit_rows = {2, 1}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.logit_rows = {3}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.sequences[0].rows = -1; }));
  EXPECT_FALSE(refused([](StepPlan&) {}));
}

}  // namespace
}  // namespace metattn
