// When a block's copy counts: whole, a step after it was enqueued, and not stored into since.
#include "engine/model/page_copies.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/kernels.h"

namespace metattn {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class PageCopiesTest : public ::testing::Test {
 protected:
  PageCopiesTest() {
    const StepBatchLimits limits = {.max_rows = 1000,
                                    .max_sequences = 4,
                                    .max_logit_rows = 1,
                                    .max_context = 1000,
                                    .blocks = 20,
                                    .vocab = 10,
                                    .window = 64};
    batch_ = StepBatch::Create(limits, *device_).value();
  }

  // Rows [start, start + rows) of each sequence, in its blocks. -> what is copied after the step.
  struct Rows {
    std::int32_t start, rows;
    std::vector<std::int32_t> blocks;
  };
  std::vector<std::int32_t> Step(const std::vector<Rows>& sequences, PageCopies& copies) {
    Load(sequences, copies);
    return copies.EndStep(*batch_);
  }
  void Load(const std::vector<Rows>& sequences, PageCopies& copies) {
    StepPlan plan;
    for (const Rows& s : sequences) {
      StepSequence sequence;
      sequence.start = s.start;
      sequence.rows = s.rows;
      sequence.blocks = s.blocks;
      plan.sequences.push_back(sequence);
      plan.tokens.resize(plan.tokens.size() + static_cast<std::size_t>(s.rows), 1);
    }
    plan.policy.resize(plan.tokens.size());
    ASSERT_TRUE(batch_->Load(plan, *stream_).ok());
    copies.BeginStep(*batch_);
  }

  std::unique_ptr<Device> device_ = MakeHostDevice();
  std::unique_ptr<Stream> stream_ = device_->NewStream().value();
  std::unique_ptr<StepBatch> batch_;
};

TEST_F(PageCopiesTest, WholeBlocksAreCopiedOnceAndCountAStepLater) {
  PageCopies copies(20, 32);
  EXPECT_THAT(Step({{0, 130, {7, 3, 9}}}, copies), ElementsAre(7, 3));  // 9 holds two tokens
  Load({{130, 1, {7, 3, 9}}}, copies);
  EXPECT_FALSE(copies.Has(*batch_, 0, 64)) << "under way";
  EXPECT_TRUE(copies.Has(*batch_, 0, 0));
  EXPECT_THAT(copies.EndStep(*batch_), IsEmpty());
  Load({{131, 1, {7, 3, 9}}}, copies);
  EXPECT_TRUE(copies.Has(*batch_, 0, 128));
  EXPECT_FALSE(copies.Has(*batch_, 0, 129));
  EXPECT_THAT(Step({{132, 60, {7, 3, 9}}}, copies), ElementsAre(9));
}

TEST_F(PageCopiesTest, StoringIntoABlockMakesItsCopyWorthless) {
  PageCopies copies(20, 32);
  Step({{0, 128, {7, 3}}}, copies);
  Step({{128, 1, {7, 3, 9}}}, copies);
  Load({{129, 1, {7, 3, 9}}}, copies);
  ASSERT_TRUE(copies.Has(*batch_, 0, 128));
  Step({{0, 1, {3}}}, copies);  // another request has block 3
  Load({{1, 63, {3}}, {129, 1, {7, 3, 9}}}, copies);
  EXPECT_TRUE(copies.Has(*batch_, 1, 64));
  EXPECT_FALSE(copies.Has(*batch_, 1, 128));
  EXPECT_THAT(copies.EndStep(*batch_), ElementsAre(3));
}

TEST_F(PageCopiesTest, ABlockStoredIntoWhileItsCopyIsUnderWayIsCopiedAgain) {
  PageCopies copies(20, 32);
  EXPECT_THAT(Step({{0, 64, {5}}}, copies), ElementsAre(5));
  EXPECT_THAT(Step({{0, 64, {5}}}, copies), ElementsAre(5));
  Load({{64, 1, {5, 6}}}, copies);
  EXPECT_FALSE(copies.Has(*batch_, 0, 64)) << "the second copy is under way";
}

TEST_F(PageCopiesTest, AStepCopiesNoMoreThanItMay) {
  PageCopies copies(20, 2);
  const std::vector<std::int32_t> blocks = {1, 2, 3, 4, 5};
  EXPECT_THAT(Step({{0, 300, blocks}}, copies), ElementsAre(1, 2));
  EXPECT_THAT(Step({{300, 1, blocks}}, copies), ElementsAre(3, 4));
  EXPECT_THAT(Step({{301, 1, blocks}}, copies), IsEmpty());
}

TEST_F(PageCopiesTest, ABlockOfTwoSequencesIsCopiedOnce) {
  PageCopies copies(20, 32);
  EXPECT_THAT(Step({{64, 1, {5, 6}}, {64, 1, {5, 7}}}, copies), ElementsAre(5));
}

}  // namespace
}  // namespace metattn
