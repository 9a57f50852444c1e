// Linear attention of rows: phi(q), what it would weigh, and its merge into the near partial.
//
// Both kernels: one block a (row, KV head), one warp a query head of its group (head_group.h). A
// row reads the state at the last whole block before its linear_end (linear_state.cu made a copy of
// each) and adds the keys between there and linear_end itself, fewer than 64 and none at all in
// block scope.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/head_group.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/linear_features.h"
#include "kernels/cuda/linear_state.h"
#include "kernels/cuda/softmax.h"

namespace metattn::cuda {
namespace {

// What one warp reads for one row and query head.
struct Row {
  int sequence, head;
  std::int64_t whole, end;  // the state's keys end at `whole`, the row's at `end`
  const float* state;

  GPU_INLINE Row(const LinearAttention& a, std::int64_t t, int kv_head)
      : sequence(a.rows.sequence[t]), head(kv_head), end(a.rows.linear_end[t]) {
    whole = WholeBlocks(end);
    const std::int32_t first_row = a.rows.row_begin[sequence];
    state = BoundaryState(a, sequence, head, whole, WholeBlocks(a.rows.linear_end[first_row]));
  }
};

// phi(q) z over the row's keys. each(key's similarity, its v) is called for keys past the state.
template <typename Each>
GPU_INLINE float Weight(const LinearAttention& a, const Row& row, const float* phi_q, float* phi_k,
                        const Each& each) {
  const int f = a.features, d = a.pages.head_dim;
  const float* z = row.state + f * d;
  float sum = 0;
  for (int i = gpu::lane_index(); i < f; i += gpu::kWarpLanes) sum += phi_q[i] * z[i];
  float weight = gpu::warp_sum(sum);
  const std::int64_t first = row.whole > a.rows.linear_begin ? row.whole : a.rows.linear_begin;
  for (std::int64_t at = first; at < row.end; ++at) {
    KeyPhi(a, row.sequence, row.head, at, phi_k);
    __syncwarp();
    sum = 0;
    for (int i = gpu::lane_index(); i < f; i += gpu::kWarpLanes) sum += phi_q[i] * phi_k[i];
    const float similarity = gpu::warp_sum(sum);
    weight += similarity;
    each(similarity, KeyAt(a.rows, a.pages, row.sequence, row.head, at) + kPageTokens * d);
    __syncwarp();
  }
  return weight;
}

__global__ void OddsKernel(OddsParams p) {
  GPU_DYN_SMEM(shared);
  const LinearAttention& a = p.shape;
  const int d = a.pages.head_dim, f = a.features, head = static_cast<int>(blockIdx.y);
  const std::int64_t t = blockIdx.x;
  const int member = GroupMember(), q_head = head * a.group + member;
  if (member >= a.group) return;
  const std::int64_t index = t * a.pages.heads * a.group + q_head;
  if (!Eligible(a.rows, t)) {
    if (gpu::lane_index() == 0) p.lse_far[index] = -INFINITY;
    return;
  }
  float* phi_k = reinterpret_cast<float*>(shared) + gpu::warp_index() * f;
  float* phi_q = p.phi_q + index * f;
  const float* q = p.q + index * d;
  const gpu::bf16* weights = a.hedgehog ? p.w_q + std::int64_t{q_head} * d * d : nullptr;
  Phi(
      a, weights, [&](int i) { return q[i]; }, phi_q);
  __syncwarp();
  const float weight = Weight(a, Row(a, t, head), phi_q, phi_k, [](float, const gpu::bf16*) {});
  if (gpu::lane_index() != 0) return;
  p.lse_far[index] = logf(weight) + p.log_gain[q_head] +
                     p.kappa[q_head] * (p.near.m[index] + logf(p.near.l[index]));
}

template <int kDims>
__global__ void FarLinearKernel(FarLinearParams p) {
  GPU_DYN_SMEM(shared);
  const LinearAttention& a = p.shape;
  const int d = a.pages.head_dim, f = a.features, head = static_cast<int>(blockIdx.y);
  if (static_cast<std::int64_t>(blockIdx.x) >= p.list.counts[head]) return;
  const std::int64_t t = p.list.rows[head * p.list.capacity + blockIdx.x];
  const int member = GroupMember();
  if (member >= a.group) return;
  const std::int64_t index = (t * a.pages.heads + head) * a.group + member;
  const float lse = p.lse_far[index];
  if (lse == -INFINITY) return;  // weighs nothing
  const float* phi_q = p.phi_q + index * f;
  const Row row(a, t, head);
  Softmax<kDims> far;
  const auto add = [&](float similarity, const float* s, const gpu::bf16* v) {
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      const int i = j * gpu::kWarpLanes + gpu::lane_index();
      if (i < d) far.o[j] += similarity * (v == nullptr ? s[i] : __bfloat162float(v[i]));
    }
  };
  for (int i = 0; i < f; ++i) add(phi_q[i], row.state + i * d, nullptr);
  float* phi_k = reinterpret_cast<float*>(shared) + gpu::warp_index() * f;
  const float weight = Weight(a, row, phi_q, phi_k, [&](float similarity, const gpu::bf16* v) {
    add(similarity, nullptr, v);
  });
#pragma unroll
  for (int j = 0; j < kDims; ++j) far.o[j] /= weight;
  far.m = lse;
  far.l = 1;
  Softmax<kDims> whole;
  if (!p.alone) whole.Load(p.partial, index, d);
  whole.Merge(far);
  whole.Store(p.partial, index, d);
}

GroupLaunch LaunchOf(const LinearAttention& a) {
  return GroupLaunch(a.rows.tokens, a.pages.heads, a.group);
}

}  // namespace

cudaError_t LaunchOdds(const OddsParams& p, cudaStream_t stream) {
  const GroupLaunch at = LaunchOf(p.shape);
  if (at.empty()) return cudaSuccess;
  if (const cudaError_t e = LaunchBoundaries(p.shape, false, stream); e != cudaSuccess) return e;
  return gpu::launch(OddsKernel, at.grid, at.block, at.shared(p.shape.features), stream, p);
}

cudaError_t LaunchFarLinear(const FarLinearParams& p, cudaStream_t stream) {
  if (const cudaError_t e = LaunchBoundaries(p.shape, true, stream); e != cudaSuccess) return e;
  const GroupLaunch at = LaunchOf(p.shape);
  if (at.empty()) return cudaSuccess;
  return ForHeadDim(p.shape.pages.head_dim, [&]<int kDims>() {
    return gpu::launch(FarLinearKernel<kDims>, at.grid, at.block, at.shared(p.shape.features),
                       stream, p);
  });
}

}  // namespace metattn::cuda
