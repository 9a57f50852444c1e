// y = x W^T + bias for one part of a weight, W decoded to f32 from its file's format: steps of few
// rows, and all steps where rows must not depend on the batch. From kTensorRows rows on
// linear_mma.cu and cuBLASLt take over.
//
// One warp one output of two tokens, or two of eight; a lane half a block of 32 weights at a time
// (weight_block.h), so a warp has 512 columns of a row under way: 320 bytes of q4_1, 1 KiB of bf16,
// in loads of 2 (q8_0, q4_0) to 16 bytes a lane. Reading W once is the whole cost of decode, and
// what hides its latency is bytes in flight: few registers, many warps. x comes from the caches, 32
// bytes a lane for 16 weights, which a second output of the same warp halves: from kPairRows rows
// on that is more than W. The order of a sum is the same in both. Bytes moved: W once per two or
// eight tokens.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/weight_block.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kPairRows = 3;
constexpr int kColumns = gpu::kWarpLanes / 2 * 32;  // of a warp at a time

// Eight activations from `column` on; zeros past the end.
GPU_INLINE void LoadActivations(const gpu::bf16* row, std::int64_t column, std::int64_t cols,
                                bool aligned, float* to) {
  if (aligned) {
    uint4 packed = {0, 0, 0, 0};
    if (column < cols) packed = *reinterpret_cast<const uint4*>(row + column);
    const std::uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = gpu::unpack_bf16(words[i]);
      to[2 * i] = two.x, to[2 * i + 1] = two.y;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    to[i] = column + i < cols ? __bfloat162float(row[column + i]) : 0.0F;
  }
}

template <int kOutputs>
constexpr int kRowsOf = kOutputs == 1 ? kPairRows - 1 : 8;

template <int kType, int kOutputs>
__global__ void LinearKernel(LinearParams p, bool x_aligned, bool w_aligned) {
  constexpr int kRows = kRowsOf<kOutputs>;
  const int lane = gpu::lane_index(), half = lane % 2;
  const std::int64_t n = (std::int64_t{blockIdx.x} * kWarps + gpu::warp_index()) * kOutputs;
  if (n >= p.part.rows) return;
  const std::int64_t first = std::int64_t{blockIdx.y} * kRows;
  const int count = static_cast<int>(p.tokens - first < kRows ? p.tokens - first : kRows);
  const std::int64_t cols = p.part.cols;
  float sums[kOutputs][kRows] = {};
  for (std::int64_t column = lane / 2 * 32; column < cols; column += kColumns) {
    WeightBlock<kType> blocks[kOutputs];
    float w[kOutputs][16];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) blocks[o].Load(p.part, n + o, column, half, w_aligned);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) blocks[o].Decode(w[o]);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      if (t >= count) continue;
      const gpu::bf16* row = p.x + (first + t) * cols;
      float x[16];
      LoadActivations(row, column + 8 * half, cols, x_aligned, x);
      LoadActivations(row, column + 8 * half + 16, cols, x_aligned, x + 8);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
        for (int i = 0; i < 16; ++i) sums[o][t] += w[o][i] * x[i];
      }
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const std::int64_t output = p.first_row + n + o;
    const bool there = n + o < p.part.rows;
    const float bias = p.bias == nullptr || !there ? 0.0F : p.bias[output];
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      const float sum = gpu::warp_sum(sums[o][t]);
      if (!there || t >= count || lane != 0) continue;
      StoreResult(p, (first + t) * p.rows + output, sum + bias);
    }
  }
}

template <int kType, int kOutputs>
cudaError_t LaunchOutputs(const LinearParams& p, cudaStream_t stream) {
  constexpr std::int64_t kBlock = std::int64_t{kWarps} * kOutputs, kRows = kRowsOf<kOutputs>;
  const dim3 grid(static_cast<unsigned>((p.part.rows + kBlock - 1) / kBlock),
                  static_cast<unsigned>((p.tokens + kRows - 1) / kRows));
  return gpu::launch(LinearKernel<kType, kOutputs>, grid, dim3(kWarps * gpu::kWarpLanes), 0, stream,
                     p, Aligned16(p.x, p.part.cols * 2), Aligned16(p.part.data, p.part.row_bytes));
}

template <int kType>
cudaError_t Launch(const LinearParams& p, cudaStream_t stream) {
  return p.tokens < kPairRows ? LaunchOutputs<kType, 1>(p, stream)
                              : LaunchOutputs<kType, 2>(p, stream);
}

}  // namespace

cudaError_t LaunchLinear(const LinearParams& p, cudaStream_t stream) {
  if (p.tokens == 0 || p.part.rows == 0) return cudaSuccess;
  if (!p.exact && p.tokens >= kTensorRows) return LaunchLinearMma(p, stream);
  return ForType(p.part.dtype, [&](auto type) { return Launch<decltype(type)::value>(p, stream); });
}

}  // namespace metattn::cuda
