#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace metattn::cuda {
namespace {

absl::Status FromCublas(cublasStatus_t status, const char* what) {
  return absl::InternalError(absl::StrCat(what, ": ", cublasLtGetStatusName(status), " (",
                                          cublasLtGetStatusString(status), ")"));
}

// The largest power of two up to 256 that divides an address: what cuBLASLt may rely on.
std::uint32_t Alignment(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p) | 256;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

// Calls until one fails.
class Calls {
 public:
  template <typename Function, typename... Arguments>
  void operator()(Function function, Arguments... arguments) {
    if (first_ == CUBLAS_STATUS_SUCCESS) first_ = function(arguments...);
  }
  cublasStatus_t status() const { return first_; }

 private:
  cublasStatus_t first_ = CUBLAS_STATUS_SUCCESS;
};

// Makes an object with one of cuBLASLt's functions, which hand out raw pointers.
template <typename T, typename D, typename Function, typename... Arguments>
void Make(Calls& calls, std::unique_ptr<T, D>& object, Function create, Arguments... arguments) {
  T* made = nullptr;
  calls(create, &made, arguments...);
  object.reset(made);
}

template <typename Object, typename Attribute, typename Function, typename Value>
void Set(Calls& calls, Function set, Object object, Attribute attribute, const Value& value) {
  calls(set, object, attribute, static_cast<const void*>(&value), sizeof value);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Gemm>> Gemm::Create(CudaDevice& device) {
  auto workspace = device.Allocate(kWorkspaceBytes);  // selects the device too
  if (!workspace.ok()) return workspace.status();
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = cublasLtCreate(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) return FromCublas(status, "starting cuBLASLt");
  return std::unique_ptr<Gemm>(new Gemm(handle, *std::move(workspace)));
}

Gemm::~Gemm() { (void)cublasLtDestroy(handle_); }

// cuBLASLt's matrices are column major: W [rows, cols] is its A = W^T, x its B, y its D.
cublasStatus_t Gemm::Describe(const Shape& shape, const float* bias, Plan* plan) const {
  Calls calls;
  Make(calls, plan->product, cublasLtMatmulDescCreate, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    Set(calls, cublasLtMatmulDescSetAttribute, plan->product.get(), attribute, value);
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (bias != nullptr) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);  // the heuristic looks at its alignment
  }
  const auto layout = [&](Layout& made, cudaDataType_t type, std::int64_t rows, std::int64_t cols,
                          std::int64_t stride) {
    Make(calls, made, cublasLtMatrixLayoutCreate, type, static_cast<std::uint64_t>(rows),
         static_cast<std::uint64_t>(cols), stride);
  };
  layout(plan->w, CUDA_R_16BF, shape.cols, shape.rows, shape.cols);
  layout(plan->x, CUDA_R_16BF, shape.cols, shape.tokens, shape.cols);
  layout(plan->y, shape.rounded ? CUDA_R_16BF : CUDA_R_32F, shape.rows, shape.tokens, shape.stride);
  return calls.status();
}

cublasStatus_t Gemm::Choose(const Shape& shape, Plan* plan) const {
  Calls calls;
  Owned<cublasLtMatmulPreferenceOpaque_t> preference;
  Make(calls, preference, cublasLtMatmulPreferenceCreate);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    Set(calls, cublasLtMatmulPreferenceSetAttribute, preference.get(), attribute, value);
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_.bytes());
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.x_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.out_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.out_alignment);
  if (calls.status() != CUBLAS_STATUS_SUCCESS) return calls.status();
  cublasLtMatmulHeuristicResult_t best = {};
  int found = 0;
  const cublasStatus_t asked = cublasLtMatmulAlgoGetHeuristic(
      handle_, plan->product.get(), plan->w.get(), plan->x.get(), plan->y.get(), plan->y.get(),
      preference.get(), 1, &best, &found);
  if (asked == CUBLAS_STATUS_NOT_SUPPORTED) return CUBLAS_STATUS_SUCCESS;
  plan->possible = found > 0 && best.state == CUBLAS_STATUS_SUCCESS;
  plan->algorithm = best.algo;
  return asked;
}

bool Gemm::Multiply(const LinearParams& p, CudaStream& stream) {
  const bool rounded = p.rounded_out != nullptr;
  void* const out = rounded ? static_cast<void*>(p.rounded_out + p.first_row) : p.out + p.first_row;
  const float* const bias = p.bias == nullptr ? nullptr : p.bias + p.first_row;
  if (rounded && bias != nullptr) return false;  // cuBLASLt wants both in one type
  const Shape shape = {p.part.rows,
                       p.part.cols,
                       p.tokens,
                       p.rows,
                       Alignment(p.x),
                       Alignment(out),
                       bias == nullptr ? 0 : Alignment(bias),
                       rounded};
  const cudaStream_t on = stream.get();
  auto found = plans_.find(shape);
  if (found == plans_.end()) {
    Plan plan;
    cublasStatus_t status = Describe(shape, bias, &plan);
    if (status == CUBLAS_STATUS_SUCCESS) status = Choose(shape, &plan);
    if (status != CUBLAS_STATUS_SUCCESS) {
      stream.Fail(FromCublas(status, "planning a matrix product"));
      return true;
    }
    if (plans_.size() == kMostShapes) plans_.clear();
    found = plans_.emplace(shape, std::move(plan)).first;
  }
  const Plan& plan = found->second;
  if (!plan.possible) return false;
  const float one = 1, zero = 0;
  Calls calls;
  if (bias != nullptr) {
    Set(calls, cublasLtMatmulDescSetAttribute, plan.product.get(),
        CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  calls(cublasLtMatmul, handle_, plan.product.get(), &one, p.part.data, plan.w.get(), p.x,
        plan.x.get(), &zero, out, plan.y.get(), out, plan.y.get(), &plan.algorithm,
        reinterpret_cast<void*>(workspace_.data()), workspace_.bytes(), on);
  if (calls.status() != CUBLAS_STATUS_SUCCESS) {
    stream.Fail(FromCublas(calls.status(), "a matrix product"));
  }
  return true;
}

}  // namespace metattn::cuda
