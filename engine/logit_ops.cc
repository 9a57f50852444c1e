#include "engine/logit_ops.h"

#include <algorithm>
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

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Vectors of the compiler: on a narrower machine each is several registers, with equal results.
constexpr std::size_t kLanes = 8;
typedef float Float8 __attribute__((vector_size(32)));
typedef std::uint32_t Bits8 __attribute__((vector_size(32)));
typedef float Float4 __attribute__((vector_size(16)));
typedef double Double4 __attribute__((vector_size(32)));
typedef std::uint64_t WideBits4 __attribute__((vector_size(32)));

METATTN_INLINE Float8 Load(const float* x) {
  Float8 v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}

// e^x for x in [-87, 0]; 0 below and for NaN. 2^n times a polynomial on |r| <= ln(2)/2.
METATTN_INLINE Float8 Exp(Float8 x) {
  const Float8 zero = {};
  const auto usable = x > -87.0f;
  const Float8 t = usable ? x : zero;
  // Adding 1.5 * 2^23 rounds to the nearest integer, which then lies in the low mantissa bits.
  const Float8 shifted = t * 1.44269504f + 12582912.0f;
  const Float8 n = shifted - 12582912.0f;
  const Float8 r = (t - n * 0.693359375f) + n * 2.12194440e-4f;
  Float8 p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Bits8 exponent = ((Bits8)shifted + 127u) << 23;
  return usable ? p * (Float8)exponent : zero;
}

// The same in double for x in [-700, 0]; the first omitted term of the series is 7e-12.
METATTN_INLINE Double4 Exp(Double4 x) {
  const Double4 zero = {};
  const auto usable = x > -700.0;
  const Double4 t = usable ? x : zero;
  const Double4 shifted = t * 1.4426950408889634 + 6755399441055744.0;
  const Double4 n = shifted - 6755399441055744.0;
  const Double4 r = (t - n * 0.693145751953125) - n * 1.42860682030941723212e-6;
  Double4 p = r * (1.0 / 362880) + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const WideBits4 exponent = ((WideBits4)shifted + 1023u) << 52;
  return usable ? p * (Double4)exponent : zero;
}

METATTN_INLINE Double4 LoadDouble(const float* x) {
  Float4 v;
  __builtin_memcpy(&v, x, sizeof v);
  return __builtin_convertvector(v, Double4);
}

METATTN_INLINE double Sum(Double4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }

METATTN_INLINE float ChunkMax(const float* x) {
  Float8 a = Load(x), b = Load(x + kLanes);
  // NaN in the first vectors must not stay: it compares as not larger only when it is new.
  const Float8 lowest = {kMinusInf, kMinusInf, kMinusInf, kMinusInf,
                         kMinusInf, kMinusInf, kMinusInf, kMinusInf};
  a = a > lowest ? a : lowest;
  b = b > lowest ? b : lowest;
  for (std::size_t i = 2 * kLanes; i < kLogitChunk; i += 2 * kLanes) {
    const Float8 c = Load(x + i), d = Load(x + i + kLanes);
    a = c > a ? c : a;
    b = d > b ? d : b;
  }
  a = b > a ? b : a;
  float max = a[0];
  for (std::size_t j = 1; j < kLanes; ++j) max = a[j] > max ? a[j] : max;
  return max;
}

METATTN_INLINE double ChunkExp(const float* x, float max, float scale, float* weights) {
  for (std::size_t i = 0; i < kLogitChunk; i += kLanes) {
    const Float8 w = Exp((Load(x + i) - max) * scale);
    __builtin_memcpy(weights + i, &w, sizeof w);
  }
  Double4 a = {}, b = {};
  for (std::size_t i = 0; i < kLogitChunk; i += kLanes) {
    a += LoadDouble(weights + i);
    b += LoadDouble(weights + i + kLanes / 2);
  }
  return Sum(a + b);
}

METATTN_INLINE double ChunkSumExp(const float* x, float max) {
  Double4 a = {}, b = {};
  for (std::size_t i = 0; i < kLogitChunk; i += kLanes) {
    a += Exp(LoadDouble(x + i) - static_cast<double>(max));
    b += Exp(LoadDouble(x + i + kLanes / 2) - static_cast<double>(max));
  }
  return Sum(a + b);
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
