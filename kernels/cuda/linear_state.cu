// States of linear attention brought forward, block of 64 keys by block: S += phi(K)^T V, z += the
// sum of phi(K). The sums of one block are taken first and added to the state with one rounding, so
// a state does not depend on the steps that built it.
//
// One thread block a (sequence, KV head): its warps compute phi of the block's keys into shared
// memory, then every thread owns entries of the state and sums over the 64 keys. Absorb updates the
// states in memory up to where the step's first row reads; Boundaries goes on from there in a table
// of its own, one copy a boundary, so that rows of a long step can be served side by side.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/linear_features.h"
#include "kernels/cuda/linear_state.h"
#include "kernels/cuda/shared_limit.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * gpu::kWarpLanes;

// One sequence and KV head; phi: shared memory for a block of keys, [kPageTokens, f].
struct Shard {
  int sequence, head;
  float* phi;
};

// to = from + the keys of the block at `begin`; `from` null: an empty state. May be in place.
GPU_INLINE void AddBlock(const LinearAttention& a, const Shard& shard, std::int64_t begin,
                         const float* from, float* to) {
  const int d = a.pages.head_dim, f = a.features;
  float* phi = shard.phi;
  const std::int64_t first = begin > a.rows.linear_begin ? begin : a.rows.linear_begin;
  const int skipped = static_cast<int>(first - begin < kPageTokens ? first - begin : kPageTokens);
  for (int key = skipped + gpu::warp_index(); key < kPageTokens; key += kWarps) {
    KeyPhi(a, shard.sequence, shard.head, begin + key, phi + key * f);
  }
  __syncthreads();
  const gpu::bf16* v = KeyAt(a.rows, a.pages, shard.sequence, shard.head, begin) + kPageTokens * d;
  for (int i = static_cast<int>(threadIdx.x); i < f * (d + 1); i += kThreads) {
    const int feature = i < f * d ? i / d : i - f * d;
    float sum = 0;
    for (int key = skipped; key < kPageTokens; ++key) {
      const float value = i < f * d ? __bfloat162float(v[key * d + i % d]) : 1.0F;
      sum += phi[key * f + feature] * value;
    }
    to[i] = (from == nullptr ? 0.0F : from[i]) + sum;
  }
  __syncthreads();
}

__global__ void AbsorbKernel(LinearAttention a) {
  GPU_DYN_SMEM(shared);
  const int sequence = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const std::int32_t row = a.rows.row_begin[sequence];
  if (row == a.rows.row_begin[sequence + 1]) return;
  float* state = StateAt(a, sequence, head);
  const std::int64_t end = WholeBlocks(a.rows.linear_end[row]);
  for (std::int64_t at = a.rows.state_end[sequence]; at < end; at += kPageTokens) {
    AddBlock(a, {sequence, head, reinterpret_cast<float*>(shared)}, at, at == 0 ? nullptr : state,
             state);
  }
}

// From the state that Absorb left at the first row to the last row's. `store`: that becomes the
// state.
__global__ void BoundariesKernel(LinearAttention a, bool store) {
  GPU_DYN_SMEM(shared);
  const int sequence = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const std::int32_t row = a.rows.row_begin[sequence], rows_end = a.rows.row_begin[sequence + 1];
  if (row == rows_end) return;
  const std::int64_t first = WholeBlocks(a.rows.linear_end[row]);
  const std::int64_t last = WholeBlocks(a.rows.linear_end[rows_end - 1]);
  float* state = StateAt(a, sequence, head);
  float* at_first = BoundaryState(a, sequence, head, first, first);
  const int floats = static_cast<int>(StateFloats(a));
  for (int i = static_cast<int>(threadIdx.x); i < floats; i += kThreads) {
    at_first[i] = first == 0 ? 0.0F : state[i];
  }
  __syncthreads();
  for (std::int64_t at = first; at < last; at += kPageTokens) {
    AddBlock(a, {sequence, head, reinterpret_cast<float*>(shared)}, at,
             BoundaryState(a, sequence, head, at, first),
             BoundaryState(a, sequence, head, at + kPageTokens, first));
  }
  if (!store || last == first) return;
  const float* at_last = BoundaryState(a, sequence, head, last, first);
  for (int i = static_cast<int>(threadIdx.x); i < floats; i += kThreads) state[i] = at_last[i];
}

dim3 Shards(const LinearAttention& a) {
  return dim3(static_cast<unsigned>(a.rows.sequences), static_cast<unsigned>(a.pages.heads));
}

bool Empty(const LinearAttention& a) {
  return a.rows.tokens == 0 || a.rows.sequences == 0 || a.pages.heads == 0;
}

std::size_t PhiBytes(const LinearAttention& a) {
  return sizeof(float) * kPageTokens * static_cast<std::size_t>(a.features);
}

}  // namespace

cudaError_t LaunchAbsorb(const LinearAttention& p, cudaStream_t stream) {
  if (Empty(p)) return cudaSuccess;
  if (const cudaError_t e = AllowShared(AbsorbKernel, PhiBytes(p)); e != cudaSuccess) return e;
  return gpu::launch(AbsorbKernel, Shards(p), dim3(kThreads), PhiBytes(p), stream, p);
}

cudaError_t LaunchBoundaries(const LinearAttention& p, bool store, cudaStream_t stream) {
  if (Empty(p)) return cudaSuccess;
  if (const cudaError_t e = AllowShared(BoundariesKernel, PhiBytes(p)); e != cudaSuccess) return e;
  return gpu::launch(BoundariesKernel, Shards(p), dim3(kThreads), PhiBytes(p), stream, p, store);
}

}  // namespace metattn::cuda
