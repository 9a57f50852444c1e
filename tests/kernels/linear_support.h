// A small world for tests of linear attention: an AttentionWorld with feature weights and a table
// of states, and what states, odds and merges must be by their formulas, in double.
//
// Borrows the Rig. Not thread safe. States start as NaN in permuted slots of the second of two
// layers, so that a wrong address or a state that was never written shows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/attention_support.h"
#include "tests/kernels/support.h"

namespace metattn::testing {

struct LinearCase {
  AttentionShape attention;
  FeatureMap map = FeatureMap::kHedgehog;
  bool all = false;   // linear_scope all: a row reads keys [0, t + 1) and nothing else
  float weights = 1;  // size of W x over that of x: past 20 or so phi is nearly one feature

  std::string Name() const;
};

// Maps of d * d, one after the other, as LinearOdds of these kernels wants them.
std::vector<std::uint16_t> ArrangedMaps(const Kernels& kernels, std::vector<std::uint16_t> maps,
                                        int d);

// phi(x) and its relative error: computed in f32, x perhaps rounded to bf16 before.
struct ExpectedFeatures {
  std::vector<double> phi;
  double relative = 0;
};

// S and z over some keys, and S with |v|.
struct ExpectedState {
  std::vector<double> s, s_magnitude, z;
  double relative = 0;  // error of the keys' features
  int end = 0, keys = 0;
};

// What linear attention gives one row and query head.
struct ExpectedRow {
  ExpectedFeatures features;
  double lse = 0, lse_bound = 0;
  std::vector<double> value, value_bound;
};

// All that the three ops write.
struct LinearResult {
  std::vector<float> absorbed;  // the table of states after LinearAbsorb
  std::vector<float> after_odds;
  std::vector<float> states;  // and after FarLinear
  std::vector<float> phi_q, lse_far, near_stats;
  HostPartial partial;
};

class LinearWorld {
 public:
  // K and V are in the pages, states hold nothing.
  LinearWorld(Rig& rig, const LinearCase& shape, std::uint64_t seed);

  // Rows of a step whose sequences' states hold the tokens before state_end.
  StepRows Rows(const std::vector<SequenceRows>& sequences,
                const std::vector<std::int32_t>& state_end);
  // state_end after a step of these rows.
  std::vector<std::int32_t> StateEnds(const std::vector<SequenceRows>& sequences,
                                      std::vector<std::int32_t> before) const;
  int LinearEnd(int position) const;
  bool Eligible(const StepRows& rows, int row) const;
  // Whether the work list of KV head `head` has the row.
  bool Listed(const StepRows& rows, int row, int head) const;

  // LinearAbsorb, LinearOdds and FarLinear.
  LinearResult Run(const StepRows& rows);
  // A whole step: Near with statistics, the odds, then far full attention of eligible rows that are
  // not listed and linear of those that are; as pairs or one by one. Of the result: all but
  // `absorbed` and `after_odds`.
  LinearResult Step(const StepRows& rows, bool pairs);
  // LinearAbsorb and FarLinear of no row, as where nothing is decided; the table of states after.
  std::vector<float> Follow(const StepRows& rows);
  // P0 of the rows: a function of (sequence, position) only.
  HostPartial Near(const StepRows& rows) const;

  // The state of a shard within a table that was read back: S, then z.
  const float* StateIn(const std::vector<float>& table, int sequence, int head) const;
  int state_floats() const { return features_ * (shape_.attention.head_dim + 1); }
  int features() const { return features_; }

  // Adds the keys before `end` to an expected state.
  void Extend(int sequence, int head, int end, ExpectedState* state) const;
  // `state` covers the row's keys; m and l are those of P0.
  ExpectedRow Expect(int q_head, const float* q, float m, float l,
                     const ExpectedState& state) const;
  std::vector<float> Queries(const StepRows& rows) const { return attention_.Queries(rows); }

 private:
  LinearShape Shape(const StepRows& rows) const;
  // Of eligible rows that are listed, or of those that are not.
  WorkList List(const StepRows& rows, bool listed);
  int Slot(int sequence) const {
    return static_cast<int>(shape_.attention.sequences.size()) - sequence;
  }
  ExpectedFeatures Phi(const std::vector<float>& weights, int head, const std::vector<double>& x,
                       const std::vector<double>& rounding) const;

  Rig& rig_;
  LinearCase shape_;
  std::uint64_t seed_;
  int features_;
  AttentionWorld attention_;
  std::vector<float> w_q_, w_k_, log_gain_, kappa_;  // weights as they are stored
  View w_q_view_, w_k_view_;
  StateTable states_;
  std::int64_t table_floats_ = 0;
};

}  // namespace metattn::testing
