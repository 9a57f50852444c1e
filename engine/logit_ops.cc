#include "engine/logit_ops.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/check.h"

// One body, compiled once for the base instruction set and once for AVX2 (where there is one).
#if defined(__x86_64__) && defined(__GNUC__)
#define METATTN_AVX2_COPY 1
#else
#define METATTN_AVX2_COPY 0
#endif
#define METATTN_INLINE inline __attribute__((always_inline))

namespace metattn {
namespace {

constexpr std::size_t kLanes = 16;
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// e^x for x in [-87, 0]; 0 below and for NaN. 2^n times a polynomial on |r| <= ln(2)/2.
METATTN_INLINE float ExpF(float x) {
  const bool tiny = !(x > -87.0f);
  const float t = tiny ? 0.0f : x;
  // Adding 1.5 * 2^23 rounds to the nearest integer, which then lies in the low mantissa bits.
  const float shifted = t * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (t - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) + 127u) << 23;
  const float value = p * std::bit_cast<float>(exponent);
  return tiny ? 0.0f : value;
}

// The same in double for x in [-700, 0]; the first omitted term of the series is 7e-12.
METATTN_INLINE double ExpD(double x) {
  const bool tiny = !(x > -700.0);
  const double t = tiny ? 0.0 : x;
  const double shifted = t * 1.4426950408889634 + 6755399441055744.0;
  const double n = shifted - 6755399441055744.0;
  const double r = (t - n * 0.693145751953125) - n * 1.42860682030941723212e-6;
  double p = 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const std::uint64_t exponent = (std::bit_cast<std::uint64_t>(shifted) + 1023u) << 52;
  const double value = p * std::bit_cast<double>(exponent);
  return tiny ? 0.0 : value;
}

METATTN_INLINE float ChunkMax(const float* x) {
  float best[kLanes];
  for (std::size_t j = 0; j < kLanes; ++j) best[j] = kMinusInf;
  for (std::size_t i = 0; i < kLogitChunk; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) best[j] = x[i + j] > best[j] ? x[i + j] : best[j];
  }
  float max = best[0];
  for (std::size_t j = 1; j < kLanes; ++j) max = best[j] > max ? best[j] : max;
  return max;
}

METATTN_INLINE double ChunkExp(const float* x, float max, float scale, float* weights) {
  double sum[kLanes] = {};
  for (std::size_t i = 0; i < kLogitChunk; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) weights[i + j] = ExpF((x[i + j] - max) * scale);
    for (std::size_t j = 0; j < kLanes; ++j) sum[j] += static_cast<double>(weights[i + j]);
  }
  double total = 0;
  for (std::size_t j = 0; j < kLanes; ++j) total += sum[j];
  return total;
}

METATTN_INLINE double ChunkSumExp(const float* x, float max) {
  double sum[kLanes] = {};
  for (std::size_t i = 0; i < kLogitChunk; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      sum[j] += ExpD(static_cast<double>(x[i + j]) - static_cast<double>(max));
    }
  }
  double total = 0;
  for (std::size_t j = 0; j < kLanes; ++j) total += sum[j];
  return total;
}

// A short last chunk is padded with -inf, so that it takes the same path as the others.
METATTN_INLINE const float* Padded(const float* x, std::size_t n, float* padded) {
  if (n >= kLogitChunk) return x;
  std::copy(x, x + n, padded);
  std::fill(padded + n, padded + kLogitChunk, kMinusInf);
  return padded;
}

METATTN_INLINE float MaxPerChunkBody(const float* x, std::size_t n, float* maxima) {
  float max = kMinusInf;
  float padded[kLogitChunk];
  for (std::size_t i = 0; i < n; i += kLogitChunk) {
    const float chunk = ChunkMax(Padded(x + i, n - i, padded));
    maxima[i / kLogitChunk] = chunk;
    max = chunk > max ? chunk : max;
  }
  return max;
}

METATTN_INLINE double ExpScaledBody(const float* x, std::size_t n, float max, float scale,
                                    float* weights, double* sums) {
  double total = 0;
  std::size_t i = 0;
  for (; i + kLogitChunk <= n; i += kLogitChunk) {
    sums[i / kLogitChunk] = ChunkExp(x + i, max, scale, weights + i);
    total += sums[i / kLogitChunk];
  }
  if (i < n) {
    float padded[kLogitChunk];
    float result[kLogitChunk];
    sums[i / kLogitChunk] = ChunkExp(Padded(x + i, n - i, padded), max, scale, result);
    total += sums[i / kLogitChunk];
    std::copy(result, result + (n - i), weights + i);
  }
  return total;
}

METATTN_INLINE double SumExpBody(const float* x, std::size_t n, float max) {
  double total = 0;
  float padded[kLogitChunk];
  for (std::size_t i = 0; i < n; i += kLogitChunk) {
    total += ChunkSumExp(Padded(x + i, n - i, padded), max);
  }
  return total;
}

struct Bodies {
  float (*max_per_chunk)(const float*, std::size_t, float*);
  double (*exp_scaled)(const float*, std::size_t, float, float, float*, double*);
  double (*sum_exp)(const float*, std::size_t, float);
};

float MaxPerChunkBase(const float* x, std::size_t n, float* maxima) {
  return MaxPerChunkBody(x, n, maxima);
}
double ExpScaledBase(const float* x, std::size_t n, float max, float scale, float* weights,
                     double* sums) {
  return ExpScaledBody(x, n, max, scale, weights, sums);
}
double SumExpBase(const float* x, std::size_t n, float max) { return SumExpBody(x, n, max); }

#if METATTN_AVX2_COPY
__attribute__((target("avx2"))) float MaxPerChunkAvx2(const float* x, std::size_t n,
                                                      float* maxima) {
  return MaxPerChunkBody(x, n, maxima);
}
__attribute__((target("avx2"))) double ExpScaledAvx2(const float* x, std::size_t n, float max,
                                                     float scale, float* weights, double* sums) {
  return ExpScaledBody(x, n, max, scale, weights, sums);
}
__attribute__((target("avx2"))) double SumExpAvx2(const float* x, std::size_t n, float max) {
  return SumExpBody(x, n, max);
}
#endif

const Bodies& Chosen() {
  static const Bodies bodies = [] {
#if METATTN_AVX2_COPY
    if (__builtin_cpu_supports("avx2")) return Bodies{MaxPerChunkAvx2, ExpScaledAvx2, SumExpAvx2};
#endif
    return Bodies{MaxPerChunkBase, ExpScaledBase, SumExpBase};
  }();
  return bodies;
}

}  // namespace

float MaxPerChunk(std::span<const float> logits, std::span<float> maxima) {
  METATTN_CHECK(maxima.size() >= LogitChunks(logits.size()), "room for one value per chunk");
  return Chosen().max_per_chunk(logits.data(), logits.size(), maxima.data());
}

double ExpScaled(std::span<const float> logits, float max, float inverse_temperature,
                 std::span<float> weights, std::span<double> sums) {
  METATTN_CHECK(weights.size() >= logits.size(), "room for one weight per logit");
  METATTN_CHECK(sums.size() >= LogitChunks(logits.size()), "room for one sum per chunk");
  return Chosen().exp_scaled(logits.data(), logits.size(), max, inverse_temperature, weights.data(),
                             sums.data());
}

double SumExp(std::span<const float> logits, float max) {
  return Chosen().sum_exp(logits.data(), logits.size(), max);
}

}  // namespace metattn
