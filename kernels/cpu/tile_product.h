// C (+)= A B by tiles: bf16 factors, f32 sums. On levels with bf16 products only.
//
// Borrows everything; the thread is in a TileScope. No errors. Every element of C is one chain over
// the depth, whatever rows and columns stand beside it. Cost: tile_block.h.
#pragma once

#include <cstdint>

#include "kernels/cpu/tile_block.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

#if defined(__AVX512BF16__)

struct TileOperands {
  const std::uint16_t* a;  // [rows, depth] bf16
  std::int64_t a_stride;   // values from row to row
  const std::uint32_t* b;  // [depth / 2, columns] pairs of bf16: rows 2i (low half) and 2i + 1
  std::int64_t b_stride;   // words from pair to pair
  float* c;                // [rows, columns]
  std::int64_t c_stride;
  int rows, columns, depth;  // multiples of 16, 16, 32
  bool add;                  // to what C holds
};

void TileProduct(const TileOperands& x);

// x rounded to bf16; count is a multiple of 32.
void NarrowRow(const float* x, int count, std::uint16_t* to);
// Two rows as pairs of bf16, as B wants them; count is a multiple of 16.
void NarrowPair(const float* low, const float* high, int count, std::uint32_t* to);

#endif  // __AVX512BF16__

}  // namespace metattn::cpu::METATTN_ISA
