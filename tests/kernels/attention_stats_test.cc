// NearArgs.stats: log-sum-exp of the sinks' scores and the mean score under P0, against their
// definitions in double; of eligible rows only, and free of the batch like the rest of attention.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "tests/kernels/attention_support.h"

namespace metattn::testing {
namespace {

std::vector<AttentionShape> StatsShapes() {
  return {
      {.heads = 3, .group = 3, .sequences = {{900, 1}, {0, 1}, {322, 1}, {257, 2}, {520, 1}}},
      {.heads = 2, .group = 3, .window = 64, .sequences = {{0, 200}}},
      {.heads = 1, .group = 1, .head_dim = 2, .window = 100, .sequences = {{30, 190}}},
      {.heads = 2, .group = 2, .head_dim = 80, .sinks = 0, .window = 32, .sequences = {{310, 40}}},
      {.heads = 1, .group = 7, .head_dim = 128, .window = 128, .sequences = {{600, 3}, {0, 17}}},
      {.group = 3, .sinks = 70, .window = 40, .exact = true, .sequences = {{0, 150}, {290, 20}}},
      {.group = 3, .sinks = 5, .window = 1, .exact = true, .sequences = {{0, 80}, {530, 11}}},
      {.group = 5, .sinks = 300, .window = 70, .sequences = {{390, 60}, {700, 1}}},
      {.heads = 1, .group = 3, .window = 1024, .sequences = {{1060, 50}}},
      {.heads = 1, .group = 5, .head_dim = 96, .sinks = 1, .sequences = {{300, 41}, {0, 3}}},
      {.heads = 1, .group = 100, .head_dim = 64, .sequences = {{330, 2}}},
      {.heads = 0, .group = 3, .sequences = {{10, 3}}},
      {.heads = 2, .group = 0, .sequences = {{400, 3}}},
      {.heads = 2, .group = 3, .sequences = {}},
  };
}

struct NearResult {
  HostPartial partial;
  std::vector<float> stats;  // [T, H*g, 2]
};

NearResult RunNear(Rig& rig, const AttentionShape& shape, const AttentionWorld& world,
                   const StepRows& rows, const std::vector<float>& q, bool with_stats = true) {
  const int q_heads = shape.heads * shape.group;
  const std::int64_t tokens = rows.views.tokens;
  NearArgs args{.rows = rows.views,
                .pages = world.pages(),
                .group = shape.group,
                .scale = world.scale(),
                .q = rig.In(q),
                .out = NewPartial(rig, tokens, q_heads, shape.head_dim)};
  const View stats = rig.Floats(tokens * q_heads * 2);
  if (with_stats) args.stats = stats;
  rig.kernels().Near(args, rig.stream());
  return {ReadPartial(rig, args.out, tokens, q_heads, shape.head_dim),
          rig.Out<float>(stats, tokens * q_heads * 2)};
}

// Compares the eligible rows' statistics; the others' must not have been written.
void CheckStats(const AttentionShape& shape, const AttentionWorld& world, const StepRows& rows,
                const std::vector<float>& q, const std::vector<float>& stats) {
  const int q_heads = shape.heads * shape.group;
  std::vector<float> actual;
  std::vector<double> expected, bound;
  for (int t = 0; t < rows.views.tokens; ++t) {
    for (int hq = 0; hq < q_heads; ++hq) {
      const int index = t * q_heads + hq;
      if (rows.far_end[t] <= shape.sinks) {
        EXPECT_EQ(std::bit_cast<std::uint32_t>(stats[2 * index]), 0xffffffffu) << "row " << t;
        EXPECT_EQ(std::bit_cast<std::uint32_t>(stats[2 * index + 1]), 0xffffffffu) << "row " << t;
        continue;
      }
      auto expect = [&](const std::vector<int>& positions) {
        return world.Expect(q.data() + index * shape.head_dim, rows.sequence[t], hq / shape.group,
                            positions);
      };
      std::vector<int> sinks;
      for (int p = 0; p < shape.sinks; ++p) sinks.push_back(p);
      const ExpectedPartial of_sinks = expect(sinks);
      const ExpectedPartial near = expect(world.NearPositions(rows, t));
      actual.insert(actual.end(), {stats[2 * index], stats[2 * index + 1]});
      expected.push_back(of_sinks.m + std::log(of_sinks.l));
      // log turns l's relative error into an absolute one and adds its own.
      bound.push_back(of_sinks.m_bound + of_sinks.l_relative * 1.01 +
                      (std::abs(of_sinks.m) + std::abs(std::log(of_sinks.l))) * 4 * kF32);
      expected.push_back(near.mean);
      bound.push_back(near.mean_bound);
    }
  }
  ExpectWithin(actual, expected, bound, shape.Name());
}

class AttentionStatsTest : public ::testing::TestWithParam<BackendParam> {};

TEST_P(AttentionStatsTest, EligibleRowsGetTheSinksLogSumExpAndTheMeanScore) {
  Rig rig(GetParam());
  for (const AttentionShape& shape : ForThisRun(StatsShapes())) {
    AttentionWorld world(rig, shape, 21);
    world.AppendAll();
    const StepRows rows = world.Rows();
    const std::vector<float> q = world.Queries(rows);
    CheckStats(shape, world, rows, q, RunNear(rig, shape, world, rows, q).stats);
  }
}

TEST_P(AttentionStatsTest, ScoresInTheHundredsKeepTheirStatistics) {
  Rig rig(GetParam());
  for (const AttentionShape& shape :
       {AttentionShape{.group = 2, .sinks = 4, .window = 64, .sequences = {{400, 11}}},
        AttentionShape{.group = 1, .sinks = 3, .window = 64, .sequences = {{700, 1}}}}) {
    AttentionWorld world(rig, shape, 22);
    world.AppendAll();
    const StepRows rows = world.Rows();
    std::vector<float> q = world.Queries(rows);
    // No roundoff of bf16, which the exponential would blow up.
    for (float& value : q) value = Bf16ToF32(F32ToBf16(value * 300.0f));
    CheckStats(shape, world, rows, q, RunNear(rig, shape, world, rows, q).stats);
  }
}

TEST_P(AttentionStatsTest, ThePartialsAreTheSameBitsWithAndWithoutStatistics) {
  Rig rig(GetParam());
  for (const AttentionShape& shape : ForThisRun(StatsShapes())) {
    AttentionWorld world(rig, shape, 23);
    world.AppendAll();
    const StepRows rows = world.Rows();
    const std::vector<float> q = world.Queries(rows);
    ExpectSamePartial(RunNear(rig, shape, world, rows, q, true).partial,
                      RunNear(rig, shape, world, rows, q, false).partial, shape.Name());
  }
}

// As attention_test.cc's test of the same: with bf16 products rows of few and of many are rounded
// differently unless deterministic; never by threads.
TEST_P(AttentionStatsTest, StatisticsDoNotDependOnBatchChunkingOrThreads) {
  Rig rig(GetParam());
  const AttentionShape shape = {
      .heads = 3, .group = 3, .window = 100, .sequences = {{640, 50}, {100, 120}, {1300, 1}}};
  AttentionWorld world(rig, shape, 24);
  world.AppendAll();
  auto run = [&](Rig& on, AttentionWorld& from, const std::vector<SequenceRows>& sequences) {
    const StepRows rows = from.Rows(sequences);
    return RunNear(on, shape, from, rows, from.Queries(rows)).stats;
  };
  const std::vector<float> whole = run(rig, world, shape.sequences);
  std::vector<float> pieces;
  for (std::size_t s = 0; s < shape.sequences.size(); ++s) {
    int size = 1;
    for (int done = 0; done < shape.sequences[s].rows; done += size, size = size * 2 % 23 + 1) {
      std::vector<SequenceRows> step(shape.sequences.size());
      step[s] = {shape.sequences[s].start + done, std::min(size, shape.sequences[s].rows - done)};
      const std::vector<float> piece = run(rig, world, step);
      pieces.insert(pieces.end(), piece.begin(), piece.end());
    }
  }
  if (!rig.rounds_factors()) ExpectSame(pieces, whole, "chunks against whole");
  BackendParam other = GetParam();
  other.threads = 2;
  Rig rig2(other);
  AttentionWorld world2(rig2, shape, 24);
  world2.AppendAll();
  ExpectSame(run(rig2, world2, shape.sequences), whole, "two threads");
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionStatsTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
