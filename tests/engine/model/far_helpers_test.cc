// A model some of whose far pages are read by other ranks gives the logits of one whose are not,
// and rows really travel.
#include "engine/model/far_helpers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/controller_writer.h"
#include "tests/support/model_runner.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace metattn::test {
namespace {

constexpr int kTokens = 214, kPrompt = 192;
// Ranks wait for each other actively: more of them than cores take minutes under ThreadSanitizer.
#ifdef __SANITIZE_THREAD__
const std::vector<int> kRanks = {2};
#else
const std::vector<int> kRanks = {2, 4};
#endif
constexpr RoutePolicy kRoutedPolicy{Route::kRouted, 0, 1};  // always sure
const TinyModelOptions kModel = {
    .layers = 2, .hidden = 96, .heads = 6, .kv_heads = 3, .head_dim = 32, .ffn = 96};

class FarHelpersTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/far_helpers_" + std::to_string(getpid());
    std::filesystem::create_directories(root_);
    model_ = WriteTinyModel(kModel, root_ + "/model.gguf");
    controller_ = WriteController(model_, root_ + "/controller");
    std::mt19937 engine(5);
    for (int i = 0; i < kTokens; ++i) tokens_.push_back(static_cast<int>(engine() % 300));
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  // Decode of several sequences behind a prompt; rows from 127 on are eligible.
  static RunnerOptions Decode(int ranks, const char* device) {
    return {.ranks = ranks,
            .device = device,
            .window = 64,
            .chunk = 1,
            .prompt = kPrompt,
            .company = 3};
  }

  // With helpers against without, under the same decisions where a controller makes them.
  void Compare(RunnerOptions options, double rounding) {
    if (!options.controller.empty()) {
      options.record_decisions = root_ + "/decisions";
      std::filesystem::remove_all(options.record_decisions);
      ASSERT_THAT(RunModel(model_, tokens_, options), Succeeds());
      options.replay_decisions = std::exchange(options.record_decisions, "");
    }
    const auto alone = RunModel(model_, tokens_, options);
    RunnerOptions one = options;  // the bound is that of the numeric format
    one.ranks = one.repeats = 1;
    one.company = 0;
    const auto bound = MeasuredBound(model_, tokens_, one, rounding);
    options.helpers = true;
    const auto helped = RunModel(model_, tokens_, options);
    ASSERT_THAT(alone, Succeeds());
    ASSERT_THAT(bound, Succeeds());
    ASSERT_THAT(helped, Succeeds());
    EXPECT_EQ(alone->helped_rows, 0);
    EXPECT_GT(helped->helped_rows, 0);
    EXPECT_LE(MaxAbsDifference(alone->logits, helped->logits), *bound);
    EXPECT_EQ(alone->routing.bytes_read, helped->routing.bytes_read);
    helped_rows_ = helped->helped_rows;
  }

  std::string root_, model_, controller_;
  std::vector<std::int32_t> tokens_;
  std::int64_t helped_rows_ = 0;
};

TEST_F(FarHelpersTest, DenseLogitsAreTheSame) {
  for (const int ranks : kRanks) {
    for (const auto& [device, rounding] : {std::pair{"ref", 0x1p-23}, std::pair{"cpu", 0x1p-9}}) {
      SCOPED_TRACE(absl::StrCat(device, " ", ranks));
      Compare(Decode(ranks, device), rounding);
    }
  }
}

// On two ranks rank 1 may read two of four rows of head 1: the last two of equally long ones. One
// of them is forced local. In the first decode step copies are still under way.
TEST_F(FarHelpersTest, EveryRowThatIsFullAndChosenTravels) {
  Compare(Decode(2, "ref"), 0x1p-23);
  const std::int64_t steps = kTokens - kPrompt - 1;
  EXPECT_EQ(helped_rows_, steps * kModel.layers);
}

// A model of one KV head: two ranks read a third of its rows each. Of six rows the last four are
// chosen, every second of which is forced local.
TEST_F(FarHelpersTest, TwoHelpersOfAHeadReadDifferentRows) {
  TinyModelOptions model = kModel;
  model.heads = 2, model.kv_heads = 1;
  WriteTinyModel(model, model_);
  RunnerOptions options = Decode(3, "ref");
  options.company = 5;
  Compare(options, 0x1p-23);
  const std::int64_t steps = kTokens - kPrompt - 1;
  EXPECT_EQ(helped_rows_, 2 * steps * model.layers);
}

TEST_F(FarHelpersTest, RoutedLogitsAreTheSame) {
  for (const int ranks : kRanks) {
    SCOPED_TRACE(ranks);
    RunnerOptions options = Decode(ranks, "ref");
    options.controller = controller_;
    options.policy = kRoutedPolicy;
    Compare(options, 0x1p-23);
  }
}

// The tokens again from the first on, into the same blocks: copies of the first time count no more,
// so the first decode step is not helped then either.
TEST_F(FarHelpersTest, BlocksThatAreUsedAgainAreCopiedAgain) {
  RunnerOptions options = Decode(2, "ref");
  options.repeats = 2;
  Compare(options, 0x1p-23);
  EXPECT_EQ(helped_rows_, (kTokens - kPrompt - 1) * kModel.layers);
}

TEST_F(FarHelpersTest, PrefillsAndLoneSequencesAreNotHelped) {
  RunnerOptions options = Decode(2, "ref");
  options.helpers = true;
  options.company = 0;
  const auto lone = RunModel(model_, tokens_, options);
  ASSERT_THAT(lone, Succeeds());
  EXPECT_EQ(lone->helped_rows, 0);
  options.company = 3;
  options.prompt = 0;
  options.chunk = 64;
  const auto prefill = RunModel(model_, tokens_, options);
  ASSERT_THAT(prefill, Succeeds());
  EXPECT_EQ(prefill->helped_rows, 0);
}

TEST_F(FarHelpersTest, HelpersAreRefusedWhereResultsMustNotDependOnTheBatch) {
  RunnerOptions options = Decode(2, "cpu");
  options.helpers = true;
  options.deterministic = true;
  const absl::Status status = RunModel(model_, tokens_, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("--attention-helpers"));
}

}  // namespace
}  // namespace metattn::test
