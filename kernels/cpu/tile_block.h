// C (+)= A B for one or two tiles of rows by one or two of columns: bf16 factors, f32 sums. On
// level amx in its tile registers, on avx512_bf16 by dot products of pairs.
//
//   A tile: 16 rows of 32 bf16;
//   B tile: 16 lines of 16 words; word j of line i holds rows 2i (low half) and 2i + 1 of column j;
//   C tile: 16 rows of 16 f32.
//
// A thread works on tiles inside a TileScope: the configuration of AMX's tiles belongs to the
// thread and costs tens of cycles. No errors. Every element of C is one chain over the steps,
// whatever stands beside it. Cost: with two tiles by two, one tile load per product of AMX; one
// load per 1.6 dot products of vectors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

#if defined(__AVX512BF16__)

inline constexpr int kTileSide = 16;  // rows of a tile, and its columns of 32 bits
static_assert(kTileSide == kLanes);

// Bytes from one row (of A) or line (of B) to the next, and from the first tile to the second.
struct TileStrides {
  std::int64_t a, a_next, b, b_next;
};

// The first A and the first B tile of a step.
struct TileStep {
  const void* a;
  const void* b;
};

// Where C lies, and floats from a row to the next, to the tile on the right and to the one below.
struct TileSums {
  float* c;
  std::int64_t stride, right, below;
};

#endif

#if defined(__AMX_BF16__)

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

METATTN_INLINE void ConfigureTiles() {
  const TileConfig config;
  // GCC 12 believes that the instruction reads 8 bytes and would drop the other stores.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}
METATTN_INLINE void ReleaseTiles() { _tile_release(); }

// GCC 12 does not know that a tile load reads memory: stores it may still hold back must be done.
METATTN_INLINE void StoresBeforeTileLoads() { __asm__ volatile("" ::: "memory"); }

// C = A B, or C += A B: `step(k)` gives the factors of step k. Rows of C from `rows` on may be left
// alone.
template <int kRows, int kColumns, bool kAdd, typename Step>
METATTN_INLINE void MultiplyTiles(const TileStrides& by, std::int64_t steps, Step step, int,
                                  const TileSums& sums) {
  const std::int64_t stride = sums.stride * 4;
  float* const c = sums.c;
  float* const below = c + sums.below;
  StoresBeforeTileLoads();
  if constexpr (kAdd) {
    _tile_loadd(0, c, stride);
    if constexpr (kColumns == 2) _tile_loadd(1, c + sums.right, stride);
    if constexpr (kRows == 2) _tile_loadd(2, below, stride);
    if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, below + sums.right, stride);
  } else {
    _tile_zero(0);
    if constexpr (kColumns == 2) _tile_zero(1);
    if constexpr (kRows == 2) _tile_zero(2);
    if constexpr (kRows == 2 && kColumns == 2) _tile_zero(3);
  }
  for (std::int64_t k = 0; k < steps; ++k) {
    const TileStep at = step(k);
    const auto* a = static_cast<const std::byte*>(at.a);
    const auto* b = static_cast<const std::byte*>(at.b);
    _tile_loadd(4, a, by.a);
    _tile_loadd(6, b, by.b);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns == 2) {
      _tile_loadd(7, b + by.b_next, by.b);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, a + by.a_next, by.a);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kColumns == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, stride);
  if constexpr (kColumns == 2) _tile_stored(1, c + sums.right, stride);
  if constexpr (kRows == 2) _tile_stored(2, below, stride);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, below + sums.right, stride);
}

#elif defined(__AVX512BF16__)

METATTN_INLINE void ConfigureTiles() {}
METATTN_INLINE void ReleaseTiles() {}

// As above. Eight rows at a time, all of C in registers.
template <int kRows, int kColumns, bool kAdd, typename Step>
METATTN_INLINE void MultiplyTiles(const TileStrides& by, std::int64_t steps, Step step, int rows,
                                  const TileSums& sums) {
  constexpr int kAtOnce = 8;
  for (int first = 0; first < Smaller(rows, kRows * kTileSide); first += kAtOnce) {
    const int tile = first / kTileSide, row = first % kTileSide;
    float* const c = sums.c + tile * sums.below + row * sums.stride;
    F32v acc[kAtOnce][kColumns];
#pragma GCC unroll 8
    for (int i = 0; i < kAtOnce; ++i) {
      for (int j = 0; j < kColumns; ++j) {
        acc[i][j] = kAdd ? Load(c + i * sums.stride + j * sums.right) : Zero();
      }
    }
    for (std::int64_t k = 0; k < steps; ++k) {
      const TileStep at = step(k);
      const auto* a = static_cast<const std::byte*>(at.a) + tile * by.a_next + row * by.a;
      const auto* b = static_cast<const std::byte*>(at.b);
      for (int pair = 0; pair < kTileSide; ++pair, a += 4, b += by.b) {
        __m512bh columns[kColumns];
        for (int j = 0; j < kColumns; ++j) {
          columns[j] = (__m512bh)_mm512_loadu_si512(b + j * by.b_next);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kAtOnce; ++i) {
          std::int32_t both;
          __builtin_memcpy(&both, a + i * by.a, 4);
          const auto factor = (__m512bh)_mm512_set1_epi32(both);
          for (int j = 0; j < kColumns; ++j) {
            acc[i][j] = _mm512_dpbf16_ps(acc[i][j], factor, columns[j]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kAtOnce; ++i) {
      for (int j = 0; j < kColumns; ++j) Store(c + i * sums.stride + j * sums.right, acc[i][j]);
    }
  }
}

#endif

// Tiles ready while a thread works on an op, if it uses them.
class TileScope {
 public:
  METATTN_INLINE explicit TileScope([[maybe_unused]] bool used) {
#if defined(__AVX512BF16__)
    used_ = used;
    if (used_) ConfigureTiles();
#endif
  }
  METATTN_INLINE ~TileScope() {
#if defined(__AVX512BF16__)
    if (used_) ReleaseTiles();
#endif
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  [[maybe_unused]] bool used_ = false;
};

}  // namespace metattn::cpu::METATTN_ISA
