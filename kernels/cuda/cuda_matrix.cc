#include "kernels/cuda/cuda_matrix.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "kernels/types.h"

namespace metattn::cuda {
namespace {

// The rows of the parts, one after another, without what lies between them in the file.
std::vector<std::byte> Pack(std::span<const MatrixPart> parts, std::size_t row_bytes) {
  std::vector<std::byte> packed;
  std::int64_t rows = 0;
  for (const MatrixPart& part : parts) rows += part.rows;
  packed.reserve(static_cast<std::size_t>(rows) * row_bytes);
  for (const MatrixPart& part : parts) {
    for (std::int64_t r = 0; row_bytes > 0 && r < part.rows; ++r) {
      const std::byte* row = part.data + r * part.row_stride_bytes;
      packed.insert(packed.end(), row, row + row_bytes);
    }
  }
  return packed;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaMatrix>> CudaMatrix::Create(std::span<const MatrixPart> parts,
                                                               std::int64_t cols,
                                                               CudaDevice& device, Stream& stream) {
  auto matrix = std::make_unique<CudaMatrix>();
  matrix->cols_ = cols;
  while (!parts.empty()) {
    const DType dtype = parts.front().dtype;
    const auto end = std::ranges::find_if(parts, [&](const auto& p) { return p.dtype != dtype; });
    const auto same = parts.first(static_cast<std::size_t>(end - parts.begin()));
    parts = parts.subspan(same.size());
    const std::int64_t row_bytes = BytesFor(dtype, cols);
    const std::vector<std::byte> packed = Pack(same, static_cast<std::size_t>(row_bytes));
    auto buffer = device.Allocate(packed.size());
    if (!buffer.ok()) return buffer.status();
    device.CopyIn(packed.data(), {&*buffer, 0}, packed.size(), stream);
    std::int64_t rows = 0;
    for (const MatrixPart& part : same) rows += part.rows;
    const auto* data = reinterpret_cast<const unsigned char*>(buffer->data());
    matrix->parts_.push_back({std::move(*buffer),
                              matrix->rows_,
                              {data, rows, cols, row_bytes, static_cast<int>(dtype)}});
    matrix->rows_ += rows;
    matrix->bytes_ += row_bytes * rows;
  }
  if (absl::Status s = stream.Synchronize(); !s.ok()) return s;
  return matrix;
}

}  // namespace metattn::cuda
