// Mixtures: each mechanism's output of a row, weighted and summed in three steps (MixArgs).
//
// One warp a (row, query head), lanes along the head; the warps of a block are independent.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr std::uint8_t kMixture = 3;
constexpr int kFull = 0, kLinear = 1, kLocal = 2;

__global__ void MixKernel(MixParams p) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kWarps + gpu::warp_index();
  if (index >= p.tokens * p.heads * p.group) return;
  const std::int64_t shard = index / p.group;  // (row, KV head)
  if (p.decisions[shard] != kMixture) return;
  const int d = p.head_dim;
  const float weight = p.weights[3 * shard + p.step];
  float* o = p.partial.o + index * d;
  float* kept = p.kept.o + index * d;
  float* sum = p.sum + index * d;
  const float m = p.partial.m[index], l = p.partial.l[index];
  __syncwarp();  // all lanes have read m and l
  for (int i = gpu::lane_index(); i < d; i += gpu::kWarpLanes) {
    const float share = weight * o[i] / l;
    const float total = p.step == kLocal ? share : sum[i] + share;
    sum[i] = total;
    if (p.step == kLocal) kept[i] = o[i];
    if (p.step == kFull) o[i] = kept[i];
    if (p.step == kLinear) o[i] = total;
  }
  if (gpu::lane_index() != 0) return;
  if (p.step == kLocal) {
    p.kept.m[index] = m;
    p.kept.l[index] = l;
  } else {
    p.partial.m[index] = p.step == kFull ? p.kept.m[index] : 0.0F;
    p.partial.l[index] = p.step == kFull ? p.kept.l[index] : 1.0F;
  }
}

}  // namespace

cudaError_t LaunchMix(const MixParams& p, cudaStream_t stream) {
  const std::int64_t n = p.tokens * p.heads * p.group;
  if (n * p.head_dim == 0) return cudaSuccess;
  return gpu::launch(MixKernel, dim3(static_cast<unsigned>((n + kWarps - 1) / kWarps)),
                     dim3(kWarps * gpu::kWarpLanes), 0, stream, p);
}

}  // namespace metattn::cuda
