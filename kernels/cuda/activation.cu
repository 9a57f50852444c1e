// Element by element: SwiGLU, silu(gate) * up with silu(x) = x / (1 + exp(-x)); and o / l of
// finished partials. One thread a value, 256 a block: both only stream their data.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"

namespace metattn::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void SwiGluKernel(SwiGluParams p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.tokens * p.dim) return;
  const std::int64_t t = i / p.dim, column = i % p.dim;
  const float gate = __bfloat162float(p.gate_up[t * 2 * p.dim + column]);
  const float up = __bfloat162float(p.gate_up[t * 2 * p.dim + p.dim + column]);
  p.out[i] = __float2bfloat16(gate / (1.0F + expf(-gate)) * up);
}

__global__ void NormalizeKernel(NormalizeParams p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.rows * p.head_dim) return;
  p.out[i] = __float2bfloat16(p.partial.o[i] / p.partial.l[i / p.head_dim]);
}

dim3 BlocksFor(std::int64_t values) {
  return dim3(static_cast<unsigned>((values + kThreads - 1) / kThreads));
}

}  // namespace

cudaError_t LaunchSwiGlu(const SwiGluParams& p, cudaStream_t stream) {
  if (p.tokens * p.dim == 0) return cudaSuccess;
  return gpu::launch(SwiGluKernel, BlocksFor(p.tokens * p.dim), dim3(kThreads), 0, stream, p);
}

cudaError_t LaunchNormalize(const NormalizeParams& p, cudaStream_t stream) {
  if (p.rows * p.head_dim == 0) return cudaSuccess;
  return gpu::launch(NormalizeKernel, BlocksFor(p.rows * p.head_dim), dim3(kThreads), 0, stream, p);
}

}  // namespace metattn::cuda
