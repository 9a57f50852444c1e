#include "kernels/cpu/tile_product.h"

#if defined(__AMX_BF16__)

#include "kernels/cpu/amx.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

// One or two tiles of rows by one or two of columns.
template <int kRows, int kColumns>
METATTN_INLINE void Block(const TileOperands& x, int row, int column) {
  const std::int64_t a_stride = x.a_stride * 2, b_stride = x.b_stride * 4,
                     c_stride = x.c_stride * 4;
  float* c = x.c + row * x.c_stride + column;
  float* below = c + kTileSide * x.c_stride;
  if (x.add) {
    _tile_loadd(0, c, c_stride);
    if constexpr (kColumns == 2) _tile_loadd(1, c + kTileSide, c_stride);
    if constexpr (kRows == 2) _tile_loadd(2, below, c_stride);
    if constexpr (kRows == 2 && kColumns == 2) _tile_loadd(3, below + kTileSide, c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const std::uint16_t* a = x.a + row * x.a_stride;
  const std::uint32_t* b = x.b + column;
  for (int k = 0; k < x.depth;
       k += 2 * kTileSide, a += 2 * kTileSide, b += kTileSide * x.b_stride) {
    _tile_loadd(4, a, a_stride);
    _tile_loadd(6, b, b_stride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns == 2) {
      _tile_loadd(7, b + kTileSide, b_stride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, a + kTileSide * x.a_stride, a_stride);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kColumns == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_stride);
  if constexpr (kColumns == 2) _tile_stored(1, c + kTileSide, c_stride);
  if constexpr (kRows == 2) _tile_stored(2, below, c_stride);
  if constexpr (kRows == 2 && kColumns == 2) _tile_stored(3, below + kTileSide, c_stride);
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
  StoresBeforeTileLoads();
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

#endif  // __AMX_BF16__
