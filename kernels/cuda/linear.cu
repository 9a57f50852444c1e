// y = x W^T + bias for one part of a weight, W decoded to f32 from its file's format: steps of few
// rows, and all steps where rows must not depend on the batch. From kTensorRows rows on
// linear_mma.cu takes over.
//
// One warp an output value of kRows tokens: lanes run along the columns, so neighbouring lanes read
// neighbouring weights, and a decoded weight serves kRows tokens. Right for decode, where reading W
// once is the whole cost. Bytes moved: W once per kRows tokens, x of kRows tokens from the caches.
#include "kernels/cuda/decode.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kRows = 8;

__global__ void LinearKernel(LinearParams p) {
  const std::int64_t n = blockIdx.x * kWarps + gpu::warp_index();
  if (n >= p.part.rows) return;
  const std::int64_t first = std::int64_t{blockIdx.y} * kRows;
  const int count = static_cast<int>(p.tokens - first < kRows ? p.tokens - first : kRows);
  const unsigned char* w = p.part.data + n * p.part.row_bytes;
  const std::int64_t cols = p.part.cols;
  float sums[kRows] = {};
  for (std::int64_t c = gpu::lane_index(); c < cols; c += gpu::kWarpLanes) {
    const float weight = Decode(p.part.dtype, w, c);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      if (t < count) sums[t] += weight * __bfloat162float(p.x[(first + t) * cols + c]);
    }
  }
  const std::int64_t column = p.first_row + n;
  const float bias = p.bias == nullptr ? 0.0F : p.bias[column];
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    const float sum = gpu::warp_sum(sums[t]);
    if (t < count && gpu::lane_index() == 0) p.out[(first + t) * p.rows + column] = sum + bias;
  }
}

}  // namespace

cudaError_t LaunchLinear(const LinearParams& p, cudaStream_t stream) {
  if (p.tokens == 0 || p.part.rows == 0) return cudaSuccess;
  if (!p.exact && p.tokens >= kTensorRows) return LaunchLinearMma(p, stream);
  const dim3 grid(static_cast<unsigned>((p.part.rows + kWarps - 1) / kWarps),
                  static_cast<unsigned>((p.tokens + kRows - 1) / kRows));
  return gpu::launch(LinearKernel, grid, dim3(kWarps * gpu::kWarpLanes), 0, stream, p);
}

}  // namespace metattn::cuda
