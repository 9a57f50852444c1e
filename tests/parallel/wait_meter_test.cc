#include "parallel/wait_meter.h"

#include <gtest/gtest.h>

namespace metattn {
namespace {

constexpr std::int64_t kRow = 576 * 4;

TEST(WaitMeter, MeasuresTheFirstAndEveryNthOfASizeAndAllLargeOnes) {
  WaitMeter meter;
  int measured = 0;
  for (int i = 0; i < 10 * WaitMeter::kEvery; ++i) measured += meter.ShouldMeasure(kRow);
  EXPECT_EQ(measured, 10);
  EXPECT_TRUE(meter.ShouldMeasure(100 * kRow)) << "a size not seen before";
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(meter.ShouldMeasure(WaitMeter::kLargeBytes));
  for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1} << 62}) {
    meter.ShouldMeasure(bytes);  // every size has a class
  }
}

TEST(WaitMeter, SplitsWhatWasNotMeasuredByTheTransferTimeOfItsSize) {
  WaitMeter meter;
  meter.Measured(kRow, 1.0, 2.0);
  meter.Unmeasured(kRow, 10.0);  // 2 of transfer, 8 of waiting
  meter.Unmeasured(kRow, 1.5);   // shorter than a transfer: no waiting
  EXPECT_DOUBLE_EQ(meter.TakeWait(), 1.0 + 8.0);
  EXPECT_DOUBLE_EQ(meter.TakeTransfer(), 2.0 + 2.0 + 1.5);
  EXPECT_EQ(meter.TakeWait(), 0);
  EXPECT_EQ(meter.TakeTransfer(), 0);
}

TEST(WaitMeter, OnePreemptedTransferDoesNotColourTheEstimate) {
  WaitMeter meter;
  for (int i = 0; i < 20; ++i) meter.Measured(kRow, 0, 1.0);
  meter.Measured(kRow, 0, 1000.0);
  (void)meter.TakeTransfer();
  meter.Unmeasured(kRow, 500.0);
  EXPECT_LT(meter.TakeTransfer(), 2.0);
}

TEST(WaitMeter, FollowsATransferTimeThatChangesForGood) {
  WaitMeter meter;
  meter.Measured(kRow, 0, 1.0);
  for (int i = 0; i < 40; ++i) meter.Measured(kRow, 0, 3.0);
  (void)meter.TakeTransfer();
  meter.Unmeasured(kRow, 100.0);
  EXPECT_NEAR(meter.TakeTransfer(), 3.0, 0.01);
}

TEST(WaitMeter, EstimatesFromTotalsAlone) {
  WaitMeter meter;
  for (int i = 0; i < 10; ++i) meter.Estimated(kRow, 1.0 + 0.01 * i);
  (void)meter.TakeWait();
  (void)meter.TakeTransfer();
  for (int i = 0; i < 100; ++i) meter.Estimated(kRow, 31.0);  // a late peer, for many operations
  EXPECT_DOUBLE_EQ(meter.TakeTransfer(), 100.0);
  EXPECT_DOUBLE_EQ(meter.TakeWait(), 3000.0);
  for (int i = 0; i < 5 * WaitMeter::kEvery; ++i) meter.Estimated(kRow, 3.0);  // slower for good
  (void)meter.TakeTransfer();
  meter.Estimated(kRow, 10.0);
  EXPECT_DOUBLE_EQ(meter.TakeTransfer(), 3.0);
}

TEST(WaitMeter, SizesFarApartHaveEstimatesOfTheirOwn) {
  WaitMeter meter;
  meter.Measured(kRow, 0, 1.0);
  meter.Measured(8 * kRow, 0, 5.0);
  (void)meter.TakeTransfer();
  meter.Unmeasured(kRow, 100.0);
  EXPECT_DOUBLE_EQ(meter.TakeTransfer(), 1.0);
  meter.Unmeasured(8 * kRow, 100.0);
  EXPECT_DOUBLE_EQ(meter.TakeTransfer(), 5.0);
}

}  // namespace
}  // namespace metattn
