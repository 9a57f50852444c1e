#include "engine/model/state_snapshots.h"

#include <gtest/gtest.h>

#include <vector>

namespace metattn {
namespace {

std::vector<BlockHash> Chain(std::uint64_t name, std::size_t blocks) {
  std::vector<BlockHash> chain;
  for (std::size_t i = 0; i < blocks; ++i) chain.push_back({name, 1000 * name + i});
  return chain;
}

TEST(StateSnapshots, FindsTheLongestPrefix) {
  StateSnapshots snapshots(8, 3);
  const std::vector<BlockHash> chain = Chain(1, 10);
  EXPECT_FALSE(snapshots.Find(chain).has_value());
  EXPECT_EQ(snapshots.Save(chain[3]), 8);
  EXPECT_EQ(snapshots.Save(chain[7]), 9);
  EXPECT_EQ(snapshots.Save(chain[7]), std::nullopt) << "there is one";
  const auto all = snapshots.Find(chain);
  ASSERT_TRUE(all.has_value());
  EXPECT_EQ(all->slot, 9);
  EXPECT_EQ(all->blocks, 8);
  const auto shorter = snapshots.Find(std::span(chain).first(7));
  ASSERT_TRUE(shorter.has_value());
  EXPECT_EQ(shorter->slot, 8);
  EXPECT_EQ(shorter->blocks, 4);
  EXPECT_FALSE(snapshots.Find(std::span(chain).first(3)).has_value());
  EXPECT_FALSE(snapshots.Find(Chain(2, 10)).has_value());
}

TEST(StateSnapshots, TheLeastRecentlyUsedGoesFirst) {
  StateSnapshots snapshots(0, 2);
  const std::vector<BlockHash> a = Chain(1, 1), b = Chain(2, 1), c = Chain(3, 1);
  EXPECT_EQ(snapshots.Save(a[0]), 0);
  EXPECT_EQ(snapshots.Save(b[0]), 1);
  EXPECT_TRUE(snapshots.Find(a).has_value());
  EXPECT_EQ(snapshots.Save(c[0]), 1);
  EXPECT_TRUE(snapshots.Find(a).has_value());
  EXPECT_FALSE(snapshots.Find(b).has_value());
  EXPECT_EQ(snapshots.size(), 2u);
}

TEST(StateSnapshots, AStateThatGoesStaysWhereItIs) {
  StateSnapshots snapshots(4, 1);
  const std::vector<BlockHash> a = Chain(1, 2), b = Chain(2, 2);
  EXPECT_EQ(snapshots.Exchange(a[1], 0), 4) << "the free slot is owned instead";
  EXPECT_EQ(snapshots.Find(a)->slot, 0);
  EXPECT_EQ(snapshots.Exchange(a[1], 4), 4) << "it is known";
  EXPECT_EQ(snapshots.Exchange(b[1], 4), 0) << "in the place of the older one";
  EXPECT_EQ(snapshots.Find(b)->slot, 4);
  EXPECT_FALSE(snapshots.Find(a).has_value());
}

TEST(StateSnapshots, WithoutRoomNothingIsKept) {
  StateSnapshots snapshots(4, 0);
  const std::vector<BlockHash> a = Chain(1, 1);
  EXPECT_EQ(snapshots.Save(a[0]), std::nullopt);
  EXPECT_EQ(snapshots.Exchange(a[0], 2), 2);
  EXPECT_FALSE(snapshots.Find(a).has_value());
}

}  // namespace
}  // namespace metattn
