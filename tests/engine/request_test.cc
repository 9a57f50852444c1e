#include "engine/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

namespace metattn {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr std::int64_t kVocab = 100;

struct Case {
  const char* names;  // what the message must name
  std::function<void(SamplingParams&)> change;
};

TEST(Validate, DefaultsAndExtremesAreAccepted) {
  EXPECT_TRUE(Validate({}, kVocab).ok());
  SamplingParams p;
  p.temperature = 5;
  p.top_k = 1 << 30;
  p.top_p = 1e-9;
  p.min_p = 1;
  p.repetition_penalty = 0.01;
  p.presence_penalty = -2;
  p.frequency_penalty = 2;
  p.logit_bias = {{0, -100}, {99, 100}};
  p.stop = {"é", std::string(1024, 'x')};
  p.stop_token_ids = {0, 99, 99};
  p.max_tokens = std::numeric_limits<std::int32_t>::max();
  p.min_tokens = 3;
  p.logprobs = 20;
  EXPECT_TRUE(Validate(p, kVocab).ok()) << Validate(p, kVocab);
}

TEST(Validate, EveryBadFieldIsRefusedByName) {
  const std::vector<Case> cases = {
      {"temperature", [](SamplingParams& p) { p.temperature = kNan; }},
      {"temperature", [](SamplingParams& p) { p.temperature = -0.1; }},
      {"temperature", [](SamplingParams& p) { p.temperature = kInf; }},
      {"top_k", [](SamplingParams& p) { p.top_k = -1; }},
      {"top_p", [](SamplingParams& p) { p.top_p = 0; }},
      {"top_p", [](SamplingParams& p) { p.top_p = 1.01; }},
      {"top_p", [](SamplingParams& p) { p.top_p = kNan; }},
      {"min_p", [](SamplingParams& p) { p.min_p = -0.01; }},
      {"min_p", [](SamplingParams& p) { p.min_p = kNan; }},
      {"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 0; }},
      {"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = kInf; }},
      {"presence_penalty", [](SamplingParams& p) { p.presence_penalty = 2.1; }},
      {"presence_penalty", [](SamplingParams& p) { p.presence_penalty = kNan; }},
      {"frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = -2.1; }},
      {"max_tokens", [](SamplingParams& p) { p.max_tokens = -1; }},
      {"min_tokens", [](SamplingParams& p) { p.min_tokens = -1; }},
      {"min_tokens", [](SamplingParams& p) { p.max_tokens = 2, p.min_tokens = 3; }},
      {"logprobs", [](SamplingParams& p) { p.logprobs = 21; }},
      {"logprobs", [](SamplingParams& p) { p.logprobs = -2; }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{100, 1.0}};
       }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{-1, 1.0}};
       }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{1, kNan}};
       }},
      {"logit_bias",
       [](SamplingParams& p) {
         p.logit_bias = {{1, 1.0}, {1, 2.0}};
       }},
      {"logit_bias", [](SamplingParams& p) { p.logit_bias.resize(1025); }},
      {"stop_token_ids[1]",
       [](SamplingParams& p) {
         p.stop_token_ids = {1, 100};
       }},
      {"stop_token_ids", [](SamplingParams& p) { p.stop_token_ids.resize(257); }},
      {"stop[1]",
       [](SamplingParams& p) {
         p.stop = {"a", ""};
       }},
      {"stop[0]", [](SamplingParams& p) { p.stop = {"\xff"}; }},
      {"stop[0]", [](SamplingParams& p) { p.stop = {std::string(1025, 'x')}; }},
      {"stop", [](SamplingParams& p) { p.stop.assign(17, "x"); }},
  };
  for (const Case& c : cases) {
    SamplingParams params;
    c.change(params);
    const absl::Status status = Validate(params, kVocab);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.names;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(c.names));
  }
}

}  // namespace
}  // namespace metattn
