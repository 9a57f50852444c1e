// The packed form of weights, common to packing (pack.cc) and to the kernels (block_format.h).
//
// A panel holds R output rows side by side (R = the level's lanes). Its columns come in groups of
// 32; each group is, for R rows:
//   f32, f16, bf16:  value[columns][R]                       (the last group may be short)
//   q8_0:  f16 d[R];           i8 q[32][R]                   value = d q
//   q4_0:  f16 d[R];           u32 word[4][R]                value = d (nibble - 8)
//   q4_1:  f16 d[R], f16 m[R]; u32 word[4][R]                value = d nibble + m
// where nibble i of word w belongs to column 8 w + i. One group of q4_1 with R = 16 is 320 bytes:
// five cache lines that a multiplication reads in order. Bytes are those of the file plus padding
// to whole panels.
// Ownership: borrows everything. Thread safe. Errors: none (dtype and columns were checked).
// Cost: PackPanel reads and writes each byte once, plainly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/types.h"

namespace metattn::cpu {

inline constexpr int kGroup = 32;  // columns of one group
inline constexpr int kMaxPanelRows = 16;

// Bytes of one panel of `panel_rows` rows and `cols` columns.
std::int64_t PanelBytes(DType dtype, std::int64_t cols, int panel_rows);

// Writes one panel. rows[r] points to a row as it lies in the file; rows past `count` are zero.
struct PanelSource {
  DType dtype = DType::kF32;
  std::int64_t cols = 0;
  const std::byte* rows[kMaxPanelRows] = {};
  int count = 0;
  int panel_rows = 0;
};
void PackPanel(const PanelSource& source, std::byte* to);

// W [d, d] bf16 of a query's feature map, a row per output, to [d / 2][d outputs][2 inputs]: a
// query is multiplied with the outputs side by side, and products on tiles take it as it lies. d is
// even.
void PackQueryMap(std::span<std::uint16_t> w, int head_dim);

}  // namespace metattn::cpu
