// Who reads far pages for whom, and which rows: worked examples, and what holds for any ranks.
#include "engine/model/helper_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <random>

namespace metattn {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<Slice> Heads(const std::vector<int>& counts) {
  std::vector<Slice> slices;
  int begin = 0;
  for (const int count : counts) {
    slices.push_back({.head_begin = begin, .head_end = begin + count});
    begin += count;
  }
  return slices;
}

TEST(HelperPlanTest, ThreeHeadsOnTwoRanksShareTheMiddleOne) {
  const std::vector<double> equal = {1, 1};
  EXPECT_THAT(PlanHelpers(Heads({2, 1}), equal), ElementsAre(HelperLink{0, 1, 1, 0.5}));
  EXPECT_THAT(PlanHelpers(Heads({1, 2}), equal), ElementsAre(HelperLink{1, 0, 2, 0.5}));
}

TEST(HelperPlanTest, NobodyHelpsWhereHeadsDivide) {
  EXPECT_THAT(PlanHelpers(Heads({2, 2}), std::vector<double>{1, 1}), IsEmpty());
  EXPECT_THAT(PlanHelpers(Heads({4, 2}), std::vector<double>{2, 1}), IsEmpty());
  EXPECT_THAT(PlanHelpers(Heads({3}), std::vector<double>{1}), IsEmpty());
  EXPECT_THAT(PlanHelpers(Heads({0, 0}), std::vector<double>{1, 1}), IsEmpty());
}

TEST(HelperPlanTest, ARankWithoutHeadsHelpsAll) {
  const auto links = PlanHelpers(Heads({1, 1, 1, 0}), std::vector<double>{1, 1, 1, 1});
  ASSERT_EQ(links.size(), 3);
  for (const HelperLink& link : links) {
    EXPECT_EQ(link.helper, 3);
    EXPECT_EQ(link.head, link.home);
    EXPECT_NEAR(link.share, 0.25, 1e-9);
  }
}

// Every rank ends with its share of all heads and no head is given away twice; where heads were cut
// as evenly as whole ones can be, there are fewer links than ranks.
TEST(HelperPlanTest, EveryRankEndsWithItsShare) {
  std::mt19937 engine(3);
  for (int trial = 0; trial < 500; ++trial) {
    const std::size_t ranks = 1 + engine() % 8;
    std::vector<int> counts;
    std::vector<double> weights;
    for (std::size_t r = 0; r < ranks; ++r) {
      counts.push_back(static_cast<int>(engine() % 5));
      weights.push_back(0.25 * (1 + engine() % 8));
    }
    const std::vector<Slice> slices = Heads(counts);
    const auto links = PlanHelpers(slices, weights);
    std::vector<double> loads(counts.begin(), counts.end());
    std::map<int, double> given;
    for (const HelperLink& link : links) {
      EXPECT_GT(link.share, 0);
      EXPECT_GE(link.head, slices[link.home].head_begin);
      EXPECT_LT(link.head, slices[link.home].head_end);
      loads[link.home] -= link.share;
      loads[link.helper] += link.share;
      given[link.head] += link.share;
    }
    for (const auto& [head, share] : given) EXPECT_LE(share, 1 + 1e-6) << head;
    const double heads = std::accumulate(counts.begin(), counts.end(), 0.0);
    const double weight = std::accumulate(weights.begin(), weights.end(), 0.0);
    bool even = true;
    for (std::size_t r = 0; r < ranks; ++r) {
      const double share = heads * weights[r] / weight;
      EXPECT_NEAR(loads[r], share, 1e-6);
      even = even && std::abs(counts[r] - share) < 1;
    }
    if (even) {
      EXPECT_LT(links.size(), ranks);
    }
  }
}

const HelperLink kHalf = {0, 1, 1, 0.5};

TEST(HelperPlanTest, TheLongestRowsGoAsFarAsTheyFit) {
  const std::vector<std::int32_t> far = {100, 700, 300, 300, 0};
  EXPECT_THAT(ChooseHelped(kHalf, far, std::vector<std::uint8_t>{1, 1, 1, 1, 1}),
              ElementsAre(0, 1, 0, 0, 0));
  EXPECT_THAT(ChooseHelped(kHalf, far, std::vector<std::uint8_t>{1, 0, 1, 1, 1}),
              ElementsAre(1, 0, 1, 1, 0));
  EXPECT_THAT(ChooseHelped({0, 1, 1, 0.25}, far, std::vector<std::uint8_t>{1, 1, 1, 1, 1}),
              ElementsAre(0, 0, 0, 1, 0));
}

TEST(HelperPlanTest, ALoneRowStaysAndOfTwoOneGoes) {
  EXPECT_THAT(ChooseHelped(kHalf, std::vector<std::int32_t>{640}, std::vector<std::uint8_t>{1}),
              ElementsAre(0));
  EXPECT_THAT(
      ChooseHelped(kHalf, std::vector<std::int32_t>{640, 640}, std::vector<std::uint8_t>{1, 1}),
      ElementsAre(0, 1));
}

TEST(HelperPlanTest, NeverMoreThanTheShareNorThanTheBucketHolds) {
  std::mt19937 engine(4);
  for (int trial = 0; trial < 500; ++trial) {
    const HelperLink link = {0, 1, 0, 0.01 * (1 + engine() % 100)};
    std::vector<std::int32_t> far;
    std::vector<std::uint8_t> free;
    for (std::size_t i = engine() % 20; i > 0; --i) {
      far.push_back(static_cast<std::int32_t>(engine() % 4 * 64));
      free.push_back(engine() % 2);
    }
    const auto helped = ChooseHelped(link, far, free);
    double tokens = 0, all = 0;
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < far.size(); ++i) {
      all += far[i];
      if (helped[i] == 0) continue;
      EXPECT_TRUE(free[i] != 0 && far[i] > 0);
      tokens += far[i];
      ++rows;
    }
    EXPECT_LE(tokens, link.share * all + 1e-6);
    EXPECT_LE(rows, BucketRows(link, std::ssize(far)));
  }
  EXPECT_EQ(BucketRows(kHalf, 3), 2);
  EXPECT_EQ(BucketRows(kHalf, 0), 0);
}

}  // namespace
}  // namespace metattn
