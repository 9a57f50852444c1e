#include "engine/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/support/controller_writer.h"
#include "tests/support/real_model.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_directory.h"
#include "tests/support/tiny_model.h"

namespace metattn {
namespace {

using test::Fails;
using test::Succeeds;
using ::testing::HasSubstr;

class InspectTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = ::testing::TempDir() + "inspect_test_" +
           ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::string dir_;
};

TEST_F(InspectTest, CountsTensorsParametersAndBytesByType) {
  const auto report =
      Inspect({.model = test::WriteTinyModel({.dtype = DType::kQ8_0}, dir_ + "/m.gguf")});
  ASSERT_THAT(report, Succeeds());
  EXPECT_EQ(report->format, "gguf");
  ASSERT_EQ(report->types.size(), 2u);
  EXPECT_EQ(report->types[0].type, "q8_0");
  // Embedding 320 x 64; per layer q, o 64 x 64, k, v 32 x 64, three of 96 x 64.
  const std::int64_t matrices = 320 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64);
  EXPECT_EQ(report->types[0].tensors, 1 + 2 * 7);
  EXPECT_EQ(report->types[0].parameters, matrices);
  EXPECT_EQ(report->types[0].bytes, matrices / 32 * 34);
  EXPECT_EQ(report->types[1].type, "f32");
  EXPECT_EQ(report->types[1].parameters, 64 * 5);
  EXPECT_EQ(report->bytes, matrices / 32 * 34 + 64 * 5 * 4);
  EXPECT_EQ(report->tensors.size(), 20u);
}

TEST_F(InspectTest, SaysWhatTheTokenizerIs) {
  const auto report = Inspect({.model = test::WriteTinyModel({}, dir_ + "/m.gguf")});
  ASSERT_THAT(report, Succeeds());
  EXPECT_EQ(report->tokenizer.error, "");
  EXPECT_EQ(report->tokenizer.pre_tokenizer, "smollm");
  EXPECT_EQ(report->tokenizer.vocab, 320);
  EXPECT_THAT(report->tokenizer.stop_ids, ::testing::Contains(2));
  EXPECT_EQ(report->tokenizer.chat_template, "chatml");
}

TEST_F(InspectTest, AMissingTokenizerIsReportedAndTheRestStands) {
  const std::string model = test::WriteTinyDirectory({}, dir_ + "/model");
  std::filesystem::remove(model + "/tokenizer.json");
  const auto report = Inspect({.model = model});
  ASSERT_THAT(report, Succeeds());
  EXPECT_EQ(report->format, "huggingface");
  EXPECT_THAT(report->tokenizer.error, HasSubstr("tokenizer"));
  EXPECT_THAT(ToText(*report, false), HasSubstr("tokenizer     cannot be used: "));
  EXPECT_EQ(report->plans.size(), 3u);
}

TEST_F(InspectTest, RanksShareWhatOneRankNeeds) {
  const auto report =
      Inspect({.model = test::WriteTinyModel({}, dir_ + "/m.gguf"), .ranks = {1, 2}});
  ASSERT_THAT(report, Succeeds());
  ASSERT_EQ(report->plans.size(), 2u);
  const RankNeed& whole = report->plans[0].ranks.at(0);
  // 2 layers, 2 heads, K and V of 16 values in bf16.
  EXPECT_EQ(whole.kv_bytes_per_1000_tokens, 1000 * 2 * 2 * 2 * 16 * 2);
  EXPECT_GE(whole.weight_bytes, report->bytes - 64 * 5 * 4);  // norms may count as scratch
  std::int64_t kv = 0, columns = 0;
  for (const RankNeed& need : report->plans[1].ranks) {
    EXPECT_LT(need.weight_bytes, whole.weight_bytes);
    kv += need.kv_bytes_per_1000_tokens;
    columns += need.slice.ffn_end - need.slice.ffn_begin;
  }
  EXPECT_EQ(kv, whole.kv_bytes_per_1000_tokens);
  EXPECT_EQ(columns, 96);
}

TEST_F(InspectTest, ACountThatCannotWorkIsReportedAndAnImpossibleOneIsAnError) {
  const std::string model = test::WriteTinyModel({.dtype = DType::kQ4_0}, dir_ + "/m.gguf");
  // 96 MLP columns are three blocks of 32: no cut into four.
  auto report = Inspect({.model = model, .ranks = {4}});
  ASSERT_THAT(report, Succeeds());
  EXPECT_NE(report->plans[0].error, "");
  EXPECT_TRUE(report->plans[0].ranks.empty());
  EXPECT_THAT(ToText(*report, false), HasSubstr("on 4 ranks: cannot work: "));
  EXPECT_THAT(Inspect({.model = model, .ranks = {0}}),
              Fails(absl::StatusCode::kInvalidArgument, "--ranks"));
  report = Inspect({.model = model, .rank_weights = {2, -1}});
  ASSERT_THAT(report, Succeeds());
  EXPECT_NE(report->plans[0].error, "");
}

TEST_F(InspectTest, WeightsReplaceTheCounts) {
  const auto report =
      Inspect({.model = test::WriteTinyModel({}, dir_ + "/m.gguf"), .rank_weights = {3, 1}});
  ASSERT_THAT(report, Succeeds());
  ASSERT_EQ(report->plans.size(), 1u);
  ASSERT_EQ(report->plans[0].ranks.size(), 2u);
  EXPECT_GT(report->plans[0].ranks[0].weight_bytes, report->plans[0].ranks[1].weight_bytes);
  EXPECT_THAT(ToText(*report, false), HasSubstr("on 2 ranks, weights 3,1\n"));
}

TEST_F(InspectTest, TextListsTensorsOnDemandAndJsonAlways) {
  const auto report = Inspect({.model = test::WriteTinyModel({}, dir_ + "/m.gguf")});
  ASSERT_THAT(report, Succeeds());
  EXPECT_THAT(ToText(*report, false), ::testing::Not(HasSubstr("blk.1.ffn_up.weight")));
  EXPECT_THAT(ToText(*report, true), HasSubstr("blk.1.ffn_up.weight"));
  const auto json = nlohmann::json::parse(ToJson(*report));
  EXPECT_EQ(json["architecture"], "llama");
  EXPECT_EQ(json["config"]["kv_heads"], 2);
  EXPECT_EQ(json["tensors"].size(), 20u);
  EXPECT_EQ(json["tensors"][0]["shape"], (std::vector<int>{320, 64}));
  EXPECT_EQ(json["plans"][1]["per_rank"].size(), 2u);
}

TEST_F(InspectTest, ExpectsTimesOnADevice) {
  InspectOptions options = {.model = test::WriteTinyModel({}, dir_ + "/m.gguf"),
                            .ranks = {1, 2},
                            .device = "h100",
                            .route_shares = {0.25, 0, 0.75}};
  options.transformer.max_context = 8192;
  const auto report = Inspect(options);
  ASSERT_THAT(report, Succeeds());
  for (const RankPlan& plan : report->plans) {
    ASSERT_EQ(plan.expected.size(), 2u);
    EXPECT_EQ(plan.expected[0].context, 1024);
    EXPECT_EQ(plan.expected[1].context, 8192);
    EXPECT_EQ(plan.expected[1].sequences, (std::vector<int>{1, 16, 64}));
  }
  // One sequence reads every matrix once (the tied table as output head) and 8,192 tokens of K/V:
  // 2 layers, 2 heads, K and V of 16 values in bf16. Routed: 260 near tokens and a quarter of the
  // 7,932 from the 4 sinks to the frontier.
  const RankPlan& whole = report->plans[0];
  const double weights = static_cast<double>(whole.ranks.at(0).weight_bytes),
               kv = 2 * 2 * 2 * 16 * 2;
  const ExpectedTime& decode = whole.expected[1].decode[0];
  EXPECT_NEAR(decode.dense * 3350e9, weights + 8192 * kv, 1);
  EXPECT_NEAR(decode.routed * 3350e9, weights + (8192 - 0.75 * 7932) * kv, 1);
  EXPECT_LT(report->plans[1].expected[1].decode[0].dense, decode.dense);
  EXPECT_LT(whole.expected[1].prefill.routed, whole.expected[1].prefill.dense);

  EXPECT_THAT(ToText(*report, false), HasSubstr("expected on H100 SXM 80 GB: 3350 GB/s"));
  EXPECT_THAT(ToText(*report, false), HasSubstr("NOT a measurement"));
  const auto json = nlohmann::json::parse(ToJson(*report));
  EXPECT_EQ(json["expected_on"]["kind"], "model, not a measurement");
  EXPECT_EQ(json["plans"][0]["expected"][1]["decode"][2]["sequences"], 64);
  EXPECT_EQ(json["plans"][0]["expected"][1]["decode"][0]["dense_s"], decode.dense);
}

TEST_F(InspectTest, WithoutSharesTimesAreDenseAndWithoutADeviceThereAreNone) {
  InspectOptions options = {.model = test::WriteTinyModel({}, dir_ + "/m.gguf"), .ranks = {1}};
  auto report = Inspect(options);
  ASSERT_THAT(report, Succeeds());
  EXPECT_TRUE(report->plans[0].expected.empty());
  EXPECT_THAT(ToText(*report, false), ::testing::Not(HasSubstr("expected on")));
  options.device = "a100";
  report = Inspect(options);
  ASSERT_THAT(report, Succeeds());
  EXPECT_EQ(report->plans[0].expected[0].decode[0].routed, 0);
  EXPECT_THAT(ToText(*report, false), ::testing::Not(HasSubstr("routed")));
}

TEST_F(InspectTest, SharesAreTheControllersCalibrationUnlessGiven) {
  InspectOptions options = {.model = test::WriteTinyModel({}, dir_ + "/m.gguf"), .device = "h100"};
  const std::int64_t scratch = Inspect(options)->plans[0].ranks.at(0).scratch_bytes;
  options.controller = test::WriteController(options.model, dir_ + "/controller",
                                             {.edit_json = [](nlohmann::json& json) {
                                               for (auto& layer : json["mix"]) {
                                                 for (auto& head : layer) head = {0.25, 0.25, 0.5};
                                               }
                                             }});
  const auto calibrated = Inspect(options);
  ASSERT_THAT(calibrated, Succeeds());
  EXPECT_GT(calibrated->plans[0].ranks.at(0).scratch_bytes, scratch);
  options.route_shares = {0.25, 0.25, 0.5};
  const auto given = Inspect(options);
  ASSERT_THAT(given, Succeeds());
  for (std::size_t plan = 0; plan < 2; ++plan) {
    const ExpectedTimes& a = calibrated->plans[plan].expected.back();
    const ExpectedTimes& b = given->plans[plan].expected.back();
    EXPECT_GT(a.decode[0].routed, 0);
    EXPECT_LT(a.decode[0].routed, a.decode[0].dense);
    EXPECT_DOUBLE_EQ(a.decode[0].routed, b.decode[0].routed);
    EXPECT_DOUBLE_EQ(a.prefill.routed, b.prefill.routed);
  }
  options.controller = dir_ + "/nowhere";
  EXPECT_FALSE(Inspect(options).ok());
}

TEST_F(InspectTest, AnUnknownDeviceAndSharesThatAreNoneAreErrors) {
  const std::string model = test::WriteTinyModel({}, dir_ + "/m.gguf");
  EXPECT_THAT(Inspect({.model = model, .device = "abacus"}),
              Fails(absl::StatusCode::kInvalidArgument, "there are: a100, b200, h100"));
  for (const std::vector<double>& shares :
       {std::vector<double>{1}, {0.5, 0.2, 0.2}, {1.5, -0.5, 0}}) {
    EXPECT_THAT(Inspect({.model = model, .device = "h100", .route_shares = shares}),
                Fails(absl::StatusCode::kInvalidArgument, "--route-shares"));
  }
}

TEST_F(InspectTest, ADamagedModelIsItsError) {
  test::WriteFile(dir_ + "/m.gguf", "GGUF");
  EXPECT_THAT(Inspect({.model = dir_ + "/m.gguf"}),
              Fails(absl::StatusCode::kInvalidArgument, "m.gguf: ends inside"));
}

TEST(InspectRealModel, NeedsWhatItsPublisherSays) {
  const std::string path = test::RealModelPath();
  if (path.empty()) GTEST_SKIP() << test::kNoRealModel;
  const auto report = Inspect({.model = path});
  ASSERT_THAT(report, Succeeds());
  EXPECT_EQ(report->types[0].type, "q4_1");
  EXPECT_NEAR(static_cast<double>(report->parameters), 134.5e6, 0.1e6);
  EXPECT_EQ(report->tokenizer.pre_tokenizer, "smollm");
  EXPECT_EQ(report->tokenizer.chat_template, "smollm2");
  // 30 layers, 3 heads, K and V of 64 values in bf16: 23 KB a token.
  EXPECT_EQ(report->plans[0].ranks.at(0).kv_bytes_per_1000_tokens, 1000 * 30 * 3 * 2 * 64 * 2);
}

}  // namespace
}  // namespace metattn
