#include "kernels/ref/matrix.h"

#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/check.h"
#include "kernels/types.h"

namespace metattn::ref {
namespace {

std::uint16_t Load16(const std::byte* p) {
  std::uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// One block of 32 values of q4_0 (offset -8 d) or q4_1 (offset m).
void DecodeNibbles(const std::byte* q, float d, float offset, float* out) {
  for (int j = 0; j < 16; ++j) {
    const int byte = std::to_integer<int>(q[j]);
    out[j] = d * static_cast<float>(byte & 15) + offset;
    out[j + 16] = d * static_cast<float>(byte >> 4) + offset;
  }
}

}  // namespace

void DecodeRow(DType dtype, const std::byte* row, std::int64_t count, float* out) {
  if (count == 0) return;  // a matrix of no columns has no data to point at
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, row, static_cast<std::size_t>(count) * sizeof(float));
      return;
    case DType::kF16:
      for (std::int64_t i = 0; i < count; ++i) out[i] = F16ToF32(Load16(row + 2 * i));
      return;
    case DType::kBF16:
      for (std::int64_t i = 0; i < count; ++i) out[i] = Bf16ToF32(Load16(row + 2 * i));
      return;
    case DType::kQ8_0:
      for (std::int64_t b = 0; b < count / 32; ++b, row += 34, out += 32) {
        const float d = F16ToF32(Load16(row));
        for (int j = 0; j < 32; ++j) {
          out[j] = d * static_cast<float>(static_cast<std::int8_t>(row[2 + j]));
        }
      }
      return;
    case DType::kQ4_0:
      for (std::int64_t b = 0; b < count / 32; ++b, row += 18, out += 32) {
        const float d = F16ToF32(Load16(row));
        DecodeNibbles(row + 2, d, -8.0f * d, out);
      }
      return;
    case DType::kQ4_1:
      for (std::int64_t b = 0; b < count / 32; ++b, row += 20, out += 32) {
        DecodeNibbles(row + 4, F16ToF32(Load16(row)), F16ToF32(Load16(row + 2)), out);
      }
      return;
    case DType::kI32:
      break;
  }
  METATTN_CHECK(false, "a weight of integers");
}

absl::StatusOr<std::unique_ptr<RefMatrix>> RefMatrix::Create(std::span<const MatrixPart> parts,
                                                             std::int64_t cols, Device& device) {
  auto matrix = std::make_unique<RefMatrix>();
  matrix->cols_ = cols;
  for (const MatrixPart& part : parts) {
    const std::int64_t row_bytes = BytesFor(part.dtype, cols);
    auto buffer = device.Allocate(static_cast<std::size_t>(row_bytes * part.rows));
    if (!buffer.ok()) return buffer.status();
    for (std::int64_t r = 0; r < part.rows; ++r) {
      std::memcpy(buffer->data() + r * row_bytes, part.data + r * part.row_stride_bytes,
                  static_cast<std::size_t>(row_bytes));
    }
    matrix->parts_.push_back({part.dtype, matrix->rows_, part.rows, std::move(*buffer)});
    matrix->rows_ += part.rows;
    matrix->bytes_ += row_bytes * part.rows;
  }
  return matrix;
}

void RefMatrix::Row(std::int64_t row, float* out) const {
  for (const Part& part : parts_) {
    const std::int64_t local = row - part.first_row;
    if (local < 0 || local >= part.rows) continue;
    DecodeRow(part.dtype, part.data.data() + local * BytesFor(part.dtype, cols_), cols_, out);
    return;
  }
  METATTN_CHECK(false, "row outside the matrix");
}

}  // namespace metattn::ref
