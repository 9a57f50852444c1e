// The routing policy as requests feel it: which policy their tokens are computed under, and when.
#include <map>
#include <mutex>

#include "engine/model/page_pool.h"
#include "engine/scheduler.h"
#include "tests/engine/engine_fixture.h"
#include "tests/support/fake_controller.h"

namespace metattn {
namespace {

class EngineRoutingTest : public EngineTest {
 protected:
  EngineRoutingTest() { controller_ = &fake_; }

  // What every token of a sequence was computed under, by id and position.
  using Seen = std::map<std::uint64_t, std::map<int, RoutePolicy>>;

  void StartWatched(std::int64_t blocks = 64) {
    Start(blocks);
    worker_->on_step = [this](const StepPlan& plan) {
      std::lock_guard lock(mutex_);
      std::size_t row = 0;
      for (const StepSequence& s : plan.sequences) {
        blocks_[s.id] = s.blocks;
        for (int i = 0; i < s.rows; ++i, ++row) seen_[s.id][s.start + i] = plan.policy[row];
      }
    };
  }
  std::map<int, RoutePolicy> PoliciesOf(std::uint64_t id) {
    std::lock_guard lock(mutex_);
    return seen_[id];
  }
  RoutingPolicy Set(const RoutingChange& change) {
    auto policy = engine_->SetRouting(change);
    EXPECT_TRUE(policy.ok()) << policy.status();
    return policy.value_or(RoutingPolicy());
  }
  std::uint64_t RunToEnd(const GenerationRequest& request, Recorder& recorder) {
    const std::uint64_t id = Submit(request, recorder);
    EXPECT_TRUE(recorder.WaitDone());
    return id;
  }

  FakeController fake_;
  std::mutex mutex_;
  Seen seen_;
  std::map<std::uint64_t, std::vector<std::int32_t>> blocks_;
};

const RoutePolicy kDefault = {Route::kRouted, 0.25f, 0.75f};  // FakeController's

TEST_F(EngineRoutingTest, RequestsGetTheDefaultOrTheirOwnWish) {
  StartWatched();
  Recorder first, second;
  const auto open = RunToEnd(Prompt(10, 5), first);
  GenerationRequest own = Prompt(10, 5, 3);
  own.wish = {.cost_weight = 2.f, .eta = 0.5f};
  const auto named = RunToEnd(own, second);
  for (const auto& [position, policy] : PoliciesOf(open)) EXPECT_EQ(policy, kDefault) << position;
  for (const auto& [position, policy] : PoliciesOf(named)) {
    EXPECT_EQ(policy, (RoutePolicy{Route::kRouted, 2, 0.5f})) << position;
  }
}

TEST_F(EngineRoutingTest, AWishOutsideTheBoundsIsRefusedAndABadChangeChangesNothing) {
  options_.routing.max_cost_weight = 1.f;
  Start();
  GenerationRequest request = Prompt(5, 1);
  request.wish.cost_weight = 2.f;
  ExpectRefused(request, absl::StatusCode::kInvalidArgument, "cost_weight: 2 is outside [0, 1]");
  const RoutingPolicy before = engine_->Routing().policy;
  RoutingChange bad;
  bad.eta = 0.25f;
  bad.cost_weight = 5.f;
  EXPECT_EQ(engine_->SetRouting(bad).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine_->Routing().policy, before);
}

TEST_F(EngineRoutingTest, BadStartingPoliciesAreRefused) {
  options_.routing.elastic = true;
  model_options_.deterministic = true;
  worker_ = std::make_unique<OracleWorker>(64, 8, 128, controller_);
  const auto engine =
      Engine::Create(options_, model_options_, config_, *worker_, tokenizer_, &observer_);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(engine.status().message()), testing::HasSubstr("--deterministic"));
}

TEST_F(EngineRoutingTest, AChangeReachesARunningRequestAtOneStepAndWhatItComputedStays) {
  StartWatched();
  Recorder recorder;
  const auto id = Submit(Prompt(100, 1500), recorder);
  ASSERT_TRUE(recorder.WaitTokens(20));
  RoutingChange change;
  change.cost_weight = 1.f;
  Set(change);
  ASSERT_TRUE(recorder.WaitDone());
  const auto policies = PoliciesOf(id);
  ASSERT_EQ(policies.begin()->second, kDefault);
  ASSERT_EQ(policies.rbegin()->second, (RoutePolicy{Route::kRouted, 1, 0.75f}));
  int changes = 0;
  for (auto at = policies.begin(), next = std::next(at); next != policies.end(); at = next++) {
    changes += at->second != next->second;
  }
  EXPECT_EQ(changes, 1);
}

TEST_F(EngineRoutingTest, TheKillSwitchForcesFullForEveryoneAndGivesBackWhatWasTheirs) {
  StartWatched();
  GenerationRequest local = Prompt(40, 600, 5);
  local.wish.route = Route::kLocal;
  Recorder routed_recorder, local_recorder;
  const auto routed_id = Submit(Prompt(40, 600), routed_recorder);
  const auto local_id = Submit(local, local_recorder);
  ASSERT_TRUE(routed_recorder.WaitTokens(10) && local_recorder.WaitTokens(10));
  RoutingChange change;
  change.force_full = true;
  Set(change);
  WaitFor([&] {
    return PoliciesOf(routed_id).rbegin()->second == RoutePolicy{} &&
           PoliciesOf(local_id).rbegin()->second == RoutePolicy{};
  });
  // The snapshot is taken after the step whose plan was seen.
  WaitFor([&] { return engine_->Snapshot().force_full; });
  change.force_full = false;
  Set(change);
  ASSERT_TRUE(routed_recorder.WaitDone() && local_recorder.WaitDone());
  EXPECT_EQ(PoliciesOf(routed_id).rbegin()->second, kDefault);
  EXPECT_EQ(PoliciesOf(local_id).rbegin()->second, (RoutePolicy{Route::kLocal}));
  WaitFor([&] { return !engine_->Snapshot().force_full; });
}

// The chain of the blocks that a request's prompt fills, from what the plans said.
std::vector<BlockHash> Chain(const std::vector<std::int32_t>& tokens,
                             const std::map<int, RoutePolicy>& policies) {
  std::vector<BlockHash> chain;
  BlockHash parent = SeedHash("test");
  for (std::size_t b = 0; (b + 1) * kBlockTokens <= tokens.size(); ++b) {
    std::vector<RoutePolicy> policy;
    for (std::size_t i = 0; i < kBlockTokens; ++i) {
      policy.push_back(policies.at(static_cast<int>(b * kBlockTokens + i)));
    }
    parent = ChainHash(parent, std::span(tokens).subspan(b * kBlockTokens, kBlockTokens), policy);
    chain.push_back(parent);
  }
  return chain;
}

TEST_F(EngineRoutingTest, BlocksMadeUnderAnotherPolicyAreNeverReused) {
  StartWatched();
  const GenerationRequest request = Prompt(200, 2);
  const auto run = [&](Recorder& recorder) { return RunToEnd(request, recorder); };
  Recorder first, again, other, forced, back;
  const auto first_id = run(first);
  EXPECT_EQ(first.last().usage.cached_tokens, 0);
  run(again);
  EXPECT_EQ(again.last().usage.cached_tokens, 192);  // three whole blocks, the same policy
  RoutingChange change;
  change.cost_weight = 0.5f;
  Set(change);
  const auto other_id = run(other);
  EXPECT_EQ(other.last().usage.cached_tokens, 0);
  change = {};
  change.force_full = true;
  Set(change);
  const auto forced_id = run(forced);
  EXPECT_EQ(forced.last().usage.cached_tokens, 0);
  change.force_full = false;
  change.cost_weight = 0.25f;
  Set(change);
  run(back);
  EXPECT_EQ(back.last().usage.cached_tokens, 192);  // the first one's, still there
  const auto a = Chain(request.prompt, PoliciesOf(first_id));
  const auto b = Chain(request.prompt, PoliciesOf(other_id));
  const auto c = Chain(request.prompt, PoliciesOf(forced_id));
  ASSERT_EQ(a.size(), 3u);
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(a[i] != b[i] && b[i] != c[i] && a[i] != c[i]) << "block " << i;
  }
  for (const auto& [one, two] : {std::pair(first_id, other_id), std::pair(first_id, forced_id),
                                 std::pair(other_id, forced_id)}) {
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NE(blocks_[one][i], blocks_[two][i]);
  }
}

// A sequence that is preempted after `forced` has come, and computed again.
std::vector<RoutePolicy> ComputedAgain(bool forget) {
  Scheduler scheduler({.blocks = 4, .max_batch_tokens = 256, .max_context = 512});
  const std::vector<std::int32_t> prompt(100, 1), longer(190, 2);
  EXPECT_TRUE(scheduler.Add({1, prompt, 10, 1, kDefault}).ok());
  EXPECT_TRUE(scheduler.Next().has_value());
  scheduler.Complete(std::vector<std::int32_t>{5});
  EXPECT_TRUE(scheduler.Add({2, longer, 1, 0, kDefault}).ok());
  scheduler.SetPolicy(1, {});
  const auto preempting = scheduler.Next();
  EXPECT_EQ(preempting->preempted, std::vector<std::uint64_t>{1});
  scheduler.Complete(std::vector<std::int32_t>{6});
  scheduler.Remove(2);
  if (forget) scheduler.ForgetPolicies(1);
  return scheduler.Next()->plan.policy;
}

TEST(SchedulerPolicies, WhatIsComputedAgainKeepsItsPolicyUnlessThatIsForgotten) {
  std::vector<RoutePolicy> kept(36, kDefault);  // the first 64 are found again
  kept.push_back({});
  EXPECT_EQ(ComputedAgain(false), kept);
  EXPECT_EQ(ComputedAgain(true), std::vector<RoutePolicy>(101));  // those are another's now
}

TEST_F(EngineRoutingTest, LoadRaisesLambdaOnItsLevelsAndItComesBackWhenAllIsQuiet) {
  options_.max_num_seqs = 1;
  options_.routing.elastic = true;
  options_.routing.queue_wait_s = 0.001;
  options_.elastic_raise_after_s = 0.02;
  options_.elastic_lower_after_s = 0.05;
  StartWatched();
  const auto watch = worker_->on_step;
  worker_->on_step = [watch](const StepPlan& plan) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    watch(plan);
  };
  Recorder running, waiting;
  const auto id = Submit(Prompt(10, 200), running);
  Submit(Prompt(10, 1, 9), waiting);
  ASSERT_TRUE(running.WaitDone() && waiting.WaitDone());
  std::vector<float> levels;  // in the order of tokens
  for (const auto& [position, policy] : PoliciesOf(id)) {
    EXPECT_EQ(policy.eta, 0.75f);
    if (levels.empty() || levels.back() != policy.cost_weight) levels.push_back(policy.cost_weight);
  }
  EXPECT_EQ(levels, (std::vector<float>{0.25f, 0.5f, 1, 2}));
  WaitFor([&] { return engine_->Snapshot().cost_weight == 0.25f; });  // no request runs any more
}

TEST_F(EngineRoutingTest, RoutingTellsWhatRoutingDid) {
  Start();
  Recorder recorder;
  RunToEnd(Prompt(100, 11), recorder);
  WaitFor([&] { return engine_->Routing().recent.bytes_dense == 110; });
  const RoutingState state = engine_->Routing();
  ASSERT_EQ(state.layers.size(), 1u);
  EXPECT_EQ(state.layers[0].bytes_dense, 110);  // of the fake worker: one per row
  EXPECT_EQ(state.cost_weight, 0.25f);
  EXPECT_EQ(state.cost_weight_levels, fake_.spec().cost_weight_levels);
}

}  // namespace
}  // namespace metattn
