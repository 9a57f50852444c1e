// The kernels of this folder as plain functions: each puts its work on the stream and returns the
// error of the launch (cudaSuccess when there is nothing to do). One per op of kernels.h, of the
// same name unless it says otherwise; defined in the .cu file of its family. Thread safety as of
// the CUDA runtime.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/params.h"

namespace metattn::cuda {

// Whether this program has code for the selected device: of one architecture all kernels or none.
[[nodiscard]] cudaError_t FindKernels();
[[nodiscard]] cudaError_t LaunchEmbed(const EmbedParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchArgMax(const ArgMaxParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchGather(const GatherParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchNorm(const NormParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchLinear(const LinearParams& p, cudaStream_t stream);
// From so many rows on tensor cores make a product: linear.cu reads W once per eight.
inline constexpr std::int64_t kTensorRows = 16;
// LaunchLinear's way for many rows: on tensor cores, W rounded to bf16.
[[nodiscard]] cudaError_t LaunchLinearMma(const LinearParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchRopeAppend(const RopeAppendParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchForcedRoute(const RouteParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchCompact(const CompactParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchNear(const NearParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchFarFull(const FarParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchAbsorb(const LinearAttention& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchOdds(const OddsParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchFarLinear(const FarLinearParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchControl(const ControlParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchMix(const MixParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchDispatch(const DispatchParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchNormalize(const NormalizeParams& p, cudaStream_t stream);
[[nodiscard]] cudaError_t LaunchSwiGlu(const SwiGluParams& p, cudaStream_t stream);

// Rows that begin at multiples of 16 bytes.
inline bool Aligned16(const void* p, std::int64_t row_bytes) {
  return (reinterpret_cast<std::uintptr_t>(p) | static_cast<std::uintptr_t>(row_bytes)) % 16 == 0;
}

// Places in `boundaries` that a step of `tokens` rows of `sequences` sequences may need.
constexpr std::int64_t BoundaryPlaces(std::int64_t tokens, int sequences) {
  return tokens / 64 + 2 * std::int64_t{sequences};
}

// Far attention: chunks of a row's far span that may be worked on apart, each with a triple per
// query head in scratch, for steps of up to so many sequences (beyond, these alone fill a GPU).
inline constexpr int kFarChunks = 32;
inline constexpr int kFarChunkSequences = 64;

}  // namespace metattn::cuda
