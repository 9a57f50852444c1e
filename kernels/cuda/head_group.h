// The launch of attention kernels: grid (row, KV head, part of the group), a warp a query head. Up
// to kGroupWarps query heads share a block, so that the keys that one reads are in L1 for the
// others.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/gpu.h"

namespace metattn::cuda {

inline constexpr int kGroupWarps = 8;

struct GroupLaunch {
  GroupLaunch(std::int64_t rows, int heads, int group)
      : warps(group < kGroupWarps ? group : kGroupWarps),
        grid(static_cast<unsigned>(rows), static_cast<unsigned>(heads),
             static_cast<unsigned>(warps == 0 ? 0 : (group + warps - 1) / warps)),
        block(static_cast<unsigned>(warps * gpu::kWarpLanes)) {}

  bool empty() const { return grid.x == 0 || grid.y == 0 || grid.z == 0; }
  // `floats` for every warp.
  std::size_t shared(int floats) const {
    return sizeof(float) * static_cast<std::size_t>(warps) * static_cast<std::size_t>(floats);
  }

  int warps;
  dim3 grid, block;
};

// This warp's query head within the group; past the group's end in the last part's spare warps.
GPU_INLINE int GroupMember() {
  return static_cast<int>(blockIdx.z * (blockDim.x / gpu::kWarpLanes)) + gpu::warp_index();
}

}  // namespace metattn::cuda
