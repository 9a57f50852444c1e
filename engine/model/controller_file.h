// A controller directory: controller.json (what it was made for, policy) and controller.safetensors
// (feature maps and meta-controllers of every layer), checked against the model it is opened for.
//
// controller.json, all keys required unless a default is given:
//   format "metattn-controller", version 1
//   base_model {fingerprint (fingerprint.h), layers, hidden, heads, kv_heads, head_dim, vocab}
//   max_context   longest context it was trained for, tokens
//   window, sinks, block (64)      the near partial, tokens
//   window_scope "block" | "exact"   the near window begins at a block's first token; or has
//                                    `window` tokens
//   linear_scope "far" | "all"       linear attention reads what the near partial does not and is
//                                    merged with it; or reads every position, instead of it
//   decisions "kv_head" | "token"    token: one for all KV heads
//   features "retrofit" | "paper"    the scalars (ControlFeatures in kernels/routing_ops.h)
//   hidden_width R, activation "gelu_tanh"
//   link "softplus" | "softmax", epsilon (softplus), temperature (softmax)
//   feature_map "hedgehog" | "elu1"
//   eta in [0, 1] (from 1 on nothing is uncertain), uncertain_policy "full" | "mixture",
//   cost_weight >= 0
//   cost_weight_levels   ascending; the levels that elastic routing moves over
//   offsets [layers][kv_heads][3], mix [layers][kv_heads][3]   full, linear, local; mix sums to 1;
//                                    with decisions "token" all KV heads of a layer have the same
//   training      an object of facts for people; not read
// controller.safetensors, H query heads, K KV heads, d head size, G = K (decisions "token": 1), N
// scalars: paper 2, retrofit 1 + 4 H / K (decisions "token": 1, log n); names prefixed by
// layers.L.:
//   linear.w_q [H, d, d] bf16, linear.w_k [K, d, d] bf16 (hedgehog only; columns in Hugging Face's
//   order of a head's dimensions: RoPE pairs i, i + rotary_dim / 2),
//   linear.log_gain [H], linear.kappa [H],
//   controller.x [R, D] bf16, controller.x_skip [G, 3, D] bf16 (cheaper to run where byte_weights.h
//   finds them exact),
//   controller.scalar_mean [G, N], scalar_scale [G, N], scalars [G, R, N], bias [G, R],
//   out [G, 3, R], out_bias [G, 3], scalars_skip [G, 3, N]                 f32 where not said
// kernels/routing_ops.h has the formulas. Ownership: the file stays mapped while the object lives.
// Thread safe after Open. INVALID_ARGUMENT, NOT_FOUND and UNIMPLEMENTED name the file and the key
// or tensor: a wrong model, a missing tensor, a wrong shape, NaN, numbers out of range. Cost: every
// value is looked at once.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "kernels/routing_ops.h"

namespace metattn {

// Three numbers in the order of Mechanism.
using PerMechanism = std::array<float, kMechanisms>;

struct ControllerSpec {
  std::string name;  // the directory's name
  int max_context = 0;
  int window = 0, sinks = 0;
  bool exact_window = false;  // else it begins at a block's first token
  bool linear_all = false;    // linear attention reads every position
  bool per_token = false;     // decisions; else per KV head
  ControlFeatures features = ControlFeatures::kRetrofit;
  int width = 0;  // R
  ControllerLink link = ControllerLink::kSoftplus;
  UncertainPolicy uncertain = UncertainPolicy::kFull;
  FeatureMap feature_map = FeatureMap::kHedgehog;
  float epsilon = 0.1f, temperature = 1;
  float eta = 1, cost_weight = 0;
  std::vector<float> cost_weight_levels;
  std::vector<std::vector<PerMechanism>> offsets, mix;  // [layer][KV head]
};

class ControllerFile {
 public:
  static absl::StatusOr<std::unique_ptr<ControllerFile>> Open(const std::string& directory,
                                                              const Checkpoint& checkpoint,
                                                              const ModelConfig& config);
  virtual ~ControllerFile() = default;

  virtual const ControllerSpec& spec() const = 0;
  // "linear.w_q" of a layer; the tensors listed above are all there, null only where the feature
  // map has none.
  virtual const TensorInfo* Find(int layer, std::string_view name) const = 0;
  // Differs when any byte of the two files does: part of the identity of cached K/V.
  virtual const std::string& digest() const = 0;
};

}  // namespace metattn
