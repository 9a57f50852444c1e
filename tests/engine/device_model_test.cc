#include "engine/device_model.h"

#include <gtest/gtest.h>

namespace metattn {
namespace {

constexpr DevicePeaks kDevice = {"example", "1 TB/s, 100 TFLOP/s", 1e12, 1e14};
constexpr RankWork kWork = {
    .layer_bytes = 1e9, .layer_parameters = 5e8, .kv_bytes = 1e5, .attention_flops = 4e5};
constexpr AttentionReads kQuarterFull = {.local = 0.75};

TEST(DeviceModel, WorkedExampleOfTheHeader) {
  EXPECT_DOUBLE_EQ(DecodeSeconds(kDevice, kWork, {}, 10, 1000), 2e-3);
  EXPECT_DOUBLE_EQ(TokensRead(kQuarterFull, 999), 475);
  EXPECT_DOUBLE_EQ(DecodeSeconds(kDevice, kWork, kQuarterFull, 10, 1000), 1.475e-3);
}

TEST(DeviceModel, OperationsCountWhereTheyTakeLonger) {
  // 1,000 rows: 1e12 operations of products, 10 ms; K/V stays at 0.1 ms a row, whatever the batch.
  EXPECT_DOUBLE_EQ(DecodeSeconds(kDevice, kWork, {}, 1000, 1000), 10e-3 + 100e-3);
}

TEST(DeviceModel, MechanismsReadWhatTheDesignSays) {
  AttentionReads reads = {.linear = 1, .state_tokens = 130};
  EXPECT_DOUBLE_EQ(TokensRead(reads, 255), 256);        // nothing is far
  EXPECT_DOUBLE_EQ(TokensRead(reads, 999), 300 + 130);  // near and the state
  EXPECT_DOUBLE_EQ(TokensRead(reads, 330), 331);        // never more than dense
  reads.linear_all = true;
  EXPECT_DOUBLE_EQ(TokensRead(reads, 999), 130);
  EXPECT_DOUBLE_EQ(TokensRead(reads, 99), 100);
  const AttentionReads exact = {.local = 1, .exact_window = true};
  EXPECT_DOUBLE_EQ(TokensRead(exact, 999), 256 + 4);
  EXPECT_DOUBLE_EQ(TokensRead({}, 999), 1000);
}

TEST(DeviceModel, PrefillReadsWeightsOncePerChunk) {
  // Two chunks of 50 rows: weights twice (operations 0.5 ms each); 5,050 pairs of a row and a
  // token, which take longer than K/V of 50 and of 100 tokens.
  EXPECT_NEAR(PrefillSeconds(kDevice, kWork, {}, 100, 50), 2 * 1e-3 + 5050 * 4e5 / 1e14, 1e-12);
  // One chunk of 4,000: operations of both decide.
  const double pairs = 4000.0 * 4001 / 2;
  EXPECT_NEAR(PrefillSeconds(kDevice, kWork, {}, 4000, 4000),
              2 * 5e8 * 4000 / 1e14 + pairs * 4e5 / 1e14, 1e-12);
  RankWork with_head = kWork;
  with_head.head_bytes = 1e9;
  EXPECT_NEAR(PrefillSeconds(kDevice, with_head, {}, 100, 50),
              1e-3 + PrefillSeconds(kDevice, kWork, {}, 100, 50), 1e-12);
}

TEST(DeviceModel, WithoutFullRowsAPrefillStepReadsNoFarTokens) {
  RankWork work = {.kv_bytes = 1e5};
  // The first row of the second chunk of 1,000 leaves out the 700 tokens from the sinks to 704.
  EXPECT_NEAR(PrefillSeconds(kDevice, work, {.local = 1}, 2000, 1000),
              (1000 + 2000 - 700) * 1e5 / 1e12, 1e-12);
}

TEST(DeviceModel, DevicesAreFoundByName) {
  ASSERT_NE(FindDevice("h100"), nullptr);
  EXPECT_EQ(FindDevice("h100")->bytes_per_second, 3350e9);
  EXPECT_EQ(FindDevice("a100")->flops, 312e12);
  EXPECT_EQ(FindDevice("b200")->name, "b200");
  EXPECT_EQ(FindDevice("abacus"), nullptr);
}

}  // namespace
}  // namespace metattn
