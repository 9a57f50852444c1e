// Near partial: exact softmax over the sinks and the row's window, and its statistics for the
// controller.
//
// One warp a (row, query head); the warps of a block are the query heads of one KV head's group, so
// that its pages are read from memory once and from L1 by the others. q waits in shared memory,
// because every lane scores a whole key.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/head_group.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/softmax.h"

namespace metattn::cuda {
namespace {

template <int kDims>
__global__ void NearKernel(NearParams p) {
  GPU_DYN_SMEM(shared);
  const int d = p.pages.head_dim, head = static_cast<int>(blockIdx.y), lane = gpu::lane_index();
  const std::int64_t t = blockIdx.x;
  const int member = GroupMember();
  if (member >= p.group) return;
  const std::int64_t index = (t * p.pages.heads + head) * p.group + member;
  float* q = reinterpret_cast<float*>(shared) + gpu::warp_index() * d;
  for (int i = lane; i < d; i += gpu::kWarpLanes) q[i] = p.q[index * d + i];
  __syncwarp();
  const Keys keys{p.rows, p.pages, p.rows.sequence[t], head};
  const std::int64_t end = std::int64_t{p.rows.position[t]} + 1;
  const std::int64_t sinks = p.rows.sinks, window = p.rows.near_begin[t];
  Softmax<kDims> near;
  near.Add(keys, q, p.scale, 0, sinks < end ? sinks : end);
  const float sink_lse = near.l > 0 ? near.m + logf(near.l) : -INFINITY;
  near.Add(keys, q, p.scale, window > sinks ? window : sinks, end);
  near.Store(p.out, index, d);
  if (p.stats != nullptr && lane == 0 && Eligible(p.rows, t)) {
    p.stats[2 * index] = sink_lse;
    p.stats[2 * index + 1] = near.weighted / near.l;
  }
}

}  // namespace

cudaError_t LaunchNear(const NearParams& p, cudaStream_t stream) {
  const GroupLaunch at(p.rows.tokens, p.pages.heads, p.group);
  if (at.empty()) return cudaSuccess;
  return ForHeadDim(p.pages.head_dim, [&]<int kDims>() {
    return gpu::launch(NearKernel<kDims>, at.grid, at.block, at.shared(p.pages.head_dim), stream,
                       p);
  });
}

}  // namespace metattn::cuda
