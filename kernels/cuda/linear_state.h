// States at the block boundaries of a step's rows: what linear_odds and linear_far read.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/params.h"

namespace metattn::cuda {

// Fills `boundaries`; `store` makes the state at each sequence's last row the one in memory.
[[nodiscard]] cudaError_t LaunchBoundaries(const LinearAttention& p, bool store,
                                           cudaStream_t stream);

}  // namespace metattn::cuda
