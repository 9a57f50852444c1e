// The quality watch's figures: |routed - full| / |full| of the picked rows, where the routed output
// is known and full attention is the softmax by its definition.
#include "engine/model/shadow_check.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "tests/kernels/attention_support.h"

namespace metattn::testing {
namespace {

constexpr int kLayers = 2;
const AttentionShape kShape = {.heads = 2,
                               .group = 3,
                               .head_dim = 32,
                               .window = 64,
                               .sequences = {{400, 1}, {20, 1}, {300, 1}}};

// A step that decodes the world's rows and watches `picked`.
StepPlan PlanOf(std::vector<std::int32_t> picked) {
  StepPlan plan;
  std::int32_t block = 0;
  for (const SequenceRows& s : kShape.sequences) {
    std::vector<std::int32_t> blocks(static_cast<std::size_t>(s.start) / 64 + 1);
    std::iota(blocks.begin(), blocks.end(), block);
    block += static_cast<std::int32_t>(blocks.size());
    plan.sequences.push_back(
        {.id = plan.sequences.size() + 1, .start = s.start, .rows = s.rows, .blocks = blocks});
    plan.tokens.push_back(7);
    plan.policy.push_back({});
  }
  plan.shadow_rows = std::move(picked);
  return plan;
}

class ShadowCheckTest : public ::testing::TestWithParam<BackendParam> {
 protected:
  ShadowCheckTest() : rig_(GetParam()), world_(rig_, kShape, 5) {
    world_.AppendAll();
    rows_ = world_.Rows();
    queries_ = world_.Queries(rows_);
    const StepBatchLimits limits = {.max_rows = 8,
                                    .max_sequences = 4,
                                    .max_logit_rows = 4,
                                    .max_context = 512,
                                    .blocks = 64,
                                    .vocab = 10,
                                    .window = 64};
    batch_ = *StepBatch::Create(limits, rig_.kernels().device());
    check_ = *ShadowCheck::Create({.layers = kLayers,
                                   .heads = kShape.heads,
                                   .group = kShape.group,
                                   .head_dim = kShape.head_dim,
                                   .max_rows = 8,
                                   .max_picked = 2},
                                  rig_.kernels());
  }

  // What full attention gives for a row, or what reading only the near window gives. [H*g*d]
  std::vector<double> Output(int row, bool far) const {
    std::vector<int> positions = world_.NearPositions(rows_, row);
    const std::vector<int> beyond = world_.FarPositions(rows_, row);
    if (far) positions.insert(positions.end(), beyond.begin(), beyond.end());
    std::vector<double> output;
    const int q_heads = kShape.heads * kShape.group;
    for (int h = 0; h < q_heads; ++h) {
      const float* q =
          queries_.data() + static_cast<std::ptrdiff_t>(row * q_heads + h) * kShape.head_dim;
      const ExpectedPartial expected =
          world_.Expect(q, rows_.sequence[row], h / kShape.group, positions);
      for (const double o : expected.o) output.push_back(o / expected.l);
    }
    return output;
  }

  NearArgs Near() {
    const int q_heads = kShape.heads * kShape.group;
    const NearArgs near = {.rows = rows_.views,
                           .pages = world_.pages(),
                           .group = kShape.group,
                           .scale = world_.scale(),
                           .q = rig_.In(queries_),
                           .out = NewPartial(rig_, rows_.views.tokens, q_heads, kShape.head_dim)};
    rig_.kernels().Near(near, rig_.stream());
    return near;
  }

  // A step whose layer l gives outputs[l] ([rows][H*g*d]).
  std::vector<ShadowErrors> Step(const StepPlan& plan,
                                 const std::vector<std::vector<float>>& outputs) {
    EXPECT_TRUE(batch_->Load(plan, rig_.stream()).ok());
    EXPECT_TRUE(check_->BeginStep(*batch_, rig_.stream()).ok());
    for (int layer = 0; layer < kLayers; ++layer) {
      check_->Full(layer, *batch_, Near(), rig_.stream());
      check_->Routed(layer, *batch_, rig_.In(outputs[layer]), rig_.stream());
    }
    check_->CopyOut(*batch_, rig_.stream());
    EXPECT_TRUE(rig_.stream().Synchronize().ok());
    return check_->EndStep(*batch_);
  }

  Rig rig_;
  AttentionWorld world_;
  StepRows rows_;
  std::vector<float> queries_;
  std::unique_ptr<StepBatch> batch_;
  std::unique_ptr<ShadowCheck> check_;
};

int Total(const ShadowErrors& errors) {
  return static_cast<int>(
      std::accumulate(errors.counts.begin(), errors.counts.end(), std::int64_t{0}));
}

TEST_P(ShadowCheckTest, ErrorsAreThoseOfTheDefinition) {
  // Layer 0: full attention 2 % too large in row 0 and 30 % in row 2. Layer 1: the near window
  // only.
  std::vector<std::vector<float>> outputs(kLayers);
  double near_only = 0;
  for (int row = 0; row < 3; ++row) {
    const std::vector<double> full = Output(row, true), near = Output(row, false);
    const double factor = row == 0 ? 1.02 : 1.3;
    double difference = 0, magnitude = 0;
    for (std::size_t i = 0; i < full.size(); ++i) {
      outputs[0].push_back(static_cast<float>(full[i] * factor));
      outputs[1].push_back(static_cast<float>(near[i]));
      difference += (near[i] - full[i]) * (near[i] - full[i]);
      magnitude += full[i] * full[i];
    }
    if (row != 1) near_only += std::sqrt(difference / magnitude);
  }
  const std::vector<ShadowErrors> errors = Step(PlanOf({0, 2}), outputs);
  ASSERT_EQ(errors.size(), kLayers);
  // Rounding of the full output: bf16 products round probabilities, the others are far below.
  const double rounding = rig_.rounds_factors() ? 2 * kBf16 : 1e-5;
  EXPECT_NEAR(errors[0].sum, 0.02 + 0.3, 2 * rounding);
  EXPECT_NEAR(errors[1].sum, near_only, 2 * rounding);
  EXPECT_GT(near_only, 0.1);
  EXPECT_EQ(Total(errors[0]), 2);
  EXPECT_EQ(errors[0].counts[3] + errors[0].counts[2], 1);  // .02 lies between .01 and .03
  EXPECT_EQ(errors[0].counts[7], 1);                        // .3 between .2 and .4
}

TEST_P(ShadowCheckTest, WithoutPickedRowsThereIsNothingAndTooManyAreAnError) {
  const std::size_t values = 3 * kShape.heads * kShape.group * kShape.head_dim;
  const std::vector<std::vector<float>> zeros(kLayers, std::vector<float>(values));
  EXPECT_TRUE(Step(PlanOf({}), zeros).empty());
  // A routed output of zeros is wrong by as much as there is.
  const std::vector<ShadowErrors> errors = Step(PlanOf({1}), zeros);
  ASSERT_EQ(errors.size(), kLayers);
  EXPECT_DOUBLE_EQ(errors[1].sum, 1.0);
  ASSERT_TRUE(batch_->Load(PlanOf({0, 1, 2}), rig_.stream()).ok());
  EXPECT_EQ(check_->BeginStep(*batch_, rig_.stream()).code(), absl::StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Backends, ShadowCheckTest, ::testing::ValuesIn(Backends()),
                         [](const auto& param) { return param.param.Name(); });

}  // namespace
}  // namespace metattn::testing
