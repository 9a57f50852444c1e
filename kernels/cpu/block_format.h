// Readers of the packed groups of pack.h, one per dtype, for the kernels of one level.
//
// A reader R has: kScaled (values are quants times d), kOffset (plus an offset), Bytes(columns) of
// one group, Quant(group, octet, i) the lanes' quants of column 8 * octet + i as f32 (i a constant
// once loops are unrolled), Scale(group) and Offset(group) per lane. A kernel sums x * quant over a
// group and applies d and the offset once (linear.cc), or takes Value = d * quant + offset (embed,
// tiles). Ownership: borrows. Thread safe. Errors: none. Cost: two instructions per 16 nibbles on
// AVX-512 (shift, table look-up by permutation), three on AVX2 (shift, mask, convert).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/pack.h"
#include "kernels/cpu/vec.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {

template <typename T>
METATTN_INLINE const T* At(const std::byte* p) {
  return reinterpret_cast<const T*>(p);
}

template <DType kType>
struct Plain {
  static constexpr bool kScaled = false, kOffset = false;
  static constexpr int kValueBytes = kType == DType::kF32 ? 4 : 2;

  static constexpr std::int64_t Bytes(int columns) { return columns * kValueBytes * kLanes; }
  static METATTN_INLINE F32v Quant(const std::byte* group, int octet, int i) {
    const std::byte* p = group + (octet * 8 + i) * kValueBytes * kLanes;
    if constexpr (kType == DType::kF32) {
      return Load(At<float>(p));
    } else if constexpr (kType == DType::kF16) {
      return LoadF16(At<std::uint16_t>(p));
    } else {
      return LoadBf16(At<std::uint16_t>(p));
    }
  }
  static METATTN_INLINE F32v Scale(const std::byte*) { return Set(1.0f); }
  static METATTN_INLINE F32v Offset(const std::byte*) { return Zero(); }
};

struct Q8_0 {
  static constexpr bool kScaled = true, kOffset = false;

  static constexpr std::int64_t Bytes(int) { return (2 + kGroup) * kLanes; }
  static METATTN_INLINE F32v Quant(const std::byte* group, int octet, int i) {
    return LoadI8(At<std::int8_t>(group) + (2 + octet * 8 + i) * kLanes);
  }
  static METATTN_INLINE F32v Scale(const std::byte* g) { return LoadF16(At<std::uint16_t>(g)); }
  static METATTN_INLINE F32v Offset(const std::byte*) { return Zero(); }
};

// Nibble i of the lanes' word `octet`.
template <int kHeadBytes, int kBias>
METATTN_INLINE F32v Nibbles(const std::byte* group, int octet, int i) {
  const std::byte* word = group + (kHeadBytes + octet * 4) * kLanes;
#if defined(__AVX512F__)
  // The permutation looks at the low four bits of an index only: no mask is needed.
  constexpr float b = kBias;
  const __m512 table = _mm512_setr_ps(0 - b, 1 - b, 2 - b, 3 - b, 4 - b, 5 - b, 6 - b, 7 - b, 8 - b,
                                      9 - b, 10 - b, 11 - b, 12 - b, 13 - b, 14 - b, 15 - b);
  const __m512i all = _mm512_loadu_si512(word);
  return _mm512_permutexvar_ps(_mm512_srli_epi32(all, static_cast<unsigned>(i * 4)), table);
#else
  const __m256i all = _mm256_loadu_si256(At<__m256i>(word));
  const __m256i shifted = _mm256_srli_epi32(all, i * 4);
  return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)));
#endif
}

struct Q4_0 {
#if defined(__AVX512F__)
  static constexpr bool kScaled = true, kOffset = false;
  static constexpr int kBias = 8;  // in the table
#else
  static constexpr bool kScaled = true, kOffset = true;
  static constexpr int kBias = 0;  // in the offset
#endif

  static constexpr std::int64_t Bytes(int) { return (2 + kGroup / 2) * kLanes; }
  static METATTN_INLINE F32v Quant(const std::byte* g, int octet, int i) {
    return Nibbles<2, kBias>(g, octet, i);
  }
  static METATTN_INLINE F32v Scale(const std::byte* g) { return LoadF16(At<std::uint16_t>(g)); }
  static METATTN_INLINE F32v Offset(const std::byte* g) {
    return kOffset ? Mul(Set(-8.0f), Scale(g)) : Zero();
  }
};

struct Q4_1 {
  static constexpr bool kScaled = true, kOffset = true;

  static constexpr std::int64_t Bytes(int) { return (4 + kGroup / 2) * kLanes; }
  static METATTN_INLINE F32v Quant(const std::byte* g, int octet, int i) {
    return Nibbles<4, 0>(g, octet, i);
  }
  static METATTN_INLINE F32v Scale(const std::byte* g) { return LoadF16(At<std::uint16_t>(g)); }
  static METATTN_INLINE F32v Offset(const std::byte* g) {
    return LoadF16(At<std::uint16_t>(g) + kLanes);
  }
};

template <typename R>
METATTN_INLINE F32v Value(F32v scale, F32v offset, const std::byte* group, int octet, int i) {
  const F32v q = R::Quant(group, octet, i);
  if constexpr (!R::kScaled) return q;
  if constexpr (!R::kOffset) return Mul(scale, q);
  return Fma(scale, q, offset);
}

// Calls f with the reader of `dtype` as its template argument.
template <typename F>
METATTN_INLINE void WithReader(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f.template operator()<Plain<DType::kF32>>();
    case DType::kF16:
      return f.template operator()<Plain<DType::kF16>>();
    case DType::kBF16:
      return f.template operator()<Plain<DType::kBF16>>();
    case DType::kQ8_0:
      return f.template operator()<Q8_0>();
    case DType::kQ4_0:
      return f.template operator()<Q4_0>();
    case DType::kQ4_1:
      return f.template operator()<Q4_1>();
    case DType::kI32:
      return;  // Pack does not take it
  }
}

}  // namespace metattn::cpu::METATTN_ISA
