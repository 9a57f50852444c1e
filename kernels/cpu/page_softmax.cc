// The running softmax: one maximum for all pages so far; sums are rescaled when it grows.
#include "kernels/cpu/page_softmax.h"

#include <cstdint>

#include "kernels/cpu/pages.h"
#include "kernels/cpu/vec.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kPageVectors = kBlockTokens / kLanes;
constexpr float kExpLimit = 110.0f;  // exp(-kExpLimit) is 0

// With kStats t too.
template <bool kStats>
void Softmax(std::uint64_t bits, const PagePart& keys, const QuerySums& sums) {
  const int first = keys.first, end = keys.end;
  float* const s = sums.s;
  float* const o = sums.o;
  F32v scores[kPageVectors];
  F32v largest = Set(kMinusInfinity);
  for (int v = first * kGroupVectors; v < end * kGroupVectors; ++v) {
    scores[v] = Keep(Load(s + v * kLanes), bits >> (v * kLanes), Set(kMinusInfinity));
    largest = Max(largest, scores[v]);
  }
  const float page_max = ReduceMax(largest);
  F32v sum = Load(sums.l);
  [[maybe_unused]] F32v off_sum = kStats ? Load(sums.t) : Zero();
  float m = *sums.m;
  if (page_max > m) {
    const F32v factor = Exp(Set(m - page_max));
    for (int d = 0; d < keys.padded; d += kLanes) Store(o + d, Mul(Load(o + d), factor));
    if (kStats && m != kMinusInfinity) {
      off_sum = Mul(Fma(sum, Set(m - page_max), off_sum), factor);
    }
    sum = Mul(sum, factor);
    *sums.m = m = page_max;
  }
  for (int v = first * kGroupVectors; v < end * kGroupVectors; ++v) {
    F32v off = Sub(scores[v], Set(m));
    if constexpr (kStats) off = Max(Set(-kExpLimit), off);  // -inf where masked
    const F32v p = Exp(off);
    sum = Add(sum, p);
    if constexpr (kStats) off_sum = Fma(p, off, off_sum);
    Store(s + v * kLanes, p);
  }
  Store(sums.l, sum);
  if constexpr (kStats) Store(sums.t, off_sum);
}

}  // namespace

void SoftmaxPage(std::uint64_t bits, const PagePart& keys, const QuerySums& sums) {
  sums.t == nullptr ? Softmax<false>(bits, keys, sums) : Softmax<true>(bits, keys, sums);
}

}  // namespace metattn::cpu::METATTN_ISA
