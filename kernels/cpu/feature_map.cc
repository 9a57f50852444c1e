// Feature maps. Keys: 16 tokens stand side by side in a page, so W K^T is made with a token per
// lane and the softmax over outputs runs down the lanes; the result, phi^T, is what the update of a
// state wants. Queries: an output per lane; their W lies that way since it was loaded.
//
// softmax(y) and softmax(-y) share one exponential per value: taken about the middle of the largest
// and the smallest y, the one is the inverse of the other, which costs a third of an exponential.
#include "kernels/cpu/feature_map.h"

#include "kernels/cpu/page_products.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/row_products.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kOutputs = 64;       // of one query, made at a time in registers
constexpr int kAheadWords = 1024;  // W of decode comes from memory
constexpr float kShared = 80.0f;   // largest minus smallest y for which one exponential does

METATTN_INLINE F32v EluPlusOne(F32v x) {  // exp(min(x, 0)) + max(x, 0)
  return Add(Exp(Min(x, Zero())), Max(x, Zero()));
}

// e^x for |x| <= kShared / 2, relative error below 3e-7 + |x| 2^-23; 2^r as in attention_bf16.cc.
METATTN_INLINE F32v ExpSmall(F32v x) {
  const F32v scaled = Mul(x, Set(1.44269504088896341f));
  const F32v n = RoundToInt(scaled), r = Sub(scaled, n);
  F32v p = Set(0.0013381457f);
  p = Fma(p, r, Set(0.00966636837f));
  p = Fma(p, r, Set(0.0555038042f));
  p = Fma(p, r, Set(0.240223497f));
  p = Fma(p, r, Set(0.693147182f));
  p = Fma(p, r, Set(1.0f));
  return Scale2(p, n);
}

// The exponentials of softmax(y) and of softmax(-y), each up to a factor, given the largest and the
// smallest y; in lanes of `far` these are too far apart for a common one.
METATTN_INLINE void Exponentials(F32v y, F32v high, F32v low, std::uint64_t far, F32v* positive,
                                 F32v* negative) {
  *positive = ExpSmall(Sub(y, Mul(Add(high, low), Set(0.5f))));
  *negative = Reciprocal(*positive);
  if (far == 0) return;
  *positive = Keep(Exp(Sub(y, high)), far, *positive);
  *negative = Keep(Exp(Sub(low, y)), far, *negative);
}

// Columns of y [d, 64]: softmax(y) in its place, softmax(-y) in the d rows after it.
METATTN_INLINE void SoftmaxDown(float* y, int d) {
  float* const opposite = y + d * kBlockTokens;
  F32v high = Load(y), low = high;
  for (int r = 1; r < d; ++r) {
    const F32v value = Load(y + r * kBlockTokens);
    high = Max(high, value);
    low = Min(low, value);
  }
  const std::uint64_t far = Above(Sub(high, low), kShared);
  F32v sum = Zero(), opposite_sum = Zero();
  for (int r = 0; r < d; ++r) {
    F32v p, q;
    Exponentials(Load(y + r * kBlockTokens), high, low, far, &p, &q);
    sum = Add(sum, p);
    opposite_sum = Add(opposite_sum, q);
    Store(y + r * kBlockTokens, p);
    Store(opposite + r * kBlockTokens, q);
  }
  const F32v factor = Div(Set(1.0f), sum), opposite_factor = Div(Set(1.0f), opposite_sum);
  for (int r = 0; r < d; ++r) {
    float* p = y + r * kBlockTokens;
    float* q = opposite + r * kBlockTokens;
    Store(p, Mul(Load(p), factor));
    Store(q, Mul(Load(q), opposite_factor));
  }
}

// SoftmaxPair of whole vectors, all in registers.
template <int kVectors>
METATTN_INLINE void SoftmaxPairWhole(const float* y, float* phi) {
  constexpr int d = kVectors * kLanes;
  F32v p[kVectors], q[kVectors];
  F32v high = Load(y), low = high;
  for (int v = 0; v < kVectors; ++v) {
    p[v] = Load(y + v * kLanes);
    high = Max(high, p[v]);
    low = Min(low, p[v]);
  }
  high = Set(ReduceMax(high));
  low = Set(-ReduceMax(Sub(Zero(), low)));
  const std::uint64_t far = Above(Sub(high, low), kShared);
  F32v sum = Zero(), opposite_sum = Zero();
  for (int v = 0; v < kVectors; ++v) {
    Exponentials(p[v], high, low, far, &p[v], &q[v]);
    sum = Add(sum, p[v]);
    opposite_sum = Add(opposite_sum, q[v]);
  }
  const F32v factor = Div(Set(1.0f), Set(ReduceAdd(sum)));
  const F32v opposite_factor = Div(Set(1.0f), Set(ReduceAdd(opposite_sum)));
  for (int v = 0; v < kVectors; ++v) {
    Store(phi + v * kLanes, Mul(p[v], factor));
    Store(phi + d + v * kLanes, Mul(q[v], opposite_factor));
  }
}

// kVectors * kLanes outputs y = W q of one query, W in pairs of inputs.
template <int kVectors>
METATTN_INLINE void OutputsOf(const std::uint32_t* w, const float* q, int d, float* y) {
  F32v sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = Zero();
  for (int i = 0; i < d; i += 2, w += d) {
    const F32v even = Set(q[i]), odd = Set(q[i + 1]);
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(w + v * kLanes + kAheadWords, 0, 2);
      sum[v] = Fma(even, EvenBf16(w + v * kLanes), sum[v]);
      sum[v] = Fma(odd, OddBf16(w + v * kLanes), sum[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) Store(y + v * kLanes, sum[v]);
}

}  // namespace

void SoftmaxPair(const float* y, int d, float* phi) {
  if (d == 64) return SoftmaxPairWhole<64 / kLanes>(y, phi);
  if (d == 128) return SoftmaxPairWhole<128 / kLanes>(y, phi);
  F32v high = Set(kMinusInfinity), low = Set(-kMinusInfinity);
  for (int i = 0; i < d; i += kLanes) {
    const std::uint64_t bits = (std::uint64_t{1} << Smaller(kLanes, d - i)) - 1;
    high = Max(high, Keep(Load(y + i), bits, Set(kMinusInfinity)));
    low = Min(low, Keep(Load(y + i), bits, Set(-kMinusInfinity)));
  }
  high = Set(ReduceMax(high));
  low = Set(-ReduceMax(Sub(Zero(), low)));
  const std::uint64_t far = Above(Sub(high, low), kShared);
  F32v sum = Zero(), opposite_sum = Zero();
  for (int i = 0; i < d; i += kLanes) {
    const int n = Smaller(kLanes, d - i);
    const std::uint64_t bits = (std::uint64_t{1} << n) - 1;
    F32v p, q;
    Exponentials(Load(y + i), high, low, far, &p, &q);
    sum = Add(sum, Keep(p, bits, Zero()));
    opposite_sum = Add(opposite_sum, Keep(q, bits, Zero()));
    StoreN(phi + i, p, n);
    StoreN(phi + d + i, q, n);
  }
  const F32v factor = Div(Set(1.0f), Set(ReduceAdd(sum)));
  const F32v opposite_factor = Div(Set(1.0f), Set(ReduceAdd(opposite_sum)));
  for (int i = 0; i < d; i += kLanes) {
    const int n = Smaller(kLanes, d - i);
    StoreN(phi + i, Mul(LoadN(phi + i, n), factor), n);
    StoreN(phi + d + i, Mul(LoadN(phi + d + i, n), opposite_factor), n);
  }
}

void UnpackRows(const std::uint16_t* w, int head_dim, float* out) {
  const int padded = PaddedDim(head_dim);
  for (int r = 0; r < head_dim; ++r) {
    for (int i = 0; i < padded; i += kLanes) {
      const int n = Larger(0, Smaller(kLanes, head_dim - i));
      Store(out + r * padded + i, LoadBf16N(w + r * head_dim + i, n));
    }
  }
}

void UnpackPairs(const std::uint32_t* w, int head_dim, float* out) {
  const int padded = PaddedDim(head_dim);
  for (int p = 0; p < head_dim / 2; ++p, w += head_dim, out += 2 * padded) {
    for (int r = 0; r < padded; r += kLanes) {
      const std::uint32_t* from = w + r;
      std::uint32_t part[kLanes] = {};
      if (r + kLanes > head_dim) {
        for (int i = 0; r + i < head_dim; ++i) part[i] = from[i];
        from = part;
      }
      Store(out + r, EvenBf16(from));
      Store(out + padded + r, OddBf16(from));
    }
  }
}

void OneQueryFeatures(const std::uint32_t* w, const float* q, int head_dim, float* y, float* phi) {
  int r = 0;
  for (; r + kOutputs <= head_dim; r += kOutputs) {
    OutputsOf<kOutputs / kLanes>(w + r, q, head_dim, y + r);
  }
  for (; r < head_dim; r += kLanes) OutputsOf<1>(w + r, q, head_dim, y + r);
  SoftmaxPair(y, head_dim, phi);
}

void KeyFeatures(const KeySource& keys, float* phi, float* sums) {
  const int d = keys.head_dim, padded = PaddedDim(d), features = Features(keys.map, d);
  const int first_group = keys.first / kGroupTokens;
  const int end_group = (keys.end + kGroupTokens - 1) / kGroupTokens;
  const int first_vector = first_group * kGroupVectors, end_vector = end_group * kGroupVectors;
  if (keys.map == FeatureMap::kHedgehog) {
    const PagePart part = {keys.page, 0, padded, first_group, end_group, 0};
    for (int r = 0; keys.weights != nullptr && r < d; r += kQueryBlock) {
      const int n = Smaller(kQueryBlock, d - r);
      kScore[n - 1](part, keys.weights + r * padded, phi + r * kBlockTokens);
    }
    for (int v = first_vector; v < end_vector; ++v) SoftmaxDown(phi + v * kLanes, d);
  } else {
    for (int r = 0; r < d; r += 2) {
      for (int v = first_vector; v < end_vector; ++v) {
        const std::uint32_t* words = keys.page + r / 2 * kBlockTokens + v * kLanes;
        Store(phi + r * kBlockTokens + v * kLanes, EluPlusOne(EvenBf16(words)));
        Store(phi + (r + 1) * kBlockTokens + v * kLanes, EluPlusOne(OddBf16(words)));
      }
    }
  }
  const std::uint64_t bits = KeyBits(keys.first, keys.end);
  for (int f = 0; f < features; ++f) {
    F32v sum = Zero();
    for (int v = first_vector; v < end_vector; ++v) {
      const F32v value = Load(phi + f * kBlockTokens + v * kLanes);
      sum = Add(sum, Keep(value, bits >> (v * kLanes), Zero()));
    }
    sums[f] = ReduceAdd(sum);
  }
}

void QueryFeatures(const QueryMap& map, const float* const* q, int n, float* const* phi) {
  const int d = map.head_dim, padded = PaddedDim(d);
  if (map.map == FeatureMap::kEluPlusOne) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < d; j += kLanes) {
        const int left = Smaller(kLanes, d - j);
        StoreN(phi[i] + j, EluPlusOne(LoadN(q[i] + j, left)), left);
      }
    }
    return;
  }
  Product(q, n, {map.weights, padded, d, padded}, map.y, padded);
  for (int i = 0; i < n; ++i) SoftmaxPair(map.y + i * padded, d, phi[i]);
}

}  // namespace metattn::cpu::METATTN_ISA
