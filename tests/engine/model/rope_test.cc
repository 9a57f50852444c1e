// Expected values: the functions of Hugging Face transformers 5.24.0 (modeling_rope_utils.py),
// evaluated in double.
#include "engine/model/rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace metattn {
namespace {

using ::testing::HasSubstr;

void ExpectRope(const RopeParameters& parameters, const std::vector<double>& inv_freq,
                double scale) {
  const auto rope = ComputeRope(parameters);
  ASSERT_TRUE(rope.ok()) << rope.status();
  ASSERT_EQ(rope->inv_freq.size(), inv_freq.size());
  for (std::size_t i = 0; i < inv_freq.size(); ++i) {
    // Printed with 13 digits.
    EXPECT_NEAR(rope->inv_freq[i], inv_freq[i], 1e-12 * inv_freq[i]) << "pair " << i;
  }
  EXPECT_NEAR(rope->scale, scale, 1e-14);
}

TEST(Rope, WithoutScalingIsAGeometricSeries) { ExpectRope({.rotary_dim = 4}, {1.0, 0.01}, 1.0); }

TEST(Rope, LinearDividesEveryFrequency) {
  ExpectRope({.type = "linear", .rotary_dim = 16, .factor = 4.0},
             {2.500000000000e-01, 7.905694150421e-02, 2.500000000000e-02, 7.905694150421e-03,
              2.500000000000e-03, 7.905694150421e-04, 2.500000000000e-04, 7.905694150421e-05},
             1.0);
}

TEST(Rope, Llama3KeepsShortWavesAndStretchesLongOnes) {
  ExpectRope({.type = "llama3",
              .base = 500000.0,
              .rotary_dim = 32,
              .factor = 8.0,
              .original_positions = 8192},
             {1.000000000000e+00, 4.403666026718e-01, 1.939227447487e-01, 8.539710028577e-02,
              3.760603093086e-02, 1.656044008099e-02, 7.292664737217e-03, 3.211445994753e-03,
              5.248461609930e-04, 7.784655273932e-05, 3.428102195953e-05, 1.509621717643e-05,
              6.647869871181e-06, 2.927499870176e-06, 1.289173172152e-06, 5.677088100760e-07},
             1.0);
}

TEST(Rope, YarnRampsFromKeptToStretched) {
  ExpectRope(
      {.type = "yarn", .base = 1e6, .rotary_dim = 32, .factor = 4.0, .original_positions = 32768},
      {1.000000000000e+00, 4.216965034286e-01, 1.778279410039e-01, 7.498942093325e-02,
       3.162277660168e-02, 1.333521432163e-02, 4.779901264118e-03, 1.659961593963e-03,
       5.500000000000e-04, 1.686786013714e-04, 4.445698525097e-05, 1.874735523331e-05,
       7.905694150421e-06, 3.333803580408e-06, 1.405853312976e-06, 5.928434264154e-07},
      1.138629436111989);
}

TEST(Rope, YarnFollowsItsOptionalFields) {
  ExpectRope({.type = "yarn",
              .rotary_dim = 16,
              .factor = 16.0,
              .original_positions = 256,
              .beta_fast = 16,
              .beta_slow = 2,
              .truncate = false,
              .mscale = 0.7,
              .mscale_all_dim = 1.2},
             {1.000000000000e+00, 2.853500836058e-01, 3.833049298876e-02, 1.976423537605e-03,
              6.250000000000e-04, 1.976423537605e-04, 6.250000000000e-05, 1.976423537605e-05},
             0.895979343709375);
  ExpectRope({.type = "yarn",
              .rotary_dim = 16,
              .factor = 2.0,
              .original_positions = 2048,
              .attention_factor = 1.25},
             {1.000000000000e+00, 3.162277660168e-01, 1.000000000000e-01, 2.766992952647e-02,
              7.500000000000e-03, 1.976423537605e-03, 5.000000000000e-04, 1.581138830084e-04},
             1.25);
}

TEST(Rope, DynamicEqualsNoneUpToTheOriginalLength) {
  ExpectRope({.type = "dynamic", .rotary_dim = 4, .factor = 4.0, .original_positions = 2048},
             {1.0, 0.01}, 1.0);
}

TEST(Rope, DivisorsStretchEachPairByItsOwn) {
  ExpectRope({.rotary_dim = 4, .divisors = {1.0, 8.0}}, {1.0, 0.00125}, 1.0);
}

TEST(Rope, NamesTheFieldThatCannotBe) {
  const struct {
    RopeParameters parameters;
    const char* message;
  } kCases[] = {
      {{.rotary_dim = 0}, "rotary dimension 0"},
      {{.rotary_dim = 7}, "rotary dimension 7"},
      {{.base = 1.0, .rotary_dim = 4}, "base"},
      {{.base = std::nan(""), .rotary_dim = 4}, "base"},
      {{.type = "linear", .rotary_dim = 4, .factor = 0}, "factor"},
      {{.type = "llama3", .rotary_dim = 4}, "original context length"},
      {{.type = "llama3",
        .rotary_dim = 4,
        .original_positions = 64,
        .low_freq_factor = 4,
        .high_freq_factor = 4},
       "low_freq_factor < high_freq_factor"},
      {{.type = "yarn", .rotary_dim = 4, .original_positions = 64, .beta_fast = 1, .beta_slow = 2},
       "beta_slow <= beta_fast"},
      {{.type = "yarn", .rotary_dim = 4, .original_positions = 64, .attention_factor = 0.0},
       "attention factor"},
      {{.rotary_dim = 4, .divisors = {1.0}}, "1 frequency divisors"},
      {{.rotary_dim = 4, .divisors = {1.0, 0.0}}, "divisor is not positive"},
  };
  for (const auto& [parameters, message] : kCases) {
    const auto rope = ComputeRope(parameters);
    EXPECT_TRUE(absl::IsInvalidArgument(rope.status())) << message << ": " << rope.status();
    EXPECT_THAT(std::string(rope.status().message()), HasSubstr(message));
  }
  const auto unknown = ComputeRope({.type = "longrope", .rotary_dim = 4});
  EXPECT_TRUE(absl::IsUnimplemented(unknown.status()));
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("longrope"));
}

}  // namespace
}  // namespace metattn
