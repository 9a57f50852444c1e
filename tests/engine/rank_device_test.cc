#include "engine/rank_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace metattn {
namespace {

using ::testing::HasSubstr;

// Ranks 0 and 1 on host a, rank 2 on b.
std::vector<RankPlace> Places() {
  std::vector<RankPlace> places(3);
  places[0].host = places[1].host = "a";
  places[2].host = "b";
  places[1].rank_on_host = 1;
  return places;
}

std::vector<int> Devices(const std::vector<int>& wanted) {
  std::vector<int> devices;
  for (int rank = 0; rank < 3; ++rank) devices.push_back(*RankDevice(wanted, Places(), rank));
  return devices;
}

TEST(RankDevice, IsTheNumberOnTheHostOrWhatWasAskedFor) {
  EXPECT_EQ(Devices({}), (std::vector<int>{0, 1, 0}));
  EXPECT_EQ(Devices({3, 2, 0}), (std::vector<int>{3, 2, 0}));
  EXPECT_EQ(Devices({1, 0, 1}), (std::vector<int>{1, 0, 1})) << "the same number on other hosts";
}

TEST(RankDevice, ErrorsNameRankAndDevice) {
  const auto message = [](const std::vector<int>& wanted) {
    const auto device = RankDevice(wanted, Places(), 0);
    EXPECT_TRUE(absl::IsInvalidArgument(device.status()));
    return std::string(device.status().message());
  };
  EXPECT_THAT(message({0, 1}), HasSubstr("--rank-devices: 2 devices for 3 ranks"));
  EXPECT_THAT(message({0, -1, 0}), HasSubstr("rank 1 cannot have device -1"));
  EXPECT_THAT(message({1, 1, 0}), HasSubstr("ranks 0 and 1 both have device 1 of host a"));
}

}  // namespace
}  // namespace metattn
