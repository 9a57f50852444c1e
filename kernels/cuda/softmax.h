// Partial triples of a softmax (m = max score, l = sum exp(score - m), o = sum exp(score - m) v)
// and how two become one.
//
// Device code; borrows everything. Sums are written as fmaf, so that every kernel that merges
// the same triples in the same order gets the same bits.
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

// The merge of triples with largest scores a and b: l and every element of o are Sum(a's, b's).
struct Merging {
  float m, keep, add;

  GPU_INLINE Merging(float a, float b)
      : m(fmaxf(a, b)), keep(a == m ? 1.0F : expf(a - m)), add(b == m ? 1.0F : expf(b - m)) {}

  GPU_INLINE float Sum(float a, float b) const { return fmaf(b, add, a * keep); }
};

// The triple of one query head, held by a warp: lane i has dimensions i, i + 32, ... of o. kDims =
// ceil(d / 32) is a template argument so that o stays in registers. Whole warps call.
template <int kDims>
struct Softmax {
  float m = -INFINITY, l = 0;
  float o[kDims] = {};

  GPU_INLINE void Merge(const Softmax& other) {
    if (other.l == 0) return;
    const Merging with(m, other.m);
    m = with.m;
    l = with.Sum(l, other.l);
#pragma unroll
    for (int j = 0; j < kDims; ++j) o[j] = with.Sum(o[j], other.o[j]);
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

// Calls launch.operator()<kDim>() with the least kDim that holds d <= 256 dimensions.
template <typename Launch>
auto ForTileDim(int d, const Launch& launch) {
  return ForHeadDim(d, [&]<int kDims>() { return launch.template operator()<32 * kDims>(); });
}

}  // namespace metattn::cuda
