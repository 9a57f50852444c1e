// Which products the cuda backend gives to cuBLASLt, and what it keeps of them, in the emulation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/emu/control.h"
#include "tests/kernels/support.h"

namespace metattn::testing {
namespace {

using ::testing::HasSubstr;

class CudaGemmTest : public ::testing::Test {
 protected:
  static constexpr std::int64_t kRows = 24, kCols = 64;

  // Enqueues y = x W^T of `tokens` rows; what a fresh rig has not done before.
  static View Product(Rig& rig, const Matrix& matrix, std::int64_t tokens) {
    const auto x = Randoms(static_cast<std::size_t>(tokens * matrix.cols()), 2);
    const View out = rig.Floats(tokens * matrix.rows());
    rig.kernels().Linear(
        {.weight = &matrix, .x = rig.InActivations(x), .out = out, .tokens = tokens}, rig.stream());
    return out;
  }
  static std::unique_ptr<Matrix> Weight(Rig& rig, DType dtype, std::int64_t cols = kCols) {
    const auto weight = RandomRows(dtype, kRows, cols, 1);
    const MatrixPart part{dtype, weight.data(), kRows, BytesFor(dtype, cols)};
    auto matrix = rig.kernels().Pack({&part, 1}, cols);
    EXPECT_TRUE(matrix.ok()) << matrix.status();
    return *std::move(matrix);
  }
  static std::int64_t Products() { return emu::Calls("cublasLtMatmul"); }
  static std::int64_t Questions() { return emu::Calls("cublasLtMatmulAlgoGetHeuristic"); }
};

TEST_F(CudaGemmTest, TakesManyRowsOfWeightsInBf16) {
  emu::Reset();
  Rig rig({"cuda", "", 1, false});
  const auto bf16 = Weight(rig, DType::kBF16), f16 = Weight(rig, DType::kF16);
  Product(rig, *bf16, 15);
  Product(rig, *f16, 40);
  EXPECT_EQ(Products(), 0);
  Product(rig, *bf16, 16);
  EXPECT_EQ(Products(), 1);
  rig.Finish();
}

TEST_F(CudaGemmTest, AsksOnceForAShape) {
  emu::Reset();
  Rig rig({"cuda", "", 1, false});
  const auto first = Weight(rig, DType::kBF16), second = Weight(rig, DType::kBF16);
  for (const std::int64_t tokens : {40, 17, 40, 17}) {
    Product(rig, *first, tokens);
    Product(rig, *second, tokens);
  }
  EXPECT_EQ(Products(), 8);
  EXPECT_EQ(Questions(), 2);
  rig.Finish();
}

TEST_F(CudaGemmTest, AShapeWithoutAnAlgorithmGoesToOurKernel) {
  emu::Reset();
  Rig rig({"cuda", "", 1, false});
  const auto matrix = Weight(rig, DType::kBF16, 45);
  for (int i = 0; i < 2; ++i) {
    const View y = Product(rig, *matrix, 20);
    for (const float value : rig.Out<float>(y, 20 * kRows)) EXPECT_FALSE(std::isnan(value));
  }
  EXPECT_EQ(Products(), 0);
  EXPECT_EQ(Questions(), 1);
}

TEST_F(CudaGemmTest, DeterministicRowsNeverMeetIt) {
  emu::Reset();
  Rig rig({"cuda", "", 1, true});
  const auto matrix = Weight(rig, DType::kBF16);
  Product(rig, *matrix, 40);
  rig.Finish();
  EXPECT_EQ(emu::Calls("cublasLtCreate"), 0);
}

TEST_F(CudaGemmTest, RoundsResultsThatHaveNoBias) {
  emu::Reset();
  Rig rig({"cuda", "", 1, false});
  const auto matrix = Weight(rig, DType::kBF16);
  LinearArgs args = {.weight = matrix.get(),
                     .x = rig.InActivations(Randoms(20 * kCols, 2)),
                     .out = rig.Activations(20 * kRows),
                     .tokens = 20,
                     .rounded = true};
  rig.kernels().Linear(args, rig.stream());
  EXPECT_EQ(Products(), 1);
  args.bias = rig.In(Randoms(kRows, 3));
  rig.kernels().Linear(args, rig.stream());
  EXPECT_EQ(Products(), 1) << "cuBLASLt would want a bias in bf16";
  rig.Finish();
}

TEST_F(CudaGemmTest, RecordsHaveItInThem) {
  emu::Reset();
  Rig rig({"cuda", "", 1, false});
  const auto matrix = Weight(rig, DType::kBF16);
  const std::int64_t tokens = 18;
  const View x = rig.InActivations(Randoms(static_cast<std::size_t>(tokens * kCols), 2));
  const View y = rig.Floats(tokens * kRows);
  const auto step = [&] {
    rig.kernels().Linear({.weight = matrix.get(), .x = x, .out = y, .tokens = tokens},
                         rig.stream());
  };
  step();
  const auto expected = rig.Out<float>(y, tokens * kRows);
  for (int i = 0; i < 4; ++i) {
    const std::vector<float> none(static_cast<std::size_t>(tokens * kRows));
    rig.kernels().device().CopyIn(none.data(), y, none.size() * 4, rig.stream());
    rig.stream().Repeat("step", step);
    ExpectSame(rig.Out<float>(y, tokens * kRows), expected, "run " + std::to_string(i));
  }
  EXPECT_EQ(Products(), 3) << "directly, at the first Repeat, recorded";
}

TEST_F(CudaGemmTest, FailuresAreTheStreams) {
  for (const char* call :
       {"cublasLtMatmul", "cublasLtMatmulAlgoGetHeuristic", "cublasLtMatmulDescCreate",
        "cublasLtMatrixLayoutCreate", "cublasLtMatmulPreferenceCreate"}) {
    SCOPED_TRACE(call);
    emu::Reset();
    Rig rig({"cuda", "", 1, false});
    const auto matrix = Weight(rig, DType::kBF16);
    emu::FailCall(call, cudaErrorMemoryAllocation);
    Product(rig, *matrix, 20);
    const absl::Status status = rig.stream().Synchronize();
    EXPECT_THAT(std::string(status.message()), HasSubstr("CUBLAS_STATUS_ALLOC_FAILED"));
    Product(rig, *matrix, 20);
    EXPECT_TRUE(rig.stream().Synchronize().ok());
  }
  emu::Reset();
  Rig rig({"cuda", "", 1, false});
  emu::FailCall("cublasLtCreate", cudaErrorMemoryAllocation);
  const auto weight = RandomRows(DType::kBF16, kRows, kCols, 1);
  const MatrixPart part{DType::kBF16, weight.data(), kRows, BytesFor(DType::kBF16, kCols)};
  EXPECT_THAT(std::string(rig.kernels().Pack({&part, 1}, kCols).status().message()),
              HasSubstr("starting cuBLASLt"));
}

TEST_F(CudaGemmTest, LeavesNothingBehind) {
  emu::Reset();
  {
    Rig rig({"cuda", "", 1, false});
    const auto matrix = Weight(rig, DType::kBF16);
    Product(rig, *matrix, 20);
    rig.Finish();
  }
  EXPECT_EQ(emu::Leaks(), "");
}

}  // namespace
}  // namespace metattn::testing
