// What feature_map and control need of the two vector lengths beside vec.h: transposing squares of
// 32-bit words, reciprocals, compares.
//
// Included only by sources compiled with -DMETATTN_ISA. Values only; thread safe; no errors.
#pragma once

#include <cstdint>

#include "kernels/cpu/pages.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

// GatherColumn: the first word of kLanes rows `stride` words apart; rows past `rows` give zeros.
// EvenHalves, OddHalves: the bf16 halves of words as f32. Above: bits of the lanes above a limit.
// Reciprocal: relative error below 2e-7 for normal results.
#if defined(__AVX512F__)
METATTN_INLINE I32v LoadWords(const std::uint32_t* p) { return _mm512_loadu_si512(p); }
METATTN_INLINE I32v LoadWordsN(const std::uint32_t* p, int n) {
  return _mm512_maskz_loadu_epi32(FirstN(n), p);
}
METATTN_INLINE I32v ZeroWords() { return _mm512_setzero_si512(); }
METATTN_INLINE void StoreWords(std::uint32_t* p, I32v v) { _mm512_storeu_si512(p, v); }
METATTN_INLINE I32v GatherColumn(const std::uint32_t* from, int stride, int rows) {
  const I32v lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const I32v at = _mm512_mullo_epi32(lane, _mm512_set1_epi32(stride));
  return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), FirstN(rows), at, from, 4);
}
METATTN_INLINE F32v EvenHalves(I32v pair) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
}
METATTN_INLINE F32v OddHalves(I32v pair) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
METATTN_INLINE I32v LowWords(I32v a, I32v b) { return _mm512_unpacklo_epi32(a, b); }
METATTN_INLINE I32v HighWords(I32v a, I32v b) { return _mm512_unpackhi_epi32(a, b); }
METATTN_INLINE I32v LowDoubles(I32v a, I32v b) { return _mm512_unpacklo_epi64(a, b); }
METATTN_INLINE I32v HighDoubles(I32v a, I32v b) { return _mm512_unpackhi_epi64(a, b); }
METATTN_INLINE void GatherParts(const I32v (&rows)[16], int j, I32v (&out)[16]) {
  const I32v a = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x88);
  const I32v b = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xdd);
  const I32v c = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x88);
  const I32v d = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xdd);
  out[j] = _mm512_shuffle_i32x4(a, c, 0x88);
  out[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
  out[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
  out[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
}
METATTN_INLINE F32v Reciprocal(F32v x) {
  const F32v r = _mm512_rcp14_ps(x);
  return Fma(r, _mm512_fnmadd_ps(x, r, Set(1.0f)), r);
}
METATTN_INLINE std::uint64_t Above(F32v v, float limit) {
  return _mm512_cmp_ps_mask(v, Set(limit), _CMP_GT_OQ);
}
#else
METATTN_INLINE I32v LoadWordsN(const std::uint32_t* p, int n) {
  return _mm256_maskload_epi32(reinterpret_cast<const int*>(p), FirstN(n));
}
METATTN_INLINE I32v ZeroWords() { return _mm256_setzero_si256(); }
METATTN_INLINE void StoreWords(std::uint32_t* p, I32v v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
METATTN_INLINE I32v GatherColumn(const std::uint32_t* from, int stride, int rows) {
  const I32v lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const I32v at = _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride));
  return _mm256_mask_i32gather_epi32(_mm256_setzero_si256(), reinterpret_cast<const int*>(from), at,
                                     FirstN(rows), 4);
}
METATTN_INLINE F32v EvenHalves(I32v pair) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
}
METATTN_INLINE F32v OddHalves(I32v pair) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
METATTN_INLINE I32v LowWords(I32v a, I32v b) { return _mm256_unpacklo_epi32(a, b); }
METATTN_INLINE I32v HighWords(I32v a, I32v b) { return _mm256_unpackhi_epi32(a, b); }
METATTN_INLINE I32v LowDoubles(I32v a, I32v b) { return _mm256_unpacklo_epi64(a, b); }
METATTN_INLINE I32v HighDoubles(I32v a, I32v b) { return _mm256_unpackhi_epi64(a, b); }
METATTN_INLINE void GatherParts(const I32v (&rows)[8], int j, I32v (&out)[8]) {
  out[j] = _mm256_permute2x128_si256(rows[j], rows[4 + j], 0x20);
  out[4 + j] = _mm256_permute2x128_si256(rows[j], rows[4 + j], 0x31);
}
METATTN_INLINE F32v Reciprocal(F32v x) { return Div(Set(1.0f), x); }
METATTN_INLINE std::uint64_t Above(F32v v, float limit) {
  return static_cast<std::uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, Set(limit), _CMP_GT_OQ)));
}
#endif

// Rows of a square of kLanes by kLanes words to columns; the rows are lost.
METATTN_INLINE void TransposeSquare(I32v (&rows)[kLanes], I32v (&out)[kLanes]) {
  I32v pairs[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = LowWords(rows[i], rows[i + 1]);
    pairs[i + 1] = HighWords(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {  // rows[i + j]: column 4 L + j of four rows in its part L
    rows[i] = LowDoubles(pairs[i], pairs[i + 2]);
    rows[i + 1] = HighDoubles(pairs[i], pairs[i + 2]);
    rows[i + 2] = LowDoubles(pairs[i + 1], pairs[i + 3]);
    rows[i + 3] = HighDoubles(pairs[i + 1], pairs[i + 3]);
  }
  for (int j = 0; j < 4; ++j) GatherParts(rows, j, out);
}

// The square whose rows are `stride` words apart.
METATTN_INLINE void Transpose(const std::uint32_t* from, int stride, I32v (&out)[kLanes]) {
  I32v rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = LoadWords(from + i * stride);
  TransposeSquare(rows, out);
}

// A square of which only `count` rows of `columns` words are in memory; the rest is zero.
METATTN_INLINE void TransposePart(const std::uint32_t* from, int stride, int count, int columns,
                                  I32v (&out)[kLanes]) {
  I32v rows[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    rows[i] = i < count ? LoadWordsN(from + i * stride, columns) : ZeroWords();
  }
  TransposeSquare(rows, out);
}

}  // namespace metattn::cpu::METATTN_ISA
