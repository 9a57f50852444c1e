// Control: decisions, uncertainty and margins against the formulas of kernels/routing_ops.h in
// double. Bounds come out of the formula itself: it is computed on numbers that carry how far off
// an f32 evaluation may be (Approx). A decision may differ from the expected one only where the
// expected margin, or the distance of U from eta, lies below its bound.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/kernels/control_support.h"

namespace metattn::testing {
namespace {

constexpr auto kFull = static_cast<std::uint8_t>(Mechanism::kFull);
constexpr auto kLinear = static_cast<std::uint8_t>(Mechanism::kLinear);
constexpr auto kLocal = static_cast<std::uint8_t>(Mechanism::kLocal);
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class ControlTest : public ::testing::TestWithParam<BackendParam> {};

// How many decisions were free to differ, of how many.
struct Freedom {
  int free = 0, all = 0;
};

// Compares all outputs of a step.
void Check(const ControlInputs& in, const ControlOutputs& actual, const std::string& what,
           Freedom* freedom) {
  std::vector<double> u, u_bound, margin, margin_bound, weights, weights_bound;
  for (int t = 0; t < in.tokens; ++t) {
    for (int h = 0; h < in.heads; ++h) {
      const int i = t * in.heads + h;
      if (!in.Eligible(t) || in.route[t] != kRouted) {
        EXPECT_EQ(actual.decisions[i], in.Eligible(t) ? in.route[t] : kLocal)
            << what << " row " << t;
        for (auto* list : {&u, &u_bound, &margin, &margin_bound}) list->push_back(0);
        for (auto* list : {&weights, &weights_bound}) list->insert(list->end(), kMechanisms, 0.0);
        continue;
      }
      const ExpectedDecision expected = ExpectDecision(in, t, h);
      u.push_back(expected.uncertainty);
      u_bound.push_back(expected.uncertainty_bound);
      margin.push_back(expected.margin);
      margin_bound.push_back(expected.margin_bound);
      weights.insert(weights.end(), std::begin(expected.weights), std::end(expected.weights));
      weights_bound.insert(weights_bound.end(), std::begin(expected.weights_bound),
                           std::end(expected.weights_bound));
      EXPECT_TRUE(expected.Allows(actual.decisions[i]))
          << what << " row " << t << " head " << h << ": " << int{actual.decisions[i]}
          << ", margin " << expected.margin << " +- " << expected.margin_bound << ", U "
          << expected.uncertainty << " +- " << expected.uncertainty_bound << ", eta " << in.eta[t];
      freedom->free += expected.Choices() > 1;
      ++freedom->all;
    }
  }
  ExpectWithin(actual.uncertainty, u, u_bound, what + ": U");
  ExpectWithin(actual.margin, margin, margin_bound, what + ": margin");
  ExpectWithin(actual.weights, weights, weights_bound, what + ": weights");
}

// No weights: alpha is the same for all three, to the bit.
ControlInputs Weightless(int tokens, ControllerLink link) {
  ControlInputs in = RandomControl({tokens, 1, 3, 8}, link, 33);
  for (auto* weights : {&in.projected, &in.out, &in.out_bias, &in.scalars_skip, &in.offset}) {
    std::fill(weights->begin(), weights->end(), 0.0f);
  }
  std::fill(in.cost_weight.begin(), in.cost_weight.end(), 0.0f);
  std::fill(in.eta.begin(), in.eta.end(), 2.0f);  // never uncertain
  std::fill(in.route.begin(), in.route.end(), kRouted);
  std::fill(in.far_end.begin(), in.far_end.end(), 64);
  std::fill(in.position.begin(), in.position.end(), 400);
  return in;
}

TEST_P(ControlTest, DecisionsFollowTheFormulasWhereverTheirMarginIsAboveTheBound) {
  Rig rig(GetParam());
  Freedom freedom;
  for (const ControllerLink link : {ControllerLink::kSoftplus, ControllerLink::kSoftmax}) {
    for (const int group : {0, 1, 3, 7}) {
      for (const int width : {0, 8, 32, 50}) {
        for (const int heads : {0, 1, 3}) {
          for (const int tokens : {0, 1, 77}) {
            ControlInputs in = RandomControl({tokens, heads, group, width}, link, 31);
            const std::string what =
                absl::StrCat("T ", tokens, " H ", heads, " g ", group, " R ", width);
            Check(in, RunControl(rig, in), what, &freedom);
          }
        }
      }
    }
  }
  EXPECT_GT(freedom.all, 2000);
  EXPECT_LT(freedom.free, freedom.all / 100);
}

TEST_P(ControlTest, ScalarsOfEachKindAndMixturesFollowTheFormulas) {
  Rig rig(GetParam());
  Freedom freedom;
  std::int64_t mixtures = 0;
  for (const ControlFeatures features :
       {ControlFeatures::kRetrofit, ControlFeatures::kLength, ControlFeatures::kPaper}) {
    for (const bool all : {false, true}) {
      for (const int sinks : {0, 4}) {
        for (const int width : {0, 32}) {
          ControlInputs in =
              RandomControl({77, 3, 2, width}, ControllerLink::kSoftplus, 41, features);
          in.linear_all = all;
          in.sinks = sinks;
          in.uncertain = UncertainPolicy::kMixture;
          if (all) {  // short rows too: near is never more than there is
            for (int t = 0; t < 20; ++t) in.position[t] = t * 15, in.far_end[t] = 0;
          }
          const ControlOutputs actual = RunControl(rig, in);
          Check(in, actual,
                absl::StrCat("features ", static_cast<int>(features), all ? " all" : " far",
                             " sinks ", sinks, " R ", width),
                &freedom);
          mixtures += std::count(actual.decisions.begin(), actual.decisions.end(), kMixture);
        }
      }
    }
  }
  EXPECT_GT(freedom.all, 2000);
  EXPECT_LT(freedom.free, freedom.all / 100);
  EXPECT_GT(mixtures, 500);
  EXPECT_LT(mixtures, freedom.all);
}

TEST_P(ControlTest, FeaturesThatNeedNoAttentionReadNone) {
  Rig rig(GetParam());
  for (const ControlFeatures features : {ControlFeatures::kLength, ControlFeatures::kPaper}) {
    ControlInputs in = RandomControl({40, 2, 2, 8}, ControllerLink::kSoftmax, 42, features);
    const ControlOutputs before = RunControl(rig, in);
    for (auto* list : {&in.near_m, &in.near_l, &in.near_stats, &in.lse_far}) {
      std::fill(list->begin(), list->end(), kNan);
    }
    const ControlOutputs after = RunControl(rig, in);
    EXPECT_EQ(after.decisions, before.decisions);
    ExpectSame(after.weights, before.weights, "weights");
  }
}

// U = 1 to the bit, or a rounding above or below: from eta = 1 on the gate is off all the same.
TEST_P(ControlTest, AtEtaOfOneNoRowIsUncertain) {
  Rig rig(GetParam());
  for (const UncertainPolicy policy : {UncertainPolicy::kFull, UncertainPolicy::kMixture}) {
    ControlInputs in = Weightless(19, ControllerLink::kSoftplus);
    in.uncertain = policy;
    in.offset = {-1, -1, 0};
    std::fill(in.eta.begin(), in.eta.end(), 1.0f);
    EXPECT_EQ(RunControl(rig, in).decisions, std::vector<std::uint8_t>(19, kLocal));
    std::fill(in.eta.begin(), in.eta.end(), 0.99f);
    EXPECT_EQ(RunControl(rig, in).decisions,
              std::vector<std::uint8_t>(
                  19, policy == UncertainPolicy::kMixture ? std::uint8_t{kMixture} : kFull));
  }
}

TEST_P(ControlTest, WeightsSumToOneAndEndlessOffsetsTakeNoneOrAll) {
  Rig rig(GetParam());
  const struct {
    std::vector<float> offset;
    std::vector<float> weights;
  } cases[] = {{{0, 0, 0}, {1 / 3.0f, 1 / 3.0f, 1 / 3.0f}},
               {{-kInfinity, 2, 2}, {0, 0.5f, 0.5f}},
               {{kInfinity, 2, 2}, {1, 0, 0}},
               {{-kInfinity, -kInfinity, -kInfinity}, {1 / 3.0f, 1 / 3.0f, 1 / 3.0f}}};
  for (const auto& c : cases) {
    ControlInputs in = Weightless(3, ControllerLink::kSoftmax);
    in.offset = c.offset;
    const ControlOutputs actual = RunControl(rig, in);
    for (int i = 0; i < 9; ++i) EXPECT_NEAR(actual.weights[i], c.weights[i % 3], 1e-6f) << i;
  }
}

TEST_P(ControlTest, ARowDoesNotDependOnBatchChunkingOrThreads) {
  Rig rig(GetParam());
  const ControlInputs in = RandomControl({77, 3, 3, 32}, ControllerLink::kSoftplus, 32);
  const ControlOutputs whole = RunControl(rig, in);
  ControlOutputs pieces;
  for (int t = 0, size = 1; t < in.tokens; t += size, size = size * 2 % 23 + 1) {
    size = std::min(size, in.tokens - t);
    const ControlOutputs piece = RunControl(rig, in.Rows(t, size));
    pieces.decisions.insert(pieces.decisions.end(), piece.decisions.begin(), piece.decisions.end());
    pieces.uncertainty.insert(pieces.uncertainty.end(), piece.uncertainty.begin(),
                              piece.uncertainty.end());
    pieces.weights.insert(pieces.weights.end(), piece.weights.begin(), piece.weights.end());
    pieces.margin.insert(pieces.margin.end(), piece.margin.begin(), piece.margin.end());
  }
  ExpectSame(pieces.uncertainty, whole.uncertainty, "U in chunks");
  ExpectSame(pieces.margin, whole.margin, "margin in chunks");
  ExpectSame(pieces.weights, whole.weights, "weights in chunks");
  EXPECT_EQ(pieces.decisions, whole.decisions);
  BackendParam other = GetParam();
  other.threads = 2;
  Rig rig2(other);
  const ControlOutputs two = RunControl(rig2, in);
  ExpectSame(two.uncertainty, whole.uncertainty, "U on two threads");
  ExpectSame(two.margin, whole.margin, "margin on two threads");
  EXPECT_EQ(two.decisions, whole.decisions);
}

TEST_P(ControlTest, TiesGoToTheLowerIndex) {
  Rig rig(GetParam());
  const struct {
    std::vector<float> offset;
    std::uint8_t winner;
  } cases[] = {{{0, 0, 0}, kFull},           {{-1, 0, 0}, kLinear}, {{0, -1, 0}, kFull},
               {{0, 0, -1}, kFull},          {{-1, -1, 0}, kLocal}, {{3, 3, 3}, kFull},
               {{-kInfinity, 2, 2}, kLinear}};
  for (const ControllerLink link : {ControllerLink::kSoftplus, ControllerLink::kSoftmax}) {
    for (const auto& c : cases) {
      ControlInputs in = Weightless(19, link);
      in.offset = c.offset;
      const ControlOutputs actual = RunControl(rig, in);
      const bool alone = c.winner == kLocal;
      for (int t = 0; t < in.tokens; ++t) {
        EXPECT_EQ(actual.decisions[t], c.winner) << c.offset[0] << c.offset[1] << c.offset[2];
        EXPECT_NEAR(actual.margin[t], alone ? 1.0f : 0.0f, alone ? 1e-6f : 0.0f);
        EXPECT_NEAR(actual.uncertainty[t], 1.0f, 2e-6f);
      }
    }
  }
}

TEST_P(ControlTest, UAtEtaIsUncertainAndJustBelowItIsNot) {
  Rig rig(GetParam());
  ControlInputs in = RandomControl({77, 1, 3, 32}, ControllerLink::kSoftplus, 44);
  std::fill(in.route.begin(), in.route.end(), kRouted);
  std::fill(in.far_end.begin(), in.far_end.end(), 128);
  std::fill(in.position.begin(), in.position.end(), 400);
  for (auto* list : {&in.offset, &in.out_bias, &in.cost_weight}) {
    std::fill(list->begin(), list->end(), 0.0f);
  }
  std::fill(in.eta.begin(), in.eta.end(), 2.0f);
  const ControlOutputs certain = RunControl(rig, in);
  EXPECT_LT(std::count(certain.decisions.begin(), certain.decisions.end(), kFull), 50);
  // From eta = 1 on nothing is uncertain.
  ASSERT_LT(*std::max_element(certain.uncertainty.begin(), certain.uncertainty.end()), 1.0f);
  in.eta = certain.uncertainty;
  const ControlOutputs at = RunControl(rig, in);
  for (float& eta : in.eta) eta = std::nextafter(eta, 2.0f);
  const ControlOutputs above = RunControl(rig, in);
  EXPECT_EQ(at.decisions, std::vector<std::uint8_t>(77, kFull));
  EXPECT_EQ(above.decisions, certain.decisions);
  ExpectSame(at.uncertainty, certain.uncertainty, "U at eta");
  ExpectSame(at.margin, certain.margin, "margin at eta");
}

TEST_P(ControlTest, CostWeightTiltsByWhatEachMechanismReadsAtN) {
  Rig rig(GetParam());
  ControlInputs in = Weightless(6, ControllerLink::kSoftmax);
  in.sinks = 4;
  in.state_tokens = 130;
  // n 320, 400, 1000, 8000: near 260 to 323; far spans end at 64 floor((n - 256) / 64).
  in.position = {319, 399, 999, 7999, 7999, 319};
  in.far_end = {64, 128, 704, 7744, 7744, 64};
  in.cost_weight = {1, 1, 1, 1, -1, -1};
  const ControlOutputs actual = RunControl(rig, in);
  const std::vector<std::uint8_t> expected = {kLocal, kLocal, kLocal, kLocal, kFull, kFull};
  EXPECT_EQ(actual.decisions, expected);
  // local against linear: min(n, near + 130) - near tokens of n; full against linear: the rest.
  const double near[] = {260, 276, 300, 260, 260, 260};
  for (int t = 0; t < 6; ++t) {
    const double n = in.position[t] + 1.0, linear = std::min(1.0, (near[t] + 130) / n);
    const double gap = t < 4 ? linear - near[t] / n : 1 - linear;
    EXPECT_NEAR(actual.margin[t], gap, 1e-6) << t;
  }
  EXPECT_EQ(actual.margin[5], 0.0f);  // linear would read more than all: it counts as all
  // An advantage of linear over local in offset decides below the break-even weight only.
  in.offset = {-10, 0.5, 0};
  in.cost_weight = {0, 2, 3.5, 29, 31.5, 100};  // 0.5 / (130 / n): 1.54 at 400, 3.85, 30.8 at 8000
  in.position = {319, 399, 999, 7999, 7999, 7999};
  in.far_end = {64, 128, 704, 7744, 7744, 7744};
  const std::vector<std::uint8_t> tilted = {kLinear, kLocal, kLinear, kLinear, kLocal, kLocal};
  EXPECT_EQ(RunControl(rig, in).decisions, tilted);
}

TEST_P(ControlTest, NaNInARowsInputsGivesFullAndUOfOneAndLeavesOtherRowsAlone) {
  Rig rig(GetParam());
  const ControlInputs clean = [] {
    ControlInputs in = RandomControl({21, 3, 3, 32}, ControllerLink::kSoftplus, 35);
    std::fill(in.route.begin(), in.route.end(), kRouted);
    std::fill(in.far_end.begin(), in.far_end.end(), 128);
    return in;
  }();
  const ControlOutputs before = RunControl(rig, clean);
  constexpr int kRow = 9, kHead = 1;
  const struct {
    const char* name;
    std::vector<float> ControlInputs::*list;
    int at;
    bool whole_row;  // or only kHead
  } places[] = {
      {"W_x x", &ControlInputs::projected, kRow * (32 + 9) + 31, true},
      {"skip x", &ControlInputs::projected, kRow * (32 + 9) + 32 + 3 * kHead + 2, false},
      {"m", &ControlInputs::near_m, (kRow * 3 + kHead) * 3 + 2, false},
      {"l", &ControlInputs::near_l, (kRow * 3 + kHead) * 3, false},
      {"sinks", &ControlInputs::near_stats, ((kRow * 3 + kHead) * 3 + 1) * 2, false},
      {"mean", &ControlInputs::near_stats, ((kRow * 3 + kHead) * 3 + 1) * 2 + 1, false},
      {"lse_far", &ControlInputs::lse_far, (kRow * 3 + kHead) * 3 + 1, false},
      {"lambda", &ControlInputs::cost_weight, kRow, true},
      {"eta", &ControlInputs::eta, kRow, true},
  };
  for (const auto& place : places) {
    ControlInputs in = clean;
    (in.*place.list)[place.at] = kNan;
    const ControlOutputs actual = RunControl(rig, in);
    for (int i = 0; i < in.tokens * in.heads; ++i) {
      const bool hit = i / 3 == kRow && (place.whole_row || i % 3 == kHead);
      EXPECT_EQ(actual.decisions[i], hit ? kFull : before.decisions[i]) << place.name << i;
      EXPECT_EQ(actual.uncertainty[i], hit ? 1.0f : before.uncertainty[i]) << place.name << i;
      EXPECT_EQ(actual.margin[i], hit ? 0.0f : before.margin[i]) << place.name << i;
      for (int k = 0; k < 3; ++k) {
        const float weight = k == 0 ? 1.0f : 0.0f;
        EXPECT_EQ(actual.weights[i * 3 + k], hit ? weight : before.weights[i * 3 + k])
            << place.name << i;
      }
    }
  }
}

TEST_P(ControlTest, NaNAndInfinityInAHeadsWeightsGiveFullAndUOfOneForThatHead) {
  Rig rig(GetParam());
  const ControlInputs clean = RandomControl({5, 3, 1, 8}, ControllerLink::kSoftmax, 36);
  std::vector<float> ControlInputs::*const lists[] = {
      &ControlInputs::scalar_mean,  &ControlInputs::scalar_scale, &ControlInputs::scalars,
      &ControlInputs::bias,         &ControlInputs::out,          &ControlInputs::out_bias,
      &ControlInputs::scalars_skip, &ControlInputs::offset};
  for (const auto list : lists) {
    for (const float bad : {kNan, kInfinity}) {
      if (bad == kInfinity &&
          (list == &ControlInputs::scalar_mean || list == &ControlInputs::scalar_scale ||
           list == &ControlInputs::offset)) {
        continue;  // saturates, or a mechanism is forced: both are defined
      }
      ControlInputs in = clean;
      std::fill(in.route.begin(), in.route.end(), kRouted);
      std::fill(in.far_end.begin(), in.far_end.end(), 64);
      const auto per_head = (in.*list).size() / 3;
      std::fill_n((in.*list).begin() + static_cast<std::ptrdiff_t>(per_head), per_head, bad);
      const ControlOutputs actual = RunControl(rig, in);
      for (int t = 0; t < in.tokens; ++t) {
        EXPECT_EQ(actual.decisions[t * 3 + 1], kFull);
        EXPECT_EQ(actual.uncertainty[t * 3 + 1], 1.0f);
        EXPECT_EQ(actual.margin[t * 3 + 1], 0.0f);
        EXPECT_LT(actual.uncertainty[t * 3], 1.0f);
        EXPECT_LT(actual.uncertainty[t * 3 + 2], 1.0f);
      }
    }
  }
}

TEST_P(ControlTest, AScalarOfMinusInfinityIsLeftOutByAScaleOfZeroAndElseSaturates) {
  Rig rig(GetParam());
  for (const float scale : {0.0f, 0.25f}) {
    ControlInputs in = RandomControl({20, 2, 3, 32}, ControllerLink::kSoftplus, 37);
    for (std::size_t i = 0; i < in.near_stats.size(); i += 2) in.near_stats[i] = -kInfinity;
    ControlInputs same = in;  // as if the sinks had any share, or one that is clamped
    for (std::size_t i = 0; i < in.near_stats.size(); i += 2) same.near_stats[i] = -1e6f;
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 3; ++i) {
        in.scalar_scale[h * 13 + 2 + 4 * i] = same.scalar_scale[h * 13 + 2 + 4 * i] = scale;
      }
    }
    const ControlOutputs actual = RunControl(rig, in), expected = RunControl(rig, same);
    EXPECT_EQ(actual.decisions, expected.decisions);
    ExpectSame(actual.uncertainty, expected.uncertainty, "U");
    ExpectSame(actual.margin, expected.margin, "margin");
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, ControlTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
