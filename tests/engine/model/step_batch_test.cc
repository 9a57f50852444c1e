// The padding of decode steps: which sizes there are, that it touches no block or state of a plan,
// and that it does not show in what the host counts.
#include "engine/model/step_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace metattn {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

constexpr StepBatchLimits kLimits = {.max_rows = 12,
                                     .max_sequences = 9,
                                     .max_logit_rows = 9,
                                     .max_context = 512,
                                     .blocks = 40,
                                     .vocab = 10,
                                     .window = 64,
                                     .state_slots = 20,
                                     .padded = true};

// A step of sequences with one row each, of positions 100, 101, ...; `logits` of them want all
// logits, the others the best.
StepPlan Decode(int sequences, int logits) {
  StepPlan plan;
  for (std::int32_t i = 0; i < sequences; ++i) {
    plan.sequences.push_back({.id = 7 + static_cast<std::uint64_t>(i),
                              .start = 100 + i,
                              .rows = 1,
                              .blocks = {2 * i, 2 * i + 1},
                              .state_slot = i});
    plan.tokens.push_back(i);
    plan.policy.push_back({Route::kRouted, 0, 1});
    (i < logits ? plan.logit_rows : plan.best_rows).push_back(i);
  }
  return plan;
}

class StepBatchTest : public ::testing::Test {
 protected:
  void Load(const StepPlan& plan, const StepBatchLimits& limits = kLimits) {
    batch_ = *StepBatch::Create(limits, *device_);
    const absl::Status status = batch_->Load(plan, *stream_);
    ASSERT_TRUE(status.ok()) << status;
  }
  template <typename T = std::int32_t>
  std::vector<T> Read(View view, std::int64_t count) {
    const T* values = view.As<T>();
    return {values, values + count};
  }

  std::unique_ptr<Device> device_ = MakeHostDevice();
  std::unique_ptr<Stream> stream_ = *device_->NewStream();
  std::unique_ptr<StepBatch> batch_;
};

TEST(PaddedSize, IsOneOfAFew) {
  std::vector<std::int64_t> sizes;
  for (const std::int64_t count : {0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 63, 64, 65}) {
    sizes.push_back(PaddedSize(count, 1000));
  }
  EXPECT_THAT(sizes, ElementsAre(0, 1, 2, 4, 4, 8, 8, 16, 16, 24, 64, 64, 72));
  EXPECT_EQ(PaddedSize(9, 15), 9) << "no room";
  EXPECT_EQ(PaddedSize(5, 8), 8);
}

TEST_F(StepBatchTest, PaddingWorksInABlockAndASlotOfItsOwn) {
  Load(Decode(3, 1));
  const AttentionRows& rows = batch_->rows();
  EXPECT_EQ(rows.tokens, 4);
  EXPECT_EQ(rows.sequences, 4);
  EXPECT_THAT(Read(rows.position, 4), ElementsAre(100, 101, 102, 0));
  EXPECT_THAT(Read(rows.sequence, 4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Read(rows.row_begin, 5), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(Read(rows.near_begin, 4), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(Read(rows.far_end, 4), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(Read(rows.table_begin, 5), ElementsAre(0, 2, 4, 6, 7));
  EXPECT_THAT(Read(rows.blocks, 7), ElementsAre(0, 1, 2, 3, 4, 5, kLimits.blocks));
  EXPECT_THAT(Read(rows.state_slot, 4), ElementsAre(0, 1, 2, kLimits.state_slots));
  EXPECT_EQ(Read(rows.state_end, 4).back(), 0);
  EXPECT_THAT(Read(batch_->token_ids(), 4), ElementsAre(0, 1, 2, 0));
  EXPECT_EQ(Read<std::uint8_t>(batch_->route(), 4).back(),
            static_cast<std::uint8_t>(Route::kLocal));
}

TEST_F(StepBatchTest, WantedRowsOfTheHeadComeFirstOfTheirKind) {
  Load(Decode(6, 3));
  EXPECT_EQ(batch_->logit_count(), 3);
  EXPECT_EQ(batch_->best_count(), 3);
  EXPECT_EQ(batch_->padded_logits(), 4);
  EXPECT_EQ(batch_->padded_best(), 4);
  EXPECT_THAT(Read(batch_->head_rows(), batch_->head_count()), ElementsAre(0, 1, 2, 0, 3, 4, 5, 0));
  Load(Decode(9, 5));
  EXPECT_EQ(batch_->rows().tokens, 9) << "16 rows do not fit";
  EXPECT_EQ(batch_->head_count(), 9) << "nor 8 and 4";
}

TEST_F(StepBatchTest, TheHostSeesThePlansRows) {
  Load(Decode(5, 0));
  EXPECT_EQ(batch_->rows().tokens, 8);
  EXPECT_EQ(batch_->plan_rows(), 5);
  EXPECT_EQ(batch_->plan_sequences(), 5);
  EXPECT_THAT(batch_->positions(), ElementsAre(100, 101, 102, 103, 104));
  EXPECT_THAT(batch_->sequences(), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(batch_->requests(), ElementsAre(7, 8, 9, 10, 11));
  EXPECT_THAT(batch_->far_ends(), SizeIs(5));
  EXPECT_THAT(batch_->linear_ends(), SizeIs(5));
  EXPECT_THAT(batch_->eligible(), SizeIs(5));
  EXPECT_THAT(batch_->routed(), ElementsAre(1, 1, 1, 1, 1));
}

TEST_F(StepBatchTest, StepsOfOneSizeHaveOneShapeAndOneLayout) {
  Load(Decode(5, 0));
  const std::string shape = batch_->shape();
  const std::size_t blocks = batch_->rows().blocks.offset_bytes;
  Load(Decode(7, 0));
  EXPECT_EQ(batch_->shape(), shape);
  EXPECT_EQ(batch_->rows().blocks.offset_bytes, blocks);
  Load(Decode(7, 7));
  EXPECT_NE(batch_->shape(), shape);
}

TEST_F(StepBatchTest, OnlyDecodeStepsAreChanged) {
  StepPlan prompt = Decode(3, 1);
  prompt.sequences[1].rows = 2;
  prompt.tokens.push_back(1);
  prompt.policy.push_back({});
  Load(prompt);
  EXPECT_EQ(batch_->rows().tokens, 4);
  EXPECT_EQ(batch_->rows().sequences, 3);
  EXPECT_EQ(batch_->head_count(), 3);
  StepPlan watched = Decode(3, 1);
  watched.shadow_rows = {0};
  Load(watched);
  EXPECT_EQ(batch_->rows().tokens, 3);
  StepBatchLimits limits = kLimits;
  limits.padded = false;
  Load(Decode(3, 1), limits);
  EXPECT_EQ(batch_->rows().tokens, 3);
  EXPECT_EQ(batch_->head_count(), 3);
}

}  // namespace
}  // namespace metattn
