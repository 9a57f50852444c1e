// f32 -> bf16, to nearest even: activations for a matrix product whose factors are both bf16
// (gemm.h). One thread eight values, 16 bytes out; bytes moved: 6 a value, against 2 * rows FLOPs a
// value in the product that follows.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"

namespace metattn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kValues = 8;

// vectors: x is aligned to 16 bytes.
__global__ void RoundKernel(RoundParams p, bool vectors) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kValues;
  if (vectors && i + kValues <= p.count) {
    const float4 a = *reinterpret_cast<const float4*>(p.x + i);
    const float4 b = *reinterpret_cast<const float4*>(p.x + i + 4);
    const uint4 packed = {gpu::pack_bf16(a.x, a.y), gpu::pack_bf16(a.z, a.w),
                          gpu::pack_bf16(b.x, b.y), gpu::pack_bf16(b.z, b.w)};
    *reinterpret_cast<uint4*>(p.out + i) = packed;
    return;
  }
  const std::int64_t end = i + kValues < p.count ? i + kValues : p.count;
  for (std::int64_t j = i; j < end; ++j) p.out[j] = __float2bfloat16(p.x[j]);
}

}  // namespace

cudaError_t LaunchRound(const RoundParams& p, cudaStream_t stream) {
  if (p.count == 0) return cudaSuccess;
  constexpr std::int64_t kBlock = kThreads * kValues;
  return gpu::launch(RoundKernel, dim3(static_cast<unsigned>((p.count + kBlock - 1) / kBlock)),
                     dim3(kThreads), 0, stream, p, reinterpret_cast<std::uintptr_t>(p.x) % 16 == 0);
}

}  // namespace metattn::cuda
