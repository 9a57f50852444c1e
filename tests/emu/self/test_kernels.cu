// The kernels that test the emulation: one source for nvcc and for the emulation, like the
// engine's. What a Bug seeds is marked where it differs; every other line is meant to be right.

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "tests/emu/self/test_kernels.h"

namespace emu::self {
namespace {

namespace gpu = metattn::gpu;
using gpu::bf16;
using gpu::kFullWarp;

template <Bug kBug>
__global__ void ReverseKernel(const float* in, float* out, int n) {
  GPU_DYN_SMEM(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  const int i = static_cast<int>(threadIdx.x);
  constexpr int kShift = kBug == Bug::kSharedOverrun ? 1 : 0;  // bug: the last thread is outside
  shared[i + kShift] = in[i];
  if constexpr (kBug == Bug::kDivergentBarrier) {  // bug: not the same barrier for all
    if (i < n / 2) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if constexpr (kBug != Bug::kMissingBarrier) {
    __syncthreads();
  }
  out[i] = shared[n - 1 - i + kShift];
}

// Product: rows are padded by 8 elements so that the 8 rows of an ldmatrix lie in different banks.
constexpr int kTileDepth = 32;
constexpr int kPitchA = kTileDepth + 8, kPitchB = 16 + 8;
constexpr int kTileA = 16 * kPitchA, kTileB = kTileDepth * kPitchB;
constexpr int kStage = kTileA + kTileB;

// 64 threads copy 64 chunks of 8 elements of each operand.
__device__ void StartTile(bf16* stage, const ProductArgs& p, int tile) {
  const int i = static_cast<int>(threadIdx.x);
  gpu::cp_async16(stage + i / 4 * kPitchA + i % 4 * 8,
                  p.a + i / 4 * p.depth + tile * kTileDepth + i % 4 * 8);
  gpu::cp_async16(stage + kTileA + i / 2 * kPitchB + i % 2 * 8,
                  p.b + (tile * kTileDepth + i / 2) * 16 + i % 2 * 8);
}

__device__ void MultiplyTile(float (&c)[4], const bf16* stage) {
  const int lane = gpu::lane_index(), column = gpu::warp_index() * 8;
  std::uint32_t b[4];
  gpu::ldmatrix_x4<true>(b, stage + kTileA + lane * kPitchB + column);
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    std::uint32_t a[4];
    gpu::ldmatrix_x4(a, stage + lane % 16 * kPitchA + step * 16 + lane / 16 * 8);
    gpu::mma_bf16_16816(c, a, b[2 * step], b[2 * step + 1]);
  }
}

template <Bug kBug>
__global__ void __launch_bounds__(64) ProductKernel(const __grid_constant__ ProductArgs p) {
  GPU_DYN_SMEM(bytes);
  bf16* const stages = reinterpret_cast<bf16*>(bytes);
  const int tiles = p.depth / kTileDepth;
  float c[4] = {};
  StartTile(stages, p, 0);
  gpu::cp_async_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) StartTile(stages + (tile + 1) % 2 * kStage, p, tile + 1);
    gpu::cp_async_commit();
    gpu::cp_async_wait<kBug == Bug::kWrongWaitCount ? 2 : 1>();  // bug: the tile may be under way
    __syncthreads();
    MultiplyTile(c, stages + tile % 2 * kStage);
    // Before the next tile but one overwrites this stage; bug: one warp may still read it.
    if constexpr (kBug != Bug::kMissingBarrier) __syncthreads();
  }
  gpu::cp_async_wait<0>();
  const int row = gpu::lane_index() / 4;
  const int column = gpu::warp_index() * 8 + gpu::lane_index() % 4 * 2;
  p.c[row * 16 + column] = c[0];
  p.c[row * 16 + column + 1] = c[1];
  p.c[(row + 8) * 16 + column] = c[2];
  p.c[(row + 8) * 16 + column + 1] = c[3];
}

template <Bug kBug>
__global__ void WarpTreeKernel(const float* in, float* out) {
  GPU_SHARED(float, value, [64]);
  const int i = static_cast<int>(threadIdx.x), warp = gpu::warp_index(), lane = gpu::lane_index();
  value[i] = in[i];
  for (int half = 16; half > 0; half /= 2) {
    if constexpr (kBug != Bug::kMissingWarpBarrier) __syncwarp();
    if (lane < half) value[i] += value[i + half];
  }
  if (lane == 0) out[warp] = value[i];
}

template <Bug kBug, bool kTransposed>
__global__ void LoadMatricesKernel(const std::uint16_t* in, std::uint32_t* out) {
  GPU_DYN_SMEM(bytes);
  std::uint16_t* const rows = reinterpret_cast<std::uint16_t*>(bytes);
  const int lane = gpu::lane_index();
  gpu::cp_async16(rows + 8 * lane, in + 8 * lane);
  gpu::cp_async_commit();
  gpu::cp_async_wait<0>();
  if constexpr (kBug != Bug::kMissingWarpBarrier) __syncwarp();
  std::uint32_t r[4];
  gpu::ldmatrix_x4<kTransposed>(r, rows + 8 * lane);
#pragma unroll
  for (int m = 0; m < 4; ++m) out[lane * 4 + m] = r[m];
}

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": element i of a thread lies
// at
//   A: row g for 0 <= i < 2 or 4 <= i < 6, else g + 8; column 2 t + (i & 1), and + 8 for i >= 4
//   B: row 2 t + (i & 1), and + 8 for i >= 2; column g
//   C: row g for i < 2, else g + 8; column 2 t + (i & 1)
__global__ void MmaFragmentsKernel(const bf16* a, const bf16* b, float* c) {
  const int g = gpu::lane_index() >> 2, t = gpu::lane_index() % 4;
  const auto a_element = [&](int i) {
    const int row = (i < 2 || (i >= 4 && i < 6)) ? g : g + 8;
    return __bfloat162float(a[row * 16 + t * 2 + (i & 1) + (i >= 4 ? 8 : 0)]);
  };
  const auto b_element = [&](int i) {
    return __bfloat162float(b[(t * 2 + (i & 1) + (i >= 2 ? 8 : 0)) * 8 + g]);
  };
  const auto c_index = [&](int i) { return (i < 2 ? g : g + 8) * 8 + t * 2 + (i & 1); };
  std::uint32_t fragment[4];
  float d[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    fragment[i] = gpu::pack_bf16(a_element(2 * i), a_element(2 * i + 1));
    d[i] = c[c_index(i)];
  }
  gpu::mma_bf16_16816(d, fragment, gpu::pack_bf16(b_element(0), b_element(1)),
                      gpu::pack_bf16(b_element(2), b_element(3)));
#pragma unroll
  for (int i = 0; i < 4; ++i) c[c_index(i)] = d[i];
}

__global__ void WarpCallsKernel(int* out) {
  const int lane = gpu::lane_index();
  const int v = 100 + lane;
  int row = 0;
  const auto put = [&](int x) { out[32 * row++ + lane] = x; };
  put(__shfl_sync(kFullWarp, v, 5));
  put(__shfl_sync(kFullWarp, v, lane + 1));  // beyond 31: wraps
  put(__shfl_sync(kFullWarp, v, 3, 8));      // lane 3 of each segment of 8
  put(__shfl_xor_sync(kFullWarp, v, 1));
  put(__shfl_xor_sync(kFullWarp, v, 8, 8));  // earlier segments only
  put(__shfl_up_sync(kFullWarp, v, 2));
  put(__shfl_up_sync(kFullWarp, v, 2, 16));
  put(__shfl_down_sync(kFullWarp, v, 3));
  put(__shfl_down_sync(kFullWarp, v, 3, 4));
  put(static_cast<int>(__ballot_sync(kFullWarp, lane % 3 == 0)));
  put(__any_sync(kFullWarp, lane == 31));
  put(__any_sync(kFullWarp, lane == 32));
  put(__all_sync(kFullWarp, lane < 32));
  put(__all_sync(kFullWarp, lane < 31));
  put(__reduce_add_sync(kFullWarp, lane - 3));
  put(__reduce_min_sync(kFullWarp, lane - 3));
  put(__reduce_max_sync(kFullWarp, lane - 3));
  put(static_cast<int>(__reduce_and_sync(kFullWarp, 0x70U | static_cast<unsigned>(lane))));
  put(static_cast<int>(__reduce_or_sync(kFullWarp, 1U << lane % 5)));
  put(static_cast<int>(__reduce_xor_sync(kFullWarp, static_cast<unsigned>(lane))));
  // Two halves of the warp, each with its own mask and at its own place in the program.
  const unsigned half = lane < 16 ? 0x0000ffffU : 0xffff0000U;
  int sum = 0;
  if (lane < 16) {
    sum = __reduce_add_sync(half, 1);
  } else {
    sum = __reduce_add_sync(half, 2);
  }
  put(sum);
  const double low = __shfl_sync(kFullWarp, static_cast<double>(lane), 7);  // 8 bytes
  put(static_cast<int>(low));
  const bf16 half_size = __shfl_sync(kFullWarp, __float2bfloat16(static_cast<float>(lane)), 9);
  put(static_cast<int>(__bfloat162float(half_size)));
}

__global__ void BlockVotesKernel(int* out) {
  const int third = threadIdx.x % 3 == 0 ? 1 : 0;
  const int count = __syncthreads_count(third);
  const int all = __syncthreads_and(third);
  const int any = __syncthreads_or(third);
  const int count_true = __syncthreads_count(1);
  const int all_true = __syncthreads_and(1);
  const int any_false = __syncthreads_or(0);
  if (threadIdx.x + 1 != blockDim.x) return;
  out[0] = count;
  out[1] = all;
  out[2] = any;
  out[3] = count_true;
  out[4] = all_true;
  out[5] = any_false;
}

__global__ void HelpersKernel(float* out) {
  const int lane = gpu::lane_index();
  const float x = static_cast<float>(lane) - 10.0F;
  int row = 0;
  const auto put = [&](float y) { out[32 * row++ + lane] = y; };
  put(gpu::warp_sum(x));
  put(gpu::warp_sum<4>(x));
  put(gpu::warp_max<8>(-x));
  put(gpu::exp2_fast(lane == 0 ? -INFINITY : x));
  put(gpu::exp_fast(x));
  put(gpu::rcp_fast(x + 0.5F));
  put(gpu::rsqrt_fast(static_cast<float>(lane + 1)));
  put(static_cast<float>(gpu::rank_in(__ballot_sync(kFullWarp, lane % 2 == 0))));
}

__global__ void IntrinsicsKernel(const float* in, float* out) {
  out[0] = __int_as_float(__float_as_int(__ldg(in)));
  out[1] = __uint_as_float(__float_as_uint(__ldcg(in + 1)));
  __stcs(out + 2, __ldcs(in + 2));
  out[3] = static_cast<float>(__popc(0xf0f0U));
  out[4] = static_cast<float>(__ffs(0x40));
  out[5] = static_cast<float>(__clz(1));
  const bf16 two = __float2bfloat16(2), three = __float2bfloat16(3);
  out[6] = __bfloat162float(__hfma(two, three, two));
  const __nv_bfloat162 pair = __hfma2({two, three}, {two, three}, {three, two});
  out[7] = __bfloat162float(pair.x);
  out[8] = __bfloat162float(pair.y);
  out[9] = static_cast<float>(min(3, 4) + max(5, 6));
  __threadfence_block();
  __threadfence();
  const std::uint32_t packed = gpu::pack_bf16(1.0F, -2.0F);
  out[10] = __uint_as_float(packed << 16);
  out[11] = __uint_as_float(packed & 0xffff0000U);
}

__global__ void CopyEvenLanesKernel(const float* in, float* out) {
  GPU_SHARED(float4, rows, [32]);
  const int lane = gpu::lane_index();
  gpu::cp_async16(&rows[lane], in + 4 * lane, lane % 2 == 0);
  gpu::cp_async_commit();
  gpu::cp_async_wait<0>();
  __syncthreads();
  reinterpret_cast<float4*>(out)[lane] = rows[31 - lane];
}

__global__ void AtomicsKernel(unsigned* cells) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&cells[0], i);
  atomicMax(&cells[1], i);
  atomicMin(&cells[2], i);
  atomicOr(&cells[3], 1U << i % 32);
  atomicInc(&cells[4], 1000000U);
  if (i == 3) atomicExch(&cells[5], 7U);
  atomicCAS(&cells[6], i, i + 1);  // a chain only where the order happens to fit
}

__global__ void FreshSharedKernel(float* out) {
  GPU_DYN_SMEM(bytes);
  GPU_SHARED(float, fixed, [2][3]);
  float* shared = reinterpret_cast<float*>(bytes);
  out[2 * blockIdx.x] = shared[3];
  out[2 * blockIdx.x + 1] = fixed[1][2];
  shared[3] = 1;
  fixed[1][2] = 2;
}

__global__ void SpinOnFlagKernel(int* out) {
  GPU_SHARED(int, flag, [1]);
  if (threadIdx.x == 0) flag[0] = 0;
  __syncthreads();
  if (threadIdx.x + 1 == blockDim.x) atomicExch(&flag[0], 1);
  if (threadIdx.x == 0) {
    int turns = 0;
    while (atomicAdd(&flag[0], 0) == 0) {
      __nanosleep(20);
      ++turns;
    }
    out[0] = turns + 1;
  }
}

__global__ void PositionsKernel(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  out[i] = static_cast<int>(i);
}

__global__ void AffineKernel(float* x, int n, float factor, float addend) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < static_cast<unsigned>(n)) x[i] = x[i] * factor + addend;
}

__global__ void WantSharedKernel() {}

template <Bug kBug>
__global__ void MisuseKernel(float* out) {
  GPU_DYN_SMEM(bytes);
  bf16* const shared = reinterpret_cast<bf16*>(bytes);
  const int lane = gpu::lane_index();
  if constexpr (kBug == Bug::kUnwaitedCopy) {
    gpu::cp_async16(shared + 8 * lane, out);
    gpu::cp_async_commit();
  } else if constexpr (kBug == Bug::kMisalignedCopy) {
    gpu::cp_async16(shared + 1, out);
  } else if constexpr (kBug == Bug::kSharedOverrun) {
    gpu::cp_async16(shared + 32 * 8, out);
  } else if constexpr (kBug == Bug::kForeignLane) {
    if (lane < 16) out[lane] = static_cast<float>(__shfl_sync(0x0000ffffU, lane, 20));
  } else if constexpr (kBug == Bug::kMixedCalls) {
    if (lane < 16) {
      out[lane] = static_cast<float>(__shfl_sync(kFullWarp, lane, 0));
    } else {
      __syncwarp();
    }
  } else if constexpr (kBug == Bug::kMmaOfHalfWarp) {
    float d[4] = {};
    const std::uint32_t a[4] = {};
    if (lane < 16) gpu::mma_bf16_16816(d, a, 0, 0);
    out[lane] = d[0];
  } else if constexpr (kBug == Bug::kNotInMask) {
    if (lane == 0) __syncwarp(2U);
  } else if constexpr (kBug == Bug::kExitedLane) {
    if (lane == 0) return;
    __syncthreads();
  } else if constexpr (kBug == Bug::kLaneBeyondBlock) {
    out[lane] = static_cast<float>(__shfl_sync(kFullWarp, lane, 20));
  } else if constexpr (kBug == Bug::kMmaInShortWarp) {
    float d[4] = {};
    const std::uint32_t a[4] = {};
    gpu::mma_bf16_16816(d, a, 0, 0);
    out[lane] = d[0];
  } else if constexpr (kBug == Bug::kMisalignedRow) {
    std::uint32_t r[4];
    gpu::ldmatrix_x4(r, shared + 4);
    out[lane] = static_cast<float>(r[0]);
  } else if constexpr (kBug == Bug::kForeignRow) {
    std::uint32_t r[4];
    gpu::ldmatrix_x4(r, out);
    out[lane] = static_cast<float>(r[0]);
  } else if constexpr (kBug == Bug::kTooMuchStatic) {
    GPU_SHARED(float, large, [5000]);
    large[lane] = 0;
  } else if constexpr (kBug == Bug::kTrap) {
    __trap();
  } else if constexpr (kBug == Bug::kStaticOverrun) {
    GPU_SHARED(float, fixed, [4]);
    float* begin = &fixed[0];
    begin[lane < 4 ? lane : 4] = 1;  // bug: lanes from 4 on
    out[lane] = begin[0];
  }
}

template <Bug kBug>
cudaError_t LaunchMisuse(float* out, cudaStream_t stream) {
  constexpr bool kShort = kBug == Bug::kLaneBeyondBlock || kBug == Bug::kMmaInShortWarp;
  return gpu::launch(MisuseKernel<kBug>, dim3(1), dim3(kShort ? 16 : 32), 512, stream, out);
}

}  // namespace

cudaError_t Reverse(Bug bug, const float* in, float* out, int n, cudaStream_t stream) {
  auto* kernel = ReverseKernel<Bug::kNone>;
  if (bug == Bug::kMissingBarrier) kernel = ReverseKernel<Bug::kMissingBarrier>;
  if (bug == Bug::kSharedOverrun) kernel = ReverseKernel<Bug::kSharedOverrun>;
  if (bug == Bug::kDivergentBarrier) kernel = ReverseKernel<Bug::kDivergentBarrier>;
  const std::size_t shared_bytes = sizeof(float) * static_cast<std::size_t>(n);
  return gpu::launch(kernel, dim3(1), dim3(static_cast<unsigned>(n)), shared_bytes, stream, in, out,
                     n);
}

cudaError_t Product(Bug bug, const ProductArgs& args, cudaStream_t stream) {
  auto* kernel = ProductKernel<Bug::kNone>;
  if (bug == Bug::kMissingBarrier) kernel = ProductKernel<Bug::kMissingBarrier>;
  if (bug == Bug::kWrongWaitCount) kernel = ProductKernel<Bug::kWrongWaitCount>;
  const std::size_t shared_bytes = 2 * kStage * sizeof(bf16);
  return gpu::launch(kernel, dim3(1), dim3(64), shared_bytes, stream, args);
}

cudaError_t WarpTree(Bug bug, const float* in, float* out, cudaStream_t stream) {
  auto* kernel = WarpTreeKernel<Bug::kNone>;
  if (bug == Bug::kMissingWarpBarrier) kernel = WarpTreeKernel<Bug::kMissingWarpBarrier>;
  return gpu::launch(kernel, dim3(1), dim3(64), 0, stream, in, out);
}

cudaError_t LoadMatrices(Bug bug, bool transposed, const std::uint16_t* in, std::uint32_t* out,
                         cudaStream_t stream) {
  auto* kernel = LoadMatricesKernel<Bug::kNone, false>;
  if (transposed) kernel = LoadMatricesKernel<Bug::kNone, true>;
  if (bug == Bug::kMissingWarpBarrier) kernel = LoadMatricesKernel<Bug::kMissingWarpBarrier, false>;
  return gpu::launch(kernel, dim3(1), dim3(32), 512, stream, in, out);
}

cudaError_t MmaFragments(const bf16* a, const bf16* b, float* c, cudaStream_t stream) {
  return gpu::launch(MmaFragmentsKernel, dim3(1), dim3(32), 0, stream, a, b, c);
}

cudaError_t WarpCalls(int* out, cudaStream_t stream) {
  return gpu::launch(WarpCallsKernel, dim3(1), dim3(32), 0, stream, out);
}

cudaError_t BlockVotes(int* out, int threads, cudaStream_t stream) {
  const dim3 block(static_cast<unsigned>(threads));
  return gpu::launch(BlockVotesKernel, dim3(1), block, 0, stream, out);
}

cudaError_t Helpers(float* out, cudaStream_t stream) {
  return gpu::launch(HelpersKernel, dim3(1), dim3(32), 0, stream, out);
}

cudaError_t Intrinsics(const float* in, float* out, cudaStream_t stream) {
  return gpu::launch(IntrinsicsKernel, dim3(1), dim3(1), 0, stream, in, out);
}

cudaError_t CopyEvenLanes(const float* in, float* out, cudaStream_t stream) {
  return gpu::launch(CopyEvenLanesKernel, dim3(1), dim3(32), 0, stream, in, out);
}

cudaError_t Atomics(unsigned* cells, int blocks, int threads, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
  return gpu::launch(AtomicsKernel, grid, block, 0, stream, cells);
}

cudaError_t FreshShared(float* out, int blocks, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(blocks));
  return gpu::launch(FreshSharedKernel, grid, dim3(1), 16, stream, out);
}

cudaError_t SpinOnFlag(int* out, int threads, cudaStream_t stream) {
  const dim3 block(static_cast<unsigned>(threads));
  return gpu::launch(SpinOnFlagKernel, dim3(1), block, 0, stream, out);
}

cudaError_t Positions(int* out, dim3 grid, dim3 block, cudaStream_t stream) {
  return gpu::launch(PositionsKernel, grid, block, 0, stream, out);
}

cudaError_t Affine(float* x, int n, float factor, float addend, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(n + 127) / 128);
  return gpu::launch(AffineKernel, grid, dim3(128), 0, stream, x, n, factor, addend);
}

cudaError_t WantShared(int bytes, bool ask, cudaStream_t stream) {
  if (ask) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(WantSharedKernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
  }
  return gpu::launch(WantSharedKernel, dim3(1), dim3(32), static_cast<std::size_t>(bytes), stream);
}

cudaError_t Misuse(Bug bug, float* out, cudaStream_t stream) {
  switch (bug) {
    case Bug::kUnwaitedCopy:
      return LaunchMisuse<Bug::kUnwaitedCopy>(out, stream);
    case Bug::kMisalignedCopy:
      return LaunchMisuse<Bug::kMisalignedCopy>(out, stream);
    case Bug::kSharedOverrun:
      return LaunchMisuse<Bug::kSharedOverrun>(out, stream);
    case Bug::kForeignLane:
      return LaunchMisuse<Bug::kForeignLane>(out, stream);
    case Bug::kMixedCalls:
      return LaunchMisuse<Bug::kMixedCalls>(out, stream);
    case Bug::kMmaOfHalfWarp:
      return LaunchMisuse<Bug::kMmaOfHalfWarp>(out, stream);
    case Bug::kNotInMask:
      return LaunchMisuse<Bug::kNotInMask>(out, stream);
    case Bug::kExitedLane:
      return LaunchMisuse<Bug::kExitedLane>(out, stream);
    case Bug::kStaticOverrun:
      return LaunchMisuse<Bug::kStaticOverrun>(out, stream);
    case Bug::kLaneBeyondBlock:
      return LaunchMisuse<Bug::kLaneBeyondBlock>(out, stream);
    case Bug::kMmaInShortWarp:
      return LaunchMisuse<Bug::kMmaInShortWarp>(out, stream);
    case Bug::kMisalignedRow:
      return LaunchMisuse<Bug::kMisalignedRow>(out, stream);
    case Bug::kForeignRow:
      return LaunchMisuse<Bug::kForeignRow>(out, stream);
    case Bug::kTooMuchStatic:
      return LaunchMisuse<Bug::kTooMuchStatic>(out, stream);
    case Bug::kTrap:
      return LaunchMisuse<Bug::kTrap>(out, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace emu::self
