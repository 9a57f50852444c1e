// Passes over one row of logits, the sampler's inner loops. Pure, thread safe, no allocation.
//
// Written in the compiler's vector types; a copy for AVX2 is chosen at start. Every copy does the
// same operations in the same order (no fused multiply-add), so results do not depend on the
// machine. NaN counts as -inf everywhere. Cost: one read of the row each, about 10 us (MaxPerChunk,
// ExpScaled) to 60 us (SumExp, double) for 49152 values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace metattn {

// Granularity of the summaries below: small enough to skip most of a row, large enough that the
// summary is short.
inline constexpr std::size_t kLogitChunk = 64;
constexpr std::size_t LogitChunks(std::size_t n) { return (n + kLogitChunk - 1) / kLogitChunk; }

// maxima[c] = largest of chunk c, -inf if it holds only NaN. Returns the largest of all.
float MaxPerChunk(std::span<const float> logits, std::span<float> maxima);

// weights[i] = exp((logits[i] - max) * inverse_temperature), relative error below 4e-7, 0 where
// that is under 1e-37; sums[c] = sum of chunk c. Returns the sum of all. Needs a finite max >=
// every logit.
double ExpScaled(std::span<const float> logits, float max, float inverse_temperature,
                 std::span<float> weights, std::span<double> sums);

// Sum of exp(logits[i] - max) in double, relative error below 1e-11. Needs a finite max.
double SumExp(std::span<const float> logits, float max);

}  // namespace metattn
