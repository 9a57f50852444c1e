// A weight on the device, its rows as they lie in the file, one buffer for neighbouring parts of
// one type: an op is a launch or two for each.
//
// Immutable after Create, so thread safe. RESOURCE_EXHAUSTED when device memory ends.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/params.h"
#include "kernels/kernels.h"

namespace metattn::cuda {

class CudaMatrix final : public Matrix {
 public:
  static absl::StatusOr<std::unique_ptr<CudaMatrix>> Create(std::span<const MatrixPart> parts,
                                                            std::int64_t cols, CudaDevice& device,
                                                            Stream& stream);

  std::int64_t rows() const override { return rows_; }
  std::int64_t cols() const override { return cols_; }
  std::int64_t bytes() const override { return bytes_; }

  struct Part {
    Buffer data;
    std::int64_t first_row;
    WeightPart weight;
  };
  const std::vector<Part>& parts() const { return parts_; }

 private:
  std::vector<Part> parts_;
  std::int64_t rows_ = 0, cols_ = 0, bytes_ = 0;
};

}  // namespace metattn::cuda
