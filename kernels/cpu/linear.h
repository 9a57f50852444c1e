// The two ways of a linear op inside one level, chosen in linear.cc.
//
// Rows: exact products of f32 activations with weights decoded in registers; each output value is
// summed in one order whatever the number of rows, so it serves deterministic mode too. Tiles
// (levels with bf16 products): weights are decoded to bf16 panels and multiplied by tiles with
// activations rounded to bf16, sums in f32; faster from kTileTokens rows on. Ownership, thread
// safety: as op_table.h. Errors: none. Cost: see README.md.
#pragma once

#include <cstdint>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/packed_matrix.h"

namespace metattn::cpu::METATTN_ISA {

// Raw form of LinearArgs.
struct LinearJob {
  const PackedMatrix& weight;
  const float* x;     // [tokens, cols]
  const float* bias;  // [rows] or null
  float* out;         // [tokens, rows]
  std::int64_t tokens;
};

// How far ahead weights are asked for: linear_rows.cc says why.
inline constexpr int kAheadBytes = 1792;

void LinearRows(const LinearJob& job, OpContext& context);

#if defined(__AVX512BF16__)
#if defined(__AMX_BF16__)
inline constexpr std::int64_t kTileTokens = 5;
#else
inline constexpr std::int64_t kTileTokens = 9;
#endif
void LinearTiles(const LinearJob& job, OpContext& context);
#endif

}  // namespace metattn::cpu::METATTN_ISA
