// Which rows the quality watch picks: routed decode rows only, by a draw of (sequence, position),
// and never more than there is room for.
#include "engine/shadow_rows.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace metattn {
namespace {

// A sequence that decodes its token at `position`, under `route`.
void AddDecode(StepPlan& plan, std::uint64_t id, std::int32_t position, Route route) {
  plan.sequences.push_back({.id = id, .start = position, .rows = 1});
  plan.policy.push_back({.route = route});
}

std::vector<std::int32_t> Picked(double rate, int most, StepPlan plan) {
  PickShadowRows(rate, most, plan);
  return plan.shadow_rows;
}

TEST(ShadowRows, OnlyRoutedRowsOfSequencesThatDecode) {
  StepPlan plan;
  AddDecode(plan, 1, 500, Route::kFull);
  plan.sequences.push_back({.id = 2, .start = 64, .rows = 3});  // a chunk of a prompt
  plan.policy.insert(plan.policy.end(), 3, {.route = Route::kRouted});
  plan.sequences.push_back({.id = 3, .start = 0, .rows = 1});  // a prompt of one token
  plan.policy.push_back({.route = Route::kRouted});
  AddDecode(plan, 4, 900, Route::kRouted);
  AddDecode(plan, 5, 900, Route::kLocal);
  AddDecode(plan, 6, 901, Route::kRouted);
  EXPECT_EQ(Picked(1.0, 8, plan), (std::vector<std::int32_t>{5, 7}));
  EXPECT_EQ(Picked(1.0, 1, plan), (std::vector<std::int32_t>{5}));
  EXPECT_EQ(Picked(1.0, 0, plan), (std::vector<std::int32_t>{}));
  EXPECT_EQ(Picked(0.0, 8, plan), (std::vector<std::int32_t>{}));
}

TEST(ShadowRows, TheShareOfPickedRowsIsTheRateAndRepeats) {
  constexpr int kSteps = 4000, kSequences = 4;
  int picked = 0;
  for (std::int32_t step = 0; step < kSteps; ++step) {
    StepPlan plan;
    for (std::uint64_t id = 1; id <= kSequences; ++id) {
      AddDecode(plan, id, 300 + step, Route::kRouted);
    }
    const std::vector<std::int32_t> rows = Picked(0.05, kMaxShadowRows, plan);
    EXPECT_EQ(Picked(0.05, kMaxShadowRows, plan), rows);
    picked += static_cast<int>(rows.size());
  }
  // 16,000 draws of .05: 800 with a standard deviation of 28.
  EXPECT_NEAR(picked, 800, 5 * 28);
}

}  // namespace
}  // namespace metattn
