// States at the block boundaries of a step's rows: what linear_odds and linear_attention read.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/params.h"

namespace metattn::cuda {

// Fills `boundaries` past each sequence's first, where rows read its own state.
[[nodiscard]] cudaError_t LaunchBoundaries(const LinearAttention& p, cudaStream_t stream);
// Makes the state at each sequence's last row, from `boundaries`, its own.
[[nodiscard]] cudaError_t LaunchStore(const LinearAttention& p, cudaStream_t stream);

}  // namespace metattn::cuda
