// How the cpu backend cuts attention into tiles and units: pure arithmetic.
#include "kernels/cpu/attention_plan.h"

#include <gtest/gtest.h>

#include "tests/kernels/attention_support.h"

namespace metattn::testing {
namespace {

TEST(AttentionPlanTest, UnitsCoverEverySpanOfEveryTileOnceWhateverTheThreads) {
  Rig rig({"ref", "", 1, false});
  const AttentionShape shape = {
      .heads = 2, .group = 3, .sequences = {{2000, 1}, {0, 100}, {900, 40}, {3, 0}}};
  AttentionWorld world(rig, shape, 7);
  const StepRows rows = world.Rows();
  for (int threads : {1, 2, 16}) {
    const cpu::AttentionPlan plan = cpu::PlanNear(rows.views, 2, {.group = 3, .threads = threads});
    std::vector<std::vector<int>> seen(static_cast<std::size_t>(plan.tile_count));
    for (int i = 0; i < plan.tile_count; ++i) {
      seen[i].resize(static_cast<std::size_t>(plan.tiles[i].spans));
    }
    for (int u = 0; u < plan.unit_count; ++u) {
      for (int s = plan.units[u].first; s < plan.units[u].end; ++s) {
        ++seen[plan.units[u].tile].at(s);
      }
    }
    int listed = 0;
    for (int i = 0; i < plan.tile_count; ++i) {
      for (int count : seen[i]) EXPECT_EQ(count, 1);
      EXPECT_LE(plan.tiles[i].rows * 3, cpu::kTileQueries);
      listed += plan.tiles[i].rows;
      if (threads == 1) {
        EXPECT_EQ(plan.tiles[i].units, 1);
      }
    }
    EXPECT_EQ(listed, 2 * rows.views.tokens);
  }
}

TEST(AttentionPlanTest, TwoThreadsShareTheOnlyLongRow) {
  Rig rig({"ref", "", 1, false});
  const AttentionShape shape = {.heads = 1, .group = 3, .sequences = {{4000, 1}}};
  AttentionWorld world(rig, shape, 8);
  const StepRows rows = world.Rows();
  const WorkList list = {.rows = rig.In(std::vector<std::int32_t>{0}),
                         .counts = rig.In(std::vector<std::int32_t>{1}),
                         .capacity = 1};
  const cpu::AttentionPlan plan = cpu::PlanFar(rows.views, list, 1, {.group = 3, .threads = 2});
  ASSERT_EQ(plan.tile_count, 1);
  EXPECT_EQ(plan.tiles[0].spans, (rows.far_end[0] + kSpanTokens - 1) / kSpanTokens);
  EXPECT_GE(plan.unit_count, 8);
  EXPECT_EQ(plan.partials, plan.tiles[0].spans * 3);
}

}  // namespace
}  // namespace metattn::testing
