#include "engine/model/step_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace metattn {
namespace {

StepPlan Example() {
  StepPlan plan;
  plan.step = 9;
  plan.sequences = {{41, 64, 2, {3, 5}, 6, 63, 9, 10}, {42, 0, 1, {7}, 2, -1}};
  plan.tokens = {10, 11, 12};
  plan.policy = {{}, {Route::kRouted, 0.5f, 0.98f}, {Route::kLocal}};
  plan.logit_rows = {1, 2};
  plan.best_rows = {0};
  plan.shadow_rows = {0, 2};
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
  EXPECT_EQ(plan->sequences[0].state_slot, 6);
  EXPECT_EQ(plan->sequences[0].state_position, 63);
  EXPECT_EQ(plan->sequences[0].state_load, 9);
  EXPECT_EQ(plan->sequences[0].state_save, 10);
  EXPECT_EQ(plan->sequences[1].state_slot, 2);
  EXPECT_EQ(plan->sequences[1].state_load, -1);
  EXPECT_EQ(plan->sequences[1].state_position, -1);
  EXPECT_EQ(plan->tokens, Example().tokens);
  EXPECT_EQ(plan->policy, Example().policy);
  EXPECT_EQ(plan->logit_rows, Example().logit_rows);
  EXPECT_EQ(plan->best_rows, Example().best_rows);
  EXPECT_EQ(plan->shadow_rows, Example().shadow_rows);
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
  EXPECT_TRUE(refused([](StepPlan& p) { p.policy[0].route = static_cast<Route>(4); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.logit_rows = {2, 1}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.logit_rows = {3}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.best_rows = {1, 1}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.sequences[0].rows = -1; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.policy.pop_back(); }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.shadow_rows = {2, 1}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.shadow_rows = {3}; }));
  EXPECT_TRUE(refused([](StepPlan& p) { p.shadow_rows = {-1}; }));
  EXPECT_FALSE(refused([](StepPlan&) {}));
}

TEST(StepPlan, PoliciesOutOfRangeAreRefused) {
  auto refused = [](auto change) {
    StepPlan plan = Example();
    change(plan.policy[1]);
    return !StepPlan::Decode(plan.Encode()).ok();
  };
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(refused([](RoutePolicy& p) { p.route = static_cast<Route>(4); }));
  EXPECT_TRUE(refused([](RoutePolicy& p) { p.route = static_cast<Route>(255); }));
  EXPECT_TRUE(refused([](RoutePolicy& p) { p.cost_weight = std::nanf(""); }));
  EXPECT_TRUE(refused([](RoutePolicy& p) { p.cost_weight = kInfinity; }));
  EXPECT_TRUE(refused([](RoutePolicy& p) { p.cost_weight = -0.5f; }));
  EXPECT_TRUE(refused([](RoutePolicy& p) { p.eta = 2; }));
  EXPECT_TRUE(refused([](RoutePolicy& p) { p.eta = -0.5f; }));
  EXPECT_TRUE(refused([](RoutePolicy& p) { p.eta = std::nanf(""); }));
  EXPECT_FALSE(refused([](RoutePolicy& p) { p = {Route::kLinear, 0, 1}; }));
  EXPECT_FALSE(refused([](RoutePolicy& p) { p = {Route::kRouted, 1e30f, 0}; }));
}

TEST(StepPlan, StatesOfLaterPositionsAreRefused) {
  auto refused = [](auto change) {
    StepPlan plan = Example();
    change(plan.sequences[0]);
    return !StepPlan::Decode(plan.Encode()).ok();
  };
  EXPECT_TRUE(refused([](StepSequence& s) { s.state_position = 64; }));
  EXPECT_TRUE(refused([](StepSequence& s) { s.state_position = -2; }));
  EXPECT_TRUE(refused([](StepSequence& s) { s.state_slot = -1; }));
  EXPECT_TRUE(refused([](StepSequence& s) { s.state_load = -2; }));
  EXPECT_TRUE(refused([](StepSequence& s) { s.state_save = -2; }));
  EXPECT_TRUE(refused([](StepSequence& s) { s.state_load = 1, s.state_position = -1; }));
  EXPECT_FALSE(refused([](StepSequence& s) { s.state_load = s.state_save = 3; }));
  EXPECT_FALSE(refused([](StepSequence& s) { s.state_position = s.state_load = -1; }));
  EXPECT_FALSE(refused([](StepSequence& s) { s.state_position = 10; })) << "it can be advanced";
}

}  // namespace
}  // namespace metattn
