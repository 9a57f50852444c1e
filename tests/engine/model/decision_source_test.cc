// Decisions that are drawn or replayed: shares, independence of ranks and steps, damaged logs.
#include "engine/model/decision_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/routing_ops.h"

namespace metattn {
namespace {

constexpr int kLayers = 4, kHeads = 3;

// Rows [first, last) of one request; every third has nothing to decide.
struct Step {
  Step(int first, int last) {
    for (int t = first; t < last; ++t) {
      request.push_back(7);
      position.push_back(t);
      eligible.push_back(t % 3 == 0 ? 0 : 1);
    }
  }
  DecisionRows Rows(int head_begin = 0, int head_end = kHeads) const {
    return {request, position, eligible, kLayers, head_begin, head_end};
  }
  std::vector<std::uint64_t> request;
  std::vector<std::int32_t> position;
  std::vector<std::uint8_t> eligible;
};

std::vector<std::uint8_t> Decide(DecisionSource& source, const DecisionRows& rows) {
  std::vector<std::uint8_t> decisions(rows.position.size() *
                                      static_cast<std::size_t>(rows.layers * rows.heads()));
  EXPECT_TRUE(source.Decide(rows, decisions).ok());
  return decisions;
}

TEST(ForceShare, DrawsTheShareAmongEligibleRowsOnly) {
  const Step step(0, 3000);
  for (const double share : {0.0, 0.2, 1.0}) {
    const auto source = ForceShare(share, Mechanism::kLinear, 1);
    const auto decisions = Decide(*source, step.Rows());
    int full = 0, eligible = 0;
    for (std::size_t i = 0; i < decisions.size(); ++i) {
      if (step.eligible[i / kHeads % step.eligible.size()] == 0) {
        ASSERT_EQ(decisions[i], static_cast<std::uint8_t>(Mechanism::kLocal));
        continue;
      }
      ++eligible;
      full += decisions[i] == static_cast<std::uint8_t>(Mechanism::kFull);
      ASSERT_NE(decisions[i], static_cast<std::uint8_t>(Mechanism::kLocal));
    }
    EXPECT_NEAR(full, share * eligible, share * (1 - share) == 0 ? 0 : 400);  // 6 sigma
  }
}

TEST(ForceShare, ADrawBelongsToItsRowLayerAndHeadWhateverTheRank) {
  const Step step(0, 200);
  const auto source = ForceShare(0.5, Mechanism::kLocal, 1);
  const auto all = Decide(*source, step.Rows());
  const auto last = Decide(*source, step.Rows(2, 3));
  for (std::size_t i = 0; i < last.size(); ++i) ASSERT_EQ(last[i], all[i * kHeads + 2]);
  EXPECT_NE(all, Decide(*ForceShare(0.5, Mechanism::kLocal, 2), step.Rows()));
}

class DecisionLog : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/decision_log_" + std::to_string(getpid());
    std::filesystem::remove_all(directory_);
    const auto source = ForceShare(0.3, Mechanism::kLinear, 5);
    for (const auto& [rank, begin, end] : {std::tuple(0, 0, 2), std::tuple(1, 2, 3)}) {
      auto recorder = RecordDecisions({directory_, rank, kLayers, kHeads, begin, end});
      ASSERT_TRUE(recorder.ok()) << recorder.status();
      for (const Step& step : {Step(0, 10), Step(10, 33)}) {
        const DecisionRows rows = step.Rows(begin, end);
        ASSERT_TRUE((*recorder)->Record(rows, Decide(*source, rows), {}).ok());
      }
    }
    expected_ = Decide(*source, Step(0, 33).Rows());
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string Refusal(int layers = kLayers, int heads = kHeads) const {
    const auto replay = ReplayDecisions(directory_, layers, heads);
    EXPECT_FALSE(replay.ok());
    return std::string(replay.status().message());
  }
  std::string file() const { return directory_ + "/rank-1.decisions"; }

  std::string directory_;
  std::vector<std::uint8_t> expected_;
};

TEST_F(DecisionLog, WhatTwoRanksRecordedInTwoStepsIsReplayedByOneInOne) {
  const auto replay = ReplayDecisions(directory_, kLayers, kHeads);
  ASSERT_TRUE(replay.ok()) << replay.status();
  EXPECT_EQ(Decide(**replay, Step(0, 33).Rows()), expected_);
  const Step unknown(33, 36);
  std::vector<std::uint8_t> decisions(3 * kLayers * kHeads);
  const absl::Status status = (*replay)->Decide(unknown.Rows(), decisions);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("request 7, position 34"));
}

TEST_F(DecisionLog, MixturesAreRecordedButNotReplayed) {
  auto recorder = RecordDecisions({directory_, 1, kLayers, kHeads, 2, 3});
  ASSERT_TRUE(recorder.ok()) << recorder.status();
  const Step step(4, 6);
  std::vector<std::uint8_t> decisions(2 * kLayers, 0);
  decisions[2 * 2 + 1] = kMixture;  // layer 2, position 5
  ASSERT_TRUE((*recorder)->Record(step.Rows(2, 3), decisions, {}).ok());
  const auto replay = ReplayDecisions(directory_, kLayers, kHeads);
  EXPECT_EQ(replay.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(replay.status().message()),
              testing::HasSubstr("request 7, position 5, layer 2, KV head 2 mixed mechanisms"));
}

TEST_F(DecisionLog, DamagedAndForeignLogsAreRefusedByName) {
  EXPECT_THAT(Refusal(kLayers + 1), testing::HasSubstr("another model"));
  const auto size = std::filesystem::file_size(file());
  std::filesystem::resize_file(file(), size - 1);
  EXPECT_THAT(Refusal(), testing::HasSubstr("rank-1.decisions ends in the middle"));
  std::filesystem::resize_file(file(), 5);
  EXPECT_THAT(Refusal(), testing::HasSubstr("too short"));
  std::ofstream(file(), std::ios::binary) << std::string(100, 'x');
  EXPECT_THAT(Refusal(), testing::HasSubstr("no decision log"));
  std::filesystem::remove_all(directory_);
  EXPECT_THAT(Refusal(), testing::HasSubstr("no recorded decisions"));
}

}  // namespace
}  // namespace metattn
