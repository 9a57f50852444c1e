// Pages of the cpu backend, the same for every instruction set. Head size d is padded to D, a
// multiple of 16; the padding is zero.
//   K: [D / 2][kBlockTokens][2 dims] bf16: one 64-byte line holds two dims of 16 tokens, so that
//      scores of 16 tokens grow side by side in a register;
//   V: [kBlockTokens / 2][D][2 tokens] bf16: one line holds 16 dims of two tokens.
// A 32-bit word holds two bf16; as f32 the even one is (word << 16), the odd one (word &
// 0xffff0000). Both are also the operand layouts of bf16 dot products and tiles.
//
// Address arithmetic only; borrows everything. Included by sources compiled per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/vec.h"
#include "kernels/kernels.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {

inline constexpr int kGroupTokens = 16;

METATTN_INLINE int PaddedDim(int head_dim) { return (head_dim + 15) / 16 * 16; }

// Words (pairs of bf16) of K, and as many of V.
METATTN_INLINE std::int64_t KeyWords(int padded) { return std::int64_t{kBlockTokens} * padded / 2; }

// The page of one block and KV head.
METATTN_INLINE std::uint32_t* PageAt(const PageTable& pages, std::int64_t block, int head) {
  const std::int64_t bytes = 2 * KeyWords(PaddedDim(pages.head_dim)) * 4;
  return reinterpret_cast<std::uint32_t*>(pages.base.As<std::byte>() +
                                          (block * pages.block_stride + head) * bytes);
}

// kLanes consecutive words: their even and their odd halves as f32.
#if defined(__AVX512F__)
METATTN_INLINE F32v EvenBf16(const std::uint32_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
METATTN_INLINE F32v OddBf16(const std::uint32_t* p) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
// Lane i of v where bit i is set, else `other`.
METATTN_INLINE F32v Keep(F32v v, std::uint64_t bits, F32v other) {
  return _mm512_mask_mov_ps(other, static_cast<__mmask16>(bits), v);
}
#else
METATTN_INLINE __m256i LoadWords(const std::uint32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
METATTN_INLINE F32v EvenBf16(const std::uint32_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(LoadWords(p), 16));
}
METATTN_INLINE F32v OddBf16(const std::uint32_t* p) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(LoadWords(p), _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
METATTN_INLINE F32v Keep(F32v v, std::uint64_t bits, F32v other) {
  const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits & 0xffu)), lane_bit);
  return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane_bit)));
}
#endif

}  // namespace metattn::cpu::METATTN_ISA
