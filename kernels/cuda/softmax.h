// A softmax over a growing set of positions, held by one warp for one query head: m = max score,
// l = sum exp(score - m), o = sum exp(score - m) v, of which lane i holds dimensions i, i + 32, ...
//
// Positions come in tiles of up to 32 that do not cross a multiple of 32 (so never a page): each
// lane takes the score of one position, then the warp adds the tile's values together, reading V
// row by row. kDims = ceil(d / 32) is a template argument so that o stays in registers. Whole warps
// call.
#pragma once

#include <cmath>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/pages.h"

namespace metattn::cuda {

// The keys and values that one query head reads.
struct Keys {
  const Rows& rows;
  const Pages& pages;
  int sequence, head;
};

template <int kDims>
struct Softmax {
  float m = -INFINITY, l = 0;
  float weighted = 0;  // sum exp(score - m) score
  float o[kDims] = {};

  GPU_INLINE void Rescale(float to) {
    const float factor = m == to ? 1.0F : expf(m - to);  // 0 for an empty softmax
    l *= factor;
    weighted *= factor;
#pragma unroll
    for (int j = 0; j < kDims; ++j) o[j] *= factor;
    m = to;
  }

  // Position begin + lane has `score`; `count` positions, values of `d` dimensions from `v` on.
  GPU_INLINE void AddTile(float score, int count, const gpu::bf16* v, int d) {
    const int lane = gpu::lane_index();
    const float largest = gpu::warp_max(lane < count ? score : -INFINITY);
    if (largest > m) Rescale(largest);
    const float weight = lane < count ? expf(score - m) : 0.0F;
    l += gpu::warp_sum(weight);
    weighted += gpu::warp_sum(lane < count ? weight * score : 0.0F);
    for (int t = 0; t < count; ++t) {
      const float w = __shfl_sync(gpu::kFullWarp, weight, t);
#pragma unroll
      for (int j = 0; j < kDims; ++j) {
        const int i = j * gpu::kWarpLanes + lane;
        if (i < d) o[j] += w * __bfloat162float(v[t * d + i]);
      }
    }
  }

  // Adds positions [begin, end); q [d] in memory that all lanes see.
  GPU_INLINE void Add(const Keys& keys, const float* q, float scale, std::int64_t begin,
                      std::int64_t end) {
    const int d = keys.pages.head_dim, lane = gpu::lane_index();
    while (begin < end) {
      const std::int64_t tile = (begin / gpu::kWarpLanes + 1) * gpu::kWarpLanes;
      const int count = static_cast<int>((tile < end ? tile : end) - begin);
      const gpu::bf16* k = KeyAt(keys.rows, keys.pages, keys.sequence, keys.head, begin);
      float dot = 0;
      if (lane < count) {
        for (int i = 0; i < d; ++i) dot += q[i] * __bfloat162float(k[lane * d + i]);
      }
      AddTile(dot * scale, count, k + kPageTokens * d, d);
      begin += count;
    }
  }

  GPU_INLINE void Merge(const Softmax& other) {
    if (other.l == 0) return;
    if (other.m > m) Rescale(other.m);
    const float factor = expf(other.m - m);
    l += other.l * factor;
#pragma unroll
    for (int j = 0; j < kDims; ++j) o[j] += other.o[j] * factor;
  }

  GPU_INLINE void Load(const Triples& from, std::int64_t index, int d) {
    m = from.m[index];
    l = from.l[index];
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      const int i = j * gpu::kWarpLanes + gpu::lane_index();
      o[j] = i < d ? from.o[index * d + i] : 0.0F;
    }
    __syncwarp();  // lane 0 may store m and l in place as soon as this returns
  }

  GPU_INLINE void Store(const Triples& to, std::int64_t index, int d) const {
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      const int i = j * gpu::kWarpLanes + gpu::lane_index();
      if (i < d) to.o[index * d + i] = o[j];
    }
    if (gpu::lane_index() == 0) {
      to.m[index] = m;
      to.l[index] = l;
    }
  }
};

// Calls launch.operator()<kDims>() with the least kDims that holds d <= 256 dimensions.
template <typename Launch>
auto ForHeadDim(int d, const Launch& launch) {
  if (d <= 64) return launch.template operator()<2>();
  if (d <= 128) return launch.template operator()<4>();
  return launch.template operator()<8>();
}

}  // namespace metattn::cuda
