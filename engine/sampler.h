// Turns one row of logits into one token. Pure: the draw comes from a counter-based generator keyed
// by (seed, position), so it does not depend on what else runs or on restarts. Thread safe. O(V)
// plus a partial sort.
#pragma once

#include <cstdint>
#include <span>

#include "engine/request.h"

namespace metattn {

// Uniform in [0, 1): a function of its arguments only.
double CounterUniform(std::uint64_t seed, std::uint64_t position);

struct SampleContext {
  std::span<const std::int32_t> prompt;  // for the repetition penalty
  std::span<const std::int32_t> output;  // generated so far
  std::span<const std::int32_t>
      forbidden;  // ids that must not be chosen now (stop ids before min_tokens)
  std::uint64_t seed = 0;
  std::uint64_t position = 0;  // of the token to be chosen
};

// logits: [V] f32, changed in place. Params must have passed Validate. NaN logits count as -inf;
// all -inf: id 0.
GeneratedToken Sample(std::span<float> logits, const SamplingParams& params,
                      const SampleContext& context);

// Nothing of a row of logits matters to Sample but its largest: the token is the first that has it.
bool TakesLargest(const SamplingParams& params, const SampleContext& context);

}  // namespace metattn
