#include "kernels/cuda/cuda_matrix.h"

#include <cstring>
#include <utility>

#include "kernels/types.h"

namespace metattn::cuda {

absl::StatusOr<std::unique_ptr<CudaMatrix>> CudaMatrix::Create(std::span<const MatrixPart> parts,
                                                               std::int64_t cols,
                                                               CudaDevice& device, Stream& stream) {
  auto matrix = std::make_unique<CudaMatrix>();
  matrix->cols_ = cols;
  for (const MatrixPart& part : parts) {
    const std::int64_t row_bytes = BytesFor(part.dtype, cols);
    const auto bytes = static_cast<std::size_t>(row_bytes * part.rows);
    auto buffer = device.Allocate(bytes);
    if (!buffer.ok()) return buffer.status();
    std::vector<std::byte> packed(bytes);
    for (std::int64_t r = 0; bytes > 0 && r < part.rows; ++r) {
      std::memcpy(packed.data() + r * row_bytes, part.data + r * part.row_stride_bytes,
                  static_cast<std::size_t>(row_bytes));
    }
    device.CopyIn(packed.data(), {&*buffer, 0}, bytes, stream);
    const auto* data = reinterpret_cast<const unsigned char*>(buffer->data());
    matrix->parts_.push_back({std::move(*buffer),
                              matrix->rows_,
                              {data, part.rows, cols, row_bytes, static_cast<int>(part.dtype)}});
    matrix->rows_ += part.rows;
    matrix->bytes_ += row_bytes * part.rows;
  }
  if (absl::Status s = stream.Synchronize(); !s.ok()) return s;
  return matrix;
}

}  // namespace metattn::cuda
