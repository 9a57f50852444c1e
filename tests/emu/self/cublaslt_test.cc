// The emulated cuBLASLt: its products, in streams and graphs; what it refuses and what it reports.

#include <cublasLt.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/emu/self/support.h"

namespace emu::self {
namespace {

constexpr std::size_t kWorkspace = 4 << 20;

std::uint16_t Bf16(float value) {  // of values that need no rounding
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>(bits >> 16);
}

// Small integers, so that products and sums are exact whatever their order.
std::vector<std::uint16_t> Factors(std::size_t count, unsigned step) {
  std::vector<std::uint16_t> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = Bf16(static_cast<float>(static_cast<int>(i * step % 7) - 3));
  }
  return values;
}

float Value(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

#define EXPECT_BLAS(call) EXPECT_EQ(call, CUBLAS_STATUS_SUCCESS)

// D [m, n] = A^T B with A [k, m] and B [k, n], all column major, D's columns `stride` apart.
class EmuCublasLt : public EmuTest {
 protected:
  static constexpr int kM = 5, kN = 3, kK = 16, kStride = 7;

  void SetUp() override {
    EXPECT_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    EXPECT_BLAS(cublasLtCreate(&handle_));
    EXPECT_BLAS(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    EXPECT_BLAS(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                               sizeof transposed));
    EXPECT_BLAS(cublasLtMatrixLayoutCreate(&a_layout_, CUDA_R_16BF, kK, kM, kK));
    EXPECT_BLAS(cublasLtMatrixLayoutCreate(&b_layout_, CUDA_R_16BF, kK, kN, kK));
    EXPECT_BLAS(cublasLtMatrixLayoutCreate(&d_layout_, CUDA_R_32F, kM, kN, kStride));
    EXPECT_BLAS(cublasLtMatmulPreferenceCreate(&preference_));
    Prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  }
  void TearDown() override {
    EXPECT_BLAS(cublasLtMatmulPreferenceDestroy(preference_));
    for (const auto layout : {a_layout_, b_layout_, d_layout_}) {
      EXPECT_BLAS(cublasLtMatrixLayoutDestroy(layout));
    }
    EXPECT_BLAS(cublasLtMatmulDescDestroy(product_));
    EXPECT_BLAS(cublasLtDestroy(handle_));
    EXPECT_CUDA(cudaStreamDestroy(stream_));
  }

  template <typename T>
  void Prefer(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    EXPECT_BLAS(cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof value));
  }
  void UseBias(const float* bias) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    EXPECT_BLAS(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                               sizeof epilogue));
    EXPECT_BLAS(cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                               sizeof bias));
  }
  cublasStatus_t Choose() {
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_, product_, a_layout_, b_layout_, d_layout_,
                                       d_layout_, preference_, 1, &best_, &found);
    EXPECT_EQ(found, status == CUBLAS_STATUS_SUCCESS ? 1 : 0);
    return status;
  }
  cublasStatus_t Multiply(float* d, std::size_t workspace = kWorkspace) {
    return cublasLtMatmul(handle_, product_, &alpha_, a_.get(), a_layout_, b_.get(), b_layout_,
                          &beta_, d, d_layout_, d, d_layout_, &best_.algo, workspace_.get(),
                          workspace, stream_);
  }
  float Expected(int m, int n) const {
    float sum = 0;
    for (int k = 0; k < kK; ++k) sum += Value(a_host_[m * kK + k]) * Value(b_host_[n * kK + k]);
    return sum;
  }

  const std::vector<std::uint16_t> a_host_ = Factors(kK * kM, 3), b_host_ = Factors(kK * kN, 5);
  const DeviceArray<std::uint16_t> a_{a_host_}, b_{b_host_};
  const DeviceArray<float> d_{std::vector<float>(kStride * kN, -1.0F)};
  const DeviceArray<char> workspace_{kWorkspace};
  float alpha_ = 1, beta_ = 0;
  cudaStream_t stream_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t a_layout_ = nullptr, b_layout_ = nullptr, d_layout_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  cublasLtMatmulHeuristicResult_t best_ = {};
};
using EmuCublasLtDeathTest = EmuCublasLt;

TEST_F(EmuCublasLt, AProductIsWorkOfItsStream) {
  EXPECT_BLAS(Choose());
  EXPECT_BLAS(Multiply(d_.get()));
  EXPECT_EQ(d_.Read()[0], -1) << "nobody has waited for the stream";
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
  const std::vector<float> d = d_.Read();
  for (int n = 0; n < kN; ++n) {
    for (int m = 0; m < kM; ++m) EXPECT_EQ(d[n * kStride + m], Expected(m, n));
    EXPECT_EQ(d[n * kStride + kM], -1) << "between the columns";
  }
}

TEST_F(EmuCublasLt, FactorsAndBiasAreAdded) {
  const DeviceArray<float> bias(std::vector<float>{10, 20, 30, 40, 50});
  UseBias(bias.get());
  alpha_ = 2, beta_ = 3;
  EXPECT_BLAS(Choose());
  EXPECT_BLAS(Multiply(d_.get()));
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
  EXPECT_EQ(d_.Read()[kStride + 1], 2 * Expected(1, 1) - 3 + 20);
}

TEST_F(EmuCublasLt, ResultsMayBeBf16WithoutABias) {
  EXPECT_BLAS(cublasLtMatrixLayoutDestroy(d_layout_));
  EXPECT_BLAS(cublasLtMatrixLayoutCreate(&d_layout_, CUDA_R_16BF, kM, kN, kStride));
  EXPECT_BLAS(Choose());
  EXPECT_BLAS(Multiply(d_.get()));
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
  const std::vector<float> words = d_.Read();
  std::vector<std::uint16_t> d(2 * words.size());
  std::memcpy(d.data(), words.data(), d.size() * 2);
  EXPECT_EQ(Value(d[2 * kStride + 3]), Expected(3, 2));
  UseBias(d_.get());
  EXPECT_EQ(Choose(), CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST_F(EmuCublasLt, AGraphRepeatsIt) {
  EXPECT_BLAS(Choose());
  beta_ = 1;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  EXPECT_BLAS(Multiply(d_.get()));
  ASSERT_CUDA(cudaStreamEndCapture(stream_, &graph));
  ASSERT_CUDA(cudaGraphInstantiateWithFlags(&executable, graph, 0));
  for (int i = 0; i < 2; ++i) EXPECT_CUDA(cudaGraphLaunch(executable, stream_));
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
  EXPECT_EQ(d_.Read()[2], 2 * Expected(2, 0) - 1);
  EXPECT_CUDA(cudaGraphExecDestroy(executable));
  EXPECT_CUDA(cudaGraphDestroy(graph));
}

TEST_F(EmuCublasLt, ThereAreShapesWithoutAnAlgorithm) {
  Prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::size_t{1000});
  EXPECT_EQ(Choose(), CUBLAS_STATUS_NOT_SUPPORTED) << "too little workspace";
  Prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  EXPECT_BLAS(cublasLtMatrixLayoutDestroy(b_layout_));
  EXPECT_BLAS(cublasLtMatrixLayoutCreate(&b_layout_, CUDA_R_16BF, kK, kN, kK + 1));
  EXPECT_EQ(Choose(), CUBLAS_STATUS_NOT_SUPPORTED) << "rows that are not multiples of 16 bytes";
  EXPECT_BLAS(cublasLtMatrixLayoutDestroy(b_layout_));
  EXPECT_BLAS(cublasLtMatrixLayoutCreate(&b_layout_, CUDA_R_16BF, kK + 8, kN, kK + 8));
  EXPECT_EQ(Choose(), CUBLAS_STATUS_INVALID_VALUE) << "A and B of different depths";
}

TEST_F(EmuCublasLt, RefusesTooLittleWorkspaceAndWhatWasDestroyed) {
  EXPECT_BLAS(Choose());
  EXPECT_EQ(Multiply(d_.get(), 1000), CUBLAS_STATUS_INVALID_VALUE);
  FailCall("cublasLtMatmul", cudaErrorMemoryAllocation);
  EXPECT_EQ(Multiply(d_.get()), CUBLAS_STATUS_ALLOC_FAILED);
  const cublasLtMatrixLayout_t gone = b_layout_;
  EXPECT_BLAS(cublasLtMatrixLayoutDestroy(b_layout_));
  EXPECT_EQ(Multiply(d_.get()), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublasLtMatrixLayoutDestroy(gone), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_NE(Leaks(), "");
  EXPECT_BLAS(cublasLtMatrixLayoutCreate(&b_layout_, CUDA_R_16BF, kK, kN, kK));
}

TEST_F(EmuCublasLtDeathTest, ReportsWhatCublasLtWouldNotSee) {
  EXPECT_BLAS(Choose());
  std::vector<float> host(kStride * kN);
  EXPECT_DEATH(static_cast<void>(Multiply(host.data())), "C: .* not in one allocation");
  EXPECT_DEATH(static_cast<void>(Multiply(d_.get() + 4)), "C: .* not in one allocation");
  const DeviceArray<float> larger(kStride * kN + 4);
  EXPECT_DEATH(static_cast<void>(Multiply(larger.get() + 4)), "C is less aligned than");
  EXPECT_BLAS(cublasLtMatrixLayoutDestroy(d_layout_));
  EXPECT_BLAS(cublasLtMatrixLayoutCreate(&d_layout_, CUDA_R_32F, kM, kN, kM));
  EXPECT_DEATH(static_cast<void>(Multiply(d_.get())), "chosen for another product");
}

TEST_F(EmuCublasLt, PromisesOfLessAlignmentAreKept) {
  Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::uint32_t{4});
  Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::uint32_t{4});
  EXPECT_BLAS(Choose());
  const DeviceArray<float> larger(kStride * kN + 1);
  EXPECT_BLAS(Multiply(larger.get() + 1));
  EXPECT_CUDA(cudaStreamSynchronize(stream_));
  EXPECT_EQ(larger.Read()[1], Expected(0, 0));
}

}  // namespace
}  // namespace emu::self
