// What control_test needs: host copies of an op's arguments, random controllers, a run on the
// backend under test, and the formulas in double with bounds.
//
// Borrows the Rig. Not thread safe. Failures are gtest failures of the caller.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/support.h"

namespace metattn::testing {

struct ControlSizes {
  int tokens = 0, heads = 0, group = 0, width = 0;
};

// Arrays as ControlArgs names them.
struct ControlInputs : ControlSizes {
  int sinks = 4;
  bool linear_all = false;
  float state_tokens = 130;
  ControlFeatures features = ControlFeatures::kRetrofit;
  UncertainPolicy uncertain = UncertainPolicy::kFull;
  int dim = 0, last_position = 0;  // of the paper's features
  ControllerLink link = ControllerLink::kSoftplus;
  float epsilon = 0.1f, temperature = 1.0f;
  std::vector<std::int32_t> position, far_end;
  std::vector<std::uint8_t> route;
  std::vector<float> projected, near_m, near_l, near_stats, lse_far, x, cost_weight, eta;
  std::vector<float> scalar_mean, scalar_scale, scalars, bias, out, out_bias, scalars_skip, offset;

  int Scalars() const {
    if (features == ControlFeatures::kRetrofit) return 1 + 4 * group;
    return features == ControlFeatures::kPaper ? 2 : 1;
  }
  bool Eligible(int row) const { return linear_all || far_end[row] > sinks; }
  // Rows [first, first + count) with the same weights.
  ControlInputs Rows(int first, int count) const;
};

// Rows of every kind (ineligible, forced, routed; several n, lambda and eta), scores of sane sizes;
// scalars of which some are clamped.
ControlInputs RandomControl(const ControlSizes& sizes, ControllerLink link, std::uint64_t seed,
                            ControlFeatures features = ControlFeatures::kRetrofit);

struct ControlOutputs {
  std::vector<std::uint8_t> decisions;
  std::vector<float> uncertainty, margin;
  std::vector<float> weights;  // [T, H, 3]
};

ControlOutputs RunControl(Rig& rig, const ControlInputs& in);

struct ExpectedDecision {
  double uncertainty = 0, uncertainty_bound = 0;
  double margin = 0, margin_bound = 0;
  double weights[kMechanisms] = {}, weights_bound[kMechanisms] = {};
  bool allowed[kMechanisms + 1] = {};  // what rounding leaves open; the last: a mixture

  bool Allows(std::uint8_t decision) const { return decision <= kMechanisms && allowed[decision]; }
  int Choices() const { return allowed[0] + allowed[1] + allowed[2] + allowed[3]; }
};

// What one routed, eligible row and KV head must get.
ExpectedDecision ExpectDecision(const ControlInputs& in, int row, int head);

}  // namespace metattn::testing
