// A weight of the reference backend: rows as they lie in the file, decoded one at a time.
//
// Owns a copy of the rows. Immutable after Create, so thread safe. RESOURCE_EXHAUSTED when memory
// ends.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/kernels.h"
#include "kernels/types.h"

namespace metattn::ref {

// Decodes `count` values (a multiple of the type's block).
void DecodeRow(DType dtype, const std::byte* row, std::int64_t count, float* out);

class RefMatrix final : public Matrix {
 public:
  static absl::StatusOr<std::unique_ptr<RefMatrix>> Create(std::span<const MatrixPart> parts,
                                                           std::int64_t cols, Device& device);

  std::int64_t rows() const override { return rows_; }
  std::int64_t cols() const override { return cols_; }
  std::int64_t bytes() const override { return bytes_; }

  // Row `row` as f32; out has cols() places.
  void Row(std::int64_t row, float* out) const;

 private:
  struct Part {
    DType dtype;
    std::int64_t first_row;
    std::int64_t rows;
    Buffer data;
  };
  std::vector<Part> parts_;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::int64_t bytes_ = 0;
};

}  // namespace metattn::ref
