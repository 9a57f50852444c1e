// Far span of the listed rows: [sinks, far_end) span by span on the kSpanTokens grid, merged in
// span order into the row's partial.
//
// One warp a (listed row, query head), the group of a KV head in one block as in attention_near.cu.
// The grid has a place for every row of the step; those past a list's count end at once, so the
// host never needs to know the count.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/head_group.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/softmax.h"

namespace metattn::cuda {
namespace {

constexpr std::int64_t kSpan = 256;  // kSpanTokens of kernels/types.h (checked in cuda_kernels.cc)

template <int kDims>
__global__ void FarFullKernel(FarParams p) {
  GPU_DYN_SMEM(shared);
  const int d = p.pages.head_dim, head = static_cast<int>(blockIdx.y);
  if (static_cast<std::int64_t>(blockIdx.x) >= p.list.counts[head]) return;
  const std::int64_t t = p.list.rows[head * p.list.capacity + blockIdx.x];
  const int member = GroupMember();
  if (member >= p.group) return;
  const std::int64_t index = (t * p.pages.heads + head) * p.group + member;
  float* q = reinterpret_cast<float*>(shared) + gpu::warp_index() * d;
  for (int i = gpu::lane_index(); i < d; i += gpu::kWarpLanes) q[i] = p.q[index * d + i];
  __syncwarp();
  const Keys keys{p.rows, p.pages, p.rows.sequence[t], head};
  const std::int64_t end = p.rows.far_end[t];
  Softmax<kDims> whole;
  whole.Load(p.partial, index, d);
  for (std::int64_t begin = p.rows.sinks; begin < end;) {
    const std::int64_t grid = (begin / kSpan + 1) * kSpan;
    Softmax<kDims> span;
    span.Add(keys, q, p.scale, begin, grid < end ? grid : end);
    whole.Merge(span);
    begin = grid;
  }
  whole.Store(p.partial, index, d);
}

}  // namespace

cudaError_t LaunchFarFull(const FarParams& p, cudaStream_t stream) {
  const GroupLaunch at(p.rows.tokens, p.pages.heads, p.group);
  if (at.empty()) return cudaSuccess;
  return ForHeadDim(p.pages.head_dim, [&]<int kDims>() {
    return gpu::launch(FarFullKernel<kDims>, at.grid, at.block, at.shared(p.pages.head_dim), stream,
                       p);
  });
}

}  // namespace metattn::cuda
