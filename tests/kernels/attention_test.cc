// Near, FarFull, Normalize: softmax partials over paged K/V, against the softmax's definition in
// double; and bit for bit independent of batch, chunking, threads.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/kernels/attention_support.h"

namespace metattn::testing {
namespace {

std::vector<AttentionShape> Shapes() {
  std::vector<AttentionShape> shapes = {
      {.sequences = {{0, 1}}},
      {.heads = 2, .group = 3, .sequences = {{0, 5}, {63, 2}, {64, 1}}},
      {.heads = 3, .group = 3, .window = 64, .sequences = {{0, 200}}},
      {.heads = 1, .group = 1, .head_dim = 2, .window = 100, .sequences = {{30, 150}}},
      {.heads = 2, .group = 2, .head_dim = 80, .sinks = 0, .window = 32, .sequences = {{310, 40}}},
      {.heads = 1, .group = 7, .head_dim = 128, .window = 128, .sequences = {{600, 3}, {0, 17}}},
      {.heads = 1, .group = 2, .head_dim = 256, .window = 20, .sequences = {{700, 1}}},
      {.heads = 1, .group = 5, .head_dim = 34, .window = 70, .sequences = {{513, 9}, {1, 0}}},
      {.heads = 3, .group = 3, .sequences = {{900, 1}, {0, 1}, {256, 1}, {257, 2}, {520, 1}}},
      {.heads = 2, .group = 4, .window = 50, .exact = true, .sequences = {{0, 170}, {303, 1}}},
      {.group = 3, .sinks = 70, .window = 40, .exact = true, .sequences = {{0, 150}, {290, 20}}},
      {.group = 3, .sinks = 5, .window = 1, .exact = true, .sequences = {{0, 80}, {530, 11}}},
      {.heads = 1, .group = 3, .window = 1024, .sequences = {{700, 50}}},
      {.heads = 2, .group = 1, .head_dim = 32, .window = 90, .sequences = {{500, 16}, {40, 33}}},
      {.heads = 1, .group = 5, .head_dim = 96, .sinks = 1, .sequences = {{261, 41}, {0, 3}}},
      {.heads = 1, .group = 17, .head_dim = 256, .window = 33, .sequences = {{350, 2}, {31, 1}}},
      {.heads = 1, .group = 100, .head_dim = 64, .sequences = {{300, 2}}},
      {.heads = 2, .group = 70, .head_dim = 32, .window = 64, .sequences = {{600, 1}, {90, 1}}},
      {.heads = 1, .group = 2, .sinks = 300, .window = 40, .sequences = {{880, 1}, {340, 1}}},
      {.heads = 1, .group = 2, .head_dim = 16, .window = 64, .sequences = {{4700, 1}}},
      {.heads = 0, .group = 3, .sequences = {{10, 3}}},
      {.heads = 2, .group = 0, .sequences = {{10, 3}}},
      {.heads = 2, .group = 3, .sequences = {}},
      {.heads = 2, .group = 3, .sequences = {{5, 0}, {9, 0}}},
  };
  return shapes;
}

class AttentionTest : public ::testing::TestWithParam<BackendParam> {};

HostPartial RunNear(Rig& rig, const AttentionShape& shape, AttentionWorld& world,
                    const StepRows& rows, Partial* partial) {
  const int q_heads = shape.heads * shape.group;
  *partial = NewPartial(rig, rows.views.tokens, q_heads, shape.head_dim);
  rig.kernels().Near({.rows = rows.views,
                      .pages = world.pages(),
                      .group = shape.group,
                      .scale = world.scale(),
                      .q = rig.In(world.Queries(rows)),
                      .out = *partial},
                     rig.stream());
  return ReadPartial(rig, *partial, rows.views.tokens, q_heads, shape.head_dim);
}

HostPartial RunFar(Rig& rig, const AttentionShape& shape, AttentionWorld& world,
                   const StepRows& rows, const WorkList& list, const Partial& partial) {
  rig.kernels().FarFull({.rows = rows.views,
                         .pages = world.pages(),
                         .group = shape.group,
                         .scale = world.scale(),
                         .q = rig.In(world.Queries(rows)),
                         .list = list,
                         .partial = partial},
                        rig.stream());
  return ReadPartial(rig, partial, rows.views.tokens, shape.heads * shape.group, shape.head_dim);
}

// What `positions` of each (row, query head) must give.
template <typename Positions>
PartialExpectation ExpectRows(const AttentionShape& shape, const AttentionWorld& world,
                              const StepRows& rows, Positions positions) {
  PartialExpectation expectation;
  const auto q = world.Queries(rows);
  for (int t = 0; t < rows.views.tokens; ++t) {
    for (int hq = 0; hq < shape.heads * shape.group; ++hq) {
      const float* query = q.data() + (t * shape.heads * shape.group + hq) * shape.head_dim;
      expectation.Add(
          world.Expect(query, rows.sequence[t], hq / shape.group, positions(t, hq / shape.group)));
    }
  }
  return expectation;
}

TEST_P(AttentionTest, NearIsTheSoftmaxOverSinksAndWindow) {
  Rig rig(GetParam());
  for (const AttentionShape& shape : ForThisRun(Shapes())) {
    AttentionWorld world(rig, shape, 1);
    world.AppendAll();
    const StepRows rows = world.Rows();
    Partial partial;
    const HostPartial actual = RunNear(rig, shape, world, rows, &partial);
    ExpectRows(shape, world, rows, [&](int t, int) {
      return world.NearPositions(rows, t);
    }).Check(actual, shape.Name());
  }
}

TEST_P(AttentionTest, FarMergesTheFarSpanOfEveryListedRowIntoNear) {
  Rig rig(GetParam());
  for (const AttentionShape& shape : ForThisRun(Shapes())) {
    AttentionWorld world(rig, shape, 2);
    world.AppendAll();
    const StepRows rows = world.Rows();
    Partial partial;
    RunNear(rig, shape, world, rows, &partial);
    const HostPartial actual =
        RunFar(rig, shape, world, rows, EveryRow(rig, rows.views.tokens, shape.heads), partial);
    ExpectRows(shape, world, rows, [&](int t, int) {
      std::vector<int> all(static_cast<std::size_t>(rows.position[t]) + 1);
      std::iota(all.begin(), all.end(), 0);
      return all;
    }).Check(actual, shape.Name());
  }
}

TEST_P(AttentionTest, FarLeavesRowsOutsideTheListAlone) {
  Rig rig(GetParam());
  const AttentionShape shape = {
      .heads = 2, .group = 3, .window = 64, .sequences = {{400, 60}, {700, 1}, {90, 100}}};
  AttentionWorld world(rig, shape, 3);
  world.AppendAll();
  const StepRows rows = world.Rows();
  Partial partial;
  const HostPartial near = RunNear(rig, shape, world, rows, &partial);
  auto listed = [](int t, int head) { return t % (3 + head) == 1 || (t >= 20 && t < 27); };
  const std::int64_t tokens = rows.views.tokens;
  std::vector<std::int32_t> list(static_cast<std::size_t>(2 * tokens), -1), counts(2);
  for (int h = 0; h < 2; ++h) {
    for (int t = 0; t < tokens; ++t) {
      if (listed(t, h)) list[h * tokens + counts[h]++] = t;
    }
  }
  const HostPartial actual =
      RunFar(rig, shape, world, rows,
             {.rows = rig.In(list), .counts = rig.In(counts), .capacity = tokens}, partial);
  ExpectRows(shape, world, rows, [&](int t, int head) {
    auto positions = world.NearPositions(rows, t);
    const auto far = world.FarPositions(rows, t);
    if (listed(t, head)) positions.insert(positions.end(), far.begin(), far.end());
    return positions;
  }).Check(actual, "half listed");
  for (int t = 0; t < tokens; ++t) {
    for (int hq = 0; hq < 6; ++hq) {
      if (listed(t, hq / 3)) continue;
      EXPECT_EQ(actual.l[t * 6 + hq], near.l[t * 6 + hq]) << "row " << t;
      EXPECT_EQ(actual.o[(t * 6 + hq) * 64], near.o[(t * 6 + hq) * 64]) << "row " << t;
    }
  }
}

// With bf16 products rows of few and of many are rounded differently unless deterministic; never by
// threads.
TEST_P(AttentionTest, RowsDoNotDependOnBatchChunkingOrThreads) {
  Rig rig(GetParam());
  AttentionShape shape = {
      .heads = 3, .group = 3, .window = 100, .sequences = {{640, 50}, {0, 70}, {1300, 1}}};
  AttentionWorld world(rig, shape, 4);
  world.AppendAll();
  auto run = [&](Rig& on, AttentionWorld& from, const std::vector<SequenceRows>& sequences) {
    const StepRows rows = from.Rows(sequences);
    Partial partial;
    RunNear(on, shape, from, rows, &partial);
    return RunFar(on, shape, from, rows, EveryRow(on, rows.views.tokens, shape.heads), partial);
  };
  const HostPartial whole = run(rig, world, shape.sequences);
  HostPartial pieces;
  for (std::size_t s = 0; s < shape.sequences.size(); ++s) {
    int size = 1;
    for (int done = 0; done < shape.sequences[s].rows; done += size, size = size * 2 % 23 + 1) {
      std::vector<SequenceRows> step(shape.sequences.size());
      step[s] = {shape.sequences[s].start + done, std::min(size, shape.sequences[s].rows - done)};
      const HostPartial piece = run(rig, world, step);
      pieces.o.insert(pieces.o.end(), piece.o.begin(), piece.o.end());
      pieces.m.insert(pieces.m.end(), piece.m.begin(), piece.m.end());
      pieces.l.insert(pieces.l.end(), piece.l.begin(), piece.l.end());
    }
  }
  if (!rig.rounds_factors()) ExpectSamePartial(pieces, whole, "chunks against whole");
  BackendParam other = GetParam();
  other.threads = 2;
  Rig rig2(other);
  AttentionWorld world2(rig2, shape, 4);
  world2.AppendAll();
  ExpectSamePartial(run(rig2, world2, shape.sequences), whole, "two threads");
}

TEST_P(AttentionTest, ScoresFarApartNeitherOverflowNorVanish) {
  constexpr int kRows = 11;
  Rig rig(GetParam());
  AttentionShape shape = {
      .heads = 1, .group = 2, .sinks = 1, .window = 64, .sequences = {{400, kRows}}};
  AttentionWorld world(rig, shape, 5);
  world.AppendAll();
  const StepRows rows = world.Rows();
  auto q = world.Queries(rows);
  // Scores in the hundreds; no roundoff of bf16, which the exponential would blow up.
  for (float& value : q) value = Bf16ToF32(F32ToBf16(value * 300.0f));
  const Partial partial = NewPartial(rig, kRows, 2, 64);
  const View queries = rig.In(q);
  rig.kernels().Near({.rows = rows.views,
                      .pages = world.pages(),
                      .group = 2,
                      .scale = world.scale(),
                      .q = queries,
                      .out = partial},
                     rig.stream());
  rig.kernels().FarFull({.rows = rows.views,
                         .pages = world.pages(),
                         .group = 2,
                         .scale = world.scale(),
                         .q = queries,
                         .list = EveryRow(rig, kRows, 1),
                         .partial = partial},
                        rig.stream());
  PartialExpectation expectation;
  for (int t = 0; t < kRows; ++t) {
    for (int hq = 0; hq < 2; ++hq) {
      std::vector<int> all(static_cast<std::size_t>(rows.position[t]) + 1);
      std::iota(all.begin(), all.end(), 0);
      expectation.Add(world.Expect(q.data() + (t * 2 + hq) * 64, 0, 0, all));
    }
  }
  expectation.Check(ReadPartial(rig, partial, kRows, 2, 64), "large scores");
}

TEST_P(AttentionTest, NormalizeDividesBySumOfExponentials) {
  Rig rig(GetParam());
  for (int d : {2, 30, 64, 80, 256}) {
    for (std::int64_t tokens : {0, 1, 7}) {
      const int heads = 3;
      const auto o = Randoms(tokens * heads * d, 1);
      auto l = Randoms(tokens * heads, 2);
      for (float& value : l) value = std::abs(value) + 0.1f;
      const View out = rig.Activations(tokens * heads * d);
      rig.kernels().Normalize({.partial = {.o = rig.In(o), .m = rig.In(l), .l = rig.In(l)},
                               .tokens = tokens,
                               .heads = heads,
                               .head_dim = d,
                               .out = out},
                              rig.stream());
      std::vector<double> expected, bound;
      for (std::size_t i = 0; i < o.size(); ++i) {
        expected.push_back(double{o[i]} / l[i / d]);
        bound.push_back(std::abs(expected.back()) * (3 * kF32 + rig.activation_rounding()));
      }
      ExpectWithin(rig.OutActivations(out, tokens * heads * d), expected, bound, "normalize");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
