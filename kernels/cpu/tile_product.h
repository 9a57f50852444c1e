// C (+)= A B on AMX tiles: bf16 factors, f32 sums. Products on level amx only.
//
// Borrows everything; the thread has tiles configured (amx.h). No errors. Every element of C is one
// chain over the depth, whatever rows and columns stand beside it. Cost: one tile load per product
// with two tiles of rows and two of columns.
#pragma once

#include <cstdint>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

// Configured tiles while a thread works on an op; nothing on other levels.
class TileScope {
 public:
  METATTN_INLINE explicit TileScope([[maybe_unused]] bool amx) {
#if defined(__AMX_BF16__)
    amx_ = amx;
    if (amx_) ConfigureTiles();
#endif
  }
  METATTN_INLINE ~TileScope() {
#if defined(__AMX_BF16__)
    if (amx_) _tile_release();
#endif
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  [[maybe_unused]] bool amx_ = false;
};

#if defined(__AMX_BF16__)

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

#endif  // __AMX_BF16__

}  // namespace metattn::cpu::METATTN_ISA
