// What is special about FarFull on the cuda backend: a row's far span may be split into chunks over
// blocks, which must not show in the bits, and decode reads each listed page once whatever the
// group. In the emulation, which counts the bytes.
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/cuda/launchers.h"
#include "tests/emu/control.h"
#include "tests/kernels/attention_support.h"

namespace metattn::testing {
namespace {

const BackendParam kCuda{"cuda", "", 1, false};

// Near and FarFull of all rows.
HostPartial Attend(Rig& rig, const AttentionShape& shape, AttentionWorld& world,
                   const std::vector<SequenceRows>& sequences) {
  const StepRows rows = world.Rows(sequences);
  const int q_heads = shape.heads * shape.group;
  const std::int64_t tokens = rows.views.tokens;
  const View q = rig.In(world.Queries(rows));
  const Partial partial = NewPartial(rig, tokens, q_heads, shape.head_dim);
  rig.kernels().Near({.rows = rows.views,
                      .pages = world.pages(),
                      .group = shape.group,
                      .scale = world.scale(),
                      .q = q,
                      .out = partial},
                     rig.stream());
  rig.kernels().FarFull({.rows = rows.views,
                         .pages = world.pages(),
                         .group = shape.group,
                         .scale = world.scale(),
                         .q = q,
                         .list = EveryRow(rig, tokens, shape.heads),
                         .partial = partial},
                        rig.stream());
  return ReadPartial(rig, partial, tokens, q_heads, shape.head_dim);
}

// Rows [begin, end) of a step of `tokens` rows.
HostPartial Part(const HostPartial& all, std::size_t tokens, std::size_t begin, std::size_t end) {
  const auto part = [&](const std::vector<float>& values) {
    const std::size_t width = values.size() / tokens;
    return std::vector<float>(values.begin() + static_cast<std::ptrdiff_t>(begin * width),
                              values.begin() + static_cast<std::ptrdiff_t>(end * width));
  };
  return {part(all.o), part(all.m), part(all.l)};
}

TEST(CudaFarTest, ChunksOfSeveralSpansGiveTheSoftmax) {
  Rig rig(kCuda);
  // 34 spans: chunks of two, the last one short.
  const int length = (cuda::kFarChunks + 2) * kSpanTokens + 40;
  AttentionShape shape = {.group = 2, .head_dim = 32, .window = 64, .sequences = {{length, 1}}};
  AttentionWorld world(rig, shape, 41);
  world.AppendAll();
  const HostPartial alone = Attend(rig, shape, world, shape.sequences);
  const StepRows rows = world.Rows();
  const std::vector<float> q = world.Queries(rows);
  std::vector<int> all(static_cast<std::size_t>(length) + 1);
  std::iota(all.begin(), all.end(), 0);
  PartialExpectation expectation;
  for (int h = 0; h < 2; ++h) expectation.Add(world.Expect(q.data() + h * 32, 0, 0, all));
  expectation.Check(alone, "a long row");

  // As the last of three rows it is not split; the rows before it end elsewhere.
  const HostPartial three = Attend(rig, shape, world, {{length - 2, 3}});
  ExpectSamePartial(Part(three, 3, 2, 3), alone, "not split");
}

TEST(CudaFarTest, StepsOfMoreSequencesThanAreSplitGiveTheSameBits) {
  Rig rig(kCuda);
  constexpr int kSplit = cuda::kFarChunkSequences;
  AttentionShape shape = {.group = 3, .head_dim = 32, .window = 64};
  for (int s = 0; s <= kSplit; ++s) shape.sequences.push_back({100 + 11 * s, 1});
  AttentionWorld world(rig, shape, 42);
  world.AppendAll();
  const HostPartial whole = Attend(rig, shape, world, shape.sequences);
  std::vector<SequenceRows> split = shape.sequences;
  split.pop_back();
  ExpectSamePartial(Attend(rig, shape, world, split), Part(whole, kSplit + 1, 0, kSplit),
                    "64 of 65 sequences");
}

TEST(CudaFarTest, DecodeReadsEachListedPageOnceWhateverTheGroup) {
  for (const int group : {1, 5, 20}) {
    Rig rig(kCuda);
    const AttentionShape shape = {.heads = 2,
                                  .group = group,
                                  .head_dim = 32,
                                  .window = 100,
                                  .sequences = {{700, 1}, {40, 1}, {519, 1}, {900, 1}}};
    AttentionWorld world(rig, shape, 43);
    world.AppendAll();
    const StepRows rows = world.Rows();
    const int q_heads = shape.heads * group;
    const std::vector<float> zeros(static_cast<std::size_t>(4 * q_heads * 32), 0.0F);
    const View m = rig.In(zeros), l = rig.In(zeros);
    // Head 0 lists rows 0, 1 and 3, head 1 only row 2.
    const WorkList list = {.rows = rig.In(std::vector<std::int32_t>{0, 1, 3, -1, 2, -1, -1, -1}),
                           .counts = rig.In(std::vector<std::int32_t>{3, 1}),
                           .capacity = 4};
    std::int64_t pages = 0;
    for (const int t : {0, 1, 3, 2}) pages += rows.far_end[t] / kBlockTokens;
    ASSERT_GT(pages, 20);
    const FarFullArgs args = {.rows = rows.views,
                              .pages = world.pages(),
                              .group = group,
                              .scale = world.scale(),
                              .q = rig.In(world.Queries(rows)),
                              .list = list,
                              .partial = {.o = rig.In(zeros), .m = m, .l = l}};
    rig.Finish();
    emu::ResetCounters();
    rig.kernels().FarFull(args, rig.stream());
    rig.Finish();
    EXPECT_EQ(emu::BytesReadAsync(), pages * rig.kernels().PageBytes(32)) << "group " << group;
  }
}

}  // namespace
}  // namespace metattn::testing
