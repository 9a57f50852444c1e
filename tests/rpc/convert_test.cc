// The refusal table of rpc/README.md: every row of it that needs no engine, then what is accepted.
#include "rpc/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <sstream>

#include "tests/rpc/fake_engine.h"
#include "tests/support/source_path.h"

namespace metattn {
namespace {

struct Refusal {
  const char* name;
  std::function<void(v1::GenerateRequest*)> change;
  absl::StatusCode code;
  const char* field;  // the message starts with it
};

v1::SamplingParams* S(v1::GenerateRequest* r) { return r->mutable_sampling(); }
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
v1::GenerateRequest* Routed(v1::GenerateRequest* r) {
  r->set_route(v1::ROUTE_ROUTED);
  return r;
}
// A server whose operator sets bounds.
std::shared_ptr<ServedModel> Bounded() {
  auto served = FakeServed(nullptr);
  served->routing = [] {
    RoutingPolicy policy = FakeRouting();
    policy.allowed_routes = {Route::kFull, Route::kLocal, Route::kRouted};
    policy.max_cost_weight = 2.5f;
    policy.min_eta = 0.25f;
    return policy;
  };
  return served;
}
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

const Refusal kRefusals[] = {
    {"unknown model", [](auto* r) { r->set_model("nobody"); }, absl::StatusCode::kNotFound,
     "model"},
    {"no input", [](auto* r) { r->clear_input(); }, kInvalid, "input"},
    {"empty text", [](auto* r) { r->set_text(""); }, kInvalid, "text"},
    {"no token ids", [](auto* r) { r->mutable_tokens(); }, kInvalid, "tokens.ids"},
    {"token id negative", [](auto* r) { r->mutable_tokens()->add_ids(-1); }, kInvalid,
     "tokens.ids[0]"},
    {"token id past the vocabulary",
     [](auto* r) {
       r->mutable_tokens()->add_ids(5);
       r->mutable_tokens()->add_ids(kFakeVocab);
     },
     kInvalid, "tokens.ids[1]"},
    {"no chat messages", [](auto* r) { r->mutable_chat(); }, kInvalid, "chat.messages"},
    {"unknown role", [](auto* r) { r->mutable_chat()->add_messages()->set_role("wizard"); },
     kInvalid, "chat.messages[0].role"},
    {"prompt longer than the context", [](auto* r) { r->set_text(std::string(5000, 'x')); },
     kInvalid, "text"},
    {"prompt that leaves no room", [](auto* r) { r->set_text(std::string(4095, 'x')); }, kInvalid,
     "text"},
    {"max_tokens zero", [](auto* r) { S(r)->set_max_tokens(0); }, kInvalid, "sampling.max_tokens"},
    {"max_tokens negative", [](auto* r) { S(r)->set_max_tokens(-5); }, kInvalid,
     "sampling.max_tokens"},
    {"max_tokens huge", [](auto* r) { S(r)->set_max_tokens(2000000000); }, kInvalid,
     "sampling.max_tokens"},
    {"min_tokens negative", [](auto* r) { S(r)->set_min_tokens(-1); }, kInvalid,
     "sampling.min_tokens"},
    {"min_tokens above max_tokens",
     [](auto* r) {
       S(r)->set_max_tokens(3);
       S(r)->set_min_tokens(4);
     },
     kInvalid, "sampling.min_tokens"},
    {"temperature NaN", [](auto* r) { S(r)->set_temperature(kNaN); }, kInvalid,
     "sampling.temperature"},
    {"temperature negative", [](auto* r) { S(r)->set_temperature(-0.1); }, kInvalid,
     "sampling.temperature"},
    {"temperature infinite", [](auto* r) { S(r)->set_temperature(kInf); }, kInvalid,
     "sampling.temperature"},
    {"top_k negative", [](auto* r) { S(r)->set_top_k(-1); }, kInvalid, "sampling.top_k"},
    {"top_p zero", [](auto* r) { S(r)->set_top_p(0); }, kInvalid, "sampling.top_p"},
    {"top_p above one", [](auto* r) { S(r)->set_top_p(1.01); }, kInvalid, "sampling.top_p"},
    {"min_p NaN", [](auto* r) { S(r)->set_min_p(kNaN); }, kInvalid, "sampling.min_p"},
    {"repetition_penalty zero", [](auto* r) { S(r)->set_repetition_penalty(0); }, kInvalid,
     "sampling.repetition_penalty"},
    {"presence_penalty above two", [](auto* r) { S(r)->set_presence_penalty(2.5); }, kInvalid,
     "sampling.presence_penalty"},
    {"frequency_penalty NaN", [](auto* r) { S(r)->set_frequency_penalty(kNaN); }, kInvalid,
     "sampling.frequency_penalty"},
    {"logit_bias for no token", [](auto* r) { (*S(r)->mutable_logit_bias())[kFakeVocab] = 1; },
     kInvalid, "sampling.logit_bias"},
    {"logit_bias NaN", [](auto* r) { (*S(r)->mutable_logit_bias())[1] = kNaN; }, kInvalid,
     "sampling.logit_bias"},
    {"too many stop strings",
     [](auto* r) {
       for (int i = 0; i < 17; ++i) S(r)->add_stop("x");
     },
     kInvalid, "sampling.stop"},
    {"empty stop string", [](auto* r) { S(r)->add_stop(""); }, kInvalid, "sampling.stop"},
    {"stop_token_ids for no token", [](auto* r) { S(r)->add_stop_token_ids(-2); }, kInvalid,
     "sampling.stop_token_ids"},
    {"logprobs above 20", [](auto* r) { S(r)->set_logprobs(21); }, kInvalid, "sampling.logprobs"},
    {"logprobs negative", [](auto* r) { S(r)->set_logprobs(-1); }, kInvalid, "sampling.logprobs"},
    {"unknown route", [](auto* r) { r->set_route(static_cast<v1::Route>(77)); }, kInvalid, "route"},
    {"route the operator excludes", [](auto* r) { r->set_route(v1::ROUTE_LINEAR); }, kInvalid,
     "route: linear is not allowed here; allowed: full, local, routed"},
    {"cost_weight NaN", [](auto* r) { Routed(r)->set_cost_weight(static_cast<float>(kNaN)); },
     kInvalid, "cost_weight"},
    {"cost_weight negative", [](auto* r) { Routed(r)->set_cost_weight(-1); }, kInvalid,
     "cost_weight"},
    {"cost_weight past the operator's bound", [](auto* r) { Routed(r)->set_cost_weight(3); },
     kInvalid, "cost_weight: 3 is outside [0, 2.5]"},
    {"cost_weight of a forced route", [](auto* r) { r->set_cost_weight(1); }, kInvalid,
     "cost_weight"},
    {"eta NaN", [](auto* r) { Routed(r)->set_eta(static_cast<float>(kNaN)); }, kInvalid, "eta"},
    {"eta past the operator's bound", [](auto* r) { Routed(r)->set_eta(0.125f); }, kInvalid,
     "eta: 0.125 is outside [0.25, 1]"},
    {"eta of a forced route", [](auto* r) { r->set_eta(1); }, kInvalid, "eta"},
    {"request_id too long", [](auto* r) { r->set_request_id(std::string(129, 'i')); }, kInvalid,
     "request_id"},
    {"deadline NaN", [](auto* r) { r->set_deadline_seconds(kNaN); }, kInvalid, "deadline_seconds"},
    {"deadline negative", [](auto* r) { r->set_deadline_seconds(-1); }, kInvalid,
     "deadline_seconds"},
    {"deadline passed", [](auto* r) { r->set_deadline_seconds(0); },
     absl::StatusCode::kDeadlineExceeded, "deadline_seconds"},
};

TEST(Convert, EveryRowOfTheRefusalTableGivesItsCodeAndNamesItsField) {
  const auto served = Bounded();
  for (const Refusal& row : kRefusals) {
    v1::GenerateRequest request;
    request.set_text("hello");
    row.change(&request);
    const auto result = ToEngine(request, *served);
    ASSERT_FALSE(result.ok()) << row.name;
    EXPECT_EQ(result.status().code(), row.code) << row.name << ": " << result.status();
    const std::string message(result.status().message());
    EXPECT_EQ(message.rfind(row.field, 0), 0u) << row.name << ": " << message;
  }
}

TEST(Convert, TheReadmeListsEveryRefusal) {
  std::ifstream file(test::SourcePath("rpc/README.md"));
  std::ostringstream readme;
  readme << file.rdbuf();
  for (const Refusal& row : kRefusals) {
    const std::string cell =
        std::string("| ") + row.name + " | " + absl::StatusCodeToString(row.code) + " | `";
    EXPECT_NE(readme.str().find(cell), std::string::npos) << "no row '" << cell << "'";
  }
}

TEST(Convert, ChatIsRefusedWhereTheModelHasNoTemplate) {
  auto served = FakeServed(nullptr);
  served->apply_chat = nullptr;
  served->chat_error = "unknown template, name one with --chat-template";
  v1::GenerateRequest request;
  request.mutable_chat()->add_messages()->set_role("user");
  const auto result = ToEngine(request, *served);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(result.status().message()).find("--chat-template"), std::string::npos);
}

TEST(Convert, EverythingTheClientSetsReachesTheEngine) {
  const auto served = FakeServed(nullptr);
  v1::GenerateRequest request;
  request.set_model("fake");
  request.set_text("hi");
  v1::SamplingParams* s = request.mutable_sampling();
  s->set_temperature(0.7);
  s->set_top_k(40);
  s->set_top_p(0.9);
  s->set_min_p(0.05);
  s->set_repetition_penalty(1.1);
  s->set_presence_penalty(0.5);
  s->set_frequency_penalty(-0.5);
  (*s->mutable_logit_bias())[65] = -100;
  s->set_seed(77);
  s->add_stop("END");
  s->add_stop_token_ids(10);
  s->set_ignore_eos(true);
  s->set_max_tokens(12);
  s->set_min_tokens(2);
  s->set_logprobs(3);
  request.set_route(v1::ROUTE_LOCAL);
  request.set_priority(-4);
  request.set_deadline_seconds(2.5);
  request.set_request_id("r1");
  const auto result = ToEngine(request, *served);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->prompt, (std::vector<std::int32_t>{256, 'h', 'i'}));
  const SamplingParams& p = result->sampling;
  EXPECT_EQ(p.temperature, 0.7);
  EXPECT_EQ(p.top_k, 40);
  EXPECT_EQ(p.top_p, 0.9);
  EXPECT_EQ(p.min_p, 0.05);
  EXPECT_EQ(p.repetition_penalty, 1.1);
  EXPECT_EQ(p.presence_penalty, 0.5);
  EXPECT_EQ(p.frequency_penalty, -0.5);
  EXPECT_EQ(p.logit_bias, (std::vector<std::pair<std::int32_t, double>>{{65, -100}}));
  EXPECT_EQ(p.seed, 77u);
  EXPECT_EQ(p.stop, std::vector<std::string>{"END"});
  EXPECT_EQ(p.stop_token_ids, std::vector<std::int32_t>{10});
  EXPECT_TRUE(p.ignore_eos);
  EXPECT_EQ(p.max_tokens, 12);
  EXPECT_EQ(p.min_tokens, 2);
  EXPECT_EQ(p.logprobs, 3);
  EXPECT_EQ(result->wish.route, Route::kLocal);
  EXPECT_EQ(result->priority, -4);
  EXPECT_EQ(result->deadline_s, 2.5);
  EXPECT_EQ(result->request_id, "r1");
}

TEST(Convert, UnsetFieldsKeepTheEnginesDefaults) {
  auto served = FakeServed(nullptr);
  v1::GenerateRequest request;
  request.set_text("hi");
  const auto result = ToEngine(request, *served);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->wish.route || result->wish.cost_weight || result->wish.eta);
  EXPECT_FALSE(result->sampling.seed.has_value());
  EXPECT_FALSE(result->deadline_s.has_value());
  EXPECT_EQ(result->sampling.max_tokens, 0);
  EXPECT_EQ(result->sampling.logprobs, -1);
  EXPECT_EQ(result->sampling.temperature, SamplingParams().temperature);
}

TEST(Convert, RoutingWishesReachTheEngineAndNeedARouteOnlyWhereTheDefaultIsAnother) {
  const auto served = FakeServed(nullptr);
  v1::GenerateRequest request;
  request.set_text("hi");
  Routed(&request)->set_cost_weight(2);
  request.set_eta(0.5f);
  const auto result = ToEngine(request, *served);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->wish.route, Route::kRouted);
  EXPECT_EQ(result->wish.cost_weight, 2);
  EXPECT_EQ(result->wish.eta, 0.5f);
  served->controller = nullptr;
  EXPECT_EQ(ToEngine(request, *served).status().code(), kInvalid);
}

TEST(Convert, TheLastEventCarriesUsageTimingsAndReason) {
  GenerationEvent event;
  event.finish = FinishReason::kStop;
  event.stop_match = "END";
  event.usage = {10, 4, 7, 1};
  event.timings = {0.25, 0.5, 2.0};
  event.seed = 9;
  event.tokens.push_back({65, -0.5f, {{65, -0.5f}, {66, -1.5f}}});
  v1::GenerateResponse response;
  AppendEvent(event, FakeTokenizer(), &response);
  ASSERT_EQ(response.tokens_size(), 1);
  EXPECT_EQ(response.tokens(0).top(1).text(), "B");
  const v1::Finish& finish = response.finish();
  EXPECT_EQ(finish.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(finish.stop_match(), "END");
  EXPECT_EQ(finish.usage().cached_tokens(), 4);
  EXPECT_EQ(finish.usage().preemptions(), 1);
  EXPECT_EQ(finish.timings().time_to_first_token_seconds(), 0.5);
  EXPECT_EQ(finish.seed(), 9u);
}

}  // namespace
}  // namespace metattn
