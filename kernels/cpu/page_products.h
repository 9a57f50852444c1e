// Products of up to kQueryBlock rows of f32 with the K or the V of a page, in registers.
//
// Scores: rows [*, padded] times 64 tokens; values: rows [*, 64] of weights times dims. Every
// result is one chain of fused multiply-adds in a fixed order, whatever rows and tokens stand
// beside it. Borrows everything; no errors; thread safe. Included only by sources compiled with
// -DMETATTN_ISA.
//
// S = Q K^T in f32, kQueryBlock queries by 64 tokens of accumulators in registers, K widened from
// bf16 as it is loaded; running maximum, exp; O += P V, kQueryBlock queries by up to 64 dims in
// registers. With kQueryBlock = 6, 48 fused multiply-adds stand against 8 widenings and 12
// broadcasts (AVX-512; AVX2 12 against 4 and 12). Every (query, token) score and every (query, dim)
// sum is one chain in a fixed order and masked tokens add exact zeros.
//
// Decode (few queries) is bound by memory: a page is read in the order it lies and the same place
// of the next page is prefetched meanwhile, because rows of 256 bytes and pages of 16 KB are too
// short for the hardware to run ahead on its own. Measured on a loaded machine: 12.4 GB/s a thread
// where plain reading gives 15.6 and the same loop without prefetch 9.7; K in groups of 16 tokens
// (four streams) without prefetch 8.7; prefetching 2 or 4 KB ahead in address order did not help.
// Prefill runs at 0.97 of the peak of f32 fused multiply-adds.
#pragma once

#include <cstdint>

#include "kernels/cpu/pages.h"
#include "kernels/cpu/vec.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {

inline constexpr int kQueryBlock = 6;
inline constexpr int kGroupVectors = kGroupTokens / kLanes;
// Vectors of accumulators per query: 4 with 32 registers, 2 with 16.
inline constexpr int kWide = kLanes == 16 ? 4 : 2;
// With more queries a page costs more to compute than to read.
inline constexpr int kPrefetchQueries = 4;

// Scores of QB queries with kVectors vectors of tokens that start at the words `k` of a page; the
// page `ahead` words further on will be needed next.
template <int QB, int kVectors>
METATTN_INLINE void ScoreBlock(const std::uint32_t* k, [[maybe_unused]] std::int64_t ahead,
                               int padded, const float* q, float* s) {
  F32v acc[QB][kVectors];
  for (int i = 0; i < QB; ++i) {
    for (int v = 0; v < kVectors; ++v) acc[i][v] = Zero();
  }
  const int pairs = padded / 2;
  for (int p = 0; p < pairs; ++p) {
    const std::uint32_t* words = k + p * kBlockTokens;
    F32v half[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (QB <= kPrefetchQueries) __builtin_prefetch(words + ahead + v * kLanes, 0, 2);
      half[v] = EvenBf16(words + v * kLanes);
    }
    for (int i = 0; i < QB; ++i) {
      const F32v x = Set(q[i * padded + 2 * p]);
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(x, half[v], acc[i][v]);
    }
    for (int v = 0; v < kVectors; ++v) {
      half[v] = OddBf16(words + v * kLanes);
    }
    for (int i = 0; i < QB; ++i) {
      const F32v x = Set(q[i * padded + 2 * p + 1]);
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(x, half[v], acc[i][v]);
    }
  }
  for (int i = 0; i < QB; ++i) {
    for (int v = 0; v < kVectors; ++v) Store(s + i * kBlockTokens + v * kLanes, acc[i][v]);
  }
}

// The K or V words of one page, and which of its token groups (K) or tokens (V) are read.
struct PagePart {
  const std::uint32_t* words;
  std::int64_t ahead;  // words to the same place of the page that is read next
  int padded;          // dims of a head in storage
  int first, end;
  int dims;  // of V: how many, from `words` on
};

// Token groups [first, end) of a page for QB queries.
template <int QB>
inline void ScoreGroups(const PagePart& k, const float* q, float* s) {
  constexpr int kAtOnce = kWide / kGroupVectors;
  int g = k.first;
  for (; g + kAtOnce <= k.end; g += kAtOnce) {
    ScoreBlock<QB, kWide>(k.words + g * kGroupTokens, k.ahead, k.padded, q, s + g * kGroupTokens);
  }
  for (; g < k.end; ++g) {
    ScoreBlock<QB, kGroupVectors>(k.words + g * kGroupTokens, k.ahead, k.padded, q,
                                  s + g * kGroupTokens);
  }
}

// acc += P of one token times its dims.
template <int QB, int kVectors>
METATTN_INLINE void AddToken(const float* p, const F32v (&v)[kVectors], F32v (&acc)[QB][kVectors]) {
  for (int i = 0; i < QB; ++i) {
    const F32v x = Set(p[i * kBlockTokens]);
    for (int j = 0; j < kVectors; ++j) acc[i][j] = Fma(x, v[j], acc[i][j]);
  }
}

// O += P V for QB queries and kVectors vectors of dims, tokens [first, end) of the page. Tokens
// outside are not touched: they may never have been written.
template <int QB, int kVectors>
METATTN_INLINE void ValueBlock(const PagePart& part, const float* p, float* o) {
  const std::uint32_t* const v = part.words;
  [[maybe_unused]] const std::int64_t ahead = part.ahead;
  const int padded = part.padded, end = part.end;
  F32v acc[QB][kVectors], half[kVectors];
  for (int i = 0; i < QB; ++i) {
    for (int j = 0; j < kVectors; ++j) acc[i][j] = Load(o + i * padded + j * kLanes);
  }
  int t = part.first;
  if (t % 2 == 1) {
    const std::uint32_t* words = v + t / 2 * padded;
    for (int j = 0; j < kVectors; ++j) half[j] = OddBf16(words + j * kLanes);
    AddToken<QB, kVectors>(p + t, half, acc);
    ++t;
  }
  for (; t + 2 <= end; t += 2) {
    const std::uint32_t* words = v + t / 2 * padded;
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (QB <= kPrefetchQueries) __builtin_prefetch(words + ahead + j * kLanes, 0, 2);
      half[j] = EvenBf16(words + j * kLanes);
    }
    AddToken<QB, kVectors>(p + t, half, acc);
    for (int j = 0; j < kVectors; ++j) half[j] = OddBf16(words + j * kLanes);
    AddToken<QB, kVectors>(p + t + 1, half, acc);
  }
  if (t < end) {
    const std::uint32_t* words = v + t / 2 * padded;
    for (int j = 0; j < kVectors; ++j) half[j] = EvenBf16(words + j * kLanes);
    AddToken<QB, kVectors>(p + t, half, acc);
  }
  for (int i = 0; i < QB; ++i) {
    for (int j = 0; j < kVectors; ++j) Store(o + i * padded + j * kLanes, acc[i][j]);
  }
}

template <int QB>
inline void AddValues(const PagePart& v, const float* p, float* o) {
  PagePart part = v;
  int d = 0;
  for (; d + kWide * kLanes <= v.dims; d += kWide * kLanes, part.words += kWide * kLanes) {
    ValueBlock<QB, kWide>(part, p, o + d);
  }
  for (; d < v.dims; d += kLanes, part.words += kLanes) ValueBlock<QB, 1>(part, p, o + d);
}

using PageFunction = void (*)(const PagePart&, const float*, float*);
inline constexpr PageFunction kScore[kQueryBlock] = {
    ScoreGroups<1>, ScoreGroups<2>, ScoreGroups<3>, ScoreGroups<4>, ScoreGroups<5>, ScoreGroups<6>};
inline constexpr PageFunction kValue[kQueryBlock] = {AddValues<1>, AddValues<2>, AddValues<3>,
                                                     AddValues<4>, AddValues<5>, AddValues<6>};

}  // namespace metattn::cpu::METATTN_ISA
