// Launchers of the kernels that test the emulation itself, and of the same with a bug seeded.
//
// Ownership: pointers are device memory, borrowed. Thread safety: as a CUDA launch. Errors: the
// CUDA error of the launch. Cost: one launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace emu::self {

enum class Bug {
  kNone,
  kMissingBarrier,
  kMissingWarpBarrier,
  kWrongWaitCount,
  kSharedOverrun,
  kDivergentBarrier,
  kStaticOverrun,
  kUnwaitedCopy,
  kForeignLane,  // shuffle from a lane outside the mask
  kMixedCalls,   // lanes of one mask in different collectives
  kMisalignedCopy,
  kMmaOfHalfWarp,
  kNotInMask,
  kExitedLane,
  kLaneBeyondBlock,  // shuffle from a lane that a short last warp does not have
  kMmaInShortWarp,
  kMisalignedRow,
  kForeignRow,  // ldmatrix of global memory
  kTooMuchStatic,
  kTrap,
};

// out[i] = in[n - 1 - i] through dynamic shared memory; n threads of one block.
cudaError_t Reverse(Bug bug, const float* in, float* out, int n, cudaStream_t stream);

// c (16 x 16, fp32) = a (16 x depth) * b (depth x 16), bf16 row-major; depth is a multiple of 32.
// Two warps; cp.async in two stages, ldmatrix, mma.
struct ProductArgs {
  const __nv_bfloat16* a;
  const __nv_bfloat16* b;
  float* c;
  int depth;
};
cudaError_t Product(Bug bug, const ProductArgs& args, cudaStream_t stream);

// Sums 32 values per warp through shared memory in a tree with __syncwarp.
cudaError_t WarpTree(Bug bug, const float* in, float* out, cudaStream_t stream);

// Copies four 8 x 8 matrices of 16-bit elements to shared memory and loads them with ldmatrix_x4:
// out[lane * 4 + m] is register m of the lane. Bug: no warp barrier between copy and load.
cudaError_t LoadMatrices(Bug bug, bool transposed, const std::uint16_t* in, std::uint32_t* out,
                         cudaStream_t stream);

// c (16 x 8) += a (16 x 16) * b (16 x 8), row-major, by one mma whose fragments are filled element
// by element after the tables of the PTX ISA.
cudaError_t MmaFragments(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c,
                         cudaStream_t stream);

// Each warp collective once; row k of `out` (32 ints) holds what call k gave to each lane.
inline constexpr int kWarpCallRows = 23;
cudaError_t WarpCalls(int* out, cudaStream_t stream);
// __syncthreads_count, _and, _or of (thread % 3 == 0) and of true: 6 ints.
cudaError_t BlockVotes(int* out, int threads, cudaStream_t stream);
// What gpu.h's helpers give: see the test.
inline constexpr int kHelperRows = 8;
cudaError_t Helpers(float* out, cudaStream_t stream);
// Bit casts and counts, loads with hints, bf16 arithmetic, minimum and maximum: see the test.
inline constexpr int kIntrinsicCells = 12;
cudaError_t Intrinsics(const float* in, float* out, cudaStream_t stream);
// One warp copies 16 bytes per lane into a static array, the odd lanes zeros instead.
cudaError_t CopyEvenLanes(const float* in, float* out, cudaStream_t stream);
// out[0..6]: sum, max, min, or, count, exchanged, swapped, all by atomics of every thread.
inline constexpr int kAtomicCells = 7;
cudaError_t Atomics(unsigned* cells, int blocks, int threads, cudaStream_t stream);
// Reads its uninitialised shared memory: out[0] dynamic, out[1] static; then writes both.
cudaError_t FreshShared(float* out, int blocks, cudaStream_t stream);
// Thread 0 waits in a loop for a flag that the last thread sets.
cudaError_t SpinOnFlag(int* out, int threads, cudaStream_t stream);
// out[global thread] = its position from all of threadIdx, blockIdx, blockDim, gridDim.
cudaError_t Positions(int* out, dim3 grid, dim3 block, cudaStream_t stream);
// x[i] = x[i] * factor + addend
cudaError_t Affine(float* x, int n, float factor, float addend, cudaStream_t stream);
// A launch with that much dynamic shared memory, allowed by cudaFuncSetAttribute when `ask`.
cudaError_t WantShared(int bytes, bool ask, cudaStream_t stream);
// Misuses of collectives, one per launch of one block.
cudaError_t Misuse(Bug bug, float* out, cudaStream_t stream);

}  // namespace emu::self
