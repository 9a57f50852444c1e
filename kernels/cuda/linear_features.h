// Linear attention on the device: where states lie, and phi of a single key.
//
// A state is S [f, d] f32 = sum phi(k) v^T, then z [f] = sum phi(k). feature_tile.h has the feature
// map phi, by tensor cores for 16 rows; here it is for one key at a time, in f32: the keys between
// a state's last whole block and a row's linear_end, which only the scopes that do not end on
// blocks have. Whole warps call it.
#pragma once

#include <cmath>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/pages.h"

namespace metattn::cuda {

inline constexpr int kMaxRounds = 8;  // lanes' rounds over a head of at most 256 dimensions

GPU_INLINE std::int64_t WholeBlocks(std::int64_t end) { return end / kPageTokens * kPageTokens; }

GPU_INLINE std::int64_t StateFloats(const LinearAttention& a) {
  return std::int64_t{a.features} * (a.pages.head_dim + 1);
}

// Where (place, head) lies in the table of boundary states; places of sequence s start here.
GPU_INLINE std::int64_t FirstBoundary(const Rows& rows, int sequence) {
  return rows.row_begin[sequence] / kPageTokens + 2 * std::int64_t{sequence};
}

GPU_INLINE float* BoundaryState(const LinearAttention& a, int sequence, int head,
                                std::int64_t position, std::int64_t first) {
  const std::int64_t place = FirstBoundary(a.rows, sequence) + (position - first) / kPageTokens;
  return a.boundaries + (place * a.pages.heads + head) * StateFloats(a);
}

// The sequence's own, in memory.
GPU_INLINE float* StateAt(const LinearAttention& a, int sequence, int head) {
  return a.states + (a.rows.state_slot[sequence] * a.slot_stride + head) * StateFloats(a);
}

// softmax of sign * y, lane i holding y[j] of output 32 j + i.
GPU_INLINE void PutSoftmax(const float (&y)[kMaxRounds], float sign, int d, float* out) {
  const int lane = gpu::lane_index();
  float largest = -INFINITY, sum = 0;
#pragma unroll
  for (int j = 0; j < kMaxRounds; ++j) {
    if (j * gpu::kWarpLanes + lane < d) largest = fmaxf(largest, sign * y[j]);
  }
  largest = gpu::warp_max(largest);
#pragma unroll
  for (int j = 0; j < kMaxRounds; ++j) {
    if (j * gpu::kWarpLanes + lane < d) sum += expf(sign * y[j] - largest);
  }
  const float factor = 1.0F / gpu::warp_sum(sum);
#pragma unroll
  for (int j = 0; j < kMaxRounds; ++j) {
    const int i = j * gpu::kWarpLanes + lane;
    if (i < d) out[i] = expf(sign * y[j] - largest) * factor;
  }
}

// The state of the keys before `end`, a multiple of kPageTokens, as a row of the step finds it: the
// sequence's own where its first row reads, else the boundary's (linear_state.cu). Null: no keys.
GPU_INLINE const float* RowState(const LinearAttention& a, int sequence, int head,
                                 std::int64_t end) {
  if (end == 0) return nullptr;
  const std::int64_t first = WholeBlocks(a.rows.linear_end[a.rows.row_begin[sequence]]);
  return end == first ? StateAt(a, sequence, head) : BoundaryState(a, sequence, head, end, first);
}

struct KeyHead {
  int sequence, head;
};

// out [f] = phi of the key at `position`.
GPU_INLINE void KeyPhi(const LinearAttention& a, const KeyHead& of, std::int64_t position,
                       float* out) {
  const int d = a.pages.head_dim, lane = gpu::lane_index();
  const gpu::bf16* k = KeyAt(a.rows, a.pages, of.sequence, of.head, position);
  if (!a.hedgehog) {
    for (int i = lane; i < d; i += gpu::kWarpLanes) {
      const float x = __bfloat162float(k[i]);
      out[i] = x > 0 ? x + 1.0F : expf(x);
    }
    return;
  }
  const gpu::bf16* w = a.w_k + std::int64_t{of.head} * d * d;
  float y[kMaxRounds] = {};
#pragma unroll
  for (int j = 0; j < kMaxRounds; ++j) {
    const int r = j * gpu::kWarpLanes + lane;
    if (r >= d) continue;
    for (int i = 0; i < d; ++i) y[j] += __bfloat162float(w[r * d + i]) * __bfloat162float(k[i]);
  }
  PutSoftmax(y, 1.0F, d, out);
  PutSoftmax(y, -1.0F, d, out + d);
}

// Keys between a state's end and a row's.
struct Tail {
  std::int64_t begin, end;
};

// phi(q) phi(k) summed over a tail, key by key; each(it, v) is called for every key. phi_k: scratch
// of f floats of the warp.
template <typename Each>
GPU_INLINE float TailWeight(const LinearAttention& a, const KeyHead& of, const Tail& tail,
                            const float* phi_q, float* phi_k, const Each& each) {
  const std::int64_t first = a.rows.linear_begin;
  float weight = 0;
  for (std::int64_t at = tail.begin > first ? tail.begin : first; at < tail.end; ++at) {
    KeyPhi(a, of, at, phi_k);
    __syncwarp();
    float sum = 0;
    for (int i = gpu::lane_index(); i < a.features; i += gpu::kWarpLanes) {
      sum += phi_q[i] * phi_k[i];
    }
    const float similarity = gpu::warp_sum(sum);
    weight += similarity;
    each(similarity,
         KeyAt(a.rows, a.pages, of.sequence, of.head, at) + kPageTokens * a.pages.head_dim);
    __syncwarp();
  }
  return weight;
}

}  // namespace metattn::cuda
