// How rows of the step and query heads of a KV head's group share the rows of a tile on tensor
// cores. Device code.
#pragma once

#include "kernels/cuda/gpu.h"

namespace metattn::cuda {

// A tile of `capacity` query rows holds several rows of the step with all their query heads; a
// group that is larger than a tile takes several parts.
struct Packing {
  int rows, first_member, members;

  GPU_INLINE Packing(int capacity, int group, int part)
      : rows(group < capacity ? capacity / group : 1),
        first_member(part * capacity),
        members(group - first_member < capacity ? group - first_member : capacity) {}
};

}  // namespace metattn::cuda
