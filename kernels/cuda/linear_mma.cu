// y = x W^T + bias for many rows, on tensor cores: x in bf16, W decoded from its file's format
// to bf16, products exact and summed in f32 in the order of the columns. For weights that
// must be decoded; those in bf16 come here only where cuBLASLt (gemm.h) has no algorithm.
//
// A block of 8 warps makes a tile of 64 tokens x 128 outputs, a warp 32 x 32 of it (2 x 4 mma of 16
// x 8), stepping through the columns 32 at a time: the block of a quantised row, so that a thread
// decodes half a block with one scale. 64 x 128, because x is read once per 128 outputs and W once
// per 64 tokens: with x in 16 bits and W in 4 to 16 that must be decoded, a wider tile of outputs
// saves more than one of tokens. Two stages of shared memory, 15 KiB each, rows padded to 80 bytes
// so that the 8 rows of an ldmatrix lie in different banks; two blocks a multiprocessor. While a
// step is multiplied, the next one is on its way: x by cp.async into the other stage, W in
// registers.
//
// Bytes moved, a block: 64 * cols * 2 of x, 128 rows of W, 64 * 128 * 4 of y. A row's result
// depends on the row alone, but is not what linear.cu gives.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/weight_block.h"

namespace metattn::cuda {
namespace {

constexpr int kTokens = 64;
constexpr int kOutputs = 128;
constexpr int kDepth = 32;
constexpr int kThreads = 256;
constexpr int kPitch = kDepth + 8;
constexpr int kStage = (kTokens + kOutputs) * kPitch;  // x, then W
constexpr int kWarpTile = 32;                          // tokens and outputs of a warp
constexpr int kWarpsAcross = kOutputs / kWarpTile;
static_assert(kThreads / gpu::kWarpLanes == kTokens / kWarpTile * kWarpsAcross);

// Eight values to shared memory as bf16; `to` aligned to 16 bytes.
GPU_INLINE void Store8(gpu::bf16* to, const float* v) {
  const uint4 packed = {gpu::pack_bf16(v[0], v[1]), gpu::pack_bf16(v[2], v[3]),
                        gpu::pack_bf16(v[4], v[5]), gpu::pack_bf16(v[6], v[7])};
  *reinterpret_cast<uint4*>(to) = packed;
}

// Eight neighbouring activations of one token into shared memory; thread i of a block has columns 8
// (i % 4) of token i / 4 of a tile. Zeros past the ends. aligned: rows of x, to 16 bytes.
GPU_INLINE void CopyActivations(const LinearParams& p, std::int64_t token, std::int64_t column,
                                bool aligned, gpu::bf16* to) {
  const std::int64_t cols = p.part.cols;
  const gpu::bf16* x = p.x + token * cols + column;
  if (aligned) {
    gpu::cp_async16(to, x, token < p.tokens && column < cols);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    to[i] = token < p.tokens && column + i < cols ? x[i] : __float2bfloat16(0.0F);
  }
}

// To the row's 32 places in shared memory.
template <int kType>
GPU_INLINE void StoreWeights(const WeightBlock<kType>& w, gpu::bf16* to, int half) {
  float values[16];
  w.Decode(values);
  Store8(to + 8 * half, values);
  Store8(to + 8 * half + 16, values + 8);
}

// One warp's 32 x 32 outputs += 32 columns of the stage.
GPU_INLINE void Multiply(const gpu::bf16* x, const gpu::bf16* w, float (&sums)[2][4][4]) {
  const int lane = gpu::lane_index();
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    std::uint32_t a[2][4], b[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      gpu::ldmatrix_x4(a[i], x + (16 * i + lane % 16) * kPitch + k + lane / 16 * 8);
      gpu::ldmatrix_x4(b[i],
                       w + (16 * i + lane / 16 * 8 + lane % 8) * kPitch + k + lane / 8 % 2 * 8);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        gpu::mma_bf16_16816(sums[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
      }
    }
  }
}

// Adds the bias and writes what lies inside the matrix; (token, output) is the warp's first.
GPU_INLINE void Finish(const LinearParams& p, std::int64_t token, std::int64_t output,
                       const float (&sums)[2][4][4]) {
  const int lane = gpu::lane_index();
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t column = output + 8 * n + lane % 4 * 2 + i % 2;
      if (column >= p.part.rows) continue;
      const float bias = p.bias == nullptr ? 0.0F : p.bias[p.first_row + column];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const std::int64_t t = token + 16 * m + lane / 4 + i / 2 * 8;
        if (t < p.tokens) {
          StoreResult(p, t * p.rows + p.first_row + column, sums[m][n][i] + bias);
        }
      }
    }
  }
}

// Rows of x and of W (f32, f16, bf16) may be aligned to 16 bytes.
template <int kType>
__global__ void __launch_bounds__(kThreads, 2)
    LinearMmaKernel(LinearParams p, bool x_aligned, bool w_aligned) {
  GPU_DYN_SMEM(shared);
  auto* stages = reinterpret_cast<gpu::bf16*>(shared);
  const int thread = static_cast<int>(threadIdx.x), half = thread % 2;
  const std::int64_t first_token = std::int64_t{blockIdx.y} * kTokens;
  const std::int64_t first_output = std::int64_t{blockIdx.x} * kOutputs;
  const std::int64_t token = first_token + thread / 4, output = first_output + thread / 2;
  const int x_at = thread / 4 * kPitch + thread % 4 * 8;
  const int w_at = kTokens * kPitch + thread / 2 * kPitch;
  WeightBlock<kType> w;
  const auto load = [&](std::int64_t column, gpu::bf16* stage) {
    CopyActivations(p, token, column + thread % 4 * 8, x_aligned, stage + x_at);
    gpu::cp_async_commit();
    w.Load(p.part, output, column, half, w_aligned);
  };
  const auto store = [&](gpu::bf16* stage) {
    StoreWeights(w, stage + w_at, half);
    gpu::cp_async_wait<0>();
  };

  const int warp = gpu::warp_index();
  const int row = warp / kWarpsAcross * kWarpTile, across = warp % kWarpsAcross * kWarpTile;
  float sums[2][4][4] = {};
  if (p.part.cols > 0) {
    load(0, stages);
    store(stages);
  }
  __syncthreads();
  int current = 0;
  for (std::int64_t column = 0; column < p.part.cols; column += kDepth) {
    const bool more = column + kDepth < p.part.cols;
    gpu::bf16* const stage = stages + current * kStage;
    gpu::bf16* const next = stages + (current ^ 1) * kStage;  // nobody has read it since a barrier
    if (more) load(column + kDepth, next);
    Multiply(stage + row * kPitch, stage + (kTokens + across) * kPitch, sums);
    if (more) store(next);
    __syncthreads();
    current ^= 1;
  }
  Finish(p, first_token + row, first_output + across, sums);
}

template <int kType>
cudaError_t Launch(const LinearParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((p.part.rows + kOutputs - 1) / kOutputs),
                  static_cast<unsigned>((p.tokens + kTokens - 1) / kTokens));
  return gpu::launch(LinearMmaKernel<kType>, grid, dim3(kThreads), 2 * kStage * sizeof(gpu::bf16),
                     stream, p, Aligned16(p.x, p.part.cols * 2),
                     Aligned16(p.part.data, p.part.row_bytes));
}

}  // namespace

cudaError_t LaunchLinearMma(const LinearParams& p, cudaStream_t stream) {
  return ForType(p.part.dtype, [&](auto type) { return Launch<decltype(type)::value>(p, stream); });
}

}  // namespace metattn::cuda
