// What Near's statistics need beside the partial triple: log-sum-exp of columns of scores, and how
// two of them merge.
//
// Included only by sources compiled with -DMETATTN_ISA. Values only; thread safe; no errors. Each
// lane is a query of its own, so a query's bits do not depend on the others.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/cpu/vec_log.h"

namespace metattn::cpu::METATTN_ISA {

// Lane i: p[i * stride].
METATTN_INLINE F32v GatherColumn(const float* p, int stride) {
#if defined(__AVX512F__)
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_i32gather_ps(_mm512_mullo_epi32(lane, _mm512_set1_epi32(stride)), p, 4);
#else
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_i32gather_ps(p, _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride)), 4);
#endif
}

// Lane i: log sum_j exp(scale * s[i * stride + j]) over j < count; count > 0. About 20 instructions
// and two gathers per column.
METATTN_INLINE F32v ColumnsLse(const float* s, int stride, int count, float scale) {
  F32v largest = GatherColumn(s, stride);
  for (int j = 1; j < count; ++j) largest = Max(largest, GatherColumn(s + j, stride));
  const F32v factor = Set(scale);
  F32v sum = Zero();
  for (int j = 0; j < count; ++j) {
    sum = Add(sum, Exp(Mul(Sub(GatherColumn(s + j, stride), largest), factor)));
  }
  return Fma(largest, factor, Log(sum));
}

// log(exp(a) + exp(b)); one of them may be -inf.
METATTN_INLINE F32v LogAddExp(F32v a, F32v b) {
  const F32v largest = Max(a, b);
  return Add(largest, Log1p(Exp(Sub(Min(a, b), largest))));
}

}  // namespace metattn::cpu::METATTN_ISA
