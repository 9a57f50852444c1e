// CUDA's language for a plain C++ compiler: what kernels/cuda/gpu.h includes instead of the
// toolkit's device headers. __shared__ is no word here: gpu.h's macros give memory that is filled
// and fenced.
//
// Ownership: none. Thread safety: names are valid inside a running kernel only. Errors: misuse of a
// collective is printed with file and line and aborts. Cost: see collectives.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include "tests/emu/collectives.h"
#include "tests/emu/intrinsics.h"

// The toolkit defines these for other compilers as nothing or as something that does not parse.
#undef __shared__
#define __shared__ __shared__must_be_GPU_SHARED_or_GPU_DYN_SMEM
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

// Variables, not macros: cudaLaunchConfig_t has members of these names. Set at each switch.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

#define EMU_SITE ::emu::Site site = ::emu::Site::current()

inline void __syncthreads(EMU_SITE) { emu::SyncBlock("__syncthreads", false, site); }
inline int __syncthreads_count(int predicate, EMU_SITE) {
  return emu::SyncBlock("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, EMU_SITE) {
  return emu::SyncBlock("__syncthreads_or", predicate != 0, site) != 0 ? 1 : 0;
}
inline int __syncthreads_and(int predicate, EMU_SITE) {
  return emu::SyncBlock("__syncthreads_and", predicate == 0, site) == 0 ? 1 : 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffU, EMU_SITE) { emu::SyncWarp(mask, site); }
inline void __nanosleep(unsigned) { emu::YieldThread(); }
[[noreturn]] inline void __trap() { emu::Fail("__trap"); }

namespace emu {

// The lane's number in its warp, for blocks of any shape.
inline int LaneIndex() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) %
                          32U);
}

// The value of lane `source`, the own one where that is not in [begin, end).
template <typename T>
T ShuffleFrom(unsigned mask, T value, int source, const int (&range)[2], const Site& site) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  const bool inside = source >= range[0] && source < range[1];
  Shuffle(mask, &value, sizeof value, inside ? source : -1, site);
  return value;
}

// First lane of the segment of `width` lanes that the calling lane is in.
inline int SegmentStart(int width) { return LaneIndex() & ~(width - 1); }

}  // namespace emu

// Shuffles work in segments of `width` lanes: up and down stay in the own one, sync wraps around in
// it, xor may also read from earlier ones.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_SITE) {
  const int from = emu::SegmentStart(width) + (source & (width - 1));
  return emu::ShuffleFrom(mask, value, from, {0, 32}, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_SITE) {
  const int end = emu::SegmentStart(width) + width;
  return emu::ShuffleFrom(mask, value, emu::LaneIndex() ^ lanes, {0, end}, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
  const int from = emu::LaneIndex() - static_cast<int>(delta);
  return emu::ShuffleFrom(mask, value, from, {emu::SegmentStart(width), 32}, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
  const int from = emu::LaneIndex() + static_cast<int>(delta);
  return emu::ShuffleFrom(mask, value, from, {0, emu::SegmentStart(width) + width}, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_SITE) {
  return emu::Vote("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, EMU_SITE) {
  return emu::Vote("__any_sync", mask, predicate != 0, site) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int predicate, EMU_SITE) {
  return emu::Vote("__all_sync", mask, predicate == 0, site) == 0 ? 1 : 0;
}

template <typename T>
T __reduce_add_sync(unsigned mask, T value, EMU_SITE) {
  return static_cast<T>(emu::Reduce(emu::Reduction::kAdd, mask, value, site));
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, EMU_SITE) {
  return static_cast<T>(emu::Reduce(emu::Reduction::kMin, mask, value, site));
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, EMU_SITE) {
  return static_cast<T>(emu::Reduce(emu::Reduction::kMax, mask, value, site));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, EMU_SITE) {
  return static_cast<unsigned>(emu::Reduce(emu::Reduction::kAnd, mask, value, site));
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, EMU_SITE) {
  return static_cast<unsigned>(emu::Reduce(emu::Reduction::kOr, mask, value, site));
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, EMU_SITE) {
  return static_cast<unsigned>(emu::Reduce(emu::Reduction::kXor, mask, value, site));
}

#undef EMU_SITE
