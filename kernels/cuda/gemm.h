// y = x W^T + bias through cuBLASLt: weights and x in bf16, sums, bias and y in f32; or y in bf16,
// without a bias.
//
// Owns a handle and the workspace of its products, so one stream at a time. What cuBLASLt's
// heuristic chose is kept for each shape, the last kMostShapes of them at least in part. A row's
// bits depend on the number of rows, because the choice does. Thread safety: as Kernels. Errors of
// a product are noted in its stream. Cost: a product is one launch or two, and nothing waits; the
// first of a shape asks the heuristic, on the host, also inside a record.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/params.h"

namespace metattn::cuda {

class Gemm {
 public:
  // What NVIDIA recommends for sm_90; earlier cards need less.
  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
  static constexpr std::size_t kMostShapes = 1024;

  // RESOURCE_EXHAUSTED without memory for the workspace, INTERNAL when cuBLASLt does not start.
  static absl::StatusOr<std::unique_ptr<Gemm>> Create(CudaDevice& device);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // Of a part in bf16 that begins at a multiple of 256 bytes. False where cuBLASLt has no algorithm
  // for the shape: nothing was enqueued then.
  bool Multiply(const LinearParams& p, CudaStream& stream);

 private:
  struct Shape {
    std::int64_t rows, cols, tokens, stride;                   // stride: between rows of y
    std::uint32_t x_alignment, out_alignment, bias_alignment;  // bytes; 0: no bias
    bool rounded;                                              // y in bf16
    auto operator<=>(const Shape&) const = default;
  };
  struct Destroy {
    void operator()(cublasLtMatmulDescOpaque_t* p) const { (void)cublasLtMatmulDescDestroy(p); }
    void operator()(cublasLtMatrixLayoutOpaque_t* p) const { (void)cublasLtMatrixLayoutDestroy(p); }
    void operator()(cublasLtMatmulPreferenceOpaque_t* p) const {
      (void)cublasLtMatmulPreferenceDestroy(p);
    }
  };
  template <typename T>
  using Owned = std::unique_ptr<T, Destroy>;
  using Layout = Owned<cublasLtMatrixLayoutOpaque_t>;
  struct Plan {
    Owned<cublasLtMatmulDescOpaque_t> product;
    Layout w, x, y;
    cublasLtMatmulAlgo_t algorithm = {};
    bool possible = false;
  };

  Gemm(cublasLtHandle_t handle, Buffer workspace)
      : handle_(handle), workspace_(std::move(workspace)) {}
  cublasStatus_t Describe(const Shape& shape, const float* bias, Plan* plan) const;
  cublasStatus_t Choose(const Shape& shape, Plan* plan) const;

  cublasLtHandle_t handle_;
  Buffer workspace_;
  std::map<Shape, Plan> plans_;
};

}  // namespace metattn::cuda
