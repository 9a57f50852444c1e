// The only header that kernels include: every hardware feature that C++ has no name for, once, with
// the body that runs on a GPU (nvcc) and the body that runs in the tests' emulation (any other
// compiler, tests/emu). Names that CUDA itself gives (threadIdx, __syncthreads, __shfl_xor_sync,
// atomicAdd, ...) are used as they are; the emulation defines them.
//
// A kernel contains no inline assembly, no <<<>>>, no __CUDA_ARCH__ and no __shared__: shared
// memory comes from GPU_DYN_SMEM and GPU_SHARED, launches go through launch.h. Lowest target:
// sm_80.
//
// Ownership: none; pointers are borrowed for the call. Thread safety: device code; what must be
// called by a whole warp says so. Errors: on a GPU a wrong call is undefined; the emulation reports
// it with file and line and aborts. Cost: each function is one instruction unless said otherwise.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define GPU_SITE
// Dynamic shared memory of the launch as bytes, aligned to 128. Once per kernel.
#define GPU_DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
// Static shared memory: GPU_SHARED(float, row_max, [4][16]) declares float row_max[4][16].
#define GPU_SHARED(type, name, extents) __shared__ type name extents
#else
#include <emu/kernel.h>

// Where a wrapper was called from: last parameter of what can be misused.
#define GPU_SITE , ::emu::Site site = ::emu::Site::current()
#define GPU_DYN_SMEM(name) unsigned char* const name = ::emu::DynamicShared()
// The lambda's type is different at each place (and in each instance of a template): the key.
#define GPU_SHARED(type, name, extents) auto& name = ::emu::StaticShared<type extents>([] {})
#endif

#define GPU_INLINE __device__ __forceinline__

namespace metattn::gpu {

using bf16 = __nv_bfloat16;
inline constexpr unsigned kFullWarp = 0xffffffffU;
inline constexpr int kWarpLanes = 32;

// ---- asynchronous copies from global to shared memory -------------------------------------------

#if defined(__CUDACC__)
GPU_INLINE std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// Starts copying 16 bytes, both addresses aligned to 16; `valid` false writes zeros and does not
// read `global`. The bytes are there for this thread after cp_async_wait and for others after a
// barrier that follows it.
GPU_INLINE void cp_async16(void* shared, const void* global, bool valid = true GPU_SITE) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
#else
  ::emu::CopyAsync16(shared, valid ? global : nullptr, site);
#endif
}

// Closes the group of the copies that this thread started since the last commit (may be empty).
GPU_INLINE void cp_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  ::emu::CommitCopies();
#endif
}

// Waits until at most kPending of this thread's newest groups are still under way.
template <int kPending>
GPU_INLINE void cp_async_wait() {
  static_assert(kPending >= 0);
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  ::emu::WaitForCopies(kPending);
#endif
}

// ---- tensor cores: called by all 32 lanes of a warp together ------------------------------------

// Loads four 8 x 8 matrices of 16-bit elements from shared memory. Lane i gives the address of row
// i % 8 (8 elements, aligned to 16 bytes) of matrix i / 8. r[m] holds, of matrix m, the elements
// (lane / 4, 2 * (lane % 4)) and the one right of it; with kTransposed those of its transpose.
template <bool kTransposed = false>
GPU_INLINE void ldmatrix_x4(std::uint32_t (&r)[4], const void* row GPU_SITE) {
#if defined(__CUDACC__)
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
#else
  ::emu::LoadMatrixX4(r, row, kTransposed, site);
#endif
}

// d += a * b for a of 16 x 16 and b of 16 x 8 bf16, d of 16 x 8 fp32. With g = lane / 4 and
// t = 2 * (lane % 4), each register holding two neighbours, the lower column (a) or row (b) first:
//   a[0] row g, columns t t+1; a[1] row g + 8; a[2] row g, columns t+8 t+9; a[3] row g + 8 of those
//   b0 rows t t+1 of column g; b1 rows t+8 t+9
//   d[0] d[1] row g, columns t t+1; d[2] d[3] row g + 8
GPU_INLINE void mma_bf16_16816(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                               std::uint32_t b1 GPU_SITE) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  ::emu::MmaBf16(d, a, b0, b1, site);
#endif
}

// ---- approximate arithmetic ---------------------------------------------------------------------
// Relative error of the device's body about 2^-22; subnormal arguments and results count as zero.
// The emulated body is exact to rounding, so a bound must not rest on it.

GPU_INLINE float exp2_fast(float x) {  // -infinity gives 0
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::emu::FlushSubnormal(std::exp2(::emu::FlushSubnormal(x)));
#endif
}

GPU_INLINE float rcp_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::emu::FlushSubnormal(1.0F / ::emu::FlushSubnormal(x));
#endif
}

GPU_INLINE float rsqrt_fast(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0F / std::sqrt(::emu::FlushSubnormal(x));
#endif
}

// e^x: two instructions.
GPU_INLINE float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634F); }

// ---- one body for both --------------------------------------------------------------------------

GPU_INLINE int lane_index() { return static_cast<int>(threadIdx.x) % kWarpLanes; }  // 1-D blocks
GPU_INLINE int warp_index() { return static_cast<int>(threadIdx.x) / kWarpLanes; }

// Two floats rounded to nearest even, `low` in the lower half: a register of an mma operand.
GPU_INLINE std::uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  std::uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

// The two halves of such a register.
GPU_INLINE float2 unpack_bf16(std::uint32_t bits) {
  const std::uint32_t low = bits << 16, high = bits & 0xffff0000U;
  float2 pair;
  memcpy(&pair.x, &low, sizeof low);
  memcpy(&pair.y, &high, sizeof high);
  return pair;
}

// Sum and maximum over each aligned group of kLanes lanes, the same bits in each of them; the whole
// warp calls. log2(kLanes) shuffles.
template <int kLanes = kWarpLanes>
GPU_INLINE float warp_sum(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}

template <int kLanes = kWarpLanes>
GPU_INLINE float warp_max(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, step));
  }
  return x;
}

// How many lanes below this one have their bit set in `ballot`: a lane's place in a stable
// compaction.
GPU_INLINE int rank_in(unsigned ballot) {
  return __popc(ballot & ((1U << static_cast<unsigned>(lane_index())) - 1U));
}

}  // namespace metattn::gpu
