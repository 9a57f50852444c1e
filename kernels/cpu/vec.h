// A thin vector of f32 lanes, one definition per instruction set; every cpu kernel is written on
// it.
//
// Compiled once per instruction set with -DMETATTN_ISA=<name> and its -m flags, everything inside
// namespace metattn::cpu::<name>, so that no function compiled for one set can be linked into the
// code of another (tests/kernels/isa_symbols_test.py watches the objects). So: no std:: function
// templates (std::min, std::function, ...) in code that includes this file; Smaller/Larger below.
// Ownership: values only. Thread safe. Errors: none; loads and stores need no alignment.
// Cost: one to three instructions each unless said otherwise. Reductions have a fixed order.
#pragma once

#include <immintrin.h>

#include <cstdint>

#ifndef METATTN_ISA
#error "compile with -DMETATTN_ISA=<name> (kernels/cpu/CMakeLists.txt)"
#endif

#define METATTN_INLINE inline __attribute__((always_inline))

namespace metattn::cpu::METATTN_ISA {

inline constexpr float kMinusInfinity = -__builtin_inff();

template <typename T>
METATTN_INLINE constexpr T Smaller(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
METATTN_INLINE constexpr T Larger(T a, T b) {
  return a < b ? b : a;
}

#if defined(__AVX512F__)

using F32v = __m512;
inline constexpr int kLanes = 16;

METATTN_INLINE __mmask16 FirstN(int n) {  // 0 <= n <= kLanes
  return static_cast<__mmask16>((1u << n) - 1u);
}

METATTN_INLINE F32v Zero() { return _mm512_setzero_ps(); }
METATTN_INLINE F32v Set(float x) { return _mm512_set1_ps(x); }
METATTN_INLINE F32v Load(const float* p) { return _mm512_loadu_ps(p); }
METATTN_INLINE void Store(float* p, F32v v) { _mm512_storeu_ps(p, v); }
// First n lanes (0 <= n <= kLanes) from or to memory; other lanes load as zero and stay unwritten.
METATTN_INLINE F32v LoadN(const float* p, int n) { return _mm512_maskz_loadu_ps(FirstN(n), p); }
METATTN_INLINE void StoreN(float* p, F32v v, int n) { _mm512_mask_storeu_ps(p, FirstN(n), v); }

METATTN_INLINE F32v Add(F32v a, F32v b) { return _mm512_add_ps(a, b); }
METATTN_INLINE F32v Sub(F32v a, F32v b) { return _mm512_sub_ps(a, b); }
METATTN_INLINE F32v Mul(F32v a, F32v b) { return _mm512_mul_ps(a, b); }
METATTN_INLINE F32v Div(F32v a, F32v b) { return _mm512_div_ps(a, b); }
METATTN_INLINE F32v Max(F32v a, F32v b) { return _mm512_max_ps(a, b); }  // b if either is NaN
METATTN_INLINE F32v Min(F32v a, F32v b) { return _mm512_min_ps(a, b); }  // b if either is NaN
METATTN_INLINE F32v Fma(F32v a, F32v b, F32v c) { return _mm512_fmadd_ps(a, b, c); }  // a * b + c

// Relative error below 2e-7 for normal results.
METATTN_INLINE F32v Reciprocal(F32v x) {
  const F32v r = _mm512_rcp14_ps(x);
  return Fma(r, _mm512_fnmadd_ps(x, r, Set(1.0f)), r);
}
// Bits of the lanes above a limit.
METATTN_INLINE std::uint64_t Above(F32v v, float limit) {
  return _mm512_cmp_ps_mask(v, Set(limit), _CMP_GT_OQ);
}

METATTN_INLINE float ReduceAdd(F32v v) { return _mm512_reduce_add_ps(v); }
METATTN_INLINE float ReduceMax(F32v v) { return _mm512_reduce_max_ps(v); }

METATTN_INLINE F32v WidenBf16(__m256i h) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
METATTN_INLINE F32v LoadBf16(const std::uint16_t* p) {
  return WidenBf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
METATTN_INLINE F32v LoadBf16N(const std::uint16_t* p, int n) {
  return WidenBf16(_mm256_maskz_loadu_epi16(FirstN(n), p));
}
// Round to nearest even, NaN stays NaN: the bits of F32ToBf16 in kernels/types.h. ~7 instructions.
METATTN_INLINE __m256i NarrowBf16(F32v v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
METATTN_INLINE void StoreBf16(std::uint16_t* p, F32v v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), NarrowBf16(v));
}
METATTN_INLINE void StoreBf16N(std::uint16_t* p, F32v v, int n) {
  _mm256_mask_storeu_epi16(p, FirstN(n), NarrowBf16(v));
}
METATTN_INLINE F32v LoadF16(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
METATTN_INLINE F32v LoadI8(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

METATTN_INLINE F32v RoundToInt(F32v v) {
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// v * 2^n for integral n.
METATTN_INLINE F32v Scale2(F32v v, F32v n) { return _mm512_scalef_ps(v, n); }

#elif defined(__AVX2__)

using F32v = __m256;
inline constexpr int kLanes = 8;

METATTN_INLINE __m256i FirstN(int n) {  // 0 <= n <= kLanes
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

METATTN_INLINE F32v Zero() { return _mm256_setzero_ps(); }
METATTN_INLINE F32v Set(float x) { return _mm256_set1_ps(x); }
METATTN_INLINE F32v Load(const float* p) { return _mm256_loadu_ps(p); }
METATTN_INLINE void Store(float* p, F32v v) { _mm256_storeu_ps(p, v); }
METATTN_INLINE F32v LoadN(const float* p, int n) { return _mm256_maskload_ps(p, FirstN(n)); }
METATTN_INLINE void StoreN(float* p, F32v v, int n) { _mm256_maskstore_ps(p, FirstN(n), v); }

METATTN_INLINE F32v Add(F32v a, F32v b) { return _mm256_add_ps(a, b); }
METATTN_INLINE F32v Sub(F32v a, F32v b) { return _mm256_sub_ps(a, b); }
METATTN_INLINE F32v Mul(F32v a, F32v b) { return _mm256_mul_ps(a, b); }
METATTN_INLINE F32v Div(F32v a, F32v b) { return _mm256_div_ps(a, b); }
METATTN_INLINE F32v Max(F32v a, F32v b) { return _mm256_max_ps(a, b); }
METATTN_INLINE F32v Min(F32v a, F32v b) { return _mm256_min_ps(a, b); }
METATTN_INLINE F32v Fma(F32v a, F32v b, F32v c) { return _mm256_fmadd_ps(a, b, c); }

METATTN_INLINE F32v Reciprocal(F32v x) { return Div(Set(1.0f), x); }
METATTN_INLINE std::uint64_t Above(F32v v, float limit) {
  return static_cast<std::uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, Set(limit), _CMP_GT_OQ)));
}

METATTN_INLINE float ReduceAdd(F32v v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
METATTN_INLINE float ReduceMax(F32v v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

METATTN_INLINE F32v WidenBf16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
METATTN_INLINE F32v LoadBf16(const std::uint16_t* p) {
  return WidenBf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
METATTN_INLINE F32v LoadBf16N(const std::uint16_t* p, int n) {
  alignas(16) std::uint16_t all[8] = {};
  for (int i = 0; i < n; ++i) all[i] = p[i];
  return LoadBf16(all);
}
METATTN_INLINE __m128i NarrowBf16(F32v v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
}
METATTN_INLINE void StoreBf16(std::uint16_t* p, F32v v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), NarrowBf16(v));
}
METATTN_INLINE void StoreBf16N(std::uint16_t* p, F32v v, int n) {
  alignas(16) std::uint16_t all[8];
  StoreBf16(all, v);
  for (int i = 0; i < n; ++i) p[i] = all[i];
}
METATTN_INLINE F32v LoadF16(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
METATTN_INLINE F32v LoadI8(const std::int8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

METATTN_INLINE F32v RoundToInt(F32v v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// In two factors, so that exponents down to the subnormals and up to infinity come out right.
METATTN_INLINE F32v Scale2(F32v v, F32v n) {
  const __m256i i = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(i, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(v, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}

#else
#error "vec.h needs AVX2 or AVX-512"
#endif

// exp(x), relative error below 3e-7 for normal results; exp(-inf) = 0, NaN stays NaN. x is clamped
// to [-110, 110], past which f32 has only 0 and infinity. ~14 instructions.
METATTN_INLINE F32v Exp(F32v x) {
  x = Min(Set(110.0f), Max(Set(-110.0f), x));
  const F32v n = RoundToInt(Mul(x, Set(1.44269504088896341f)));
  F32v r = Fma(n, Set(-0.693359375f), x);  // ln 2 in two parts: the first has few bits, exact
  r = Fma(n, Set(2.12194440054690583e-4f), r);
  F32v p = Set(1.0f / 5040);
  p = Fma(p, r, Set(1.0f / 720));
  p = Fma(p, r, Set(1.0f / 120));
  p = Fma(p, r, Set(1.0f / 24));
  p = Fma(p, r, Set(1.0f / 6));
  p = Fma(p, r, Set(0.5f));
  p = Fma(p, r, Set(1.0f));
  p = Fma(p, r, Set(1.0f));
  return Scale2(p, n);
}

METATTN_INLINE float ExpOne(float x) {
  float lanes[kLanes];
  Store(lanes, Exp(Set(x)));
  return lanes[0];
}

}  // namespace metattn::cpu::METATTN_ISA
