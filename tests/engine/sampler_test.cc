#include "engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "engine/counter_random.h"
#include "engine/logit_ops.h"

namespace metattn {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

GeneratedToken Take(std::vector<float> logits, const SamplingParams& params,
                    const SampleContext& context = {}) {
  return Sample(logits, params, context);
}

// Vectors of the generator's authors (kat_vectors of Random123).
TEST(CounterRandom, PhiloxAgreesWithThePublishedVectors) {
  using Words = std::array<std::uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(CounterRandom, UniformDependsOnSeedAndPositionOnly) {
  EXPECT_EQ(CounterUniform(0, 0), static_cast<double>(0xe169c58d6627e8d5u >> 11) * 0x1p-53);
  EXPECT_EQ(CounterUniform(5, 6), CounterUniform(5, 6));
  EXPECT_NE(CounterUniform(5, 6), CounterUniform(6, 5));
  EXPECT_NE(CounterUniform(5, 6), CounterUniform(5 + (1ull << 32), 6));
  EXPECT_NE(CounterUniform(5, 6), CounterUniform(5, 6 + (1ull << 32)));
}

TEST(CounterRandom, UniformIsUniformOverSeedsAndOverPositions) {
  for (const bool over_seeds : {true, false}) {
    std::vector<int> bins(64);
    constexpr int kDraws = 64000;
    for (int i = 0; i < kDraws; ++i) {
      const auto n = static_cast<std::uint64_t>(i);
      const double u = over_seeds ? CounterUniform(n, 3) : CounterUniform(3, n);
      ASSERT_GE(u, 0.0);
      ASSERT_LT(u, 1.0);
      ++bins[static_cast<std::size_t>(u * 64)];
    }
    double chi = 0;
    for (const int count : bins) chi += (count - 1000.0) * (count - 1000.0) / 1000.0;
    EXPECT_LT(chi, 115);  // 63 degrees of freedom, p = 6e-5
  }
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowerIdOfATie) {
  EXPECT_EQ(Take({1, 3, 2}, {}).id, 1);
  EXPECT_EQ(Take({1, 3, 3, 3}, {}).id, 1);
  std::vector<float> row(1000, -5.0f);
  row[999] = row[700] = row[300] = 2;
  EXPECT_EQ(Take(row, {}).id, 300);
  EXPECT_EQ(Take({-0.0f, 0.0f}, {}).id, 0);
}

TEST(Sampler, TheLargestAloneDecidesOnlyWhereNothingElseIsAsked) {
  EXPECT_TRUE(TakesLargest({}, {}));
  SamplingParams filters;  // matter to draws only
  filters.top_k = 3;
  filters.top_p = 0.5;
  filters.min_p = 0.1;
  EXPECT_TRUE(TakesLargest(filters, {}));
  const auto takes = [](void (*change)(SamplingParams&)) {
    SamplingParams p;
    change(p);
    return TakesLargest(p, {});
  };
  EXPECT_FALSE(takes([](SamplingParams& p) { p.temperature = 0.5; }));
  EXPECT_FALSE(takes([](SamplingParams& p) { p.logprobs = 0; }));
  EXPECT_FALSE(takes([](SamplingParams& p) { p.logit_bias = {{1, 2.0}}; }));
  EXPECT_FALSE(takes([](SamplingParams& p) { p.repetition_penalty = 1.1; }));
  EXPECT_FALSE(takes([](SamplingParams& p) { p.presence_penalty = 0.1; }));
  EXPECT_FALSE(takes([](SamplingParams& p) { p.frequency_penalty = 0.1; }));
  const std::vector<std::int32_t> forbidden = {1};
  SampleContext context;
  context.forbidden = forbidden;
  EXPECT_FALSE(TakesLargest({}, context));
}

TEST(Sampler, NanCountsAsMinusInfinity) {
  EXPECT_EQ(Take({kNan, 1, kNan, 2}, {}).id, 3);
  SamplingParams p;
  p.temperature = 1;
  for (std::uint64_t i = 0; i < 200; ++i) {
    SampleContext context;
    context.position = i;
    EXPECT_EQ(Take({kNan, kNan, 1, kNan}, p, context).id, 2);
  }
  p.logprobs = 3;
  const GeneratedToken token = Take({kNan, 0, 0}, p);
  EXPECT_NEAR(*token.logprob, -std::log(2.0), 1e-6);
  EXPECT_EQ(token.top.size(), 2u);  // NaN is never among the likely
}

TEST(Sampler, ARowWithoutAnyChoiceGivesIdZero) {
  SamplingParams p;
  p.logprobs = 1;
  for (const double temperature : {0.0, 1.0}) {
    p.temperature = temperature;
    EXPECT_EQ(Take({-kInf, kNan, -kInf}, p).id, 0);
    EXPECT_EQ(*Take({-kInf, kNan}, p).logprob, -kInf);
  }
}

TEST(Sampler, InfiniteLogitsShareTheProbability) {
  SamplingParams p;
  p.temperature = 1;
  p.logprobs = 0;
  int second = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    SampleContext context;
    context.position = i;
    const GeneratedToken token = Take({3, kInf, kInf}, p, context);
    EXPECT_NEAR(*token.logprob, -std::log(2.0), 1e-6);
    ASSERT_NE(token.id, 0);
    second += token.id == 1 ? 1 : 0;
  }
  EXPECT_NEAR(second, 500, 80);
}

TEST(Sampler, ForbiddenIdsAreNotChosen) {
  const std::vector<std::int32_t> forbidden = {1, 2};
  SampleContext context;
  context.forbidden = forbidden;
  EXPECT_EQ(Take({0, 5, 4, 1}, {}, context).id, 3);
}

TEST(Sampler, BiasIsAddedBeforeTheChoice) {
  SamplingParams p;
  p.logit_bias = {{0, 10.0}, {1, -100.0}};
  EXPECT_EQ(Take({0, 5, 4}, p).id, 0);
}

TEST(Sampler, RepetitionPenaltyCoversPromptAndOutputOnce) {
  SamplingParams p;
  p.repetition_penalty = 2;
  p.logprobs = 3;
  const std::vector<std::int32_t> prompt = {0, 0}, output = {1, 0};
  SampleContext context;
  context.prompt = prompt;
  context.output = output;
  // 4 -> 2, -1 -> -2, 1 stays.
  const GeneratedToken token = Take({4, -1, 1}, p, context);
  EXPECT_EQ(token.id, 0);
  const double lse = std::log(std::exp(2.0) + std::exp(-2.0) + std::exp(1.0));
  EXPECT_NEAR(token.top[0].logprob, 2 - lse, 1e-6);
  EXPECT_NEAR(token.top[1].logprob, 1 - lse, 1e-6);
  EXPECT_NEAR(token.top[2].logprob, -2 - lse, 1e-6);
}

TEST(Sampler, PresenceAndFrequencyPenaltiesCountTheOutputOnly) {
  SamplingParams p;
  p.presence_penalty = 0.5;
  p.frequency_penalty = 0.25;
  p.logprobs = 2;
  const std::vector<std::int32_t> prompt = {1, 1, 1}, output = {0, 0, 0};
  SampleContext context;
  context.prompt = prompt;
  context.output = output;
  const GeneratedToken token = Take({1, 0}, p, context);  // 1 - 0.5 - 0.75 = -0.25
  EXPECT_EQ(token.id, 1);
  EXPECT_NEAR(token.top[0].logprob - token.top[1].logprob, 0.25, 1e-6);
}

TEST(Sampler, ScratchIsCleanAfterPenalties) {
  SamplingParams penal;
  penal.repetition_penalty = 2;
  penal.frequency_penalty = 1;
  const std::vector<std::int32_t> ids = {0, 1, 2};
  SampleContext context;
  context.prompt = ids;
  context.output = ids;
  const int before = Take({4, 3, 2, 1.5f}, penal, context).id;
  EXPECT_EQ(Take({4, 3, 2, 1.5f}, penal, context).id, before);
  EXPECT_EQ(before, 3);
  EXPECT_EQ(Take({4, 3, 2, 1.5f}, penal).id, 0);  // nothing generated yet, nothing left behind
}

TEST(Sampler, LogprobsAreOfTheDistributionBeforeTemperature) {
  SamplingParams p;
  p.temperature = 0.01;
  p.top_k = 1;
  p.logprobs = 2;
  const GeneratedToken token = Take({1, 2, 0}, p);
  const double lse = std::log(std::exp(1.0) + std::exp(2.0) + 1.0);
  EXPECT_EQ(token.id, 1);
  EXPECT_NEAR(*token.logprob, 2 - lse, 1e-6);
  ASSERT_EQ(token.top.size(), 2u);
  EXPECT_EQ(token.top[0].id, 1);
  EXPECT_EQ(token.top[1].id, 0);
  EXPECT_NEAR(token.top[1].logprob, 1 - lse, 1e-6);
}

TEST(Sampler, WithoutLogprobsThereAreNone) {
  const GeneratedToken token = Take({1, 2, 0}, {});
  EXPECT_FALSE(token.logprob.has_value());
  EXPECT_TRUE(token.top.empty());
}

TEST(Sampler, ATinyTemperatureIsGreedy) {
  SamplingParams p;
  p.temperature = 1e-300;
  EXPECT_EQ(Take({1, 2, 1.9999999f}, p).id, 1);
}

// Error bounds as the header states them, against libm.
TEST(LogitOps, ExponentialsAreAsAccurateAsStated) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-90, 0);
  for (const std::size_t n : {1u, 15u, 63u, 64u, 65u, 1000u, 4096u}) {
    std::vector<float> x(n), weights(n), maxima(LogitChunks(n));
    std::vector<double> sums(LogitChunks(n));
    for (float& v : x) v = uniform(random);
    x[n / 2] = 0;
    ASSERT_EQ(MaxPerChunk(x, maxima), 0.0f);
    const double total = ExpScaled(x, 0, 1, weights, sums);
    double truth = 0, of_weights = 0, of_sums = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double e = std::exp(static_cast<double>(x[i]));
      truth += e;
      of_weights += static_cast<double>(weights[i]);
      if (x[i] > -85) {
        ASSERT_NEAR(weights[i], e, 4e-7 * e) << x[i];
      } else {
        ASSERT_LE(weights[i], 2e-37f);
      }
    }
    for (const double s : sums) of_sums += s;
    EXPECT_NEAR(total, truth, 4e-7 * truth);
    EXPECT_NEAR(total, of_weights, 1e-12 * total);
    EXPECT_NEAR(total, of_sums, 1e-12 * total);
    EXPECT_NEAR(SumExp(x, 0), truth, 1e-11 * truth);
  }
}

}  // namespace
}  // namespace metattn
