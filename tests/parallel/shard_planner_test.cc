#include "parallel/shard_planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace metattn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

SliceShape RealModel() {
  return {.kv_heads = 3,
          .group = 3,
          .head_dim = 64,
          .hidden = 576,
          .ffn = 1536,
          .vocab = 49152,
          .column_unit = 32};
}

std::vector<Slice> Plan(const SliceShape& shape, const std::vector<double>& weights) {
  const auto slices = PlanSlices(shape, weights);
  EXPECT_TRUE(slices.ok()) << slices.status();
  return slices.ok() ? *slices : std::vector<Slice>{};
}

std::string Refusal(const SliceShape& shape, const std::vector<double>& weights) {
  const auto slices = PlanSlices(shape, weights);
  EXPECT_EQ(slices.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(slices.status().message());
}

TEST(ShardPlanner, TheWorkedExampleOfTheHeader) {
  EXPECT_THAT(Plan(RealModel(), {1, 1}),
              ElementsAre(Slice{0, 2, 0, 768, 0, 24576}, Slice{2, 3, 768, 1536, 24576, 49152}));
}

TEST(ShardPlanner, OneRankGetsEverything) {
  EXPECT_THAT(Plan(RealModel(), {0.3}), ElementsAre(Slice{0, 3, 0, 1536, 0, 49152}));
}

TEST(ShardPlanner, ThreeHeadsOnFourRanksLeaveTheLastWithColumnsAndVocabularyOnly) {
  EXPECT_THAT(
      Plan(RealModel(), {1, 1, 1, 1}),
      ElementsAre(Slice{0, 1, 0, 384, 0, 12288}, Slice{1, 2, 384, 768, 12288, 24576},
                  Slice{2, 3, 768, 1152, 24576, 36864}, Slice{3, 3, 1152, 1536, 36864, 49152}));
}

TEST(ShardPlanner, WeightsTwoToOneGiveTwiceTheWork) {
  EXPECT_THAT(Plan(RealModel(), {2, 1}),
              ElementsAre(Slice{0, 2, 0, 1024, 0, 32768}, Slice{2, 3, 1024, 1536, 32768, 49152}));
}

TEST(ShardPlanner, OnlyTheRatioOfWeightsMatters) {
  const auto even = Plan(RealModel(), {1, 1, 1});
  EXPECT_EQ(Plan(RealModel(), {1e-300, 1e-300, 1e-300}), even);
  EXPECT_EQ(Plan(RealModel(), {1e300, 1e300, 1e300}), even);
  EXPECT_EQ(Plan(RealModel(), {0.1 + 0.2, 0.3, 0.3}), even);
}

TEST(ShardPlanner, ALopsidedWorldStillGivesEveryRankAColumnUnitAndARow) {
  const auto slices = Plan(RealModel(), {1e6, 1, 1});
  ASSERT_EQ(slices.size(), 3u);
  for (const Slice& s : {slices[1], slices[2]}) {
    EXPECT_EQ(s.heads(), 0);
    EXPECT_EQ(s.ffn_end - s.ffn_begin, 32);
    EXPECT_GE(s.vocab_end - s.vocab_begin, 1);
  }
}

TEST(ShardPlanner, RefusesWhatCannotWorkWithASentence) {
  EXPECT_THAT(Refusal(RealModel(), {}), HasSubstr("at least one rank"));
  EXPECT_THAT(Refusal(RealModel(), {1, 0}), HasSubstr("weight of rank 1 is 0"));
  EXPECT_THAT(Refusal(RealModel(), {-1, 1}), HasSubstr("weight of rank 0 is -1"));
  EXPECT_THAT(Refusal(RealModel(), {1, std::numeric_limits<double>::quiet_NaN()}),
              HasSubstr("weight of rank 1 is nan"));
  EXPECT_THAT(Refusal(RealModel(), {1, std::numeric_limits<double>::infinity()}),
              HasSubstr("weight of rank 1 is inf"));
  EXPECT_THAT(Refusal(RealModel(), {1, 1e-12}), HasSubstr("too small beside the sum"));
  EXPECT_THAT(Refusal(RealModel(), std::vector<double>(49, 1.0)),
              HasSubstr("49 ranks are too many: the 1536 MLP columns can be cut into 48 slices"));
  SliceShape narrow = RealModel();
  narrow.group = 1;
  narrow.head_dim = 48;
  EXPECT_THAT(Refusal(narrow, {1, 1}), HasSubstr("48 columns of the output projection"));
  EXPECT_EQ(Plan(narrow, {1}).size(), 1u);  // nothing is cut on one rank
  SliceShape ragged = RealModel();
  ragged.ffn = 1500;
  EXPECT_THAT(Refusal(ragged, {1, 1}), HasSubstr("1500 MLP columns are no multiple"));
  SliceShape empty = RealModel();
  empty.kv_heads = 0;
  EXPECT_THAT(Refusal(empty, {1}), HasSubstr("0 KV heads"));
  SliceShape wordless = RealModel();
  wordless.vocab = 2;
  EXPECT_THAT(Refusal(wordless, {1, 1, 1}), HasSubstr("vocabulary of 2"));
}

struct Case {
  SliceShape shape;
  std::vector<double> weights;
};

Case RandomCase(std::mt19937& random) {
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  Case c;
  c.shape.column_unit = pick(0, 1) ? 32 : 1;
  c.shape.kv_heads = pick(1, 16);
  c.shape.group = pick(1, 8);
  c.shape.head_dim = 32 * pick(1, 4);
  c.shape.hidden = 64 * pick(1, 64);
  c.shape.ffn = c.shape.column_unit * pick(16, 600);
  c.shape.vocab = pick(100, 200000);
  c.weights.resize(pick(1, 12));
  const bool even = pick(0, 2) == 0;
  for (double& w : c.weights) w = even ? 1.0 : std::exp(pick(-20, 20) / 10.0);
  return c;
}

void ExpectExactOrderedCover(const Case& c, const std::vector<Slice>& slices) {
  ASSERT_EQ(slices.size(), c.weights.size());
  Slice at;
  for (const Slice& s : slices) {
    EXPECT_EQ(s.head_begin, at.head_end);
    EXPECT_EQ(s.ffn_begin, at.ffn_end);
    EXPECT_EQ(s.vocab_begin, at.vocab_end);
    EXPECT_GE(s.heads(), 0);
    EXPECT_GE(s.ffn_end - s.ffn_begin, c.shape.column_unit);
    EXPECT_EQ(s.ffn_end % c.shape.column_unit, 0);
    EXPECT_GT(s.vocab_end, s.vocab_begin);
    at = s;
  }
  EXPECT_EQ(at.head_end, c.shape.kv_heads);
  EXPECT_EQ(at.ffn_end, c.shape.ffn);
  EXPECT_EQ(at.vocab_end, c.shape.vocab);
}

// No rank that has columns to give (more than its minimum) has more per weight than another does,
// beyond what rounding to whole units of either can cause.
void ExpectEvenColumns(const Case& c, const std::vector<Slice>& slices) {
  const auto unit = static_cast<double>(c.shape.column_unit);
  const auto columns = [&](std::size_t r) {
    return static_cast<double>(slices[r].ffn_end - slices[r].ffn_begin);
  };
  for (std::size_t a = 0; a < slices.size(); ++a) {
    if (columns(a) <= unit) continue;
    for (std::size_t b = 0; b < slices.size(); ++b) {
      const double least_a = (columns(a) - unit) / c.weights[a];
      const double most_b = (columns(b) + unit) / c.weights[b];
      EXPECT_LE(least_a, most_b * (1 + 1e-9)) << "ranks " << a << " and " << b;
    }
  }
}

TEST(ShardPlanner, RandomCutsCoverExactlyInOrderAndFollowTheWeights) {
  std::mt19937 random(20240611);
  for (int round = 0; round < 3000; ++round) {
    SCOPED_TRACE(round);
    const Case c = RandomCase(random);
    const auto slices = PlanSlices(c.shape, c.weights);
    ASSERT_TRUE(slices.ok()) << slices.status();
    ExpectExactOrderedCover(c, *slices);
    ExpectEvenColumns(c, *slices);
    const double sum = std::accumulate(c.weights.begin(), c.weights.end(), 0.0);
    for (std::size_t r = 0; r < slices->size(); ++r) {  // largest remainder keeps its quota
      const double heads = c.shape.kv_heads * c.weights[r] / sum;
      EXPECT_LT(std::fabs((*slices)[r].heads() - heads), 1);
      if (c.weights.size() == 1) continue;
      const double rows = static_cast<double>(c.shape.vocab) * c.weights[r] / sum;
      const auto got = static_cast<double>((*slices)[r].vocab_end - (*slices)[r].vocab_begin);
      // The others' minimum rows may cost a few of its own.
      EXPECT_LT(std::fabs(got - rows), rows < 12 ? 13 : 12);
    }
    EXPECT_EQ(*PlanSlices(c.shape, c.weights), *slices);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace metattn
