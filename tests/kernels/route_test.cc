// ForcedRoute and Compact: decisions and work lists.
#include <gtest/gtest.h>

#include <random>

#include "tests/kernels/support.h"

namespace metattn::testing {
namespace {

constexpr auto kFullByte = static_cast<std::uint8_t>(Mechanism::kFull);
constexpr auto kLinearByte = static_cast<std::uint8_t>(Mechanism::kLinear);
constexpr auto kLocalByte = static_cast<std::uint8_t>(Mechanism::kLocal);

class RouteTest : public ::testing::TestWithParam<BackendParam> {};

AttentionRows RowsWith(Rig& rig, const std::vector<std::int32_t>& far_end, int sinks,
                       bool all = false) {
  const auto tokens = static_cast<std::int32_t>(far_end.size());
  const View zeros = rig.In(std::vector<std::int32_t>(far_end.size() + 1));
  return {.tokens = tokens,
          .sequences = 1,
          .position = zeros,
          .sequence = zeros,
          .row_begin = rig.In(std::vector<std::int32_t>{0, tokens}),
          .near_begin = zeros,
          .far_end = rig.In(far_end),
          .table_begin = rig.In(std::vector<std::int32_t>{0, 1}),
          .blocks = zeros,
          .sinks = sinks,
          .linear_all = all};
}

TEST_P(RouteTest, EligibleRowsGetTheirRouteOthersLocal) {
  Rig rig(GetParam());
  const std::vector<std::int32_t> far_end = {0, 4, 5, 64, 4, 128};
  const std::vector<std::uint8_t> route = {kFullByte,   kFullByte,   kFullByte,
                                           kLinearByte, kLinearByte, kLocalByte};
  for (int heads : {0, 1, 3}) {
    const View decisions = rig.Space(static_cast<std::size_t>(6 * heads));
    rig.kernels().ForcedRoute({.rows = RowsWith(rig, far_end, 4),
                               .heads = heads,
                               .route = rig.In(route),
                               .decisions = decisions},
                              rig.stream());
    const std::uint8_t expected[] = {kLocalByte,  kLocalByte, kFullByte,
                                     kLinearByte, kLocalByte, kLocalByte};
    const auto actual = rig.Out<std::uint8_t>(decisions, 6 * heads);
    for (int i = 0; i < 6 * heads; ++i) EXPECT_EQ(actual[i], expected[i / heads]) << i;
  }
}

TEST_P(RouteTest, WhereLinearReadsEverythingEveryRowGetsItsRoute) {
  Rig rig(GetParam());
  const std::vector<std::uint8_t> route = {kFullByte, kLinearByte, kLocalByte};
  const View decisions = rig.Space(3);
  rig.kernels().ForcedRoute({.rows = RowsWith(rig, {0, 0, 64}, 4, true),
                             .heads = 1,
                             .route = rig.In(route),
                             .decisions = decisions},
                            rig.stream());
  EXPECT_EQ(rig.Out<std::uint8_t>(decisions, 3), route);
}

TEST_P(RouteTest, ListsHoldTheRowsOfAMechanismInOrder) {
  Rig rig(GetParam());
  std::mt19937 engine(7);
  for (int tokens : {0, 1, 2, 63, 200, 700}) {
    for (int heads : {0, 1, 3, 5}) {
      std::vector<std::int32_t> far_end;
      for (int t = 0; t < tokens; ++t) far_end.push_back(static_cast<int>(engine() % 10) * 64);
      std::vector<std::uint8_t> decisions;
      for (int i = 0; i < tokens * heads; ++i) decisions.push_back(engine() % 4);
      const bool mixtures = heads % 2 == 1;
      const std::int64_t capacity = tokens + 2;
      const WorkList list = {.rows = rig.Space(static_cast<std::size_t>(capacity * heads) * 4),
                             .counts = rig.Space(static_cast<std::size_t>(heads) * 4),
                             .capacity = capacity};
      rig.kernels().Compact({.rows = RowsWith(rig, far_end, 4),
                             .heads = heads,
                             .mechanism = Mechanism::kLinear,
                             .mixtures = mixtures,
                             .decisions = rig.In(decisions),
                             .list = list},
                            rig.stream());
      const auto rows = rig.Out<std::int32_t>(list.rows, capacity * heads);
      const auto counts = rig.Out<std::int32_t>(list.counts, heads);
      for (int h = 0; h < heads; ++h) {
        int count = 0;
        for (int t = 0; t < tokens; ++t) {
          const std::uint8_t decision = decisions[t * heads + h];
          if (decision != kLinearByte && !(mixtures && decision == kMixture)) continue;
          EXPECT_EQ(rows[h * capacity + count], t);
          ++count;
        }
        EXPECT_EQ(counts[h], count);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, RouteTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
