// Logarithms of f32 vectors, beside vec.h.
//
// Included only by sources compiled with -DMETATTN_ISA. Values only; thread safe; no errors.
// Relative error below 3e-7. Cost: about 20 instructions and one division.
#pragma once

#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

// 2 atanh(s) by its series; |s| <= 1/3.
METATTN_INLINE F32v TwoAtanh(F32v s) {
  const F32v square = Mul(s, s);
  F32v p = Set(2.0f / 17);
  p = Fma(p, square, Set(2.0f / 15));
  p = Fma(p, square, Set(2.0f / 13));
  p = Fma(p, square, Set(2.0f / 11));
  p = Fma(p, square, Set(2.0f / 9));
  p = Fma(p, square, Set(2.0f / 7));
  p = Fma(p, square, Set(2.0f / 5));
  p = Fma(p, square, Set(2.0f / 3));
  return Fma(Mul(p, square), s, Add(s, s));
}

// log(1 + x) for 0 <= x <= 1, relative error also for tiny x; NaN stays NaN.
METATTN_INLINE F32v Log1p(F32v x) { return TwoAtanh(Div(x, Add(x, Set(2.0f)))); }

// x = m 2^n with m in [sqrt(1/2), sqrt(2)) for positive normal numbers.
struct Parts {
  F32v m, n;
};

#if defined(__AVX512F__)

METATTN_INLINE Parts Split(F32v x) {
  F32v m = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_nan);
  F32v n = _mm512_getexp_ps(x);
  const __mmask16 high = _mm512_cmp_ps_mask(m, Set(1.41421356f), _CMP_GE_OQ);
  m = _mm512_mask_mul_ps(m, high, m, Set(0.5f));
  return {m, _mm512_mask_add_ps(n, high, n, Set(1.0f))};
}

// `log` where x is a positive number; elsewhere -inf for 0, infinity and NaN for themselves, NaN
// below zero.
METATTN_INLINE F32v LogOrLimit(F32v x, F32v log) {
  const __mmask16 finite = _mm512_cmp_ps_mask(x, Set(__builtin_inff()), _CMP_LT_OQ);
  log = _mm512_mask_mov_ps(x, finite, log);
  const __mmask16 zero = _mm512_cmp_ps_mask(x, Zero(), _CMP_EQ_OQ);
  log = _mm512_mask_mov_ps(log, zero, Set(-__builtin_inff()));
  const __mmask16 negative = _mm512_cmp_ps_mask(x, Zero(), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(log, negative, Set(__builtin_nanf("")));
}

#else

METATTN_INLINE Parts Split(F32v x) {
  const F32v tiny = _mm256_cmp_ps(x, Set(0x1p-126f), _CMP_LT_OQ);
  x = _mm256_blendv_ps(x, Mul(x, Set(0x1p23f)), tiny);
  // 2^n m with m in [sqrt(1/2), sqrt(2)): the bits of sqrt(1/2) subtracted, the exponent is n.
  const __m256i low = _mm256_set1_epi32(0x3f3504f3);
  const __m256i bits = _mm256_sub_epi32(_mm256_castps_si256(x), low);
  const __m256i mantissa = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff));
  const F32v n = _mm256_cvtepi32_ps(_mm256_srai_epi32(bits, 23));
  return {_mm256_castsi256_ps(_mm256_add_epi32(mantissa, low)),
          Sub(n, _mm256_and_ps(tiny, Set(23.0f)))};
}

METATTN_INLINE F32v LogOrLimit(F32v x, F32v log) {  // as above
  const F32v infinity = Set(__builtin_inff());
  const F32v finite = _mm256_cmp_ps(x, infinity, _CMP_LT_OQ);
  log = _mm256_blendv_ps(x, log, finite);
  log = _mm256_blendv_ps(log, Set(-__builtin_inff()), _mm256_cmp_ps(x, Zero(), _CMP_EQ_OQ));
  return _mm256_blendv_ps(log, Set(__builtin_nanf("")), _mm256_cmp_ps(x, Zero(), _CMP_LT_OQ));
}

#endif

// log(x): log(0) = -inf, infinity and NaN stay, NaN below zero.
METATTN_INLINE F32v Log(F32v x) {
  const Parts parts = Split(x);
  const F32v s = Div(Sub(parts.m, Set(1.0f)), Add(parts.m, Set(1.0f)));
  F32v log = Fma(parts.n, Set(-2.12194440054690583e-4f), TwoAtanh(s));  // ln 2 in two parts
  log = Fma(parts.n, Set(0.693359375f), log);
  return LogOrLimit(x, log);
}

}  // namespace metattn::cpu::METATTN_ISA
