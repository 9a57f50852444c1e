#include "tests/gpu/peaks.h"

#include <gtest/gtest.h>

namespace metattn::gpu_bench {
namespace {

TEST(Peaks, OfAnA100AreThoseOfItsDatasheet) {
  const Peaks peaks = PeaksOf({.major = 8,
                               .minor = 0,
                               .multiprocessors = 108,
                               .clock_hz = 1.41e9,
                               .memory_clock_hz = 1.215e9,
                               .bus_bits = 5120});
  EXPECT_NEAR(peaks.bytes_per_second, 1555e9, 1e9);
  EXPECT_NEAR(peaks.f32_flops, 19.5e12, 0.05e12);
  EXPECT_NEAR(peaks.bf16_flops, 312e12, 1e12);
}

TEST(Peaks, OfAnUnknownCardAreUnknown) {
  const Peaks peaks = PeaksOf({.major = 99, .multiprocessors = 1, .clock_hz = 1e9});
  EXPECT_EQ(peaks.bytes_per_second, 0);
  EXPECT_EQ(peaks.f32_flops, 0);
  EXPECT_EQ(peaks.bf16_flops, 0);
}

// This program is linked with the emulation.
TEST(Peaks, TheEmulationIsKnownAsOne) {
  const auto card = DescribeCard(0);
  ASSERT_TRUE(card.ok()) << card.status();
  EXPECT_TRUE(card->emulated);
  EXPECT_EQ(card->clock_hz, 0);
  EXPECT_FALSE(DescribeCard(1).ok());
}

}  // namespace
}  // namespace metattn::gpu_bench
