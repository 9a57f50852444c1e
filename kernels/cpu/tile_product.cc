#include "kernels/cpu/tile_product.h"

#if defined(__AVX512BF16__)

#include "kernels/cpu/tile_block.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

// One or two tiles of rows by one or two of columns.
template <int kRows, int kColumns>
METATTN_INLINE void Block(const TileOperands& x, int row, int column) {
  const TileStrides by = {x.a_stride * 2, kTileSide * x.a_stride * 2, x.b_stride * 4,
                          kTileSide * 4};
  const TileSums sums = {x.c + row * x.c_stride + column, x.c_stride, kTileSide,
                         kTileSide * x.c_stride};
  const std::uint16_t* a = x.a + row * x.a_stride;
  const std::uint32_t* b = x.b + column;
  const auto step = [&](std::int64_t k) -> TileStep {
    return {a + k * 2 * kTileSide, b + k * kTileSide * x.b_stride};
  };
  const std::int64_t steps = x.depth / (2 * kTileSide);
  constexpr int kAll = kRows * kTileSide;
  if (x.add) {
    MultiplyTiles<kRows, kColumns, true>(by, steps, step, kAll, sums);
  } else {
    MultiplyTiles<kRows, kColumns, false>(by, steps, step, kAll, sums);
  }
}

template <int kRows>
METATTN_INLINE void RowsBlock(const TileOperands& x, int row) {
  int column = 0;
  for (; column + 2 * kTileSide <= x.columns; column += 2 * kTileSide)
    Block<kRows, 2>(x, row, column);
  if (column < x.columns) Block<kRows, 1>(x, row, column);
}

}  // namespace

void TileProduct(const TileOperands& x) {
  int row = 0;
  for (; row + 2 * kTileSide <= x.rows; row += 2 * kTileSide) RowsBlock<2>(x, row);
  if (row < x.rows) RowsBlock<1>(x, row);
}

void NarrowRow(const float* x, int count, std::uint16_t* to) {
  for (int i = 0; i < count; i += 2 * kLanes) {
    _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(Load(x + i + kLanes), Load(x + i)));
  }
}

void NarrowPair(const float* low, const float* high, int count, std::uint32_t* to) {
  alignas(64) static constexpr std::uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kInterleave);
  for (int i = 0; i < count; i += kLanes) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(Load(high + i), Load(low + i));
    _mm512_storeu_si512(to + i, _mm512_permutexvar_epi16(order, both));
  }
}

}  // namespace metattn::cpu::METATTN_ISA

#endif  // __AVX512BF16__
