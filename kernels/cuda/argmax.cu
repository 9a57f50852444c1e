// The largest value of each row and the lowest index that has it.
//
// One block a row, threads along it; each keeps the first of its largest, then lanes, then warps
// are compared in pairs. Rows are few (greedy rows of a decode step) and long (a vocabulary), so
// blocks are as large as they can be: 32 warps hide the latency of one row's loads.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 32;
constexpr int kThreads = kWarps * gpu::kWarpLanes;

GPU_INLINE LargestValue better(LargestValue a, LargestValue b) {
  const bool second = b.value > a.value || (b.value == a.value && b.index < a.index);
  return second ? b : a;
}

GPU_INLINE LargestValue warp_better(LargestValue x) {
#pragma unroll
  for (int step = gpu::kWarpLanes / 2; step > 0; step /= 2) {
    const LargestValue other = {__shfl_xor_sync(gpu::kFullWarp, x.value, step),
                                __shfl_xor_sync(gpu::kFullWarp, x.index, step)};
    x = better(x, other);
  }
  return x;
}

__global__ void ArgMaxKernel(ArgMaxParams p) {
  GPU_SHARED(float, values, [kWarps]);
  GPU_SHARED(std::int32_t, indices, [kWarps]);
  const float* x = p.x + blockIdx.x * p.dim;
  LargestValue best = {-INFINITY, 0};
  for (std::int64_t i = threadIdx.x; i < p.dim; i += kThreads) {
    if (x[i] > best.value) best = {x[i], static_cast<std::int32_t>(i)};
  }
  best = warp_better(best);
  if (gpu::lane_index() == 0) {
    values[gpu::warp_index()] = best.value;
    indices[gpu::warp_index()] = best.index;
  }
  __syncthreads();
  if (gpu::warp_index() != 0) return;
  best = warp_better({values[gpu::lane_index()], indices[gpu::lane_index()]});
  if (gpu::lane_index() == 0) p.out[blockIdx.x] = best;
}

}  // namespace

cudaError_t LaunchArgMax(const ArgMaxParams& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  return gpu::launch(ArgMaxKernel, dim3(static_cast<unsigned>(p.rows)), dim3(kThreads), 0, stream,
                     p);
}

}  // namespace metattn::cuda
