// The real engine over the real model code, without --deterministic: answers agree within the
// measured bound, blocks of another route are never reused, cancellation and deadlines work.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <thread>

#include "tests/engine/serving_support.h"
#include "tests/support/isa_levels.h"
#include "tests/support/model_runner.h"
#include "tests/support/status_matchers.h"

namespace metattn::test {
namespace {

constexpr double kF32Rounding = 0x1p-23;
constexpr double kBf16Rounding = 0x1p-9;
constexpr std::int64_t kNoBlocksLost = 0;

LocalServerOptions OptionsFor(const std::string& isa) {
  LocalServerOptions options;
  options.model = ServingModel();
  options.isa = isa;
  return options;
}

// The level whose many-row kernels round activations to bf16 has the coarser format; in
// deterministic mode it does not use them.
double RoundingOf(const LocalServerOptions& o) {
  return testing::RoundsToBf16(o.isa) && !o.deterministic ? kBf16Rounding : kF32Rounding;
}

double BoundOf(const LocalServerOptions& o, std::span<const std::int32_t> tokens) {
  RunnerOptions run;
  run.device = o.device;
  run.isa = o.isa;
  run.deterministic = o.deterministic;
  run.window = o.window;
  run.sinks = o.sinks;
  const auto bound = MeasuredBound(o.model, tokens, run, RoundingOf(o));
  EXPECT_TRUE(bound.ok()) << bound.status();
  return bound.value_or(0);
}

// Greedy requests with what they get alone on one rank, and the bound of all of them.
struct Yardstick {
  std::vector<GenerationRequest> requests;
  std::vector<Answer> answers;
  double bound = 0;
};

Yardstick Measure(const LocalServerOptions& options, int count) {
  Yardstick y;
  LocalServerOptions one = options;
  one.ranks = 1;
  one.prefix_reuse = false;
  const auto server = Started(one);
  for (int i = 0; i < count; ++i) {
    y.requests.push_back(Greedy(Prompt(100 + i, 260 + 13 * i)));
    y.answers.push_back(server->Generate(y.requests.back()));
    y.bound = std::max(y.bound, BoundOf(one, Continued(y.requests.back(), y.answers.back())));
  }
  return y;
}

void CompareAll(const Yardstick& y, const std::vector<Answer>& answers, Agreement& agreement) {
  ASSERT_EQ(y.answers.size(), answers.size());
  for (std::size_t i = 0; i < answers.size(); ++i) {
    ASSERT_TRUE(answers[i].last.status.ok()) << answers[i].last.status;
    Compare(y.answers[i], answers[i], y.bound, agreement);
  }
}

std::vector<Answer> OneByOne(LocalServer& server, const std::vector<GenerationRequest>& requests) {
  std::vector<Answer> answers;
  for (const GenerationRequest& r : requests) answers.push_back(server.Generate(r));
  return answers;
}

class EveryIsa : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryIsa, AnswersAgreeWithinTheBoundWhateverTheBatchChunksAndReuse) {
  LocalServerOptions options = OptionsFor(GetParam());
  const bool tiles =
      testing::RoundsToBf16(GetParam());  // the others have one kernel for all row counts
  const Yardstick y = Measure(options, tiles ? 6 : 2);
  Agreement agreement;
  for (int budget : {16, 64, 512}) {
    options.max_num_batched_tokens = budget;
    const auto server = Started(options);
    CompareAll(y, OneByOne(*server, y.requests), agreement);
    CompareAll(y, OneByOne(*server, y.requests), agreement);  // now from reused blocks
    CompareAll(y, AmongOthers(*Started(options), y.requests), agreement);
  }
  EXPECT_EQ(agreement.error, "");
  EXPECT_GT(agreement.steps, agreement.answers * kAnswerTokens / 2)
      << "near ties left too little to compare";
  std::printf("%s: %s\n", GetParam().c_str(), agreement.Describe(y.bound).c_str());
  if (tiles) {
    EXPECT_GT(agreement.unequal, 0) << "other code ran than this test is about";
  }
}

TEST_P(EveryIsa, GreedyTokensAreEqualOnOneToFourRanksExceptAfterNearTies) {
  for (bool deterministic : {false, true}) {
    LocalServerOptions options = OptionsFor(GetParam());
    options.deterministic = deterministic;
    const Yardstick y = Measure(options, 3);
    Agreement agreement;
    for (int ranks : {2, 3, 4}) {
      options.ranks = ranks;
      CompareAll(y, OneByOne(*Started(options), y.requests), agreement);
    }
    EXPECT_EQ(agreement.error, "");
    EXPECT_GT(agreement.steps, agreement.answers * kAnswerTokens / 2)
        << "near ties left too little to compare";
    std::printf("%s%s, 2, 3 and 4 ranks against 1: %s\n", GetParam().c_str(),
                deterministic ? " --deterministic" : "", agreement.Describe(y.bound).c_str());
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, EveryIsa, ::testing::ValuesIn(Isas()),
                         [](const auto& info) { return info.param; });

// A step whose best two tokens are 4 and 5.
GeneratedToken Step(std::int32_t id, float four, float five) {
  GeneratedToken token{id, id == 4 ? four : five, {{4, four}, {5, five}}};
  if (five > four) std::swap(token.top[0], token.top[1]);
  return token;
}

TEST(Judge, AllowsWhatTheBoundAllowsAndNothingElse) {
  constexpr double kBound = 0.1;
  const auto judge = [](const std::vector<GeneratedToken>& expected,
                        const std::vector<GeneratedToken>& actual) {
    Agreement agreement;
    Compare({.tokens = expected}, {.tokens = actual}, kBound, agreement);
    return agreement;
  };
  const GeneratedToken clear = Step(4, -0.5f, -1.5f), tie = Step(4, -0.70f, -0.75f);
  EXPECT_EQ(judge({clear, tie}, {clear, tie}).unequal, 0);
  EXPECT_EQ(judge({clear, tie}, {clear, tie}).near_ties, 1);
  EXPECT_EQ(judge({clear}, {Step(4, -0.55f, -1.5f)}).error, "");
  EXPECT_EQ(judge({clear}, {Step(4, -0.55f, -1.5f)}).unequal, 1);
  EXPECT_NE(judge({clear}, {Step(4, -0.65f, -1.5f)}).error, "");
  EXPECT_NE(judge({clear}, {Step(4, -0.5f, -1.3f)}).error, "") << "the second best counts too";
  EXPECT_NE(judge({clear}, {Step(5, -0.5f, -1.5f)}).error, "") << "no near tie";
  EXPECT_NE(judge({clear}, {clear, clear}).error, "");
  // After a flip the contexts differ: what follows is not compared.
  const Agreement flip = judge({tie, clear}, {Step(5, -0.74f, -0.71f), Step(5, -3.0f, -0.2f)});
  EXPECT_EQ(flip.error, "");
  EXPECT_EQ(flip.flips, 1);
  EXPECT_EQ(flip.steps, 1);
}

TEST(Serving, BlocksOfAnotherRouteAreNeverReused) {
  for (Route before : {Route::kLocal, Route::kFull}) {
    const Route after = before == Route::kLocal ? Route::kFull : Route::kLocal;
    LocalServerOptions options = OptionsFor("");
    options.deterministic = true;
    GenerationRequest first = Greedy(Prompt(7)), second = first;
    first.wish.route = before;
    second.wish.route = after;
    const auto used = Started(options);
    const Answer theirs = used->Generate(first);
    const Answer ours = used->Generate(second);
    EXPECT_EQ(ours.last.usage.cached_tokens, 0);
    EXPECT_EQ(FirstDifference(Started(options)->Generate(second), ours), "");
    EXPECT_NE(FirstDifference(theirs, ours), "") << "if routes did not matter, nothing is proved";

    const Answer again = used->Generate(first);
    EXPECT_EQ(again.last.usage.cached_tokens, 256);
    EXPECT_EQ(FirstDifference(theirs, again), "");
    EXPECT_EQ(used->Generate(second).last.usage.cached_tokens, 256);
  }
}

TEST(Serving, ACancelledRequestEndsAndLeavesTheOthersAlone) {
  LocalServerOptions options = OptionsFor("");
  options.deterministic = true;
  options.ranks = 2;
  const GenerationRequest request = Greedy(Prompt(8));
  const Answer expected = Started(options)->Generate(request);
  const auto server = Started(options);
  std::promise<std::shared_ptr<Pending>> other;
  std::shared_future<std::shared_ptr<Pending>> victim = other.get_future().share();
  other.set_value(server->Submit(Greedy(Prompt(9), 600)));
  const auto kept = server->Submit(request, [&](std::size_t so_far) {
    if (so_far == 5) server->engine().Cancel(victim.get()->id);
  });
  const Answer cancelled = victim.get()->Wait();
  EXPECT_EQ(cancelled.last.finish, FinishReason::kCancelled);
  EXPECT_EQ(cancelled.last.status.code(), absl::StatusCode::kCancelled);
  EXPECT_GT(cancelled.tokens.size(), 0u);
  EXPECT_LT(cancelled.tokens.size(), 600u);
  EXPECT_EQ(FirstDifference(expected, kept->Wait()), "");
  EXPECT_TRUE(server->engine().Drain(10));
  EXPECT_EQ(server->engine().Snapshot().blocks_used, kNoBlocksLost);
  EXPECT_TRUE(server->End().ok());
}

TEST(Serving, ADeadlineEndsARequestThatRuns) {
  LocalServerOptions options = OptionsFor("");
  options.ranks = 2;
  const auto server = Started(options);
  GenerationRequest request = Greedy(Prompt(10, 100), 900);
  request.deadline_s = 0.3;
  const Answer answer = server
                            ->Submit(request,
                                     [](std::size_t so_far) {  // so that no machine is too fast
                                       if (so_far != 3) return;
                                       std::this_thread::sleep_for(std::chrono::milliseconds(350));
                                     })
                            ->Wait();
  EXPECT_EQ(answer.last.finish, FinishReason::kDeadline);
  EXPECT_THAT(answer.last.status, Fails(absl::StatusCode::kDeadlineExceeded, "deadline_s"));
  EXPECT_LE(answer.tokens.size(), 3u);
  EXPECT_TRUE(server->engine().Drain(10));
  EXPECT_EQ(server->engine().Snapshot().blocks_used, kNoBlocksLost);
  EXPECT_TRUE(server->End().ok());
}

TEST(Serving, ADeadlineEndsARequestThatWaits) {
  LocalServerOptions options = OptionsFor("");
  options.max_num_seqs = 1;
  options.ranks = 2;
  const auto server = Started(options);
  std::promise<std::shared_ptr<Pending>> queued, late;
  GenerationRequest request = Greedy(Prompt(10, 100), 400);
  const auto running = server->Submit(request, [&](std::size_t so_far) {
    if (so_far != 1) return;
    request.deadline_s = 0.01;
    queued.set_value(server->Submit(request));
    request.deadline_s = 0;
    late.set_value(server->Submit(request));
  });
  for (auto* pending : {&queued, &late}) {
    const Answer answer = pending->get_future().get()->Wait();
    EXPECT_EQ(answer.last.finish, FinishReason::kDeadline);
    EXPECT_THAT(answer.last.status, Fails(absl::StatusCode::kDeadlineExceeded, "deadline_s"));
    EXPECT_TRUE(answer.tokens.empty());
  }
  EXPECT_EQ(running->Wait().tokens.size(), 400u);
  EXPECT_TRUE(server->End().ok());
}

}  // namespace
}  // namespace metattn::test
