// What attention did in a step: rows per mechanism, bytes, uncertainty, soft shares; per layer and
// per sequence.
//
// Counted on the host from the decisions of a rank's KV heads, per (row, KV head, layer), whatever
// a tile shares. Pure. Cost: one pass over rows x KV heads x layers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/shadow_check.h"
#include "kernels/types.h"

namespace metattn {

// Rows by U: bucket i holds [i, i + 1) / kUncertaintyBuckets, the last one U = 1 too.
inline constexpr int kUncertaintyBuckets = 10;

// Eight-byte fields only: travels as bytes.
struct RoutingCounts {
  std::int64_t bytes_read = 0;   // K/V, linear states, feature maps
  std::int64_t bytes_dense = 0;  // the same rows, were all of them full
  std::int64_t flops = 0;        // multiplications: scores, values, states, feature maps
  std::int64_t flops_dense = 0;
  std::array<std::int64_t, kMechanisms> rows = {};  // eligible ones that one mechanism served
  std::int64_t mixture_rows = 0;                    // eligible ones that got all three, weighted
  std::int64_t routed_rows = 0;  // of all eligible ones, decided by the meta-controller
  double uncertainty = 0;        // sum of U over routed_rows
  std::array<double, kMechanisms> weights = {};  // sums of softmax(score) over routed_rows
  double expected_cost = 0;  // sum over routed_rows of sum_k weight_k c_k, c_k as in ControlArgs

  std::int64_t eligible() const { return rows[0] + rows[1] + rows[2] + mixture_rows; }
  void Add(const RoutingCounts& other);
};

struct StepRouting {
  std::vector<RoutingCounts> layers;     // [layers]
  std::vector<RoutingCounts> sequences;  // [sequences of the plan], over all layers
  std::array<std::int64_t, kUncertaintyBuckets> histogram = {};  // of U over routed rows

  // [layers]; empty in steps without shadow rows.
  std::vector<ShadowErrors> shadow;

  // A step in which nothing happened.
  static StepRouting Zero(std::size_t layers, std::size_t sequences, std::size_t shadow = 0);
  RoutingCounts Total() const;
  void Add(const StepRouting& other);  // of another rank and the same step
  // Wire form: the members one after another. Merge adds such a message; false: another size.
  std::vector<std::byte> Encode() const;
  std::size_t EncodedBytes() const;
  bool Merge(std::span<const std::byte> message);
};

// Bytes read and multiplications done.
struct Work {
  std::int64_t bytes = 0, flops = 0;
};

// What a row costs, per KV head with its query group.
struct AttentionCosts {
  Work token;      // K and V of one token
  Work state;      // a linear state: of a row that chose linear
  Work features;   // feature maps and z: of every eligible row; none when no row may be linear
  Work key;        // a key that linear attention reads beside the state: likewise
  Work key_value;  // the same key's value: of a row that chose linear
  int sinks = 0;
  int linear_begin = 0;     // linear attention reads [linear_begin, linear_end)
  bool linear_all = false;  // every row is eligible
  double state_tokens = 0;  // a state's bytes in tokens, as the meta-controller counts
};

struct CountArgs {
  int layers = 0, heads = 0, sequences = 0;
  AttentionCosts costs;
  std::span<const std::int32_t> position, far_end, linear_end, sequence;  // [T]
  std::span<const std::uint8_t> eligible;   // [T] non-zero: there was something to decide
  std::span<const std::uint8_t> decisions;  // [layers, T, heads] of Mechanism, or kMixture
  std::span<const float> uncertainty;       // [layers, T, heads]; empty: nothing was routed
  std::span<const float> weights;           // [layers, T, heads, 3]; likewise
  std::span<const std::uint8_t> routed;     // [T] non-zero: the controller decided
};
StepRouting CountRouting(const CountArgs& args);

}  // namespace metattn
