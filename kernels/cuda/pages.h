// Where K and V of a position lie: a page is K as [kBlockTokens][d], then V as [kBlockTokens][d],
// bf16. Device code; borrows everything.
#pragma once

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/params.h"

namespace metattn::cuda {

inline constexpr int kPageTokens =
    64;  // kBlockTokens of kernels/types.h (checked in cuda_kernels.cc)

// K of the position; V lies kPageTokens * d further.
GPU_INLINE gpu::bf16* KeyAt(const Rows& rows, const Pages& pages, int sequence, int head,
                            std::int64_t position) {
  const std::int64_t block = rows.blocks[rows.table_begin[sequence] + position / kPageTokens];
  const std::int64_t d = pages.head_dim;
  return pages.base + (block * pages.block_stride + head) * 2 * kPageTokens * d +
         position % kPageTokens * d;
}

GPU_INLINE bool Eligible(const Rows& rows, std::int64_t row) {
  return rows.linear_all || rows.far_end[row] > rows.sinks;
}

}  // namespace metattn::cuda
