// Rotary frequencies with the scaling variants of published Llama-like models, as the formulas of
// Hugging Face transformers define them. Pure functions, computed in double; thread safe.
// INVALID_ARGUMENT names the field that cannot be.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace metattn {

struct RopeParameters {
  // "none", "linear", "llama3", "yarn", or "dynamic" (which equals none up to original_positions)
  std::string type = "none";
  double base = 10000.0;  // theta: pair i of d turns by base^(-2i/d) a position
  int rotary_dim = 0;     // d, even
  double factor = 1.0;
  std::int64_t original_positions = 0;           // of the training before scaling; llama3, yarn
  double low_freq_factor = 1.0;                  // llama3
  double high_freq_factor = 4.0;                 // llama3
  double beta_fast = 32.0, beta_slow = 1.0;      // yarn: turns where the ramp begins and ends
  bool truncate = true;                          // yarn: ramp on whole pairs
  std::optional<double> attention_factor;        // yarn; else from factor or mscale
  std::optional<double> mscale, mscale_all_dim;  // yarn
  std::vector<double> divisors;  // [d/2] or empty: each frequency is divided by its own (GGUF)
};

struct Rope {
  std::vector<double> inv_freq;  // [d/2], radians a position
  double scale = 1.0;            // multiplies cos and sin
};

absl::StatusOr<Rope> ComputeRope(const RopeParameters& parameters);

}  // namespace metattn
