// The attention ops in the order a layer runs them (append, route, compact, near, far, normalize):
// every backend against ref.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/attention_support.h"

namespace metattn::testing {
namespace {

class AttentionChainTest : public ::testing::TestWithParam<BackendParam> {};

std::uint8_t RouteOf(int row) {
  return static_cast<std::uint8_t>(row % 3 == 0 ? Mechanism::kLocal : Mechanism::kFull);
}

// [T, H*g, d] after the whole chain.
std::vector<float> RunChain(Rig& rig, const AttentionShape& shape, AttentionWorld& world) {
  world.AppendAll();
  const StepRows rows = world.Rows();
  const auto tokens = static_cast<int>(rows.views.tokens);
  const int heads = shape.heads, q_heads = heads * shape.group;
  std::vector<std::uint8_t> route;
  for (int t = 0; t < tokens; ++t) route.push_back(RouteOf(t));
  const View decisions = rig.Space(static_cast<std::size_t>(tokens * heads));
  Kernels& k = rig.kernels();
  k.ForcedRoute(
      {.rows = rows.views, .heads = heads, .route = rig.In(route), .decisions = decisions},
      rig.stream());
  const WorkList list = {
      .rows = rig.Floats(tokens * heads), .counts = rig.Floats(heads), .capacity = tokens};
  k.Compact({.rows = rows.views,
             .heads = heads,
             .mechanism = Mechanism::kFull,
             .decisions = decisions,
             .list = list},
            rig.stream());
  const View q = rig.In(world.Queries(rows));
  const Partial partial = NewPartial(rig, tokens, q_heads, shape.head_dim);
  k.Near({rows.views, world.pages(), shape.group, world.scale(), q, partial}, rig.stream());
  k.FarFull({rows.views, world.pages(), shape.group, world.scale(), q, list, partial},
            rig.stream());
  const std::int64_t values = std::int64_t{tokens} * q_heads * shape.head_dim;
  const View out = rig.Activations(values);
  k.Normalize({partial, tokens, q_heads, shape.head_dim, out}, rig.stream());
  return rig.OutActivations(out, values);
}

TEST_P(AttentionChainTest, ALayersAttentionAgreesWithRef) {
  const std::vector<AttentionShape> shapes = {
      {.heads = 3, .group = 3, .window = 128, .sequences = {{400, 37}, {0, 70}, {777, 1}}},
      {.heads = 1, .group = 4, .head_dim = 48, .sinks = 0, .window = 10, .sequences = {{330, 5}}},
      {.heads = 2, .group = 1, .head_dim = 112, .window = 64, .sequences = {{63, 1}, {600, 2}}},
  };
  for (const AttentionShape& shape : shapes) {
    Rig rig(GetParam()), ref_rig({"ref", "", 1, false});
    AttentionWorld world(rig, shape, 6), ref_world(ref_rig, shape, 6);
    const auto actual = RunChain(rig, shape, world), ref = RunChain(ref_rig, shape, ref_world);
    const StepRows rows = world.Rows();
    const auto q = world.Queries(rows);
    const int q_heads = shape.heads * shape.group;
    std::vector<double> bound;
    for (int t = 0; t < rows.views.tokens; ++t) {
      auto positions = world.NearPositions(rows, t);
      if (RouteOf(t) == static_cast<std::uint8_t>(Mechanism::kFull)) {
        const auto far = world.FarPositions(rows, t);
        positions.insert(positions.end(), far.begin(), far.end());
      }
      for (int hq = 0; hq < q_heads; ++hq) {
        const ExpectedPartial expected =
            world.Expect(q.data() + (t * q_heads + hq) * shape.head_dim, rows.sequence[t],
                         hq / shape.group, positions);
        for (int i = 0; i < shape.head_dim; ++i) {  // both sides off, in o and in l
          const double o = std::abs(expected.o[i]), relative = expected.l_relative + 3 * kF32;
          bound.push_back(
              (2 * (expected.o_bound[i] + o * relative) + o * rig.activation_rounding()) /
              expected.l);
        }
      }
    }
    ExpectWithin(actual, ToDouble(ref), bound, shape.Name());
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionChainTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
