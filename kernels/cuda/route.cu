// Decisions forced by the request's policy, and the work lists that come from decisions.
//
// Forced: one thread a (row, KV head). Compaction: one warp a KV head walks the rows 32 at a time;
// a row's place is the count so far plus the listed lanes below it, so lists are in row order.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/pages.h"

namespace metattn::cuda {
namespace {

constexpr int kThreads = 128;
constexpr std::uint8_t kLocal = 2, kMixture = 3;

__global__ void ForcedRouteKernel(RouteParams p) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.rows.tokens * p.heads) return;
  const std::int64_t row = i / p.heads;
  p.decisions[i] = Eligible(p.rows, row) ? p.route[row] : kLocal;
}

__global__ void CompactKernel(CompactParams p) {
  const int head = static_cast<int>(blockIdx.x);
  std::int32_t* rows = p.list.rows + head * p.list.capacity;
  int count = 0;
  for (std::int64_t begin = 0; begin < p.tokens; begin += gpu::kWarpLanes) {
    const std::int64_t t = begin + gpu::lane_index();
    bool listed = false;
    if (t < p.tokens) {
      const std::uint8_t decision = p.decisions[t * p.heads + head];
      listed = decision == p.mechanism || (p.mixtures && decision == kMixture);
    }
    const unsigned ballot = __ballot_sync(gpu::kFullWarp, listed);
    if (listed) rows[count + gpu::rank_in(ballot)] = static_cast<std::int32_t>(t);
    count += __popc(ballot);
  }
  if (gpu::lane_index() == 0) p.list.counts[head] = count;
}

}  // namespace

cudaError_t FindKernels() {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(CompactKernel));
}

cudaError_t LaunchForcedRoute(const RouteParams& p, cudaStream_t stream) {
  const std::int64_t n = p.rows.tokens * p.heads;
  if (n == 0) return cudaSuccess;
  return gpu::launch(ForcedRouteKernel, dim3(static_cast<unsigned>((n + kThreads - 1) / kThreads)),
                     dim3(kThreads), 0, stream, p);
}

cudaError_t LaunchCompact(const CompactParams& p, cudaStream_t stream) {
  if (p.heads == 0) return cudaSuccess;
  return gpu::launch(CompactKernel, dim3(static_cast<unsigned>(p.heads)), dim3(gpu::kWarpLanes), 0,
                     stream, p);
}

}  // namespace metattn::cuda
