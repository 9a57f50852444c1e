// RMSNorm after adding the branch's output to the residual: out = r / sqrt(mean(r^2) + eps) *
// weight with r = residual + delta, which is stored.
//
// One block a row; the sum of squares goes from threads to warps to the block. The row is written
// back before the sum is known and read again from cache: rows of any length, no shared copy.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * gpu::kWarpLanes;

__global__ void NormKernel(NormParams p) {
  GPU_SHARED(float, of_warp, [kWarps]);
  float* x = p.residual + blockIdx.x * p.dim;
  float squares = 0;
  for (std::int64_t i = threadIdx.x; i < p.dim; i += kThreads) {
    const float value = p.delta == nullptr ? x[i] : x[i] + p.delta[blockIdx.x * p.dim + i];
    x[i] = value;
    squares += value * value;
  }
  squares = gpu::warp_sum(squares);
  if (gpu::lane_index() == 0) of_warp[gpu::warp_index()] = squares;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += of_warp[w];
  const float factor = 1.0F / sqrtf(total / static_cast<float>(p.dim) + p.eps);
  gpu::bf16* out = p.out + blockIdx.x * p.dim;
  for (std::int64_t i = threadIdx.x; i < p.dim; i += kThreads) {
    out[i] = __float2bfloat16(x[i] * factor * p.weight[i]);
  }
}

}  // namespace

cudaError_t LaunchNorm(const NormParams& p, cudaStream_t stream) {
  if (p.tokens == 0 || p.dim == 0) return cudaSuccess;
  return gpu::launch(NormKernel, dim3(static_cast<unsigned>(p.tokens)), dim3(kThreads), 0, stream,
                     p);
}

}  // namespace metattn::cuda
