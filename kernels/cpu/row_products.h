// Products of up to kQueryBlock rows of f32, wherever they lie, with a matrix of f32, in registers;
// and dot products.
//
// Every result is one chain of fused multiply-adds in a fixed order, whatever rows and columns
// stand beside it. Borrows everything; no errors; thread safe. Included only by sources compiled
// with -DMETATTN_ISA. Cost: with 6 rows and kWide vectors at the peak of multiply-adds as long as
// the matrix stays in the first cache level.
#pragma once

#include <cstdint>

#include "kernels/cpu/page_products.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

// B: `depth` rows of columns, `stride` floats apart; columns and stride are multiples of 16.
struct Columns {
  const float* b;
  std::int64_t stride;
  int depth, columns;
};

// How far ahead B is asked for. Of half the columns of a state, one row: 16 lines ahead 5.1 us for
// FarLinear of three heads, 48 lines 4.2, 96 and more 4.6.
inline constexpr int kAheadLines = 48;

template <int QB, int kVectors>
METATTN_INLINE void ProductBlock(const float* const* a, const Columns& with, int first, float* c,
                                 std::int64_t c_stride) {
  F32v acc[QB][kVectors], b[kVectors];
  for (int i = 0; i < QB; ++i) {
    for (int v = 0; v < kVectors; ++v) acc[i][v] = Zero();
  }
  const float* row = with.b + first;
  [[maybe_unused]] const std::int64_t ahead = kAheadLines / kVectors * with.stride;
  for (int k = 0; k < with.depth; ++k, row += with.stride) {
    for (int v = 0; v < kVectors; ++v) {
      // Few rows: B comes from memory.
      if constexpr (QB <= kPrefetchQueries) __builtin_prefetch(row + ahead + v * kLanes, 0, 2);
      b[v] = Load(row + v * kLanes);
    }
    for (int i = 0; i < QB; ++i) {
      const F32v x = Set(a[i][k]);
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(x, b[v], acc[i][v]);
    }
  }
  for (int i = 0; i < QB; ++i) {
    for (int v = 0; v < kVectors; ++v) Store(c + i * c_stride + first + v * kLanes, acc[i][v]);
  }
}

template <int QB>
inline void ProductRows(const float* const* a, const Columns& with, float* c,
                        std::int64_t c_stride) {
  int first = 0;
  for (; first + kWide * kLanes <= with.columns; first += kWide * kLanes) {
    ProductBlock<QB, kWide>(a, with, first, c, c_stride);
  }
  if (kWide == 4 && first + 2 * kLanes <= with.columns) {
    ProductBlock<QB, 2>(a, with, first, c, c_stride);
    first += 2 * kLanes;
  }
  for (; first < with.columns; first += kLanes) ProductBlock<QB, 1>(a, with, first, c, c_stride);
}

// c[i] = a[i] B for 1 <= n <= kQueryBlock rows.
METATTN_INLINE void Product(const float* const* a, int n, const Columns& with, float* c,
                            std::int64_t c_stride) {
  using Function = void (*)(const float* const*, const Columns&, float*, std::int64_t);
  static constexpr Function kProduct[kQueryBlock] = {ProductRows<1>, ProductRows<2>,
                                                     ProductRows<3>, ProductRows<4>,
                                                     ProductRows<5>, ProductRows<6>};
  kProduct[n - 1](a, with, c, c_stride);
}

METATTN_INLINE float Dot(const float* a, const float* b, int n) {
  F32v acc[4] = {Zero(), Zero(), Zero(), Zero()};
  int i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int v = 0; v < 4; ++v) {
      acc[v] = Fma(Load(a + i + v * kLanes), Load(b + i + v * kLanes), acc[v]);
    }
  }
  for (int v = 0; i < n; i += kLanes, ++v) {
    const int left = Smaller(kLanes, n - i);
    acc[v] = Fma(LoadN(a + i, left), LoadN(b + i, left), acc[v]);
  }
  return ReduceAdd(Add(Add(acc[0], acc[1]), Add(acc[2], acc[3])));
}

}  // namespace metattn::cpu::METATTN_ISA
