// The feature map phi and the state of linear attention on the device.
//
//   elu1      phi(x) = elu(x) + 1, f = d      hedgehog  y = W x, phi(x) = [softmax(y); softmax(-y)]
//
// A state is S [f, d] f32 = sum phi(k) v^T, then z [f] = sum phi(k). Whole warps call Phi.
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

// out [f] = phi(x); weights [d, d] of the head, absent for elu1. load(i) gives x[i] to any lane.
template <typename Load>
GPU_INLINE void Phi(const LinearAttention& a, const gpu::bf16* weights, const Load& load,
                    float* out) {
  const int d = a.pages.head_dim, lane = gpu::lane_index();
  if (!a.hedgehog) {
    for (int i = lane; i < d; i += gpu::kWarpLanes) {
      const float x = load(i);
      out[i] = x > 0 ? x + 1.0F : expf(x);
    }
    return;
  }
  float y[kMaxRounds] = {};
#pragma unroll
  for (int j = 0; j < kMaxRounds; ++j) {
    const int r = j * gpu::kWarpLanes + lane;
    if (r >= d) continue;
    for (int i = 0; i < d; ++i) y[j] += __bfloat162float(weights[r * d + i]) * load(i);
  }
  PutSoftmax(y, 1.0F, d, out);
  PutSoftmax(y, -1.0F, d, out + d);
}

// phi of the key at `position`, by one warp.
GPU_INLINE void KeyPhi(const LinearAttention& a, int sequence, int head, std::int64_t position,
                       float* out) {
  const int d = a.pages.head_dim;
  const gpu::bf16* k = KeyAt(a.rows, a.pages, sequence, head, position);
  const gpu::bf16* weights = a.hedgehog ? a.w_k + std::int64_t{head} * d * d : nullptr;
  Phi(
      a, weights, [&](int i) { return __bfloat162float(k[i]); }, out);
}

}  // namespace metattn::cuda
