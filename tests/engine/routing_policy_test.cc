// What an operator may set and a request may ask for; every refusal starts with its field.
#include "engine/routing_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/support/fake_controller.h"

namespace metattn {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

RoutingPolicy Initial(const RoutingChange& flags = {}) {
  const FakeController controller;
  auto policy = InitialRouting(flags, &controller, false);
  EXPECT_TRUE(policy.ok()) << policy.status();
  return policy.value_or(RoutingPolicy());
}

void ExpectNames(const absl::Status& status, const std::string& field, const std::string& also) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
  const std::string message(status.message());
  EXPECT_EQ(message.rfind(field + ":", 0), 0u) << message;
  EXPECT_NE(message.find(also), std::string::npos) << message;
}

TEST(RoutingPolicy, StartsWithTheControllersDefaultsOrFull) {
  const RoutingPolicy routed = Initial();
  EXPECT_EQ(routed.route, Route::kRouted);
  EXPECT_EQ(routed.cost_weight, 0.25f);
  EXPECT_EQ(routed.eta, 0.75f);
  EXPECT_FALSE(routed.elastic);
  const auto plain = InitialRouting({}, nullptr, false);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->route, Route::kFull);
  EXPECT_EQ(plain->allowed_routes, (std::vector<Route>{Route::kFull, Route::kLocal}));
}

TEST(RoutingPolicy, AChangeTouchesOnlyWhatItSets) {
  const RoutingPolicy before = Initial();
  RoutingChange change;
  change.eta = 0.5f;
  RoutingPolicy expected = before;
  expected.eta = 0.5f;
  const auto after = ChangeRouting(before, change, {.controller = true});
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(*after, expected);
}

TEST(RoutingPolicy, EveryBadChangeIsRefusedByItsField) {
  struct Row {
    const char* field;
    std::function<void(RoutingChange&)> set;
    const char* also;  // the bound, or the reason
  };
  const Row rows[] = {
      {"default_route", [](auto& c) { c.route = static_cast<Route>(9); }, "9"},
      {"default_route", [](auto& c) { c.allowed_routes = {Route::kLocal}; }, "allowed"},
      {"allowed_routes", [](auto& c) { c.allowed_routes.emplace(); }, "empty"},
      {"allowed_routes", [](auto& c) { c.allowed_routes = {static_cast<Route>(7)}; }, "7"},
      {"cost_weight", [](auto& c) { c.cost_weight = kNaN; }, "[0, 1000]"},
      {"cost_weight", [](auto& c) { c.cost_weight = kInf; }, "[0, 1000]"},
      {"cost_weight", [](auto& c) { c.cost_weight = -1; }, "[0, 1000]"},
      {"cost_weight", [](auto& c) { c.max_cost_weight = 0.1f; }, "0.1"},
      {"min_cost_weight", [](auto& c) { c.min_cost_weight = kNaN; }, "[0, 1000]"},
      {"max_cost_weight", [](auto& c) { c.max_cost_weight = 2000; }, "[0, 1000]"},
      {"max_cost_weight",
       [](auto& c) {
         c.min_cost_weight = 2;
         c.max_cost_weight = 1;
       },
       "[2, 1000]"},
      {"eta", [](auto& c) { c.eta = kNaN; }, "[0, 1]"},
      {"eta", [](auto& c) { c.eta = 1.5f; }, "[0, 1]"},
      {"min_eta", [](auto& c) { c.min_eta = -0.5f; }, "[0, 1]"},
      {"max_eta", [](auto& c) { c.max_eta = kNaN; }, "[0, 1]"},
      {"elastic_queue_wait_seconds", [](auto& c) { c.queue_wait_s = 0; }, "3600"},
      {"elastic_queue_wait_seconds", [](auto& c) { c.queue_wait_s = std::nan(""); }, "3600"},
      {"elastic_inter_token_seconds", [](auto& c) { c.inter_token_s = 1e9; }, "3600"},
  };
  for (const Row& row : rows) {
    RoutingChange change;
    row.set(change);
    ExpectNames(ChangeRouting(Initial(), change, {.controller = true}).status(), row.field,
                row.also);
  }
}

TEST(RoutingPolicy, WhatNeedsAControllerIsRefusedWithoutOneAndElasticWithDeterministic) {
  const RoutingPolicy plain = *InitialRouting({}, nullptr, false);
  RoutingChange change;
  change.route = Route::kRouted;
  ExpectNames(ChangeRouting(plain, change, {}).status(), "default_route", "--controller");
  change = {};
  change.allowed_routes = {Route::kFull, Route::kLinear};
  ExpectNames(ChangeRouting(plain, change, {}).status(), "allowed_routes", "--controller");
  change = {};
  change.cost_weight = 1;
  ExpectNames(ChangeRouting(plain, change, {}).status(), "cost_weight", "--controller");
  change = {};
  change.eta = 1;
  ExpectNames(ChangeRouting(plain, change, {}).status(), "eta", "--controller");
  change = {};
  change.elastic = true;
  ExpectNames(ChangeRouting(plain, change, {}).status(), "elastic", "--controller");
  ExpectNames(
      ChangeRouting(Initial(), change, {.controller = true, .deterministic = true}).status(),
      "elastic", "--deterministic");
  change = {};
  change.force_full = true;  // needs nothing
  EXPECT_TRUE(ChangeRouting(plain, change, {.deterministic = true}).ok());
}

TEST(RoutingPolicy, AWishOutsideTheBoundsIsRefusedNamingFieldAndBound) {
  RoutingChange flags;
  flags.allowed_routes = {Route::kFull, Route::kRouted};
  flags.min_cost_weight = 0.125f;
  flags.max_cost_weight = 1.5f;
  flags.min_eta = 0.5f;
  const RoutingPolicy policy = Initial(flags);
  const auto refused = [&](const RouteOptions& wish) {
    return CheckWish(wish, policy, true).status();
  };
  ExpectNames(refused({.route = Route::kLocal}), "route", "full, routed");
  ExpectNames(refused({.route = static_cast<Route>(8)}), "route", "8");
  ExpectNames(refused({.cost_weight = 1.75f}), "cost_weight", "[0.125, 1.5]");
  ExpectNames(refused({.cost_weight = 0.f}), "cost_weight", "[0.125, 1.5]");
  ExpectNames(refused({.cost_weight = kNaN}), "cost_weight", "[0.125, 1.5]");
  ExpectNames(refused({.eta = 0.25f}), "eta", "[0.5, 1]");
  ExpectNames(refused({.eta = kNaN}), "eta", "[0.5, 1]");
  ExpectNames(refused({.route = Route::kFull, .cost_weight = 1.f}), "cost_weight", "routed");
  ExpectNames(refused({.route = Route::kFull, .eta = 1.f}), "eta", "routed");
  ExpectNames(CheckWish({.route = Route::kRouted}, policy, false).status(), "route",
              "--controller");
  EXPECT_TRUE(CheckWish({}, policy, true).ok());
  EXPECT_TRUE(CheckWish({.cost_weight = 1.5f, .eta = 0.5f}, policy, true).ok());
}

TEST(RoutingPolicy, WhatAWishLeavesOpenFollowsThePolicyAndWhatItNamesStays) {
  RoutingPolicy policy = Initial();
  const RouteOptions open = *CheckWish({}, policy, true);
  const RouteOptions named = *CheckWish({.cost_weight = 2.f}, policy, true);
  policy.route = Route::kFull;
  policy.eta = 0.5f;
  EXPECT_EQ(EffectivePolicy(open, policy, 0), RoutePolicy{});
  // A cost weight was a wish for routed.
  EXPECT_EQ(EffectivePolicy(named, policy, 0), (RoutePolicy{Route::kRouted, 2, 0.5f}));
}

}  // namespace
}  // namespace metattn
