// A weight matrix as the cpu backend keeps it: panels of interleaved output rows.
//
// Consecutive parts of one dtype form a Segment. A segment's rows are cut into panels of
// `panel_rows` rows (the lanes of the level that packed it; the last is padded with zero rows);
// panel p starts at data + p * panel_bytes. Inside a panel the values run along the columns in
// groups of up to 32, all rows side by side (block_format.h), so that one multiplication reads the
// matrix once, front to back.
// Ownership: shares the slab its memory lies in. Thread safe to read. Errors: none here (Pack in
// cpu_kernels.cc reports). Cost: accessors only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/cpu/weight_arena.h"
#include "kernels/kernels.h"
#include "kernels/types.h"

namespace metattn::cpu {

struct Segment {
  DType dtype = DType::kF32;
  std::int64_t first_row = 0;  // of the matrix
  std::int64_t rows = 0;
  std::int64_t first_panel = 0;  // of the matrix
  std::int64_t panels = 0;
  std::int64_t panel_bytes = 0;
  const std::byte* data = nullptr;
};

class PackedMatrix final : public Matrix {
 public:
  PackedMatrix(std::vector<Segment> segments, std::int64_t cols, int panel_rows,
               WeightArena::Piece memory);

  std::int64_t rows() const override { return rows_; }
  std::int64_t cols() const override { return cols_; }
  std::int64_t bytes() const override { return bytes_; }

  std::int64_t panels() const { return panels_; }
  int panel_rows() const { return panel_rows_; }
  const std::vector<Segment>& segments() const { return segments_; }

 private:
  std::vector<Segment> segments_;
  std::int64_t rows_ = 0, cols_ = 0, panels_ = 0, bytes_ = 0;
  int panel_rows_ = 0;
  WeightArena::Piece memory_;
};

}  // namespace metattn::cpu
