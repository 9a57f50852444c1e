// AdminService: policy and shares on the wire, its refusals, and their row in rpc/README.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <sstream>

#include "google/protobuf/util/message_differencer.h"
#include "rpc/convert_routing.h"
#include "tests/rpc/service_fixture.h"
#include "tests/support/source_path.h"

namespace metattn {
namespace {

using google::protobuf::util::MessageDifferencer;

struct Refusal {
  const char* name;
  std::function<void(v1::RoutingPolicy*)> change;
  const char* field;
};

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

const Refusal kRefusals[] = {
    {"default_route unknown", [](auto* p) { p->set_default_route(static_cast<v1::Route>(77)); },
     "default_route"},
    {"default_route unspecified", [](auto* p) { p->set_default_route(v1::ROUTE_UNSPECIFIED); },
     "default_route"},
    {"default_route not allowed",
     [](auto* p) {
       p->mutable_allowed_routes()->add_routes(v1::ROUTE_FULL);
       p->set_default_route(v1::ROUTE_LOCAL);
     },
     "default_route"},
    {"allowed_routes empty", [](auto* p) { p->mutable_allowed_routes(); }, "allowed_routes"},
    {"allowed_routes unknown",
     [](auto* p) { p->mutable_allowed_routes()->add_routes(static_cast<v1::Route>(9)); },
     "allowed_routes"},
    {"cost_weight NaN", [](auto* p) { p->set_cost_weight(kNaN); }, "cost_weight"},
    {"cost_weight outside its bounds",
     [](auto* p) {
       p->set_max_cost_weight(1);
       p->set_cost_weight(2);
     },
     "cost_weight"},
    {"min_cost_weight negative", [](auto* p) { p->set_min_cost_weight(-1); }, "min_cost_weight"},
    {"max_cost_weight above 1000", [](auto* p) { p->set_max_cost_weight(1001); },
     "max_cost_weight"},
    {"eta NaN", [](auto* p) { p->set_eta(kNaN); }, "eta"},
    {"eta above one", [](auto* p) { p->set_eta(1.5f); }, "eta"},
    {"min_eta negative", [](auto* p) { p->set_min_eta(-0.5f); }, "min_eta"},
    {"max_eta below min_eta",
     [](auto* p) {
       p->set_min_eta(0.75f);
       p->set_max_eta(0.5f);
     },
     "max_eta"},
    {"elastic_queue_wait_seconds zero", [](auto* p) { p->set_elastic_queue_wait_seconds(0); },
     "elastic_queue_wait_seconds"},
    {"elastic_inter_token_seconds NaN",
     [](auto* p) { p->set_elastic_inter_token_seconds(std::nan("")); },
     "elastic_inter_token_seconds"},
};

TEST(Routing, EveryBadChangeIsRefusedByItsFieldAndChangesNothing) {
  TestServer server;
  server.Load();
  const auto before = server.client->GetRouting();
  ASSERT_TRUE(before.ok()) << before.status();
  for (const Refusal& row : kRefusals) {
    v1::RoutingPolicy change;
    change.set_force_full(true);  // would be fine alone
    row.change(&change);
    const auto result = server.client->SetRoutingPolicy(change);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << row.name;
    const std::string message(result.status().message());
    EXPECT_EQ(message.rfind(std::string(row.field) + ":", 0), 0u) << row.name << ": " << message;
  }
  const auto after = server.client->GetRouting();
  ASSERT_TRUE(after.ok());
  EXPECT_TRUE(MessageDifferencer::Equals(before->policy(), after->policy()));
}

TEST(Routing, TheReadmeListsEveryRefusal) {
  std::ifstream file(test::SourcePath("rpc/README.md"));
  std::ostringstream readme;
  readme << file.rdbuf();
  for (const Refusal& row : kRefusals) {
    const std::string cell =
        std::string("| ") + row.name + " | INVALID_ARGUMENT | `" + row.field + "`";
    EXPECT_NE(readme.str().find(cell), std::string::npos) << "no row '" << cell << "'";
  }
}

TEST(Routing, WhatIsLeftOfARequestWithoutAPolicyIsARefusal) {
  const auto change = ToChange(v1::SetRoutingPolicyRequest());
  EXPECT_EQ(change.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(change.status().message()).rfind("policy:", 0), 0u);
}

TEST(Routing, WhileLoadingBothCallsAreUnavailable) {
  TestServer server;
  EXPECT_EQ(server.client->GetRouting().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.client->SetRoutingPolicy(v1::RoutingPolicy()).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(Routing, SetChangesOnlyWhatIsSetAndReturnsThePolicyThatGetShows) {
  TestServer server;
  server.Load();
  auto status = server.client->GetRouting();
  ASSERT_TRUE(status.ok()) << status.status();
  v1::RoutingPolicy expected = status->policy();
  expected.set_cost_weight(0.5f);
  expected.set_elastic(true);
  v1::RoutingPolicy change;
  change.set_cost_weight(0.5f);
  change.set_elastic(true);
  const auto result = server.client->SetRoutingPolicy(change);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(MessageDifferencer::Equals(*result, expected)) << result->ShortDebugString();
  status = server.client->GetRouting();
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(MessageDifferencer::Equals(status->policy(), expected));
  EXPECT_EQ(status->cost_weight_now(), 0.5f);
}

TEST(Routing, ANewBoundHoldsForTheNextRequest) {
  TestServer server;
  server.Load();
  v1::GenerateRequest request = TextRequest("hello", 1);
  request.set_route(v1::ROUTE_ROUTED);
  request.set_cost_weight(1);
  const auto ask = [&] {
    return server.client->Generate(request, [](const auto&) { return true; });
  };
  EXPECT_TRUE(ask().ok());
  v1::RoutingPolicy change;
  change.set_max_cost_weight(0.75f);
  ASSERT_TRUE(server.client->SetRoutingPolicy(change).ok());
  const absl::Status refused = ask();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()),
              testing::HasSubstr("cost_weight: 1 is outside [0, 0.75]"));
}

TEST(Routing, EveryFieldOfAPolicyCrossesTheWireAndBack) {
  RoutingPolicy policy;
  policy.route = Route::kLinear;
  policy.cost_weight = 2;
  policy.eta = 0.5f;
  policy.allowed_routes = {Route::kLinear, Route::kRouted};
  policy.min_cost_weight = 0.5f;
  policy.max_cost_weight = 4;
  policy.min_eta = 0.25f;
  policy.max_eta = 0.75f;
  policy.elastic = true;
  policy.queue_wait_s = 3;
  policy.inter_token_s = 0.125;
  policy.force_full = true;
  v1::SetRoutingPolicyRequest wire;
  *wire.mutable_policy() = PolicyToWire(policy);
  const auto change = ToChange(wire);
  ASSERT_TRUE(change.ok()) << change.status();
  const auto back = ChangeRouting(FakeRouting(), *change, {.controller = true});
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, policy);
}

TEST(Routing, StatusHasSharesOfLayersAndOfTheWhole) {
  TestServer server;
  server.Load();
  const auto status = server.client->GetRouting();
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->controller(), "fake-controller");
  EXPECT_EQ(status->cost_weight_levels_size(), 4);
  ASSERT_EQ(status->layers_size(), 2);
  EXPECT_EQ(status->layers(1).decisions(), 100);
  EXPECT_EQ(status->since_start().decisions(), 200);
  EXPECT_EQ(status->since_start().attention_bytes_dense(), 2000);
  const v1::RoutingSummary& summary = status->last_minute().summary();
  EXPECT_EQ(summary.full(), 0.1);
  EXPECT_EQ(summary.linear(), 0.6);
  EXPECT_EQ(summary.local(), 0.3);
  EXPECT_EQ(summary.mean_uncertainty(), 0.25);
  EXPECT_EQ(summary.attention_bytes_ratio(), 0.4);
}

}  // namespace
}  // namespace metattn
