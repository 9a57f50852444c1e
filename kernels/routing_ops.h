// Arguments of the ops that routing adds: the linear mechanism and the meta-controller (design
// section 3).
//
// Notation as in kernels.h; f features of a key or query, R width of the controller's hidden layer,
// N scalars per KV head. A step runs, per layer: LinearAbsorb, Near, LinearOdds, Control, Compact
// per mechanism, FarFull, FarLinear, Normalize; with mixtures Mix before, between and after the far
// ops. Without a controller the three linear ops and Control are left out.
#pragma once

#include <cstdint>

#include "kernels/attention_types.h"
#include "kernels/device.h"
#include "kernels/types.h"

namespace metattn {

// The kernel feature map phi of linear attention; all features are positive.
//   elu1      phi(x) = elu(x) + 1, f = d, no weights
//   hedgehog  y = W x, phi(x) = [softmax(y) ; softmax(-y)], f = 2d (arXiv 2402.04347)
enum class FeatureMap : std::uint8_t { kEluPlusOne = 0, kHedgehog = 1 };

constexpr int Features(FeatureMap map, int head_dim) {
  return map == FeatureMap::kHedgehog ? 2 * head_dim : head_dim;
}

// Bytes of one state: S [f, d] f32 = sum of phi(k) v^T, then z [f] f32 = sum of phi(k).
constexpr std::int64_t StateBytes(int features, int head_dim) {
  return std::int64_t{features} * (head_dim + 1) * 4;
}

// Linear states of one layer on one rank. The state of (slot, KV head h) starts at
// base + (slot * slot_stride + h) * StateBytes(f, d).
struct StateTable {
  View base;
  std::int64_t slot_stride = 0;  // states from one slot to the next (layers * H)
};

// One layer's linear mechanism.
struct LinearShape {
  AttentionRows rows;
  PageTable pages;
  StateTable states;
  int group = 1;  // g
  FeatureMap map = FeatureMap::kHedgehog;
  View w_k;  // [H, d, d] bf16, rows are outputs; absent for elu1
};

// Brings every state from state_end to the last whole block before the linear_end of its sequence's
// first row: the keys [max(linear_begin, state_end), there) in token order. In decode that is all a
// step adds, and after preemption or prefix reuse it rebuilds the state from the pages.
struct LinearAbsorbArgs {
  LinearShape shape;
};

// Features of the eligible rows' queries, and what linear attention would weigh. Reads the states
// as LinearAbsorb left them and changes nothing: keys between a state's end and a row's linear_end
// are added on the way.
struct LinearOddsArgs {
  LinearShape shape;
  View w_q;       // [H*g] W of d * d bf16, each as ArrangeQueryMap leaves it; absent for elu1
  View log_gain;  // [H*g] f32: g_h
  View kappa;     // [H*g] f32
  View q;         // [T, H*g, d] f32
  Partial near;   // P0
  View phi_q;     // out [T, H*g, f] f32 of eligible rows; others are left alone
  View lse_far;   // out [T, H*g] f32 = log(phi(q) z) + g_h + kappa_h (m + log l); -inf elsewhere
};

// Merges the listed rows' partial triples with linear attention (value phi(q) S / phi(q) z, weight
// exp(lse_far)), then leaves every state at the last whole block before the linear_end of its
// sequence's last row, whatever the list says.
struct FarLinearArgs {
  LinearShape shape;
  View phi_q;    // [T, H*g, f] f32
  View lse_far;  // [T, H*g] f32
  WorkList list;
  Partial partial;     // in and out
  bool alone = false;  // linear attention reads every position: P0 is replaced, not merged
};

// How concentrations follow from the controller's outputs e.
//   softplus  beta = softplus(e) + epsilon, alpha = beta / sum(beta)
//   softmax   alpha = softmax(e / temperature)
enum class ControllerLink : std::uint8_t { kSoftplus = 0, kSoftmax = 1 };

// What happens to rows whose uncertainty reaches an eta below 1. Mixture: every mechanism,
// weighted.
enum class UncertainPolicy : std::uint8_t { kFull = 0, kMixture = 1 };

// The scalars s_h that the controller of KV head h sees beside its projection of the layer input x,
// with n = position + 1:
//   retrofit  [log n; per query head of its group: m + log l, sink log-sum-exp - (m + log l),
//              entropy (m + log l) - mean score, lse_far - (m + log l)]
//   length    [log n]
//   paper     [|x|_2 / sqrt(D), min(position / last_position, 1)]
enum class ControlFeatures : std::uint8_t { kRetrofit = 0, kLength = 1, kPaper = 2 };

constexpr int ControlScalars(ControlFeatures features, int group) {
  if (features == ControlFeatures::kRetrofit) return 1 + 4 * group;
  return features == ControlFeatures::kPaper ? 2 : 1;
}

// The route byte of a row whose mechanism the controller chooses; below it, values of Mechanism are
// forced.
inline constexpr std::uint8_t kRouted = 3;
// The decision byte of a row that gets every mechanism's output, weighted; below it, values of
// Mechanism.
inline constexpr std::uint8_t kMixture = 3;

// Decisions of eligible rows. With x the layer input, n = position + 1 and, for KV head h, N
// scalars s_h (ControlFeatures):
//   u_h = clamp((s_h - scalar_mean) * scalar_scale, -8, 8)
//   e_h = out gelu_tanh(W_x x + scalars u_h + bias) + out_bias + skip x + scalars_skip u_h
//   alpha_h from e_h by the link; U = entropy(alpha_h) / ln 3
//   score_k = log alpha_k + offset_k - cost_weight c_k; the largest wins, ties to the lower index
//   c_full = 1, c_local = near / n, near = n - max(0, far_end - sinks), c_linear = min(1, (near +
//   state_tokens) / n), without near where linear attention reads every position
// U >= eta < 1 is decided by `uncertain`; from eta = 1 on no row counts as uncertain. A row that is
// not eligible gets kLocal and counts nowhere. The largest finite numbers stand for infinite s_h -
// scalar_mean, so a scale of 0 leaves a scalar out. NaN in a score or in eta, wherever it comes
// from, gives kFull, U = 1, margin 0 and all the weight to full.
struct ControlArgs {
  AttentionRows rows;
  int heads = 0;           // H
  int group = 1;           // g
  int width = 0;           // R
  float state_tokens = 0;  // what reading a state costs, in tokens of K/V
  ControlFeatures features = ControlFeatures::kRetrofit;
  ControllerLink link = ControllerLink::kSoftplus;
  UncertainPolicy uncertain = UncertainPolicy::kFull;
  float epsilon = 0.1f;
  float temperature = 1.0f;
  View projected;         // [T, R + 3H] f32: W_x x, then skip x of each KV head
  Partial near;           // P0; this and the next two for the retrofit features only
  View near_stats;        // [T, H*g, 2] f32, of Near
  View lse_far;           // [T, H*g] f32
  View x;                 // [T, D] act; this and the next two for the paper's features only
  std::int64_t dim = 0;   // D
  int last_position = 0;  // of the longest context there is, > 0
  View scalar_mean;       // [H, N] f32
  View scalar_scale;      // [H, N] f32
  View scalars;           // [H, N, R] f32
  View bias;              // [H, R] f32
  View out;               // [H, 3, R] f32
  View out_bias;          // [H, 3] f32
  View scalars_skip;      // [H, 3, N] f32
  View offset;            // [H, 3] f32
  View route;             // [T] u8: kRouted or a forced Mechanism
  View cost_weight;       // [T] f32: lambda
  View eta;               // [T] f32
  View decisions;         // out [T, H] u8: Mechanism or kMixture
  View uncertainty;       // out [T, H] f32: U of routed, eligible rows; 0 elsewhere
  View margin;  // out [T, H] f32: best score less second best, of the same rows; 0 elsewhere
  // out [T, H, 3] f32 = softmax(score) of the same rows, 0 elsewhere; may be absent unless
  // uncertain rows mix.
  View weights;
};

// One of the three steps in which rows of kMixture get sum_k weight_k o_k, with o_k = o / l as
// mechanism k leaves the partial; other rows are left alone. Each starts from P0:
//   kLocal, before FarFull: sum = weight o / l; kept = partial
//   kFull, after FarFull: sum += weight o / l; partial = kept
//   kLinear, after FarLinear: partial = (sum + weight o / l, m = 0, l = 1)
struct MixArgs {
  std::int64_t tokens = 0;
  int heads = 0;  // H
  int group = 1;
  int head_dim = 0;
  Mechanism step = Mechanism::kLocal;
  View decisions;   // [T, H] u8
  View weights;     // [T, H, 3] f32, of Control
  Partial partial;  // in and out
  Partial kept;     // P0 between the first step and the second
  View sum;         // [T, H*g, d] f32
};

}  // namespace metattn
